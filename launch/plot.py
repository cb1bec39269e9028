#!/usr/bin/env python3
"""Plots one or several runs: loss, learning rate, gradient norm and speed against tokens seen; or
what `supra bench` measured."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from plot_bench import plot_benches
from plot_style import COLOURS, InputError, label


class Run:
    """The metrics of one run folder. Where a run was resumed, the later line of a step counts; a
    last line without its end belongs to a run that was killed while writing it."""

    def __init__(self, folder: Path):
        path = folder / "metrics.jsonl"
        if not path.is_file():
            raise InputError(f"{folder} is no run folder: it has no metrics.jsonl")
        self.name = folder.resolve().name
        self._train: dict[int, dict[str, Any]] = {}
        self._validation: dict[int, dict[str, Any]] = {}
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                if "event" in record:  # the start and the finish of the program
                    continue
                part = self._validation if "validation_loss" in record else self._train
                part[record["step"]] = record
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{path}, line {number} is no line of metrics: {error}") from error
        if not self._train and not self._validation:
            raise InputError(f"{path} is empty: the run has made no step")

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens seen and the value there, in the order of steps."""
        part = self._validation if key == "validation_loss" else self._train
        records = [part[step] for step in sorted(part) if key in part[step]]
        tokens = np.array([r.get("tokens", r["step"]) for r in records], dtype=float)
        return tokens, np.array([r[key] for r in records], dtype=float)


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred Gaussian average, a sixtieth of the run wide; at the ends over what is there."""
    sigma = max(len(values) / 60, 0.1)
    reach = int(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weight = np.convolve(np.ones_like(values), kernel, mode="same")
    return np.convolve(values, kernel, mode="same") / weight


def plot_loss(axes: Axes, run: Run, colour: str) -> None:
    tokens, loss = run.curve("loss")
    axes.plot(tokens, loss, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(tokens, smoothed(loss), color=colour, linewidth=1.8, label=f"{run.name}, training")
    tokens, loss = run.curve("validation_loss")
    if len(tokens):
        label = f"{run.name}, validation"
        style = {"marker": "o", "markersize": 5, "markeredgecolor": "white", "linestyle": "--"}
        axes.plot(tokens, loss, color=colour, linewidth=1, label=label, **style)


def plot(runs: list[Run], out: Path) -> None:
    figure = plt.figure(figsize=(10, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.6, 1))
    loss = figure.add_subplot(grid[0, :])
    small = [figure.add_subplot(grid[1, i]) for i in range(3)]
    keys = ("lr", "grad_norm", "tokens_per_second")
    for i, run in enumerate(runs):
        colour = COLOURS[i % len(COLOURS)]
        plot_loss(loss, run, colour)
        for axes, key in zip(small, keys, strict=True):
            axes.plot(*run.curve(key), color=colour, linewidth=1.2, label=run.name)
    seen = "tokens seen"
    label(loss, "Loss", seen, "nats per token")
    loss.legend(frameon=False)
    label(small[0], "Learning rate", seen, "")
    small[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    label(small[1], "Gradient norm, before clipping", seen, "")
    small[1].set_yscale("log")
    label(small[2], "Speed", seen, "tokens per second")
    small[2].set_ylim(bottom=0)
    small[2].yaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in (loss, *small):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.savefig(out, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plot the metrics of runs, or a bench.")
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="RUN|BENCH.json",
        help="folders of runs, or files that supra bench or bench/scaling.py wrote",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="PLOT.png", help="file to write")
    args = parser.parse_args()
    try:
        if all(source.is_file() for source in args.sources):
            plot_benches(args.sources, args.out)
        else:
            plot([Run(folder) for folder in args.sources], args.out)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
