"""What the tests of the command line share: where things are, and how the programs are run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import made_up_text, write_tokens

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("SUPRA_BUILD", "build/release")

sys.path.insert(0, str(ROOT / "launch"))

# More ranks than processors, also as root, and a wait that leaves the processor to the other ranks.
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl": "self,vader",
}

Result = subprocess.CompletedProcess[str]


def run(command: list[object], timeout: float) -> Result:
    """Runs a command to its end. Its output is for the test to judge, and its exit code too."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | MPI_ENVIRONMENT
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def build() -> Path:
    """The folder of the build under test: SUPRA_BUILD, else build/release."""
    return BUILD


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """tests/fixtures: the models and what Hugging Face computes with them."""
    return ROOT / "tests" / "fixtures"


@pytest.fixture(scope="session")
def supra(build: Path) -> Callable[..., Result]:
    """supra("score", model, ..., ranks=2): runs the program, under mpirun where `ranks` is given.
    `ok` says whether it must succeed; None leaves that to the test."""
    program = build / "supra"
    if not program.is_file():
        pytest.fail(f"{program} is not built: run `bash tests/run.sh`")

    def call(
        *arguments: object, ranks: int = 0, ok: bool | None = True, timeout: float = 300
    ) -> Result:
        launcher = ["mpirun", "-n", ranks] if ranks else []
        result = run([*launcher, program, *arguments], timeout)
        if ok is not None and (result.returncode == 0) != ok:
            said = f"{result.stdout}\n{result.stderr}"
            pytest.fail(f"supra {arguments} ended with exit code {result.returncode}:\n{said}")
        return result

    return call


@pytest.fixture(scope="session")
def exit_codes(build: Path) -> Callable[..., tuple[list[int], str]]:
    """exit_codes(2, "train", ...): runs the program on two ranks; the exit code of each, and all
    that was said on standard error. With 0 ranks, without mpirun."""
    reporting = ["bash", "-c", '"$@"; echo "exit code $?"', "bash"]

    def call(ranks: int, *arguments: object, timeout: float = 60) -> tuple[list[int], str]:
        launcher = ["mpirun", "-n", ranks] if ranks else []
        result = run([*launcher, *reporting, build / "supra", *arguments], timeout)
        ends = [line for line in result.stdout.splitlines() if line.startswith("exit code ")]
        return [int(line.split()[-1]) for line in ends], result.stderr

    return call


@pytest.fixture(scope="session")
def tool() -> Callable[..., Result]:
    """tool("pack_text.py", ...): runs a Python tool of launch/."""

    def call(name: str, *arguments: object, ok: bool = True, timeout: float = 120) -> Result:
        result = run([sys.executable, ROOT / "launch" / name, *arguments], timeout)
        if (result.returncode == 0) != ok:
            said = f"{result.stdout}\n{result.stderr}"
            pytest.fail(f"{name} {arguments} ended with exit code {result.returncode}:\n{said}")
        return result

    return call


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.h5 and validation.h5, packed texts for the tiny recipe."""
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder / "train.h5", made_up_text(20_000, seed=1))
    write_tokens(folder / "validation.h5", made_up_text(700, seed=2))
    return folder


@pytest.fixture(scope="session")
def tiny_run(root: Path, tiny_data: Path) -> Callable[..., list[object]]:
    """tiny_run(folder, "train.steps=5"): arguments that train launch/recipes/tiny.toml there."""

    def arguments(folder: Path, *settings: str) -> list[object]:
        data = [f"data.{part}={tiny_data / part}.h5" for part in ("train", "validation")]
        all_settings = [*data, f"run.folder={folder}", *settings]
        options = [part for setting in all_settings for part in ("--set", setting)]
        return ["train", root / "launch" / "recipes" / "tiny.toml", *options]

    return arguments


@pytest.fixture(scope="session")
def train_tiny(
    supra: Callable[..., Result], tiny_run: Callable[..., list[object]]
) -> Callable[..., Result]:
    """train_tiny(folder, "train.steps=5", ranks=2): trains it."""

    def call(folder: Path, *settings: str, **how: object) -> Result:
        return supra(*tiny_run(folder, *settings), **how)

    return call
