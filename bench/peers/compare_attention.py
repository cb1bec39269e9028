"""Linear attention of `supra` beside PyTorch's: forward and backward, in turns.

    bash bench/compare_torch.sh --attention [--pairs 5] [--threads N]

The same sizes in both, with rotation, decay and group norm, in bf16; PyTorch chunked, eagerly and
compiled. `supra bench ops` measures ours. A ratio is the median of those of the pairs. That both
compute the same is checked by compare_torch.py, whose model calls this very module.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from torch_process import TorchProcess, torch_versions
from turns import ROOT, SUPRA, machine, output, ratios, say, table_row, versions

WARM_UP, REPETITIONS = 3, 5  # passes of PyTorch before all, and of a turn


@dataclass(frozen=True)
class Shape:
    batch: int
    tokens: int
    heads: int
    kv_heads: int
    width: int

    def __str__(self) -> str:
        return f"B {self.batch} T {self.tokens} H {self.heads}/{self.kv_heads} d {self.width}"


SHAPES = [Shape(4, 2048, 9, 9, 64), Shape(4, 2048, 32, 32, 128)]


def passes(report: dict, shape: Shape) -> dict[str, dict]:
    """The forward and the backward of this shape in what `supra bench ops` wrote."""
    found = {r["pass"]: r for r in report["results"] if r["sizes"].startswith(f"{shape} ")}
    return {name: found[name] for name in ("forward", "backward")}


def supra(folder: Path, shape: Shape, threads: int) -> dict[str, dict]:
    path = folder / "ops.json"
    output(
        SUPRA, "bench", "ops", "--op", "linear_attention", "--dtype", "bf16",
        "--sizes", f"{shape} ", "--threads", threads, "--rounds", 5, "--json", path,
    )  # fmt: skip
    return passes(json.loads(path.read_text()), shape)


def torch(folder: Path, shape: Shape, threads: int, *options: str) -> TorchProcess:
    sizes = [part for k, v in asdict(shape).items() for part in (f"--{k.replace('_', '-')}", v)]
    return TorchProcess(folder, "linear_attention.py", *sizes, "--threads", threads, *options)


def seconds_of(peer: TorchProcess) -> float:
    return statistics.median(step["seconds"] for step in peer.steps(REPETITIONS))


def measure(folder: Path, shape: Shape, threads: int, pairs: int) -> dict:
    say(f"{shape}: {pairs} pairs")
    samples = {"supra": [], "eager": [], "compiled": []}
    shares = {"forward": [], "backward": []}
    with (
        torch(folder, shape, threads) as eager,
        torch(folder, shape, threads, "--compile") as compiled,
    ):
        peers = {"eager": eager, "compiled": compiled}
        for peer in peers.values():
            peer.steps(WARM_UP)
        for _ in range(pairs):
            ours = supra(folder, shape, threads)
            samples["supra"].append(sum(p["seconds"]["median"] for p in ours.values()))
            for name, share in shares.items():
                share.append(ours[name]["share_of_ceiling"])
            for name, peer in peers.items():
                samples[name].append(seconds_of(peer))
            print(
                "   ".join(f"{name} {1e3 * times[-1]:6.1f} ms" for name, times in samples.items()),
                flush=True,
            )
    return {
        "shape": asdict(shape),
        "seconds": samples,
        "share_of_product_rate": {k: statistics.median(v) for k, v in shares.items()},
        "ratio": {
            name: ratios(list(zip(samples[name], samples["supra"], strict=True)))
            for name in peers
        },
    }


def table(results: list[dict]) -> str:
    lines = [
        "| shape | supra, ms | of the product rate, forward / backward | PyTorch eager, ms "
        "| compiled, ms | eager / supra (least - most) | compiled / supra |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for r in results:
        ours, eager, compiled = (1e3 * statistics.median(s) for s in r["seconds"].values())
        share = r["share_of_product_rate"]
        cells = [str(Shape(**r["shape"])), f"{ours:.1f}"]
        cells += [f"{share['forward']:.0%} / {share['backward']:.0%}"]
        cells += [f"{eager:.1f}", f"{compiled:.1f}"]
        cells += ["{:.1f} ({:.1f} - {:.1f})".format(*ratio) for ratio in r["ratio"].values()]
        lines.append(table_row(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build/peers", help="of all it makes")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()
    folder = a.folder.resolve()
    results = [measure(folder, shape, a.threads, a.pairs) for shape in SHAPES]
    report = {"date": time.strftime("%Y-%m-%d %H:%M"), "machine": machine(), "threads": a.threads}
    report |= versions() | torch_versions(folder) | {"results": results}
    (folder / "compare_attention.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{report['machine']['cpu']}, {a.threads} threads each; torch {report['torch']}; "
          f"supra {report['commit']}; {report['date']}\n")  # fmt: skip
    print(table(results))
    least = {name: min(r["ratio"][name][0] for r in results) for name in ("eager", "compiled")}
    print("\nPyTorch/supra time of linear attention, the lesser shape: "
          + ", ".join(f"{name} {ratio:.2f}" for name, ratio in least.items()))  # fmt: skip


if __name__ == "__main__":
    main()
