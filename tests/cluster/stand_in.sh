#!/usr/bin/env bash
# Stands in for supra where the batch script is tested: each rank does what its recipe says for this
# start of the job, the first line at the first start, one word after the other:
#   checkpoint   makes one that is a step newer
#   blame=HOST   as the watchdog does
#   kill=RANK    that rank is killed, and the others do not notice
#   gpus         says which it may use
#   wait         until SIGUSR1 or SIGTERM; then makes a checkpoint and ends with 4
#   exit=CODE
set -u
recipe=""
while (($#)); do
  case $1 in
    train.device=*) device=${1#train.device=} ;;
    run.folder=*) run=${1#run.folder=} ;;
    --print-recipe) printf '[run]\nfolder = "%s"\n' "$run" && exit ;;
    *.toml) recipe=$1 ;;
  esac
  shift
done

rank=$PMIX_RANK
checkpoint() {
  local folders
  ((rank == 0)) || return 0
  folders=("$run"/checkpoints/*/)
  [[ -d ${folders[0]} ]] || folders=()
  folder=$run/checkpoints/$(printf 'step-%08d' $((${#folders[@]} + 1)))
  mkdir -p "$folder" && touch "$folder/index.h5"
}
told() {
  echo "rank $rank was told to stop"
  checkpoint
  exit 4
}

read -ra words < <(sed -n "$((${SLURM_RESTART_COUNT:-0} + 1))p" "$recipe")
for word in "${words[@]}"; do
  case $word in
    checkpoint) checkpoint ;;
    blame=*) ((rank == 0)) && printf '%s\twas slow\n' "${word#blame=}" >>"$run/blamed-nodes" ;;
    kill=*)
      if ((rank == ${word#kill=})); then kill -KILL $$; fi
      sleep 1000
      ;;
    gpus) echo "rank $rank on $device sees GPUs $CUDA_VISIBLE_DEVICES" ;;
    wait)
      trap told USR1 TERM
      echo "rank $rank waits"
      while :; do sleep 0.05; done
      ;;
    exit=*) exit "${word#exit=}" ;;
  esac
done
