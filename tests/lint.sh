#!/usr/bin/env bash
# Formatting and clang-tidy over all C++ files: bash tests/lint.sh [FILE...]. Needs a configured build/release.
set -euo pipefail
source "$(dirname "$0")/../launch/setup.sh"
cd "$root"
# clang 14, Debian 12's default, has no std::source_location; 16 has.
packages+=(clang-format clang-tidy-16 libomp-16-dev)
setup_packages
[[ -f build/release/compile_commands.json ]] || quietly cmake --preset release

if (($#)); then files=("$@"); else mapfile -t files < <(git ls-files '*.cpp' '*.h' '*.inc' '*.cu' '*.cuh'); fi
clang-format --dry-run --Werror "${files[@]}"
say "formatting is right"
# CUDA's names are not ours, and its stand-ins' neither: clang-tidy sees what the preset release builds.
printf '%s\n' "${files[@]}" | grep '\.cpp$' |
  grep -vE '^(runtime/cuda/|tests/emulat|tests/cuda/|tests/mpi/emulated/|tests/kernel_launches|parallel/communication/nccl_comm)' |
  xargs -P "$(nproc)" -n 4 clang-tidy-16 --quiet -p build/release --extra-arg=-Wno-unknown-warning-option
say "clang-tidy has nothing to say"
