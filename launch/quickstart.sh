#!/usr/bin/env bash
# From a fresh Debian 12 machine to a language model uptrained into a linear-attention RNN: installs what is missing,
# builds, fetches SmolLM2-135M and English text, trains on two MPI ranks, and prints what became of the loss.
# Everything it makes lies in build/; run again, it skips what is there and trains anew.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
cd "$root"
began=$SECONDS
ranks=${RANKS:-2}
work=build/quickstart
run=$work/run

setup_packages
setup_python
setup_text build/text-packages
setup_build release supra

say "fetching SmolLM2-135M"
"$python" launch/smollm2.py $work/smollm2 --cache build/cache
build/release/supra import $work/smollm2 $work/smollm2-135m.h5 --force

say "packing the text into tokens"
"$python" launch/collect_text.py build/text-packages $work/text
for part in train validation; do
  "$python" launch/pack_text.py --tokenizer $work/smollm2 --eos '<|endoftext|>' \
    --out $work/$part.h5 $work/text/$part.jsonl
done

say "validation loss of the softmax base"
build/release/supra score $work/smollm2-135m.h5 $work/validation.h5 --dtype bf16 \
  --sequence-length 256 --limit 64 | tee $work/base-score.txt

say "uptraining on $ranks ranks"
rm -rf $run
mpi_environment
mpirun -n "$ranks" build/release/supra train launch/recipes/smollm2-135m.toml

say "what was made"
checkpoint=$(ls -d $run/checkpoints/step-*)
h5ls "$checkpoint/index.h5/model" | sed -n '1,4p'
"$python" launch/plot.py $run --out $work/loss.png
"$python" launch/summarize.py $run --base-score $work/base-score.txt --seconds $((SECONDS - began))
