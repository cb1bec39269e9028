"""The training step of `supra` beside that of llm.c's CPU trainer, train_gpt2.c, in turns.

    bash bench/compare_llmc.sh [--source REPOSITORY] [--pairs 3] [--threads N]

llm.c trains GPT-2 124M and nothing else: LayerNorm, biases, GELU, learned positions. The model in
bench/gpt2-124m.toml has as many weights in matrices, and the same attention, so a token is the same
number of model flops for both. Weights and tokens are random, and both compute in fp32. A sample is
a process of its own whose first step does not count. Samples alternate, and the ratio of a
configuration is the median of its pairs' ratios.
"""

import argparse
import json
import math
import os
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from turns import ROOT, SUPRA, machine, output, ratios, run_until, say, table_row, versions

RECIPE = ROOT / "bench/gpt2-124m.toml"
REPOSITORY = "https://github.com/karpathy/llm.c"
COMMIT = "f1e2ace651495b74ae22d45d1723443fd00ecd3a"  # 2025-05-10
LAYERS, WIDTH, HEADS = 12, 768, 12
VOCABULARY, PADDED_VOCABULARY, MAX_TOKENS = 50257, 50304, 1024
STEP = re.compile(r"step (\d+): train loss (\S+) \(took (\S+) ms\)")


@dataclass(frozen=True)
class Row:
    batch: int
    tokens: int  # of a sequence
    steps: int  # of a sample of llm.c; one of `supra` has five times as many

    def __str__(self) -> str:
        return f"B {self.batch}, T {self.tokens}"


# GPT-2's full length, and what train_gpt2.c comes with. It keeps the scores of all heads and
# layers, before and after the softmax, and the gradients of both: four sequences of 1024 would take
# 20 GB.
ROWS = [Row(1, 1024, 1), Row(4, 64, 3)]


def parameter_tensors(layers: int, width: int, vocabulary: int, tokens: int) -> list[tuple]:
    """The shapes of GPT-2's tensors in the order of llm.c's file, and where their values begin: a
    number, or None for random."""
    L, C = layers, width
    return [
        ((vocabulary, C), None), ((tokens, C), None),  # embeddings of tokens and positions
        ((L, C), 1), ((L, C), 0),  # norm before attention
        ((L, 3 * C, C), None), ((L, 3 * C), 0), ((L, C, C), None), ((L, C), 0),
        ((L, C), 1), ((L, C), 0),  # norm before the feed-forward
        ((L, 4 * C, C), None), ((L, 4 * C), 0), ((L, C, 4 * C), None), ((L, C), 0),
        ((C,), 1), ((C,), 0),  # last norm
    ]  # fmt: skip


def header(*values: int) -> bytes:
    """256 integers, of which llm.c reads the first few."""
    return np.array(values + (0,) * (256 - len(values)), dtype="<i4").tobytes()


def write_model(
    path: Path, layers: int, width: int, heads: int, vocabulary: int, padded: int, tokens: int
) -> None:
    """A model that llm.c begins from, format 3: weights from a normal distribution of 0.02."""
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(header(20240326, 3, tokens, vocabulary, layers, heads, width, padded))
        for shape, value in parameter_tensors(layers, width, padded, tokens):
            if value is None:
                values = 0.02 * random.standard_normal(shape, dtype=np.float32)
            else:
                values = np.full(shape, value, dtype=np.float32)
            values.astype("<f4", copy=False).tofile(file)


def write_tokens(path: Path, tokens: np.ndarray) -> None:
    """A token file of llm.c, format 1."""
    path.write_bytes(header(20240520, 1, len(tokens)) + tokens.astype("<u2").tobytes())


def with_sizes(program: str, row: Row) -> str:
    """train_gpt2.c for another batch and length, and with one batch of validation before the first
    step instead of five: main() has all of these as constants."""
    for name, value in (("B", row.batch), ("T", row.tokens), ("val_num_batches", 1)):
        program, found = re.subn(rf"\bint {name} = \d+;", f"int {name} = {value};", program)
        if found != 1:
            sys.exit(f"error: train_gpt2.c has {found} lines with 'int {name} = NUMBER;', not one")
    return program


