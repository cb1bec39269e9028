"""What PyTorch computes with exported models is what `supra score` does: transformers of softmax
models, launch/supra_reference.py of those with linear attention."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from tiny import checkpoint, made_up_text, read_scores, write_sequences
from transformers import AutoModelForCausalLM

T = 60
LINEAR = {
    "grouped": ["model.heads=4", "model.kv_heads=2"],
    "alike": ["model.heads=4", "model.kv_heads=4"],
    "tied": ["model.tied_head=true"],
    "per_head": ["model.heads=4", "model.kv_heads=2", "model.feature_map=per_head"],
    "retnet": ["model.slopes=retnet", "model.qk_norm=true"],
    "no_decay": ["model.slopes=none", "model.rope_base=1e6", "model.rope_scale=2"],
    "six_heads": ["model.width=96", "model.heads=6", "model.kv_heads=3"],
    "rounded": ["model.rope_inv_freq=bf16"],
}
SOFTMAX = {
    "llama": ["model.heads=4", "model.kv_heads=2"],
    "llama_tied": ["model.tied_head=true", "model.rope_scale=2"],
    "mistral": ["model.family=mistral", "model.window=9"],
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.h5"
    return write_sequences(path, made_up_text(4 * (T + 1), seed=3).reshape(4, T + 1))


@pytest.fixture(scope="module")
def exported(train_tiny, supra, rows, tmp_path_factory):
    """exported(name, settings): the folder of a trained model, and its log-probabilities."""
    made = {}

    def make(name, settings):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            train_tiny(folder / "run", *settings, "train.steps=30")
            model = checkpoint(folder / "run", 30)
            supra("export", model, folder / "hf", "--shard-size", "100KiB")
            supra("score", model, rows, "--out", folder / "scores.h5")
            made[name] = folder / "hf", read_scores(folder / "scores.h5")
        return made[name]

    return make


def tolerance(layers, terms, logprob):
    """That of two evaluations in fp32, as launch/supra_reference.py has it."""
    return 4 * 2**-24 * math.sqrt((9 * layers + 2) * terms) * np.max(np.abs(logprob))


def score(tool, folder, rows, *options):
    tool("supra_reference.py", folder, rows, "--out", folder.parent / "torch.h5", *options)
    return read_scores(folder.parent / "torch.h5")


@pytest.mark.parametrize("options", [(), ("--recurrent",), ("--dtype", "float64")])
@pytest.mark.parametrize("name", LINEAR)
def test_the_reference_computes_what_supra_does(name, options, exported, tool, rows):
    folder, expected = exported(name, LINEAR[name])
    actual = score(tool, folder, rows, *options)
    assert actual.shape == (4, T)
    assert np.max(np.abs(actual - expected)) < tolerance(2, 128, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"use_decay": False},
        {"use_retnet_slopes": True},
        {"rotary_base_frequency": 500},
        {"rotary_scale": 1.5},
        {"norm_eps": 0.1},
        {"supra_rope_inv_freq": "bf16"},
    ],
)
def test_each_convention_tells(change, exported, tool, rows, tmp_path):
    """So that the test above would fail if one were another."""
    folder, expected = exported("grouped", LINEAR["grouped"])
    changed = shutil.copytree(folder, tmp_path / "hf")
    config = json.loads((changed / "config.json").read_text())
    assert change.keys() <= config.keys()
    (changed / "config.json").write_text(json.dumps(config | change))
    difference = np.max(np.abs(score(tool, changed, rows) - expected))
    assert difference > 10 * tolerance(2, 128, expected)


@pytest.mark.parametrize("name", SOFTMAX)
def test_transformers_compute_what_supra_does(name, exported, rows):
    settings = ["model.attention=softmax", *SOFTMAX[name]]
    folder, expected = exported(name, settings)
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading.values()), loading
    tokens = torch.from_numpy(made_up_text(4 * (T + 1), seed=3).reshape(4, T + 1))
    with torch.inference_mode():
        logprob = model(tokens[:, :-1]).logits.log_softmax(-1)
    actual = logprob.gather(-1, tokens[:, 1:, None])[..., 0].numpy()
    assert np.max(np.abs(actual - expected)) < tolerance(2, 128, expected)
