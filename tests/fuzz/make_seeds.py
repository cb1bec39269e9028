#!/usr/bin/env python3
"""Writes the inputs that fuzzing begins with: make_seeds.py FOLDER makes FOLDER/TARGET/NAME out of
the fixtures and the recipes. What run.sh --minimize keeps of them lies in tests/fuzz/corpus."""

import argparse
import json
import struct
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures"
SEPARATOR = b"\n--next--\n"  # of the files of a folder, as in tests/fuzz/safetensors.cpp
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}


# JSON that a parser takes, and that is bad nevertheless.
HOSTILE = {
    "beyond_double": b'{"vocab_size":1e999}',
    "deep": b"[" * 400 + b"]" * 400,
    "control_characters": b'{"\\u001b[2J\\nsupra: done":{}}',
    "twice": b'{"model_type":"llama","model_type":"mistral"}',
}


def safetensors(tensors: dict[str, tuple[str, list[int]]], metadata: bool = False) -> bytes:
    """A file of these dtypes and shapes, its data counting upwards."""
    header = {"__metadata__": {"format": "pt"}} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + BYTES[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + bytes(i % 256 for i in range(end))


def safetensors_seeds() -> dict[str, bytes]:
    first, second = {"a": ("BF16", [2, 3])}, {"b": ("F32", [2]), "c": ("F16", [1])}
    shards = {name: "1.safetensors" for name in first} | {name: "2.safetensors" for name in second}
    index = json.dumps({"metadata": {"total_size": 22}, "weight_map": shards}).encode()
    return {
        "every_type": safetensors(
            {"w": ("F32", [2, 2]), "b": ("BF16", [3]), "h": ("F16", [3]), "i": ("I64", [1, 0])},
            metadata=True,
        ),
        "scalar": safetensors({"s": ("F32", [])}),
        "shards": SEPARATOR.join([index, safetensors(first), safetensors(second)]),
        "shards_elsewhere": b'{"weight_map":{"a":"../1.safetensors"}}' + SEPARATOR,
    } | {f"header_{name}": struct.pack("<Q", len(text)) + text for name, text in HOSTILE.items()}


def hf_config_seeds() -> dict[str, bytes]:
    seeds = {path.parent.name: path.read_bytes() for path in FIXTURES.glob("*/config.json")}
    model = {
        "family": "llama", "attention": "linear", "vocabulary": 64, "width": 32, "layers": 2,
        "heads": 4, "kv_heads": 2, "head_width": 8, "ffn": 48, "tied_head": False,
        "norm_eps": 1e-5, "window": 0,
        "rope": {
            "base": 1e4, "scale": 1.0, "inv_freq": "fp32", "llama3_factor": 8.0,
            "llama3_low_freq_factor": 1.0, "llama3_high_freq_factor": 4.0,
            "llama3_original_positions": 8192,
        },
        "linear": {
            "feature_map": "dense", "slopes": "lightning", "normalization": "group_norm",
            "eps": 1e-5, "qk_norm": True,
        },
    }  # fmt: skip
    widest = {
        "model_type": "llama", "vocab_size": 1 << 30, "hidden_size": 1 << 20,
        "num_hidden_layers": 10000, "num_attention_heads": 1 << 10, "intermediate_size": 1 << 20,
    }  # fmt: skip
    for name, config in {"widest": widest, "too_wide": widest | {"hidden_size": 1 << 30}}.items():
        seeds[name] = json.dumps(config).encode()
    return seeds | HOSTILE | {"model_file": json.dumps(model).encode()}


def recipe_seeds() -> dict[str, bytes]:
    seeds = {path.stem: path.read_bytes() for path in (ROOT / "launch/recipes").glob("*.toml")}
    overrides = [b"train.steps=7", b"run.folder=else where", b'model.slopes="none"']
    return seeds | {"overrides": b"\0".join([seeds["tiny"], *overrides])}


def token_file_seeds() -> dict[str, bytes]:
    """Decisions: a 0 is the usual one. See tests/fuzz/token_file.cpp."""
    return {"usual": b"\0", "checksums": b"\0\0\0\1", "sequences": b"\0\0\0\0\1"}


def checkpoint_seeds() -> dict[str, bytes]:
    """Decisions: a 0 is the usual one. See tests/fuzz/checkpoint.cpp."""
    return {"usual": b"\0", "checksums": b"\1"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the inputs that fuzzing begins with.")
    parser.add_argument("folder", type=Path, help="receives a folder for each target")
    folder = parser.parse_args().folder
    for target, seeds in {
        "safetensors": safetensors_seeds(),
        "hf_config": hf_config_seeds(),
        "recipe": recipe_seeds(),
        "token_file": token_file_seeds(),
        "checkpoint": checkpoint_seeds(),
    }.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, content in seeds.items():
            (folder / target / name).write_bytes(content)


if __name__ == "__main__":
    main()
