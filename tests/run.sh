#!/usr/bin/env bash
# Every test of the project, set-up included: bash tests/run.sh [--preset release|debug|asan] [--long]
# With the preset release also runs on emulated hosts under Slurm, and the CUDA device: on the emulated
# GPU, and compiled where nvcc is found; the programs share all objects but the device's. --long adds what
# takes minutes: all the faults that a run on a cluster has to survive (build/faults.json), exports in
# PyTorch, fuzzing.
# Ends with the line "N passed, N failed"; the exit code is 0 when none failed.
set -uo pipefail
source "$(dirname "$0")/../launch/setup.sh"
cd "$root"

preset=release
long=()
while (($#)); do
  case $1 in
    --preset) preset=${2:?--preset needs a name}; shift 2 ;;
    --long) long=(--long --report build/faults.json); shift ;;
    *) fail "unknown option $1; usage: bash tests/run.sh [--preset release|debug|asan] [--long]" ;;
  esac
done

setup_packages
setup_cluster_packages
setup_python
has_nvcc=$(command -v nvcc)
build=("$preset")
if [[ $preset == release ]]; then
  build+=(all emulated)
  if [[ $has_nvcc ]]; then
    setup_cuda_tools
    build=(release '-DSUPRA_CUDA=off;emulated;gpu' all emulated gpu)
  fi
fi
TIMEFORMAT='built in %0R s, %0U + %0S s of processors'
time setup_build "${build[@]}"
mpi_environment
export SUPRA_BUILD=build/$preset
# Threads that wait leave the core to the programs beside them.
export OMP_WAIT_POLICY=passive
# Open MPI and HDF5 keep memory to the end on purpose; everything else the sanitizers see counts.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1

passed=0
failed=0
skipped=0
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# report NAME STATUS SECONDS PROCESSOR_SECONDS LOG: adds up what a doctest or pytest program found; shows
# the output of a failure, and why tests were skipped.
report() {
  local name=$1 status=$2 seconds=$3 busy=$4 log=$5 good bad left
  # doctest's "test cases: 9 | 8 passed | 1 failed", pytest's "1 failed, 8 passed, 1 error"
  good=$(tail -5 "$log" | grep -aoE '[0-9]+ passed' | head -1 | tr -dc 0-9)
  bad=$(tail -5 "$log" | grep -aoE '[0-9]+ (failed|error)' | head -1 | tr -dc 0-9)
  # pytest's only: doctest calls skipped what a filter leaves out.
  left=$(tail -5 "$log" | grep -a ' in [0-9.]*s' | grep -aoE '[0-9]+ skipped' | tr -dc 0-9)
  : "${good:=0}" "${bad:=0}" "${left:=0}"
  # A program that dies, or that runs nothing, is a failure whatever it counted.
  if ((bad == 0 && (status != 0 || good + left == 0))); then bad=1; fi
  if ((bad)); then cat "$log"; fi
  if ((left)); then sed -n 's/^SKIPPED.*\.py:[0-9]*: /skipped: /p' "$log" | sort -u; fi
  printf '%-28s %4d passed %4d failed  %4d s, %4d s of processors\n' \
    "$name" "$good" "$bad" "$seconds" "$busy"
  passed=$((passed + good))
  failed=$((failed + bad))
  skipped=$((skipped + left))
}

# begin NAME COMMAND...: starts a test program beside the others; `finish` waits for all of them and reports.
names=()
begin() {
  local number=${#names[@]} began=$SECONDS TIMEFORMAT='%0U %0S'
  names+=("$1")
  shift
  {
    time "$@" >"$logs/$number" 2>&1
    echo "$? $((SECONDS - began))" >"$logs/$number.end"
  } 2>"$logs/$number.time" &
}
finish() {
  local number status seconds user system
  wait
  for number in "${!names[@]}"; do
    read -r status seconds <"$logs/$number.end"
    # Above the times stands what the shell says of a program that a signal ended.
    head -n -1 "$logs/$number.time"
    read -r user system < <(tail -n 1 "$logs/$number.time")
    report "${names[number]}" "$status" "$seconds" "$((user + system))" "$logs/$number"
  done
  names=()
}
count() {
  begin "$@"
  finish
}

for ranks in 1 2 3 4; do
  count "collectives, $ranks ranks" mpirun -n "$ranks" "build/$preset/mpi_tests"
done
# Side by side, for both wait for files and for programs they start.
begin "unit tests" "build/$preset/unit_tests"
begin "command line" "$python" -m pytest -q -p no:cacheprovider tests/cli --ignore=tests/cli/test_cuda.py
finish

if [[ $preset == release ]]; then
  count "runs on a cluster" "$python" -m pytest -q -rs -p no:cacheprovider tests/cluster "${long[@]}"
  if ((${#long[@]})); then
    count "exports in PyTorch" bash tests/long/export_torch.sh
    count "fuzzing" bash -c 'bash tests/fuzz/run.sh && echo "1 passed"'
  fi

  export SUPRA_BUILD=build/release/emulated
  on_gpu=(env SUPRA_TEST_DEVICE=cuda)
  count "the emulator, its mutants" "$SUPRA_BUILD/unit_tests" -tc='emulator*,mutant*,ptx*,traffic*'
  # One thread each, so side by side.
  begin "emulated GPU: ops" "${on_gpu[@]}" "$SUPRA_BUILD/unit_tests" -tc='ops: every*'
  begin "emulated GPU: same bits" "${on_gpu[@]}" "$SUPRA_BUILD/unit_tests" -tc='ops*' -tce='ops: every*'
  begin "emulated GPU: models" "${on_gpu[@]}" "$SUPRA_BUILD/unit_tests" \
    -tc='attention*,linear attention*,model*,decoder*,key*,sharding*,checkpoint*,cuda*'
  finish
  # A seed chooses the order in which streams, blocks, warps and lanes run.
  for seeds in '0 2' '4 9'; do
    for seed in $seeds; do
      begin "emulated GPU: seed $seed" "${on_gpu[@]}" SUPRA_EMULATOR_SEED="$seed" \
        "$SUPRA_BUILD/unit_tests" -tc='ops: every output*,cuda*,model: loss*'
    done
    finish
  done
  for ranks in 1 2 3 4; do
    count "emulated NCCL, $ranks ranks" "${on_gpu[@]}" mpirun -n "$ranks" "$SUPRA_BUILD/mpi_tests"
  done
  count "programs on emulated GPUs" "${on_gpu[@]}" "$python" -m pytest -q -p no:cacheprovider \
    tests/cli/test_op_runner.py tests/cli/test_cuda.py

  if [[ $has_nvcc ]]; then
    count "kernels as compiled" "$python" tests/kernel_resources.py --build build/release
  else
    say "nvcc is not here: the kernels are not compiled for a GPU"
  fi
fi

if ((skipped)); then printf '%d skipped, for the reasons above\n' "$skipped"; fi
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0))
