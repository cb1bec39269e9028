"""A watched run from the command line: ranks that leave out a collective, stall, stop or die."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

WATCHDOG = 6


@pytest.fixture
def broken_run(
    supra: Callable, tiny_run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """broken_run("rank=1,collective=40,do=stall"): a run of three ranks with that fault; its exit
    code, and what it said on standard error."""

    def call(fault: str, *settings: str) -> tuple[int, str]:
        monkeypatch.setenv("SUPRA_FAULT", fault)
        limits = ("watch.collective_timeout=2", "watch.step_timeout=60")
        arguments = tiny_run(tmp_path / "run", *limits, *settings)
        result = supra(*arguments, ranks=3, ok=None, timeout=60)
        assert not running(tmp_path), "something is left running"
        return result.returncode, result.stderr

    return call


def running(folder: Path) -> list[str]:
    """Processes with this folder in their command."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # has ended
            continue
        if str(folder).encode() in command and int(process.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode())
    return found


def records(folder: Path) -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in (folder / "watch").glob("*.json")}


def test_a_rank_that_stalls_is_named(broken_run, tmp_path):
    code, said = broken_run("rank=1,collective=40,do=stall")
    assert code == WATCHDOG
    assert "supra: watchdog: rank 1 (" in said
    named = r"has not entered (\w+) #40 of \S+ \(mpi\), which ranks 0, 2"
    assert re.search(named, said)
    assert "it has been in step 2 for" in said
    assert said.count("the run ends") == 1
    left = records(tmp_path / "run")
    assert sorted(left) == [f"rank-000{rank}.json" for rank in range(3)]
    last = {name: record["collectives"][-1]["sequence"] for name, record in left.items()}
    assert last["rank-0001.json"] == 39
    assert last["rank-0000.json"] >= 40
    assert not (tmp_path / "run" / "blamed-nodes").exists()


# 30 is an all_gather, 40 a reduce_scatter, 42 an exchange of host data.
@pytest.mark.parametrize("collective", [30, 40, 42])
def test_a_rank_that_leaves_out_a_collective_is_named(collective, broken_run, tmp_path):
    code, said = broken_run(f"rank=1,collective={collective},do=skip")
    assert code in (1, WATCHDOG)  # MPI may notice it first
    names = [line for line in said.splitlines() if "has not entered" in line]
    assert names and all(line.startswith("supra: ") for line in names)
    assert all("rank 1 (" in line and f" #{collective} " in line for line in names)
    assert len(records(tmp_path / "run")) == 3


@pytest.mark.parametrize("collective", [30, 40, 42])
def test_calls_that_differ_are_refused_before_they_are_made(collective, broken_run):
    code, said = broken_run(
        f"rank=1,collective={collective},do=skip", "watch.check_collectives=true"
    )
    assert code == 1
    assert "the ranks make different calls on mpi: rank 1 " in said
    assert said.count(f" #{collective} ") == 2


def test_a_rank_that_is_stopped_does_not_answer(broken_run, tmp_path):
    code, said = broken_run("rank=2,collective=40,do=stop")
    assert code == WATCHDOG
    assert "supra: watchdog: rank 2 (" in said and "does not answer" in said
    assert re.search(r"ranks 0-1 wait in \w+ #40 of \S+ \(mpi\)", said)
    host, reason = (tmp_path / "run" / "blamed-nodes").read_text().rstrip("\n").split("\t")
    assert host == os.uname().nodename
    assert reason.startswith("rank 2 did not answer for ")


def test_when_rank_0_is_stopped_the_others_end_by_themselves(broken_run):
    code, said = broken_run("rank=0,collective=40,do=stop")
    assert code == WATCHDOG
    assert "ends by itself: rank 0 (" in said


def test_a_rank_that_dies_ends_the_run(broken_run):
    code, _ = broken_run("rank=1,collective=40,do=exit")
    assert code == 1  # the rank's own: mpirun ends the others


def test_a_fault_that_cannot_be_read_is_bad_input(broken_run):
    code, said = broken_run("rank=1,collective=0,do=skip")
    assert code == 2
    assert said.count("rank=R,collective=N,do=A") == 1


def test_a_run_with_a_fault_that_never_comes_is_done(broken_run, tmp_path):
    code, said = broken_run("rank=1,collective=1000000,do=stall", "watch.check_collectives=true")
    assert code == 0
    assert "watchdog" not in said
    assert not (tmp_path / "run" / "watch").exists()