def steps_told(lines: list[str]) -> list[dict]:
    """Loss and seconds of each training step that llm.c tells of."""
    found = [match for match in map(STEP.match, lines) if match]
    return [{"loss": float(m[2]), "seconds": float(m[3]) / 1000} for m in found]


def check_untrained(side: str, loss: float, vocabulary: int) -> None:
    """A model that knows nothing has the loss ln V; random logits of deviation s add s^2 / 2, and a
    deviation is about 1 at most where models begin."""
    expected = math.log(vocabulary)
    if not abs(loss - expected) < 1:
        sys.exit(f"error: the first loss of {side} is {loss:.4f}, where an untrained model has "
                 f"{expected:.2f}")  # fmt: skip


class Bench:
    def __init__(self, folder: Path, source: str, threads: int) -> None:
        self.folder, self.source, self.threads = folder, source, threads
        self.checkout = folder / "llm.c"
        self.inputs = folder / "inputs"  # laid out as train_gpt2 looks for them

    def prepare(self) -> None:
        if not self.checkout.exists():
            say(f"cloning {self.source} into {self.checkout}")
            self.folder.mkdir(parents=True, exist_ok=True)
            output("git", "clone", "--quiet", self.source, self.checkout)
        output("git", "-C", self.checkout, "checkout", "--quiet", "--force", "--detach", COMMIT)
        say("making a model and tokens, at random")
        texts = self.inputs / "dev/data/tinyshakespeare"
        texts.mkdir(parents=True, exist_ok=True)
        sizes = (LAYERS, WIDTH, HEADS, VOCABULARY, PADDED_VOCABULARY, MAX_TOKENS)
        write_model(self.inputs / "gpt2_124M.bin", *sizes)
        random = np.random.default_rng(0)
        for part in ("train", "val"):
            tokens = random.integers(0, VOCABULARY, 1 << 16)
            write_tokens(texts / f"tiny_shakespeare_{part}.bin", tokens)

    def program(self, row: Row) -> Path:
        """llm.c's trainer, built with its Makefile's flags from a copy with the row's sizes."""
        folder = self.folder / f"b{row.batch}-t{row.tokens}"
        folder.mkdir(exist_ok=True)
        program = (self.checkout / "train_gpt2.c").read_text()
        (folder / "train_gpt2.c").write_text(with_sizes(program, row))
        makefile = self.checkout / "Makefile"
        command = ["make", "-f", makefile, f"INCLUDES=-I{self.checkout}", "train_gpt2"]
        told = output(*command, cwd=folder)
        print(told.splitlines()[-1], flush=True)
        if "-fopenmp" not in told:
            sys.exit("error: llm.c's Makefile finds no OpenMP in this compiler; CC names another")
        return folder / "train_gpt2"

    def llmc(self, row: Row, program: Path) -> dict:
        wanted = 1 + row.steps
        lines, peak = run_until(
            ["stdbuf", "--output=L", str(program)],
            lambda line: line.startswith(f"step {wanted - 1}:"),
            cwd=self.inputs,
            env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
        )
        steps = steps_told(lines)
        check_untrained("llm.c", steps[0]["loss"], VOCABULARY)
        seconds = statistics.median(step["seconds"] for step in steps[1:])
        return {
            "tokens_per_second": row.batch * row.tokens / seconds,
            "peak_memory": peak,
            "losses": [step["loss"] for step in steps],
            "seconds": [step["seconds"] for step in steps],
        }

    def supra(self, row: Row) -> dict:
        file = self.folder / "step.json"
        settings = {"data.sequence_length": row.tokens, "run.threads": self.threads}
        settings |= {"train.global_batch": row.batch, "train.micro_batch": row.batch}
        command = [SUPRA, "bench", "step", RECIPE, "--synthetic", "--steps", 5 * row.steps]
        command += [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
        output(*command, "--json", file)
        told = json.loads(file.read_text())
        step = told["step"]
        check_untrained("supra", step["losses"][0], PADDED_VOCABULARY)
        return {
            "tokens_per_second": step["tokens_per_second"]["median"],
            "peak_memory": step["memory"]["peak_resident_bytes"],
            "losses": step["losses"],
            "seconds": step["seconds"],
            "model_flops_per_token": step["model_flops_per_token"],
            "products_flops_per_second": step["peak_flops_per_second"]["median"],
            "busy_cores": told["machine"]["busy_cores_meanwhile"],
        }


def summary(row: Row, samples: dict[str, list[dict]]) -> dict:
    """Medians of both sides, and the ratio of their pairs. A token has equal model flops in both:
    the ratio of tokens a second is that of model flops a second."""
    ours = samples["supra"]
    flops = ours[0]["model_flops_per_token"]
    products = statistics.median(s["products_flops_per_second"] for s in ours)
    result = {"row": asdict(row), "model_flops_per_token": flops}
    result["products_flops_per_second"] = products
    rates = {side: [s["tokens_per_second"] for s in samples[side]] for side in samples}
    result["ratio"] = ratios(list(zip(rates["supra"], rates["llmc"], strict=True)))
    for side in samples:
        rate = statistics.median(rates[side])
        result[side] = {
            "tokens_per_second": rate,
            "model_flops_per_second": rate * flops,
            "share_of_products": rate * flops / products,
            "peak_memory": max(s["peak_memory"] for s in samples[side]),
            "samples": samples[side],
        }
    return result


def measure(bench: Bench, row: Row, pairs: int) -> dict:
    say(f"{row}, fp32: {pairs} pairs")
    program = bench.program(row)
    samples = {"supra": [], "llmc": []}
    for _ in range(pairs):
        samples["supra"].append(bench.supra(row))
        samples["llmc"].append(bench.llmc(row, program))
        a, b = (samples[side][-1]["tokens_per_second"] for side in samples)
        busy = samples["supra"][-1]["busy_cores"]
        print(
            f"supra {a:6.1f}   llm.c {b:6.1f} tokens/s   ratio {a / b:.2f}   "
            f"{busy:.1f} cores busy with other programs",
            flush=True,
        )
    return summary(row, samples)


def table(results: list[dict]) -> str:
    side = "tokens/s | GFLOP/s | of products | GiB"
    lines = [
        f"| fp32 | supra, {side} | llm.c, {side} | ratio (least - most) |",
        "|---|" + "---:|" * 8 + "---|",
    ]
    for r in results:
        cells = [str(Row(**r["row"]))]
        for s in (r["supra"], r["llmc"]):
            cells += [f"{s['tokens_per_second']:.1f}", f"{s['model_flops_per_second'] / 1e9:.1f}"]
            cells += [f"{s['share_of_products']:.1%}", f"{s['peak_memory'] / 2**30:.2f}"]
        cells.append("{:.2f} ({:.2f} - {:.2f})".format(*r["ratio"]))
        lines.append(table_row(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = ROOT / "build/peers/llmc"
    parser.add_argument("--folder", type=Path, default=folder, help="of all it makes")
    parser.add_argument("--source", default=REPOSITORY, help="repository of llm.c, to clone from")
    parser.add_argument("--pairs", type=int, default=3, help="of samples of a configuration (3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()
    bench = Bench(a.folder.resolve(), a.source, a.threads)
    bench.prepare()
    results = [measure(bench, row, a.pairs) for row in ROWS]
    compiler = output(os.environ.get("CC", "cc"), "--version").splitlines()[0]
    report = {"date": time.strftime("%Y-%m-%d %H:%M"), "machine": machine(), "threads": a.threads}
    report |= versions() | {"llmc": {"commit": COMMIT, "compiler": compiler}, "results": results}
    (bench.folder / "compare_llmc.json").write_text(json.dumps(report, indent=1) + "\n")
    first = results[0]
    print(
        f"\n{report['machine']['cpu']}, {a.threads} threads each; llm.c {COMMIT[:12]}, {compiler}; "
        f"supra {report['commit']}; {report['date']}\n"
        f"{first['model_flops_per_token'] / 1e9:.3f} GFLOP of the model a token of {ROWS[0]}; "
        f"fp32 products {first['products_flops_per_second'] / 1e9:.0f} GFLOP/s\n"
        "llm.c trains GPT-2 (LayerNorm, biases, GELU, learned positions), supra a Llama as large\n"
    )
    print(table(results))
    median, least, most = first["ratio"]
    print(f"\nsupra/llm.c model FLOP/s: {median:.2f} ({least:.2f} - {most:.2f})")


if __name__ == "__main__":
    main()
