"""Token files made up for tests, and what runs leave behind, as Python values."""

import json
from pathlib import Path

import h5py
import numpy as np

VOCABULARY = 256


def made_up_text(length: int, seed: int) -> np.ndarray:
    """Tokens that a model can learn something of: each follows from the one before, mostly."""
    random = np.random.default_rng(seed)
    tokens = np.zeros(length, dtype=np.int64)
    surprises = random.random(length) < 0.3
    drawn = random.integers(0, VOCABULARY, length)
    for i in range(1, length):
        tokens[i] = drawn[i] if surprises[i] else (5 * tokens[i - 1] + 7) % VOCABULARY
    return tokens


def write_tokens(path: Path, tokens: np.ndarray, vocabulary: int = VOCABULARY) -> Path:
    """A packed text, as launch/pack_text.py writes it."""
    with h5py.File(path, "w") as file:
        file["tokens"] = tokens.astype(np.uint16)
        attributes = {"format": "supra-tokens 1", "vocabulary": vocabulary, "eos": 0}
        file.attrs.update(attributes | {"documents": 1})
    return path


def write_sequences(path: Path, rows: np.ndarray) -> Path:
    """Sequences to score, [N, T]."""
    with h5py.File(path, "w") as file:
        file["tokens"] = rows
    return path


def read_scores(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["logprob"][:]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """The loss of each step from the first, which must be there once and in order."""
    steps = [line for line in metrics(folder) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    return [line["loss"] for line in steps]


def validation_losses(folder: Path) -> dict[int, float]:
    return {m["step"]: m["validation_loss"] for m in metrics(folder) if "validation_loss" in m}


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08}"


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Every dataset of a model file, or of a checkpoint given by its folder."""
    found = {}
    with h5py.File(path / "index.h5" if path.is_dir() else path) as file:

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item.astype(np.float32)[...]

        file.visititems(visit)
    return found


def same_tensors(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same bits: weights, and the optimizer's moments."""
    first, second = tensors(a), tensors(b)
    return first.keys() == second.keys() and all(
        first[name].tobytes() == second[name].tobytes() for name in first
    )
