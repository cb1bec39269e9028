"""A training run of the tiny recipe over emulated hosts under Slurm, and what must be true of it
whatever happened on the way."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from hosts import LOGIN, wait_for
from slurm import Job, Slurm

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "launch" / "recipes" / "tiny.toml"
HOSTS, RANKS_PER_HOST = 2, 2
RANKS = HOSTS * RANKS_PER_HOST
BATCH = 12  # train.global_batch of the recipe


class Training:
    """Four ranks on two hosts, a checkpoint every five steps."""

    def __init__(
        self, slurm: Slurm, supra: Path, data: Path, folder: Path, steps: int, *settings: str
    ) -> None:
        self.slurm, self.supra, self.folder, self.steps = slurm, supra, folder, steps
        self.settings = [
            f"run.folder={folder}",
            "run.log_samples=true",
            f"data.train={data}",
            "data.validation=",
            f"train.steps={steps}",
            "checkpoint.every=5",
            "checkpoint.keep_last=4",
            "watch.step_timeout=8",
            "watch.collective_timeout=6",
            *settings,
        ]
        self.job_number = 0

    def submit(self, *options: str, environment: dict[str, str] | None = None) -> None:
        settings = [part for setting in self.settings for part in ("--set", setting)]
        said = self.slurm.on(
            LOGIN, str(ROOT / "launch" / "slurm" / "submit.sh"), "--nodes", str(HOSTS),
            "--tasks-per-node", str(RANKS_PER_HOST), "--supra", str(self.supra), str(RECIPE),
            *settings, *options, environment=environment,
        )  # fmt: skip
        self.job_number = int(said.split()[-1])

    def job(self) -> Job:
        return self.slurm.job(self.job_number)

    def log(self) -> str:
        """All that was said at every start, of every job of this run."""
        logs = sorted(self.folder.glob("slurm/*.log"), key=lambda path: int(path.stem))
        return "".join(path.read_text(errors="replace") for path in logs)

    def records(self) -> list[dict]:
        """The lines of the metrics that are whole."""
        return json_lines(self.folder / "metrics.jsonl")

    def step(self) -> int:
        """Steps done, as the metrics say."""
        return max((record["step"] for record in self.records() if "loss" in record), default=0)

    def wait_for_step(self, step: int, seconds: float = 60) -> None:
        wait_for(lambda: self.step() >= step, f"step {step}", seconds)

    def ranks(self) -> dict[int, int]:
        """The processes of the ranks that run, by rank."""
        found = {}
        for host in self.slurm.hosts.running:
            for process in self.slurm.processes(host):
                rank = environment_of(process.pid).get("PMIX_RANK")
                if process.name == self.supra.name and rank is not None:
                    found[int(rank)] = process.pid
        return found

    def wait_for_ranks(self, start: int = 0) -> dict[int, int]:
        """Those of the job's start of this number or a later one, once all of them run."""

        def all_run(job: Job) -> bool:
            return job.state == "RUNNING" and job.restarts >= start and len(self.ranks()) == RANKS

        self.slurm.wait(self.job_number, 60, all_run)
        return self.ranks()

    def signal_rank(self, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.ranks()[rank], number)

    def host_of(self, rank: int) -> str:
        return self.slurm.nodes(self.job_number)[rank // RANKS_PER_HOST]

    def checkpoints(self) -> list[Path]:
        """Those with an index, oldest first."""
        return [path.parent for path in sorted(self.folder.glob("checkpoints/step-*/index.h5"))]

    def starts(self) -> list[str]:
        """What was said at each start that came as far as a step: a few fail within MPI_Init."""
        starts = re.split(r"^== \S+ start \d+ of job .*$", self.log(), flags=re.MULTILINE)[1:]
        return [said for said in starts if "\nstep " in said]

    def steps_done_again(self) -> int:
        """Steps that were done and lost, because the next start began at an earlier checkpoint."""
        steps = [re.findall(r"^step +(\d+)/", said, re.MULTILINE) for said in self.starts()]
        return sum(int(last[-1]) + 1 - int(first[0]) for last, first in pairwise(steps))

    def exit_codes(self) -> list[int | None]:
        """Those of the ranks at each of these starts; None where the batch script saw none."""
        pattern = re.compile(r"^== \S+ ended with (\d+):", re.MULTILINE)
        ends = [pattern.search(said) for said in self.starts()]
        return [int(end[1]) if end else None for end in ends]

    def wait_until_requeued(self, seconds: float = 60) -> None:
        """Until the job is queued again, held back for some seconds, and nothing of it runs."""
        before = self.job().restarts
        wait_for(lambda: self.job().restarts > before, "the job to be queued again", seconds)
        self.slurm.wait_until_nothing_runs()

    def recover(self, fault: Callable[[], None], seconds: float = 180) -> float:
        """Seconds from a fault that makes the job start again to the first step done after it."""
        before = len(self.starts())
        began = time.monotonic()
        fault()
        self.slurm.wait(self.job_number, seconds, lambda _: len(self.starts()) > before)
        return time.monotonic() - began

    def end(self, state: str = "COMPLETED", seconds: float = 180) -> Job:
        """Until the job has ended, in this state; nothing runs on any host then."""
        job = self.slurm.wait(self.job_number, seconds)
        self.slurm.wait_until_nothing_runs()
        assert job.state == state, f"{job}\n{self.log()}"
        return job

    def losses(self) -> list[float]:
        """Of every step from the first to the last, each there once."""
        steps = [record for record in self.records() if "loss" in record]
        assert [record["step"] for record in steps] == list(range(1, self.steps + 1))
        return [record["loss"] for record in steps]

    def samples(self) -> dict[int, list[int]]:
        """The places in the order of samples that each step was trained on, over all ranks."""
        found = {}
        for rank in range(RANKS):
            for record in json_lines(self.folder / f"samples-{rank:04}.jsonl"):
                first = record["first_sample"]
                places = range(first, first + len(record["windows"]))
                found.setdefault(record["step"], []).extend(places)
        return found

    def check(self, undisturbed: list[float]) -> None:
        """Nothing was lost: the losses have the bits of a run that nothing happened to, and each
        sample was trained on once, at its step."""
        assert self.losses() == undisturbed
        samples = self.samples()
        assert sorted(samples) == list(range(1, self.steps + 1))
        for step, places in samples.items():
            assert sorted(places) == list(range(BATCH * (step - 1), BATCH * step))


def json_lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def environment_of(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}  # it has ended
    return dict(part.split("=", 1) for part in text.split("\0") if "=" in part)
