#!/usr/bin/env bash
# The training step beside llm.c's CPU trainer on this machine: bash bench/compare_llmc.sh [--help]
# Installs what is missing, clones llm.c at a fixed commit, builds its train_gpt2 as its Makefile
# does (CC=clang for another compiler), makes the files it reads, and measures both.
# Everything it makes lies in build/peers/llmc, the results in compare_llmc.json.
set -euo pipefail
source "$(dirname "$0")/../launch/setup.sh"
cd "$root"
packages+=(git make)
setup_packages
setup_python
setup_build release supra
exec "$python" bench/peers/compare_llmc.py "$@"
