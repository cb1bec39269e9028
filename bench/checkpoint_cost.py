"""What a checkpoint after every step costs: throughput and memory, against the same run without.

    bash bench/checkpoint_cost.sh [--ranks 2] [--rounds 5] [--json FILE]

Runs with and without checkpoints alternate, so that a machine shared with others slows both down
alike. The ratio is the median over the rounds of the paired ratios of tokens per second; a run's are
the tokens of its steps after the first two, over the time that they took.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 4096
WARM_UP = 2

RECIPE = """
[model]
vocabulary = {vocabulary}
width = 384
layers = 6
heads = 6
ffn = 1024

[data]
train = "{text}"
sequence_length = 512

[train]
steps = {steps}
global_batch = 16
micro_batch = 4
warmup_steps = 1

[run]
folder = "{folder}"
threads = {threads}
"""


def run(recipe: Path, folder: Path, every: int, ranks: int, build: Path) -> dict:
    """Trains; tokens per second, and the peak memory of the largest rank."""
    shutil.rmtree(folder, ignore_errors=True)
    options = [f"run.folder={folder}", f"checkpoint.every={every}", "checkpoint.keep_last=2"]
    command = [build / "supra", "train", recipe]
    command += [part for option in options for part in ("--set", option)]
    if ranks > 1:
        command = ["mpirun", "-n", ranks, *command]
    environment = os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    environment |= {"OMPI_MCA_hwloc_base_binding_policy": "none"}
    arguments = [str(part) for part in command]
    began = None
    # Steps are timed from outside, by when their lines come: what a checkpoint delays counts.
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.startswith("step ") and " loss " in line:
                now = time.monotonic()
                step = int(line.split()[1].split("/")[0])
                if step == WARM_UP:
                    began = now
                steps, ended = step, now
    if process.returncode:
        sys.exit(f"{arguments} ended with exit code {process.returncode}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    finish = next(line for line in lines if line.get("event") == "finish")
    start = next(line for line in lines if line.get("event") == "start")
    return {
        "tokens_per_second": (steps - WARM_UP) * 16 * 512 / (ended - began),
        "peak_memory": finish["peak_memory"],
        "staging": start["checkpoint_staging"],
        "parameters": start["parameters"],
        "checkpoints": sum(line.get("event") == "checkpoint" for line in lines),
        "commit": start["commit"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="ranks, sharing the cores (2)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs (5)")
    parser.add_argument("--steps", type=int, default=14, help="steps of a run (14)")
    parser.add_argument(
        "--folder", type=Path, help="where checkpoints are written (a temporary one)"
    )
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    build = ROOT / "build" / "release"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        text, recipe = Path(scratch) / "text.h5", Path(scratch) / "recipe.toml"
        with h5py.File(text, "w") as file:
            tokens = np.random.default_rng(0).integers(0, VOCABULARY, 400_000)
            file["tokens"] = tokens.astype(np.uint16)
            file.attrs.update(
                {"format": "supra-tokens 1", "vocabulary": VOCABULARY, "eos": 0, "documents": 1}
            )
        recipe.write_text(
            RECIPE.format(
                vocabulary=VOCABULARY,
                text=text,
                folder=Path(scratch) / "run",
                steps=arguments.steps,
                threads=max(1, (os.cpu_count() or 1) // arguments.ranks),
            )
        )
        pairs = []
        for _ in range(arguments.rounds):
            pair = [
                run(recipe, Path(scratch) / "run", every, arguments.ranks, build)
                for every in (0, 1)
            ]
            pairs.append(pair)
            without, each = (side["tokens_per_second"] for side in pair)
            ratio = each / without
            print(f"none {without:8.0f} tok/s   every step {each:8.0f} tok/s   ratio {ratio:.3f}")
    without, each = ([pair[side] for pair in pairs] for side in (0, 1))
    result = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": each[0]["commit"],
        "ranks": arguments.ranks,
        "parameters": each[0]["parameters"],
        "ratio": statistics.median(
            b["tokens_per_second"] / a["tokens_per_second"] for a, b in pairs
        ),
        "peak_memory_without": max(side["peak_memory"] for side in without),
        "peak_memory_with": max(side["peak_memory"] for side in each),
        "staging": each[0]["staging"],
    }
    extra = result["peak_memory_with"] - result["peak_memory_without"]
    mib = 1 << 20
    whole, staging = 12 * result["parameters"] / mib, result["staging"] / mib
    print(
        f"{result['parameters']} parameters, {arguments.ranks} ranks; a checkpoint of "
        f"{whole:.0f} MiB after each step, staged in {staging:.0f} MiB a rank"
    )
    print(f"peak memory of a rank: {extra / mib:+.0f} MiB with a checkpoint every step")
    print(f"throughput with checkpoints / without: {result['ratio']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
