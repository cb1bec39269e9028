"""The training step of `supra` beside PyTorch's: agreement, then tokens per second in turns.

    bash bench/compare_torch.sh [--quick] [--settings] [--pairs 5] [--threads N]

Both train a model of SmolLM2-135M's shape with random weights on the same windows of a made-up
text, in the same order. A sample is some optimizer steps: for `supra` a process of its own whose
first step does not count, for PyTorch turns of one process that has warmed up, compilation
included. Samples alternate, and the ratio of a configuration is the median of its pairs' ratios.
Each side has the micro-batch, and recomputation or not, that are fastest for it; they are looked
for once and kept (--settings looks again).
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
from torch_process import TorchProcess, torch_versions
from turns import ROOT, SUPRA, machine, output, ratios, run_until, say, table_row, versions

VOCABULARY = 49152
LAST_STEP = 1000  # of a run that is ended long before
WARM_UP = 2  # steps of PyTorch: compilation, and the optimizer's first

RECIPE = ROOT / "bench/smollm2-135m.toml"


@dataclass(frozen=True)
class Setting:
    micro_batch: int = 1
    recompute: bool = False
    compile: bool = True  # PyTorch's only

    def __str__(self) -> str:
        return f"micro-batch {self.micro_batch}" + (", recompute" if self.recompute else "")


@dataclass(frozen=True)
class Row:
    name: str
    attention: str
    dtype: str
    tokens: int  # of a sequence
    pairs: int
    step_tokens: int = 8192

    @property
    def batch(self) -> int:
        return self.step_tokens // self.tokens


HEADLINE = Row("SUPRA, mixed, T 2048", "linear", "mixed", 2048, 5)
ROWS = [
    HEADLINE,
    Row("SUPRA, fp32, T 2048", "linear", "fp32", 2048, 3),
    Row("softmax base, mixed, T 2048", "softmax", "mixed", 2048, 3),
    Row("SUPRA, mixed, T 512", "linear", "mixed", 512, 3),
    Row("SUPRA, mixed, T 8192", "linear", "mixed", 8192, 3),
]

# How far loss and gradient norm may lie apart, relative to their size. fp32: a sum of n terms in
# another order is off by 2^-24 sqrt(n), 1.3e-5 for the longest, over the vocabulary. mixed: PyTorch
# rounds logits to bf16 and `supra` does not, so the loss is trusted to half a unit of bf16's last
# place. Gradient norms pass all blocks twice, and Adam's first steps move a weight by the sign of a
# gradient that may be rounding alone: they are given 16 times as much, and a thousandth in fp32.
TOLERANCES = {"fp32": (2e-5, 1e-3), "mixed": (2**-9, 2**-5)}
CHECKED = ("loss", "grad_norm")


def disagreement(ours: list[dict], theirs: list[dict], dtype: str) -> str | None:
    """The first step and value in which two runs differ by more than the tolerance."""
    for a, b in zip(ours, theirs, strict=True):
        for name, tolerance in zip(CHECKED, TOLERANCES[dtype], strict=True):
            apart = abs(a[name] - b[name]) / abs(a[name])
            if not apart <= tolerance:
                return (
                    f"step {a['step']}, {dtype}: {name} is {a[name]:.6g} in supra and "
                    f"{b[name]:.6g} in PyTorch, {apart:.1e} apart where {tolerance:.1e} is allowed"
                )
    return None


def table(results: list[dict]) -> str:
    lines = [
        "| configuration | supra | tokens/s | GiB | loss | PyTorch | tokens/s | GiB | loss "
        "| ratio (least - most) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        cells = [r["row"]["name"]]
        for side in ("supra", "torch"):
            s = r[side]
            cells += [str(Setting(**s["setting"])), f"{s['tokens_per_second']:.0f}"]
            cells += [f"{s['peak_memory'] / 2**30:.2f}", f"{s['loss']:.4f}"]
        cells.append("{:.2f} ({:.2f} - {:.2f})".format(*r["ratio"]))
        lines.append(table_row(cells))
    return "\n".join(lines)


def made_up_tokens(count: int) -> np.ndarray:
    """Ids as frequent as 1 / rank, as words are; every other follows from the one before."""
    random = np.random.default_rng(0)
    tokens = np.exp(random.random(count) * np.log(VOCABULARY)).astype(np.int64) - 1
    tokens[1::2] = (5 * tokens[0 : count - 1 : 2] + 7) % VOCABULARY
    return tokens.astype(np.uint16)


class Bench:
    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.tokens = folder / "tokens.h5"
        self.run_folder = folder / "run"

    def make_inputs(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        say("making tokens and models with random weights")
        with h5py.File(self.tokens, "w") as file:
            file["tokens"] = made_up_tokens(1 << 20)
            attributes = {"format": "supra-tokens 1", "vocabulary": VOCABULARY, "eos": 0}
            file.attrs.update(attributes | {"documents": 1})
        for attention in ("linear", "softmax"):
            # A step so small that it changes no weight: its checkpoint holds the initial ones.
            made = self.folder / f"made-{attention}"
            options = {"model.attention": attention, "train.steps": 1, "data.sequence_length": 16}
            options |= {"train.learning_rate": 1e-30, "train.min_learning_rate": 0}
            options |= {"train.weight_decay": 0, "run.folder": made}
            shutil.rmtree(made, ignore_errors=True)
            output(*self.command(RECIPE, options))

    def model(self, row: Row) -> Path:
        return self.folder / f"made-{row.attention}/checkpoints/step-00000001"

    def command(self, recipe: Path, options: dict) -> list[str]:
        options = {"data.train": self.tokens, "run.threads": self.threads} | options
        options |= {"run.log_samples": "true"}
        command = [str(SUPRA), "train", str(recipe)]
        return command + [part for k, v in options.items() for part in ("--set", f"{k}={v}")]

    def supra(self, row: Row, setting: Setting, steps: int) -> list[dict]:
        """What the first steps of a run log, and its peak memory. It is ended in the step after
        them, before the checkpoint that would take time and memory."""
        shutil.rmtree(self.run_folder, ignore_errors=True)
        options = {"model.base": self.model(row), "model.attention": row.attention}
        options |= {"data.sequence_length": row.tokens, "train.steps": LAST_STEP}
        options |= {"train.global_batch": row.batch, "train.micro_batch": setting.micro_batch}
        options |= {"train.recompute": "block" if setting.recompute else "none"}
        options |= {"train.dtype": row.dtype, "run.folder": self.run_folder}
        # The sizes of a new model are no keys of one that has a base.
        recipe = self.folder / "train.toml"
        recipe.write_text("[data]" + RECIPE.read_text().split("[data]")[1])
        command = self.command(recipe, options)
        last = ["step", f"{steps}/{LAST_STEP}"]
        _, peak = run_until(command, lambda line: line.split()[:2] == last)
        metrics = (self.run_folder / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in metrics.splitlines()]
        measured = [line for line in lines if "loss" in line][:steps]
        for line in measured:
            line["seconds"] = row.step_tokens / line["tokens_per_second"]
        return [line | {"peak_memory": peak} for line in measured]

    def torch(self, row: Row, setting: Setting) -> TorchProcess:
        arguments = [self.model(row), self.tokens]
        arguments += ["--samples", self.run_folder / "samples-0000.jsonl"]
        arguments += ["--sequence-length", row.tokens, "--global-batch", row.batch]
        arguments += ["--micro-batch", setting.micro_batch, "--dtype", row.dtype]
        arguments += ["--threads", self.threads]
        arguments += ["--recompute"] * setting.recompute + ["--compile"] * setting.compile
        return TorchProcess(self.folder, "torch_step.py", *arguments)


def rate(row: Row, steps: list[dict]) -> float:
    return row.step_tokens * len(steps) / sum(step["seconds"] for step in steps)


def check(bench: Bench) -> list[dict]:
    """The first steps of both from the same weights on the same windows, short ones."""
    found = []
    for attention in ("linear", "softmax"):
        for dtype in ("fp32", "mixed"):
            row = Row(f"{attention} {dtype}", attention, dtype, 512, 1, 1024)
            ours = bench.supra(row, Setting(), 3)
            with bench.torch(row, Setting(compile=False)) as peer:
                theirs = peer.steps(3)
            if problem := disagreement(ours, theirs, dtype):
                sys.exit(f"error: {row.name}: they compute different things; {problem}")
            for a, b in zip(ours, theirs, strict=True):
                print(
                    f"{row.name:14} step {a['step']}: loss {a['loss']:.6f} {b['loss']:.6f}   "
                    f"grad_norm {a['grad_norm']:.5f} {b['grad_norm']:.5f}",
                    flush=True,
                )
            found.append({"row": asdict(row), "supra": ours, "torch": theirs})
    return found


def fastest(bench: Bench, row: Row) -> dict[str, Setting]:
    """For each side the fastest micro-batch, then with recomputation if that is faster yet."""

    def of(side: str, setting: Setting) -> float:
        if side == "supra":
            found = rate(row, bench.supra(row, setting, 2)[1:])
        else:
            with bench.torch(row, setting) as peer:
                found = rate(row, peer.steps(WARM_UP + 1)[WARM_UP:])
        print(f"{side:6} {setting}: {found:.0f} tokens/s", flush=True)
        return found

    best = {}
    for side in ("supra", "torch"):
        tried = {s: of(side, s) for s in (Setting(n) for n in (1, 2, 4))}
        winner = max(tried, key=tried.get)
        recomputed = Setting(winner.micro_batch, recompute=True)
        tried[recomputed] = of(side, recomputed)
        best[side] = max(tried, key=tried.get)
    return best


def settings(bench: Bench, again: bool) -> dict[str, Setting]:
    """Of the headline; kept in settings.json."""
    path = bench.folder / "settings.json"
    if again or not path.exists():
        say(f"looking for each side's fastest setting, {HEADLINE.name}")
        best = fastest(bench, HEADLINE)
        path.write_text(json.dumps({side: asdict(s) for side, s in best.items()}, indent=2))
    return {side: Setting(**s) for side, s in json.loads(path.read_text()).items()}


def at_length(setting: Setting, row: Row) -> Setting:
    """The same tokens in a micro-batch."""
    micro_batch = max(1, setting.micro_batch * HEADLINE.tokens // row.tokens)
    return Setting(micro_batch, setting.recompute, setting.compile)


def measure(bench: Bench, row: Row, best: dict[str, Setting], pairs: int, steps: int) -> dict:
    ours, theirs = (at_length(best[side], row) for side in ("supra", "torch"))
    say(f"{row.name}: supra {ours}; PyTorch {theirs}; {pairs} pairs")
    samples = {"supra": [], "torch": []}
    began = {"supra": bench.supra(row, ours, WARM_UP)}
    with bench.torch(row, theirs) as peer:
        began["torch"] = peer.steps(WARM_UP)
        if problem := disagreement(began["supra"], began["torch"], row.dtype):
            sys.exit(f"error: they compute different things; {problem}")
        for _ in range(pairs):
            samples["supra"].append(bench.supra(row, ours, 1 + steps)[1:])
            samples["torch"].append(peer.steps(steps))
            a, b = (rate(row, samples[side][-1]) for side in ("supra", "torch"))
            print(f"supra {a:6.0f}   PyTorch {b:6.0f}   ratio {a / b:.3f}", flush=True)
    rates = {side: [rate(row, sample) for sample in samples[side]] for side in samples}
    pairs_of_rates = list(zip(rates["supra"], rates["torch"], strict=True))
    result = {"row": asdict(row), "ratio": ratios(pairs_of_rates)}
    for side, setting in (("supra", ours), ("torch", theirs)):
        result[side] = {
            "setting": asdict(setting),
            "tokens_per_second": statistics.median(rates[side]),
            "peak_memory": samples[side][-1][-1]["peak_memory"],
            "loss": began[side][-1]["loss"],
            "samples": samples[side],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build/peers", help="of all it makes")
    parser.add_argument("--quick", action="store_true", help="the headline only")
    parser.add_argument("--pairs", type=int, help="pairs of every configuration (5 and 3)")
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps of a sample (1)")
    parser.add_argument("--settings", action="store_true", help="look for the best ones again")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()
    bench = Bench(a.folder.resolve(), a.threads)
    bench.make_inputs()
    say("checking that both compute the same: supra, PyTorch")
    checked = check(bench)
    best = settings(bench, a.settings)
    rows = [HEADLINE] if a.quick else ROWS
    results = [measure(bench, row, best, a.pairs or row.pairs, a.steps) for row in rows]
    report = {"date": time.strftime("%Y-%m-%d %H:%M"), "machine": machine(), "threads": a.threads}
    report |= versions() | torch_versions(bench.folder) | {"check": checked, "results": results}
    (bench.folder / "compare_torch.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{report['machine']['cpu']}, {a.threads} threads each; torch {report['torch']}, "
          f"transformers {report['transformers']}; supra {report['commit']}; {report['date']}\n")
    print(table(results))
    print(f"\nsupra/torch tokens per second: {results[0]['ratio'][0]:.2f}")


if __name__ == "__main__":
    main()
