"""What the tests on emulated hosts share. They need root, namespaces and Debian's Slurm, and are
skipped where one of these is missing; `--long` also runs those that take more than some seconds."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest
from slurm import Slurm
from training import HOSTS, Training

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "cli"))
from tiny import made_up_text, write_tokens  # noqa: E402

BUILD = ROOT / os.environ.get("SUPRA_BUILD", "build/release")
PROGRAMS = ["slurmctld", "slurmd", "munged", "sbatch", "srun", "ip", "tc", "nsenter", "unshare"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the tests that take minutes")
    parser.addoption("--report", type=Path, help="write what became of each fault into this file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes minutes; only with --long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    later = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=later)
    items[:] = [item for item in items if item not in later]


def why_no_cluster() -> str:
    """What is missing here for emulated hosts with Slurm; empty: nothing."""
    if os.geteuid() != 0:
        return "needs root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if missing:
        return f"needs {', '.join(missing)}: launch/setup.sh lists the packages"
    bridge = "ip link add name bridge type bridge"
    shaper = "tc qdisc add dev bridge root tbf rate 1mbit burst 4k limit 16k"
    namespaces = ["unshare", "--net", "--uts", "--pid", "--mount", "--ipc", "--fork"]
    attempt = subprocess.run(
        [*namespaces, "--mount-proc", "sh", "-c", f"{bridge} && {shaper}"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces here: {attempt.stderr.strip()}" if attempt.returncode else ""


@pytest.fixture(scope="session")
def emulation() -> None:
    """Skips a test where hosts cannot be emulated."""
    if why := why_no_cluster():
        pytest.skip(why)


@pytest.fixture
def start_slurm(emulation: None, tmp_path: Path) -> Iterator[Callable[[int], Slurm]]:
    """start_slurm(3): a cluster of three hosts, taken down after the test."""
    clusters = []

    def start(hosts: int) -> Slurm:
        folder = tmp_path / f"cluster-{len(clusters)}"
        folder.mkdir()
        clusters.append(Slurm(folder, hosts))
        clusters[-1].up()
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.down()


@pytest.fixture(scope="session")
def submit_script() -> Path:
    return ROOT / "launch" / "slurm" / "submit.sh"


@pytest.fixture(scope="session")
def supra() -> Path:
    """The program under test."""
    program = BUILD / "supra"
    if not program.is_file():
        pytest.fail(f"{program} is not built: run `bash tests/run.sh`")
    return program


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(
        tmp_path_factory.mktemp("tokens") / "train.h5", made_up_text(20_000, seed=1)
    )


@pytest.fixture
def start_training(
    start_slurm: Callable[[int], Slurm], supra: Path, tokens: Path, tmp_path: Path
) -> Callable[..., Training]:
    """start_training(40, "train.dtype=mixed", hosts=3, rate="300mbit"): a run of so many steps, not
    submitted yet, on a cluster of its own. A step moves 15 Mbit, so that the rate of the network,
    where it is limited, says how long steps take at least."""

    def start(steps: int, *settings: str, hosts: int = HOSTS, rate: str = "") -> Training:
        slurm = start_slurm(hosts)
        if rate:
            for name in slurm.hosts.names:
                slurm.hosts.limit(name, rate)
        return Training(slurm, supra, tokens, tmp_path / "run", steps, *settings)

    return start


@pytest.fixture(scope="session")
def undisturbed(
    emulation: None, supra: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], list[float]]:
    """undisturbed(40): the losses of a run of so many steps, on the same ranks, to which
    nothing happens."""

    @cache
    def losses(steps: int) -> list[float]:
        folder = tmp_path_factory.mktemp("undisturbed")
        slurm = Slurm(folder, HOSTS)
        try:
            slurm.up()
            training = Training(slurm, supra, tokens, folder / "run", steps)
            training.submit()
            training.end(seconds=600)
            assert training.exit_codes() == [0]
        finally:
            slurm.down()
        training.check(training.losses())
        return training.losses()

    return losses


def where_and_when() -> dict[str, str]:
    cpus = Path("/proc/cpuinfo").read_text().split("model name\t: ")
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    return {
        "machine": f"{os.cpu_count()} cores of {cpus[1].splitlines()[0] if len(cpus) > 1 else '?'}",
        "date": f"{datetime.now():%Y-%m-%d}",
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
    }


@pytest.fixture(scope="session")
def faults() -> dict:
    return where_and_when() | {"faults": []}


@pytest.fixture
def report(
    pytestconfig: pytest.Config, faults: dict
) -> Callable[[Training, str, str, float], None]:
    """report(training, fault, what happened, seconds until the run went on): for fault_table.py."""

    def add(training: Training, fault: str, happened: str, seconds: float) -> None:
        row = {
            "fault": fault,
            "happened": happened,
            "exit_codes": training.exit_codes(),
            "seconds": round(seconds, 1),
            "steps_done_again": training.steps_done_again(),
        }
        faults["faults"].append(row)
        if path := pytestconfig.getoption("--report"):
            path.write_text(json.dumps(faults, indent=1) + "\n")

    return add
