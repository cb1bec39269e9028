"""What a run came to: a table of its validation losses, its speed and its memory."""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path


def read_metrics(run: Path) -> list[dict]:
    """The records of a run, in the order they were written."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        sys.exit(f"error: {path} is not there; is {run} the folder of a run?")
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def read_base_loss(path: Path) -> float:
    """The mean loss that `supra score` printed into a file."""
    found = re.search(r"mean loss ([0-9.]+)", path.read_text())
    if not found:
        sys.exit(f"error: {path} holds no line 'mean loss ...' of supra score")
    return float(found[1])


def rows_of(records: list[dict], base_loss: float | None) -> list[tuple[str, str]]:
    """Label and value of every line of the table."""
    start = next(r for r in records if r.get("event") == "start")
    finish = next((r for r in reversed(records) if r.get("event") == "finish"), None)
    validations = [r for r in records if "validation_loss" in r]
    steps = [r for r in records if "tokens_per_second" in r]
    rows = []
    if base_loss is not None:
        rows.append(("validation loss, softmax base", f"{base_loss:.4f}"))
    if validations and validations[0]["step"] == 0:
        rows.append(("right after conversion", f"{validations[0]['validation_loss']:.4f}"))
    if len(validations) > 1:
        last = validations[-1]
        label = f"after uptraining on {last['tokens']:,} tokens"
        rows.append((label, f"{last['validation_loss']:.4f}"))
    if steps:
        speed = statistics.median(r["tokens_per_second"] for r in steps)
        rows.append((f"tokens/s, {start['ranks']} ranks (median)", f"{speed:.0f}"))
    if finish:
        rows.append(("peak memory of a rank", f"{finish['peak_memory'] / 2**30:.2f} GiB"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--base-score", type=Path, help="what `supra score` printed of the base")
    parser.add_argument("--seconds", type=int, help="time that everything took, to be shown too")
    arguments = parser.parse_args()
    base_loss = read_base_loss(arguments.base_score) if arguments.base_score else None
    rows = rows_of(read_metrics(arguments.run), base_loss)
    if arguments.seconds is not None:
        rows.append(("everything, set-up included", f"{arguments.seconds / 60:.1f} min"))
    width = max(len(label) for label, _ in rows)
    rule = "-" * (width + 14)
    print(rule)
    for label, value in rows:
        print(f"{label:<{width}}  {value:>12}")
    print(rule)


if __name__ == "__main__":
    main()
