"""supra export, and back: folders that the safetensors package opens, and that supra imports to the
same bits. What PyTorch computes with them is for tests/long/test_export_torch.py."""

import json
import subprocess

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny import checkpoint, made_up_text, read_scores, same_tensors, tensors, write_sequences

KINDS = {
    "linear": ["model.kv_heads=1"],
    "linear_tied": ["model.kv_heads=2", "model.tied_head=true", "model.qk_norm=true"],
    "per_head": ["model.feature_map=per_head"],
    "softmax": ["model.attention=softmax", "model.family=mistral", "model.window=9"],
    "softmax_tied": ["model.attention=softmax", "model.tied_head=true"],
}
FIXTURES = ["llama_mha", "llama_tied", "llama_linear_rope", "llama_llama3_rope", "mistral_window"]


@pytest.fixture(scope="module")
def trained(train_tiny, tmp_path_factory):
    """A checkpoint of every kind of model, written by two ranks."""
    folder = tmp_path_factory.mktemp("trained")
    steps = ["train.steps=2", "train.warmup_steps=1"]
    for kind, settings in KINDS.items():
        train_tiny(folder / kind, *settings, *steps, ranks=2)
    return {kind: checkpoint(folder / kind, 2) for kind in KINDS}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def model_of(path):
    return {name: t for name, t in tensors(path).items() if name.startswith("model/")}


@pytest.mark.parametrize("shard_size", ["1GB", "100KiB"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_comes_back_bit_by_bit(kind, shard_size, trained, supra, tmp_path):
    hf, again = tmp_path / "hf", tmp_path / "again.h5"
    supra("export", trained[kind], hf, "--shard-size", shard_size)
    supra("import", hf, again)
    first, second = model_of(trained[kind]), model_of(again)
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    rows = write_sequences(tmp_path / "rows.h5", made_up_text(3 * 40, seed=3).reshape(3, 40))
    for model, out in ((trained[kind], "a.h5"), (again, "b.h5")):
        supra("score", model, rows, "--out", tmp_path / out, "--threads", 1)
    assert np.array_equal(read_scores(tmp_path / "a.h5"), read_scores(tmp_path / "b.h5"))


def test_the_safetensors_package_reads_what_is_written(trained, supra, tmp_path):
    hf = tmp_path / "hf"
    supra("export", trained["linear"], hf, "--shard-size", "100KiB")
    index = json.loads((hf / "model.safetensors.index.json").read_text())
    shards = sorted({*index["weight_map"].values()})
    assert shards == [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, 7)]
    assert sorted(path.name for path in hf.iterdir()) == sorted(
        [*shards, "model.safetensors.index.json", "config.json"]
    )
    total = 0
    for shard in shards:
        with safe_open(hf / shard, framework="np") as file:
            assert file.metadata() == {"format": "pt"}
            assert {*file.keys()} == {n for n, s in index["weight_map"].items() if s == shard}
        held = load_file(hf / shard)
        assert all(t.dtype == np.float32 for t in held.values())
        size = sum(t.nbytes for t in held.values())
        assert size <= 100 * 1024 or len(held) == 1
        total += size
    assert total == index["metadata"]["total_size"]


def test_config_says_what_the_checkpoint_was_trained_with(trained, supra, tmp_path):
    supra("export", trained["linear"], tmp_path / "linear")
    linear = config_of(tmp_path / "linear")
    assert linear["model_type"] == "openlm" and linear["architectures"] == ["OpenLMForCausalLM"]
    assert (linear["seq_len"], linear["n_heads"], linear["n_heads_kv"]) == (32, 2, 1)
    assert linear["torch_dtype"] == "float32" and linear["eos_token_id"] is None
    supra("export", trained["softmax"], tmp_path / "softmax")
    softmax = config_of(tmp_path / "softmax")
    assert softmax["model_type"] == "mistral" and softmax["sliding_window"] == 9
    assert (softmax["max_position_embeddings"], softmax["head_dim"]) == (32, 32)


@pytest.mark.parametrize("name", FIXTURES)
def test_a_base_model_comes_back_as_transformers_wrote_it(name, supra, fixtures, tmp_path):
    supra("import", fixtures / name, tmp_path / "first.h5")
    supra("export", tmp_path / "first.h5", tmp_path / "hf")
    supra("import", tmp_path / "hf", tmp_path / "second.h5")
    assert same_tensors(tmp_path / "first.h5", tmp_path / "second.h5")
    written, original = config_of(tmp_path / "hf"), config_of(fixtures / name)
    rope = original.pop("rope_parameters", {})
    for key, value in ({"rope_theta": rope.get("rope_theta", 10000.0)} | original).items():
        if key in written and key not in ("torch_dtype", "rope_scaling"):
            assert written[key] == value, key
    dtype = original.get("dtype", original.get("torch_dtype"))
    assert written["torch_dtype"] == ("bfloat16" if dtype == "bfloat16" else "float32")


def test_bf16_rounds_once(trained, supra, tmp_path):
    hf = tmp_path / "hf"
    assert "bf16" in supra("export", trained["softmax"], hf, "--dtype", "bf16").stdout
    supra("import", hf, tmp_path / "again.h5")
    first, second = model_of(trained["softmax"]), model_of(tmp_path / "again.h5")
    for name, exact in first.items():
        bits = exact.view(np.uint32).astype(np.uint64)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
        assert np.array_equal(second[name].view(np.uint32), nearest.astype(np.uint32)), name


def test_a_full_disk_leaves_nothing_behind(trained, build, tmp_path):
    """Files may not grow beyond 64 KiB here; the signal that says so is ignored, as for a disk."""
    limited = "trap '' XFSZ; ulimit -f 64; exec \"$@\""
    command = ["bash", "-c", limited, "bash", build / "supra", "export", trained["linear"]]
    result = subprocess.run(
        [*command, tmp_path / "hf"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 2
    assert "cannot write" in result.stderr and "File too large" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["0", "-5", "big"])
def test_a_shard_size_that_is_none_is_bad_input(size, trained, supra, tmp_path):
    result = supra("export", trained["linear"], tmp_path / "hf", f"--shard-size={size}", ok=None)
    assert result.returncode == 2 and "--shard-size" in result.stderr
    assert not (tmp_path / "hf").exists()
