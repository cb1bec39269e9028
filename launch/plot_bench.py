"""Plots the JSON files of `supra bench` and bench/scaling.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from plot_style import COLOURS, InputError, label

Bench = dict[str, Any]
LINES = ("-", "--", ":", "-.")


def read_bench(path: Path) -> Bench:
    try:
        bench = json.loads(path.read_text(encoding="utf-8"))
        if not bench["format"].startswith("supra-bench "):
            raise KeyError("format")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path} is no file of supra bench") from None
    return bench | {"name": path.stem}


def origin(bench: Bench) -> str:
    machine = bench["machine"]
    ranks = machine["ranks"]
    return (
        f"{ranks} rank{'s' if ranks > 1 else ''} of {machine['device']}; {machine['cpu']}; "
        f"commit {bench['program']['commit']}, {bench['date'][:10]}"
    )


def error_bars(spreads: list[dict[str, float]], scale: float = 1) -> np.ndarray:
    """From the medians to the least and the greatest."""
    return scale * np.array(
        [[s["median"] - s["min"] for s in spreads], [s["max"] - s["median"] for s in spreads]]
    )


def plot_ops(benches: list[Bench]) -> Figure:
    """A bar for every call, as long as the share of its ceiling that it reaches."""
    if len(benches) > 1:
        raise InputError("ops are plotted one file at a time")
    results = benches[0]["results"]
    dtypes = list(dict.fromkeys(r["dtype"] for r in results))
    colours = {"products": COLOURS[0], "memory": COLOURS[1]}
    rows = max(sum(r["dtype"] == dtype for r in results) for dtype in dtypes)
    figure, all_axes = plt.subplots(
        1, len(dtypes), figsize=(9 * len(dtypes), 1.5 + 0.24 * rows), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes, dtype in zip(all_axes[0], dtypes, strict=True):
        mine = [r for r in results if r["dtype"] == dtype]
        names = [f"{r['op']} {r['pass']}, {r['sizes']}" for r in mine]
        for ceiling, colour in colours.items():
            at = [i for i, r in enumerate(mine) if r["ceiling"] == ceiling]
            shares = [mine[i]["share_of_ceiling"] for i in at]
            axes.barh(at, shares, color=colour, label=f"of the {ceiling}")
        label(axes, f"Ops, {dtype}", "share of the ceiling that binds", "")
        axes.set_yticks(range(len(mine)), names, fontsize=8)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.axvline(1, color="black", linewidth=0.8)
        axes.legend(frameon=False)
    return figure


def stacked(axes: Any, benches: list[Bench], parts: list[dict[str, float]]) -> None:
    """A bar for each bench, of parts in seconds; parts too small to be seen are one."""
    total = [sum(each.values()) for each in parts]
    names = list(dict.fromkeys(name for each in parts for name in each))
    shown = [
        name for name in names
        if any(each.get(name, 0) > 0.02 * t for each, t in zip(parts, total, strict=True))
    ]  # fmt: skip
    rest = [sum(v for n, v in each.items() if n not in shown) for each in parts]
    left = np.zeros(len(benches))
    colours = plt.get_cmap("tab20")
    for i, name in enumerate([*shown, "other"]):
        widths = np.array(rest if i == len(shown) else [each.get(name, 0) for each in parts])
        axes.barh(range(len(benches)), widths, left=left, color=colours(i % 20), label=name)
        left += widths
    axes.set_yticks(range(len(benches)), [bench["name"] for bench in benches])
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def plot_step(benches: list[Bench]) -> Figure:
    """Where the seconds of a step go: by phase, and by op."""
    figure, (phases, ops) = plt.subplots(
        2, 1, figsize=(11, 5 + 0.8 * len(benches)), layout="constrained"
    )
    stacked(
        phases,
        benches,
        [{n: s["median"] for n, s in b["step"]["phases"].items()} for b in benches],
    )
    by_op = []
    for bench in benches:
        seconds: dict[str, float] = {}
        for op in bench["step"]["ops"]:
            seconds[op["op"]] = seconds.get(op["op"], 0) + op["seconds"]["median"]
        inside = sum(seconds.values())
        outside = max(0, bench["step"]["seconds"]["median"] - inside)
        by_op.append(seconds | {"outside of ops": outside})
    stacked(ops, benches, by_op)
    label(phases, "A training step, by phase", "seconds", "")
    label(ops, "The same, by op of rank 0", "seconds", "")
    return figure


def plot_collectives(benches: list[Bench]) -> Figure:
    figure, (time, bandwidth) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for bench, line in zip(benches, LINES, strict=False):
        names = list(dict.fromkeys(r["collective"] for r in bench["results"]))
        for name, colour in zip(names, COLOURS, strict=False):
            mine = [r for r in bench["results"] if r["collective"] == name]
            sizes = [r["bytes"] for r in mine]
            style = {"color": colour, "linestyle": line, "marker": "o", "markersize": 3}
            seconds = [r["seconds"] for r in mine]
            time.errorbar(
                sizes, [s["median"] for s in seconds], error_bars(seconds), capsize=2, **style
            )
            text = f"{name}, {bench['machine']['ranks']} ranks"
            bandwidth.plot(sizes, [r["bus_bytes_per_second"] for r in mine], label=text, **style)
    for axes in (time, bandwidth):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    time.set_yscale("log")
    time.yaxis.set_major_formatter(EngFormatter(sep="", unit="s"))
    bandwidth.yaxis.set_major_formatter(EngFormatter(sep="", unit="B/s"))
    label(time, "Time of a collective", "bytes, of all ranks", "")
    label(bandwidth, "Bus bandwidth", "bytes, of all ranks", "")
    bandwidth.legend(frameon=False, fontsize=8)
    return figure


def plot_scaling(benches: list[Bench]) -> Figure:
    """Tokens a second along each axis; a group of bars for each file."""
    axes_names = list(dict.fromkeys(r["axis"] for b in benches for r in b["results"]))
    figure, all_axes = plt.subplots(
        1, len(axes_names), figsize=(1 + 4 * len(axes_names), 4.5), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    width = 0.8 / len(benches)
    for axes, name in zip(all_axes[0], axes_names, strict=True):
        for i, bench in enumerate(benches):
            mine = [r for r in bench["results"] if r["axis"] == name]
            rates = [r["tokens_per_second"] for r in mine]
            at = np.arange(len(mine)) + (i - (len(benches) - 1) / 2) * width
            bars = axes.bar(
                at, [r["median"] for r in rates], width, yerr=error_bars(rates), capsize=3,
                color=COLOURS[i % len(COLOURS)], label=bench["name"],
            )  # fmt: skip
            shares = [f"{r['of_the_first']['median']:.0%}" for r in mine]
            axes.bar_label(bars, shares, label_type="center", color="white", fontsize=8)
            axes.set_xticks(range(len(mine)), [r["value"] for r in mine])
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        label(axes, name.replace("_", " "), "", "tokens per second")
    if len(benches) > 1:
        all_axes[0][0].legend(frameon=False)
    return figure


def plot_generate(benches: list[Bench]) -> Figure:
    """Time for a token and memory, by the tokens read before."""
    figure, (time, memory) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for bench, colour in zip(benches, COLOURS, strict=False):
        points = bench["lengths"]
        lengths = [p["length"] for p in points]
        seconds = [p["seconds_per_token"] for p in points]
        style = {"color": colour, "marker": "o", "markersize": 4}
        time.errorbar(
            lengths, [1e3 * s["median"] for s in seconds], error_bars(seconds, 1e3), capsize=2,
            label=f"{bench['attention']} attention, {bench['name']}", **style,
        )  # fmt: skip
        memory.plot(lengths, [p["memory_bytes"] / 2**30 for p in points], **style)
    for axes in (time, memory):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(bottom=0)
    label(time, "Time for a token", "tokens before it", "ms")
    label(memory, "Memory", "tokens before it", "GiB")
    time.legend(frameon=False)
    return figure


PLOTS: dict[str, Callable[[list[Bench]], Figure]] = {
    "ops": plot_ops,
    "step": plot_step,
    "collectives": plot_collectives,
    "scaling": plot_scaling,
    "generate": plot_generate,
}


def plot_benches(paths: list[Path], out: Path) -> None:
    benches = [read_bench(path) for path in paths]
    kinds = {bench["bench"] for bench in benches}
    if len(kinds) > 1:
        raise InputError(f"one plot shows one kind of bench, not {' and '.join(sorted(kinds))}")
    kind = kinds.pop()
    if kind not in PLOTS:
        raise InputError(f"{paths[0]}: there is no plot of the bench '{kind}'")
    figure = PLOTS[kind](benches)
    figure.supxlabel("\n".join(dict.fromkeys(map(origin, benches))), fontsize=7, color="gray")
    figure.savefig(out, dpi=150)
