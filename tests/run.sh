#!/usr/bin/env bash
# Every test of the project, set-up included: bash tests/run.sh [--preset release|debug|asan]
# Ends with the line "N passed, N failed"; the exit code is 0 when none failed.
set -uo pipefail
source "$(dirname "$0")/../launch/setup.sh"
cd "$root"

preset=release
while (($#)); do
  case $1 in
    --preset) preset=${2:?--preset needs a name}; shift 2 ;;
    *) fail "unknown option $1; usage: bash tests/run.sh [--preset release|debug|asan]" ;;
  esac
done

setup_packages
setup_python
setup_build "$preset"
mpi_environment
export SUPRA_BUILD=build/$preset
# Open MPI and HDF5 keep memory to the end on purpose; everything else the sanitizers see counts.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1

passed=0
failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# count NAME COMMAND...: runs a doctest or pytest program and adds its results; shows the output of a failure.
count() {
  local name=$1 status=0 good bad began=$SECONDS
  shift
  "$@" >"$log" 2>&1 || status=$?
  # doctest's "test cases: 9 | 8 passed | 1 failed", pytest's "1 failed, 8 passed, 1 error"
  good=$(tail -5 "$log" | grep -aoE '[0-9]+ passed' | head -1 | tr -dc 0-9)
  bad=$(tail -5 "$log" | grep -aoE '[0-9]+ (failed|error)' | head -1 | tr -dc 0-9)
  : "${good:=0}" "${bad:=0}"
  # A program that dies, or that runs nothing, is a failure whatever it counted.
  if ((bad == 0 && (status != 0 || good == 0))); then bad=1; fi
  if ((bad)); then cat "$log"; fi
  printf '%-28s %4d passed %4d failed  %4d s\n' "$name" "$good" "$bad" $((SECONDS - began))
  passed=$((passed + good))
  failed=$((failed + bad))
}

count "unit tests" "build/$preset/unit_tests"
for ranks in 1 2 3 4; do
  count "collectives, $ranks ranks" mpirun -n "$ranks" "build/$preset/mpi_tests"
done
count "command line" "$python" -m pytest -q -p no:cacheprovider tests/cli

printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0))
