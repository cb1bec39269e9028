"""What the comparisons in bench/peers share: ratios of pairs, and runs that are ended early."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "peers"))
import turns


def test_the_ratio_is_the_median_of_the_pairs_and_not_of_the_rates():
    # A machine that slows down to a tenth halfway leaves paired ratios as they are.
    pairs = [(1000, 500), (100, 50), (300, 100)]
    assert turns.ratios(pairs) == (2, 2, 3)


def test_a_run_is_ended_after_the_last_line_that_is_wanted(tmp_path):
    later = tmp_path / "later"
    code = f"""
import pathlib, time
print("one", flush=True)
print("two", flush=True)
time.sleep(30)
pathlib.Path({str(later)!r}).touch()
"""
    lines, peak = turns.run_until([sys.executable, "-c", code], lambda line: line == "two\n")
    assert lines == ["one\n", "two\n"]
    assert 2**20 < peak < 2**28  # an interpreter's memory, in bytes
    assert not later.exists()


def test_a_run_that_ends_before_is_an_error_with_what_it_said():
    command = ["bash", "-c", "echo told; echo complaint >&2"]
    with pytest.raises(SystemExit, match=r"(?s)ended early.*told\ncomplaint"):
        turns.run_until(command, lambda line: line == "never\n")


def test_a_command_that_fails_is_an_error_with_what_it_complained_of():
    assert turns.output("echo", "fine") == "fine"
    with pytest.raises(SystemExit, match=r"(?s)this failed.*complaint"):
        turns.output("bash", "-c", "echo fine; echo complaint >&2; exit 3")
