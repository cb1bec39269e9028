"""launch/slurm: what the batch script makes of each way in which ranks end, on a real Slurm. The
ranks are tests/cluster/stand_in.sh, told in a recipe how each start of the job is to end."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts import LOGIN, wait_for
from slurm import Slurm

STAND_IN = Path(__file__).with_name("stand_in.sh")


class Run:
    """A run of the stand-in with two ranks on each of two hosts."""

    def __init__(self, slurm: Slurm, submit: Path, folder: Path) -> None:
        self.slurm, self.submit_script, self.folder = slurm, submit, folder
        self.job_number = 0

    def submit(self, starts: list[str], *options: str) -> None:
        recipe = self.folder.with_suffix(".toml")
        recipe.write_text("\n".join(starts) + "\n")
        said = self.slurm.on(
            LOGIN, str(self.submit_script), "--nodes", "2", "--tasks-per-node", "2",
            "--supra", str(STAND_IN), str(recipe), "--set", f"run.folder={self.folder}", *options,
        )  # fmt: skip
        self.job_number = int(said.split()[-1])

    def end(self, seconds: float = 60) -> tuple[str, int, int]:
        """How the job ended: state, exit code, restarts. Nothing of it runs any more."""
        job = self.slurm.wait(self.job_number, seconds)
        self.slurm.wait_until_nothing_runs()
        return job.state, job.exit_code, job.restarts

    def log(self) -> str:
        path = self.folder / "slurm" / f"{self.job_number}.log"
        return path.read_text() if path.exists() else ""

    def wait_for_ranks(self) -> None:
        wait_for(lambda: self.log().count("waits") == 4, "four ranks to wait", 30)


@pytest.fixture
def start_run(
    start_slurm: Callable[[int], Slurm], submit_script: Path, tmp_path: Path
) -> Callable[[int], Run]:
    return lambda hosts: Run(start_slurm(hosts), submit_script, tmp_path / "run")


@pytest.fixture
def run(start_run: Callable[[int], Run]) -> Run:
    return start_run(2)


def test_a_run_that_is_done_completes(run):
    run.submit(["exit=0"])
    assert run.end() == ("COMPLETED", 0, 0)


@pytest.mark.parametrize("code", [2, 3])
def test_bad_input_and_losses_that_are_not_finite_fail_at_once(run, code):
    run.submit([f"exit={code}"])
    assert run.end() == ("FAILED", code, 0)


def test_other_ends_are_started_again_and_the_log_goes_on(run):
    run.submit(["checkpoint exit=4", "exit=6", "exit=1", "kill=3", "exit=0"])
    assert run.end() == ("COMPLETED", 0, 4)
    starts = re.findall(
        r"start (\d+) of job 1 with srun on n\[1-2\], from .* step (\d+)", run.log()
    )
    assert starts == [("0", "0"), ("1", "1"), ("2", "1"), ("3", "1"), ("4", "1")]


def test_starts_without_progress_are_bounded_until_a_person_submits_again(run):
    run.submit(["exit=1"] * 9, "--starts", "2")
    assert run.end() == ("FAILED", 1, 1)
    assert "gave up: 2 starts ended without a checkpoint newer than step 0" in run.log()
    run.submit(["exit=1", "exit=0"], "--starts", "2")
    assert run.end() == ("COMPLETED", 0, 1)


@pytest.mark.long
def test_a_run_that_makes_progress_is_started_as_often_as_it_takes(run):
    run.submit(["checkpoint exit=1"] * 2 + ["exit=4"] * 2 + ["exit=0"], "--starts", "2")
    assert run.end() == ("COMPLETED", 0, 4)


def test_blamed_hosts_are_left_out(start_run):
    run = start_run(4)
    run.submit(["blame=n2 exit=5", "blame=n1.cluster exit=6", "exit=0"])
    assert run.end() == ("COMPLETED", 0, 2)
    job = run.slurm.job(run.job_number)
    assert job.nodes == "n[3-4]"


def test_a_blamed_host_is_not_left_out_where_too_few_would_remain(run):
    run.submit(["blame=n2 exit=5", "exit=0"])
    assert run.end() == ("COMPLETED", 0, 1)
    assert "blamed, but not left out for want of others: n2" in run.log()


@pytest.mark.parametrize("launcher", ["srun", pytest.param("mpirun", marks=pytest.mark.long)])
def test_sigusr1_to_the_batch_script_reaches_the_ranks(run, launcher):
    run.submit(["wait", "exit=0"], "--launcher", launcher)
    run.wait_for_ranks()
    run.slurm.on(LOGIN, "scancel", "--batch", "--signal=USR1", str(run.job_number))
    assert run.end() == ("COMPLETED", 0, 1)
    assert run.log().count("was told to stop") == 4


@pytest.mark.parametrize("launcher", ["srun", pytest.param("mpirun", marks=pytest.mark.long)])
def test_exit_codes_are_those_of_the_ranks(run, launcher):
    run.submit(["kill=1", "exit=4", "exit=3"], "--launcher", launcher)
    assert run.end() == ("FAILED", 3, 2)
    assert re.findall(r"ended with (\d+):", run.log()) == ["137", "4", "3"]


def test_a_cancelled_run_writes_a_checkpoint_and_is_not_requeued(run):
    run.submit(["wait", "exit=0"])
    run.wait_for_ranks()
    run.slurm.on(LOGIN, "scancel", str(run.job_number))
    assert run.end() == ("CANCELLED", 4, 0)
    assert run.log().count("was told to stop") == 4


def test_a_preempted_run_stops_in_its_grace_time_and_goes_on_later(run):
    run.submit(["wait", "exit=0"])
    run.wait_for_ranks()
    urgent = run.slurm.on(LOGIN, "sbatch", "--parsable", "-purgent", "-N2", "--wrap=true")
    assert run.slurm.wait(int(urgent), 60).state == "COMPLETED"
    assert run.end() == ("COMPLETED", 0, 1)
    assert "stopped as asked, with a checkpoint" in run.log()


@pytest.mark.long
def test_a_run_at_its_time_limit_stops_ahead_of_it_and_goes_on(run):
    run.submit(["wait", "exit=0"], "--time", "1", "--ahead", "30")
    assert run.end(seconds=120) == ("COMPLETED", 0, 1)
    assert run.log().count("was told to stop") == 4


def test_each_rank_of_a_host_sees_its_gpus(run):
    run.submit(["gpus exit=0"], "--gpus-per-node", "2")
    assert run.end() == ("COMPLETED", 0, 0)
    assert sorted(re.findall(r"rank (\d) on cuda sees GPUs (\S+)", run.log())) == [
        (rank, "0,1") for rank in "0123"
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--nodes", "two"], "--nodes takes a number, not 'two'"),
        (["--time"], "--time needs a value"),
        (["--colour", "red"], "there is no option --colour"),
        (["--launcher", "ssh", "a.toml"], "--launcher is auto, srun or mpirun, not 'ssh'"),
        (["a.toml", "b.toml"], "two recipes, a.toml and b.toml"),
        (["--starts", "0", "a.toml"], "--starts are at least 1"),
        ([], "which recipe?"),
        (["--supra", "no/such", "a.toml"], "there is no program no/such"),
    ],
)
def test_what_cannot_be_submitted_is_refused(submit_script, wrong, said):
    ended = subprocess.run([submit_script, *wrong], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_a_dry_run_prints_the_command(submit_script, supra):
    recipe = str(submit_script.parents[1] / "recipes" / "tiny.toml")
    options = ["--nodes", "8", "--gpus-per-node", "4", "--time", "24:00:00", "--ahead", "300"]
    ended = subprocess.run(
        [submit_script, "--dry-run", "--supra", supra, *options, recipe, "--", "--partition=big"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    for part in [
        "--nodes=8 --ntasks-per-node=4",
        "--gpus-per-node=4",
        "--time=24:00:00",
        "--signal=B:USR1@300",
        f"{recipe} --set train.device=cuda --set run.resume=latest",
        "--partition=big",
        "--output=runs/tiny/slurm/%j.log",
    ]:
        assert part in ended.stdout.replace("\\", "")
