#!/usr/bin/env bash
# Submits a training run to Slurm: one job, requeued until the run is done. submit.sh --help
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

usage() {
  cat <<'END'
Submits a training run to Slurm, as one job that is requeued until the run is done.

usage: launch/slurm/submit.sh [OPTION...] RECIPE.toml [--set section.key=value...] [-- SBATCH_OPTION...]

  --nodes N             hosts (1)
  --gpus-per-node N     GPUs of a host, a rank each; 0: computes on CPUs (0)
  --tasks-per-node N    ranks of a host, on CPUs (1)
  --cpus-per-task N     processors of a rank (what Slurm gives)
  --time LIMIT          of a start, as sbatch takes it: 24:00:00, 2-00:00:00 (the partition's)
  --ahead SECONDS       how long before that limit the run writes a checkpoint and stops (120)
  --starts N            starts without a newer checkpoint before the job fails (5)
  --launcher WHICH      srun, mpirun, or auto: srun where Slurm speaks PMIx (auto)
  --supra PROGRAM       the program (build/cuda/supra with GPUs, build/release/supra without)
  --dry-run             print the command, submit nothing
  --help                this text

The run goes on from its last checkpoint at every start (run.resume = "latest" is set). All it
prints is appended to RUN_FOLDER/slurm/JOB.log. docs/operations.md says what happens when.

  launch/slurm/submit.sh --nodes 8 --gpus-per-node 8 --time 24:00:00 launch/recipes/llama2-7b.toml
END
}

fail() {
  printf 'submit.sh: %s\n' "$*" >&2
  exit 2
}

nodes=1 gpus=0 tasks=1 cpus="" time="" ahead=120 starts=5 launcher=auto supra="" dry_run=""
recipe="" settings=() more=()
while (($#)); do
  option=$1
  shift
  case $option in
    --help | -h) usage && exit ;;
    --dry-run) dry_run=1 && continue ;;
    --) more=("$@") && break ;;
    -*) ;;
    *)
      [[ -z $recipe ]] || fail "two recipes, $recipe and $option; one is trained"
      recipe=$option
      continue
      ;;
  esac
  (($#)) || fail "$option needs a value; see submit.sh --help"
  value=$1
  shift
  case $option in
    --nodes | --gpus-per-node | --tasks-per-node | --cpus-per-task | --ahead | --starts)
      [[ $value =~ ^[0-9]{1,9}$ ]] || fail "$option takes a number, not '$value'"
      value=$((10#$value))
      ;;
  esac
  case $option in
    --nodes) nodes=$value ;;
    --gpus-per-node) gpus=$value ;;
    --tasks-per-node) tasks=$value ;;
    --cpus-per-task) cpus=$value ;;
    --time) time=$value ;;
    --ahead) ahead=$value ;;
    --starts) starts=$value ;;
    --launcher) launcher=$value ;;
    --supra) supra=$value ;;
    --set) settings+=(--set "$value") ;;
    *) fail "there is no option $option; see submit.sh --help" ;;
  esac
done

[[ -n $recipe ]] || fail "which recipe? see submit.sh --help"
((nodes && tasks && starts)) || fail "--nodes, --tasks-per-node and --starts are at least 1"
[[ $launcher =~ ^(auto|srun|mpirun)$ ]] || fail "--launcher is auto, srun or mpirun, not '$launcher'"
if ((gpus)); then
  tasks=$gpus
  : "${supra:=$root/build/cuda/supra}"
  more=(--gpus-per-node="$gpus" "${more[@]}")
  settings=(--set train.device=cuda "${settings[@]}")
fi
: "${supra:=$root/build/release/supra}"
[[ -x $supra ]] || fail "there is no program $supra; build it, or name it with --supra"
if [[ -n $cpus ]]; then more=(--cpus-per-task="$cpus" "${more[@]}"); fi
if [[ -n $time ]]; then more=(--time="$time" "${more[@]}"); fi
settings+=(--set run.resume=latest)

# Also tells what is wrong with the recipe now, not when the job starts.
resolved=$("$supra" train "$recipe" "${settings[@]}" --print-recipe) || exit
run=$(sed -n '/^\[run\]/,/^\[/s/^folder = "\(.*\)"$/\1/p' <<<"$resolved")

command=(
  sbatch --job-name="$(basename "$run")" --output="$run/slurm/%j.log"
  --nodes="$nodes" --ntasks-per-node="$tasks" --signal="B:USR1@$ahead" "${more[@]}"
  "$root/launch/slurm/train.sbatch" "$run" "$supra" "$recipe" "${settings[@]}"
)
export SUPRA_STARTS=$starts SUPRA_LAUNCHER=$launcher
if [[ -n $dry_run ]]; then
  printf '%q ' "SUPRA_STARTS=$starts" "SUPRA_LAUNCHER=$launcher" "${command[@]}"
  echo
  exit
fi
mkdir -p "$run/slurm"
exec "${command[@]}"
