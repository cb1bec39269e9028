#!/usr/bin/env python3
"""How the training step scales: runs `supra bench step` with other numbers of ranks, sequence
lengths, batches and models than a recipe's, one thing at a time. All points take turns, round after
round, and each is compared with the first of its kind within the round."""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Runs a command with the MPI settings of the other scripts.
WITH_MPI = ["bash", "-c", '. "$0"/launch/setup.sh; mpi_environment; exec "$@"', str(ROOT)]


class BenchError(Exception):
    """A run that failed."""


@dataclass
class Point:
    axis: str  # "ranks", "sequence_length", "batch" or "model"
    value: str
    recipe: str
    ranks: int
    threads: int
    settings: list[str]
    runs: list[dict[str, Any]] = field(default_factory=list)

    def command(self, args: argparse.Namespace, json_file: Path) -> list[str]:
        settings = [*args.set, *self.settings, f"run.threads={self.threads}"]
        return [
            *WITH_MPI, "mpirun", "-n", str(self.ranks), str(args.supra), "bench", "step",
            self.recipe, *(part for s in settings for part in ("--set", s)),
            "--steps", str(args.steps), "--json", str(json_file),
            *(["--synthetic"] if args.synthetic else []),
        ]  # fmt: skip

    def rates(self) -> list[float]:
        """Tokens a second in each round."""
        return [run["step"]["tokens_per_second"]["median"] for run in self.runs]


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "repetitions": len(values),
    }


def parse_place(text: str) -> tuple[int, int]:
    """"2x1": 2 ranks of 1 thread."""
    try:
        ranks, threads = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not RANKSxTHREADS, as in 2x1") from None
    if ranks < 1 or threads < 1:
        raise argparse.ArgumentTypeError(f"'{text}' has no ranks or no threads")
    return ranks, threads


def points_of(args: argparse.Namespace) -> list[Point]:
    ranks, threads = args.ranks[0]
    points = [
        Point("ranks", f"{r}x{t}", args.recipe, r, t, []) for r, t in args.ranks
    ]
    for length in args.sequence_length:
        settings = [f"data.sequence_length={length}"]
        points.append(
            Point("sequence_length", str(length), args.recipe, ranks, threads, settings)
        )
    for batch in args.batch:
        settings = [f"train.micro_batch={batch}", f"train.global_batch={batch * ranks}"]
        points.append(Point("batch", str(batch), args.recipe, ranks, threads, settings))
    for recipe in args.model:
        points.append(Point("model", Path(recipe).stem, recipe, ranks, threads, []))
    return points


def measure(point: Point, args: argparse.Namespace, json_file: Path) -> None:
    result = subprocess.run(
        point.command(args, json_file), capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise BenchError(f"{point.axis} {point.value}: {result.stderr.strip()}")
    point.runs.append(json.loads(json_file.read_text()))


def summarize(points: list[Point]) -> list[dict[str, Any]]:
    results = []
    first: dict[str, Point] = {}
    for point in points:
        base = first.setdefault(point.axis, point)
        ratios = [a / b for a, b in zip(point.rates(), base.rates(), strict=True)]
        steps = [run["step"] for run in point.runs]
        results.append(
            {
                "axis": point.axis,
                "value": point.value,
                "recipe": point.recipe,
                "ranks": point.ranks,
                "threads": point.threads,
                "settings": point.settings,
                "parameters": steps[0]["parameters"],
                "sequence_length": steps[0]["sequence_length"],
                "tokens_per_second": spread(point.rates()),
                "of_the_first": spread(ratios),
                "mfu": spread([step["mfu"] for step in steps]),
                "peak_resident_bytes": max(s["memory"]["peak_resident_bytes"] for s in steps),
                "busy_cores_meanwhile": max(
                    run["machine"]["busy_cores_meanwhile"] for run in point.runs
                ),
            }
        )
    return results


def print_table(results: list[dict[str, Any]]) -> None:
    head = ["", "tokens/s", "min", "max", "of the first", "MFU", "memory of a rank"]
    rows = [
        [
            f"{r['axis']} {r['value']}",
            f"{r['tokens_per_second']['median']:.1f}",
            f"{r['tokens_per_second']['min']:.1f}",
            f"{r['tokens_per_second']['max']:.1f}",
            f"{r['of_the_first']['median']:.1%}",
            f"{r['mfu']['median']:.1%}",
            f"{r['peak_resident_bytes'] / 2**30:.2f} GiB",
        ]
        for r in results
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells))


def parse_arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE.toml")
    parser.add_argument(
        "--ranks", default="1x2,2x1", metavar="RxT,...",
        type=lambda text: [parse_place(part) for part in text.split(",")],
        help="ranks x threads of each; the first is where the rest is measured (1x2,2x1)",
    )  # fmt: skip
    parser.add_argument(
        "--sequence-length", type=numbers, default=[], metavar="T,...", help="sequence lengths"
    )
    parser.add_argument(
        "--batch", type=numbers, default=[], metavar="B,...",
        help="sequences that a rank computes at once, and a step of it has",
    )  # fmt: skip
    parser.add_argument(
        "--model", nargs="+", default=[], metavar="RECIPE.toml", help="recipes of other models"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value",
        help="in place of what all recipes say; may be repeated",
    )  # fmt: skip
    parser.add_argument("--synthetic", action="store_true", help="random tokens")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every point (3)")
    parser.add_argument("--steps", type=int, default=2, help="steps measured in a turn (2)")
    parser.add_argument(
        "--supra", type=Path, default=ROOT / "build" / "release" / "supra", help="the program"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    points = points_of(args)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(args.rounds):
                for point in points:
                    print(f"round {turn + 1}: {point.axis} {point.value}", file=sys.stderr)
                    measure(point, args, Path(folder) / "step.json")
    except (BenchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = summarize(points)
    print_table(results)
    if args.json:
        first = points[0].runs[0]
        report = {key: first[key] for key in ("format", "date", "program", "machine")}
        report["bench"] = "scaling"
        report["program"]["command"] = sys.argv
        args.json.write_text(json.dumps(report | {"results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
