#!/usr/bin/env bash
# What PyTorch and transformers compute with exported models: bash tests/long/export_torch.sh
# Makes an environment of its own in build/torch, with the packages of tests/torch_requirements.txt
# (some 6 GB: PyTorch comes with CUDA), or takes the one whose interpreter SUPRA_TORCH_PYTHON names.
# SUPRA_BUILD names the build under test, build/release by default, which must be there.
set -euo pipefail
source "$(dirname "$0")/../../launch/setup.sh"
cd "$root"

torch_python=${SUPRA_TORCH_PYTHON:-$root/build/torch/bin/python}
requirements=$root/tests/torch_requirements.txt
stamp=$root/build/torch/requirements.sha256
if [[ -z ${SUPRA_TORCH_PYTHON:-} ]] && ! sha256sum --check --status "$stamp" 2>/dev/null; then
  say "making the Python environment build/torch"
  quietly python3 -m venv --clear "$root/build/torch"
  quietly "$torch_python" -m pip install --disable-pip-version-check --requirement "$requirements"
  sha256sum "$requirements" >"$stamp"
fi

# The fixtures of tests/cli are these tests' too.
PYTHONPATH=tests/cli exec "$torch_python" -m pytest -q -p no:cacheprovider -p conftest \
  tests/long/test_export_torch.py
