"""What the comparisons with other trainers share: runs that are ended once they have told enough,
ratios of pairs, and what a figure depends on."""

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPRA = ROOT / "build/release/supra"


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def output(*command: object, **options: object) -> str:
    """What a command prints; when it fails, what it complains of ends the program."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"error: this failed: {' '.join(parts)}\n{done.stderr or done.stdout}")
    return done.stdout.strip()


def run_until(
    command: list[str], is_last: Callable[[str], bool], **options: object
) -> tuple[list[str], int]:
    """The lines that a command prints up to the last one wanted, and the peak of its memory by
    then, in bytes. It is ended there."""
    pipe = subprocess.PIPE
    lines, status = [], None
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            for line in process.stdout:
                lines.append(line)
                if is_last(line):
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    break
        finally:
            process.kill()
        if status is None:
            told = "".join(lines[-10:]) + process.stderr.read()
            sys.exit(f"error: this ended early: {' '.join(command)}\n{told}")
    return lines, int(status.split("VmHWM:")[1].split()[0]) * 1024


def ratios(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """The median, least and largest ratio of pairs of rates."""
    found = [ours / theirs for ours, theirs in pairs]
    return statistics.median(found), min(found), max(found)


def table_row(cells: list[str]) -> str:
    """Of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def machine() -> dict:
    info = Path("/proc/cpuinfo").read_text()
    model = next(line for line in info.splitlines() if line.startswith("model name")).split(": ")[1]
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform()}


def versions() -> dict:
    """Of the compiler, and of this repository."""
    return {
        "compiler": output("g++", "-dumpfullversion"),
        "commit": output("git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"),
    }
