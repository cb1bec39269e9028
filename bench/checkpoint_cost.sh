#!/usr/bin/env bash
# What a checkpoint after every step costs, set-up included: bash bench/checkpoint_cost.sh --help
set -euo pipefail
source "$(dirname "$0")/../launch/setup.sh"
cd "$root"
setup_packages
setup_python
setup_build release supra
exec "$python" bench/checkpoint_cost.py "$@"
