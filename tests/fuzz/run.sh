#!/usr/bin/env bash
# Fuzzes the readers of files with libFuzzer:
#   bash tests/fuzz/run.sh [--seconds N] [--minimize] [TARGET...]
# Each target (all, if none is named) runs for N seconds, 60 unless said, from the inputs in
# tests/fuzz/corpus, those of make_seeds.py, and what runs before found, which build/fuzz/corpus
# keeps. A finding is an input that crashes, that a sanitizer complains about, that takes 100
# seconds, or that has more than 256 MiB allocated at once: it lies in build/fuzz/findings, is shown,
# and makes the exit code 1. --minimize then reduces tests/fuzz/corpus to few inputs that reach as
# much of the code.
set -euo pipefail
source "$(dirname "$0")/../../launch/setup.sh"
cd "$root"

known=(safetensors hf_config recipe token_file checkpoint)
usage="usage: bash tests/fuzz/run.sh [--seconds N] [--minimize] [TARGET...]; targets are ${known[*]}"
seconds=60
minimize=false
targets=()
while (($#)); do
  case $1 in
    --seconds) seconds=${2:?$usage}; shift ;;
    --minimize) minimize=true ;;
    -*) fail "unknown option $1; $usage" ;;
    *) [[ " ${known[*]} " == *" $1 "* ]] || fail "unknown target $1; $usage"; targets+=("$1") ;;
  esac
  shift
done
((${#targets[@]})) || targets=("${known[@]}")

packages+=(clang-16 libclang-rt-16-dev libomp-16-dev llvm-16)
setup_packages
setup_python
setup_build fuzz "${targets[@]/#/fuzz_}"
"$python" tests/fuzz/make_seeds.py build/fuzz/seeds

export ASAN_OPTIONS=detect_leaks=0 ASAN_SYMBOLIZER_PATH=/usr/bin/llvm-symbolizer-16
# The files that targets write and read: in memory, where there is room for that.
TMPDIR=$(mktemp -d -p "$([[ -w /dev/shm ]] && echo /dev/shm || echo /tmp)" fuzz.XXXXXX)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
limits=(-rss_limit_mb=2048 -malloc_limit_mb=256 -timeout=100 -max_len=4096 -len_control=0)

# last_number PATTERN LOG: the number behind the last match.
last_number() { grep -aoE "$1 *[0-9]+" "$2" | tail -1 | grep -oE '[0-9]+$' || echo 0; }

failed=0
table=$(printf '%-12s %12s %8s %10s %8s' target executions edges findings seconds)
for target in "${targets[@]}"; do
  corpus=build/fuzz/corpus/$target findings=build/fuzz/findings/$target log=build/fuzz/$target.log
  mkdir -p "$corpus" "$findings" "tests/fuzz/corpus/$target"
  say "$target for $seconds s"
  began=$SECONDS
  build/fuzz/fuzz_"$target" "$corpus" "tests/fuzz/corpus/$target" "build/fuzz/seeds/$target" \
    "${limits[@]}" -max_total_time="$seconds" -print_final_stats=1 -artifact_prefix="$findings/" \
    >"$log" 2>&1 && found=0 || found=1
  if ((found)); then
    grep -avE '^(#[0-9]|INFO:|\s+NEW_FUNC)' "$log" | cut -c1-160 | head -40
    failed=$((failed + 1))
  fi
  table+=$(printf '\n%-12s %12s %8s %10s %8s' "$target" "$(last_number number_of_executed_units: "$log")" \
    "$(last_number cov: "$log")" "$found" "$((SECONDS - began))")
  if $minimize && ((found == 0)); then
    smallest=$(mktemp -d)
    build/fuzz/fuzz_"$target" -set_cover_merge=1 -use_counters=0 "${limits[@]}" -max_len=1024 "$smallest" \
      "tests/fuzz/corpus/$target" "build/fuzz/seeds/$target" "$corpus" >"$log" 2>&1
    rm -rf "tests/fuzz/corpus/$target"
    mv "$smallest" "tests/fuzz/corpus/$target"
  fi
done
printf '%s\n%d passed, %d failed\n' "$table" "$((${#targets[@]} - failed))" "$failed"
((failed == 0))
