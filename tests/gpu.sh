#!/usr/bin/env bash
# Everything that only a machine with GPUs can tell: bash tests/gpu.sh [REPORT.md]
# Builds the preset cuda, runs the op, model and collective tests on the GPU, trains a few steps beside the CPU
# device, times every op, runs compute-sanitizer, and writes one report: by default build/gpu-report-DATE.md.
# The exit code is 0 when nothing failed.
set -uo pipefail
source "$(dirname "$0")/../launch/setup.sh"
cd "$root"

command -v nvcc >/dev/null || fail "there is no nvcc: load the CUDA 13 toolkit, then try again"
[[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]] || fail "nvidia-smi shows no GPU here"
for tool in mpirun compute-sanitizer cmake ninja; do
  command -v "$tool" >/dev/null || say "$tool is not found; what needs it will fail"
done

# Elsewhere than on Debian, the libraries are for the machine's owner to provide; cmake names what is missing.
if command -v dpkg-query >/dev/null; then setup_packages; fi
setup_python
setup_cuda_tools
setup_build cuda
mpi_environment
export SUPRA_BUILD=build/cuda SUPRA_TEST_DEVICE=cuda

report=${1:-build/gpu-report-$(date -u +%Y-%m-%d-%H%M).md}
gpus=$(nvidia-smi -L | grep -c GPU)
failures=0

# part TITLE COMMAND...: runs a command; its output goes into the report, its outcome to the terminal too.
part() {
  local title=$1 output status=0 began=$SECONDS
  shift
  output=$("$@" 2>&1) || status=$?
  ((status)) && failures=$((failures + 1))
  local outcome=passed
  ((status)) && outcome="FAILED, exit code $status"
  say "$title: $outcome, $((SECONDS - began)) s"
  # The end of a long output says most; a failure is shown whole.
  ((status)) || output=$(tail -60 <<<"$output")
  printf '\n## %s: %s\n\n    $ %s\n\n```\n%s\n```\n' "$title" "$outcome" "$*" "$output" >>"$report"
}

{
  printf '# supra on %s\n\n' "$(nvidia-smi --query-gpu=name --format=csv,noheader | sort | uniq -c | sed 's/^ *//')"
  printf 'Date: %s  \nCommit: %s  \n' "$(date -u '+%Y-%m-%d %H:%M UTC')" "$(git describe --always --dirty)"
  printf 'Host: %s, %s cores  \n' "$(uname -sr)" "$(nproc)"
  printf 'Driver: %s  \n' "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)"
  printf 'Toolkit: %s\n' "$(nvcc --version | tail -1)"
} >"$report"

part "Instruction layouts, ops and models" build/cuda/unit_tests -tc='ptx*,ops*,attention*,linear attention*,model*,decoder*,key*,cuda*'
for ((ranks = 1; ranks <= gpus && ranks <= 8; ranks *= 2)); do
  part "Collectives and sharding, $ranks ranks" mpirun -n "$ranks" build/cuda/mpi_tests
done
if ((gpus >= 2)); then
  part "Five steps beside the CPU device" "$python" -m pytest -q -p no:cacheprovider tests/cli/test_cuda.py
else
  printf '\n## Five steps beside the CPU device: not run, it needs two GPUs\n' >>"$report"
fi
part "Kernel resources" "$python" tests/kernel_resources.py
part "Time of every op" build/cuda/supra bench ops --device cuda --dtype bf16
for tool in memcheck racecheck initcheck synccheck; do
  part "compute-sanitizer $tool" timeout 1800 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    build/cuda/unit_tests -tc='ops: every output*,ops: every gradient*'
done

say "report: $report"
((failures == 0))
