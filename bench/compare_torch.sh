#!/usr/bin/env bash
# The training step beside PyTorch's on this machine: bash bench/compare_torch.sh [--quick | --help];
# or linear attention alone: bash bench/compare_torch.sh --attention
# Installs what is missing, PyTorch in an environment of its own (PyPI's wheel brings CUDA along:
# 5.6 GB on disk), makes models and tokens, checks that both compute the same, and measures them.
# Everything it makes lies in build/peers, the results in compare_torch.json or
# compare_attention.json.
set -euo pipefail
source "$(dirname "$0")/../launch/setup.sh"
cd "$root"

peers=build/peers
# torch.compile compiles against Python's headers; tcmalloc is PyTorch's own advice for CPUs.
packages+=(python3-dev libtcmalloc-minimal4)
setup_packages
setup_python
setup_build release supra
stamp=$peers/venv/requirements.sha256
if ! sha256sum --check --status "$stamp" 2>/dev/null; then
  say "installing PyTorch into $peers/venv"
  quietly "$python" -m venv --clear $peers/venv
  quietly $peers/venv/bin/python -m pip install --disable-pip-version-check --no-cache-dir \
    --requirement bench/peers/requirements.txt
  sha256sum bench/peers/requirements.txt >"$stamp"
fi
program=compare_torch.py
if [[ ${1:-} == --attention ]]; then
  program=compare_attention.py
  shift
fi
exec "$python" "bench/peers/$program" --folder $peers "$@"
