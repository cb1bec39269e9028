"""PyTorch in a process of its own, with what makes it fast, which sleeps between its turns."""

import json
import os
import subprocess
import sys
from pathlib import Path

from turns import ROOT, output

TCMALLOC = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")


class TorchProcess:
    """A program of bench/peers in the environment of `folder`: asked for some steps, it writes a
    line of JSON for each."""

    def __init__(self, folder: Path, program: str, *arguments: object) -> None:
        command = [folder / "venv/bin/python", ROOT / "bench/peers" / program, *arguments]
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        # Meant for NumPy's library where they are set; MKL and oneDNN are to choose for themselves.
        for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_NUM_THREADS"):
            environment.pop(name, None)
        if TCMALLOC.exists():
            environment["LD_PRELOAD"] = str(TCMALLOC)
        self.log = folder / "torch.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    def __enter__(self) -> "TorchProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def steps(self, count: int) -> list[dict]:
        print(count, file=self.process.stdin, flush=True)
        lines = [self.process.stdout.readline() for _ in range(count)]
        if not all(lines):
            sys.exit(f"PyTorch ended; {self.log} ends with\n{self.log.read_text()[-2000:]}")
        return [json.loads(line) for line in lines]


def torch_versions(folder: Path) -> dict:
    code = "import torch, transformers as t; print(torch.__version__, t.__version__)"
    found = output(folder / "venv/bin/python", "-c", code).split()
    return dict(zip(("torch", "transformers"), found, strict=True))
