"""supra score: against Hugging Face transformers, and token by token against the parallel form."""

import json

import numpy as np
import pytest
from tiny import checkpoint, made_up_text, read_scores, write_sequences

FIXTURES = ["llama_mha", "llama_tied", "llama_linear_rope", "llama_llama3_rope", "mistral_window"]


@pytest.fixture(scope="module")
def imported(supra, fixtures, tmp_path_factory):
    """The model files of the fixtures, by name."""
    folder = tmp_path_factory.mktemp("models")
    for name in FIXTURES:
        supra("import", fixtures / name, folder / f"{name}.h5")
    return {name: folder / f"{name}.h5" for name in FIXTURES}


def mean_loss(result):
    return float(result.stdout.split("mean loss ")[1].split()[0])


@pytest.mark.parametrize("name", FIXTURES)
def test_log_probabilities_are_those_of_transformers(name, imported, supra, fixtures, tmp_path):
    fixture, out = fixtures / name / "fixture.h5", tmp_path / "out.h5"
    result = supra("score", imported[name], fixture, "--out", out)
    expected, actual = read_scores(fixture), read_scores(out)
    assert np.max(np.abs(actual - expected) / np.abs(expected)) < 1e-4
    assert mean_loss(result) == pytest.approx(-expected.mean(), rel=1e-5)
    result = supra("score", imported[name], fixture, "--dtype", "bf16")
    assert mean_loss(result) == pytest.approx(-expected.mean(), rel=0.01)


def test_the_loss_of_smollm2_is_that_of_transformers(supra, root, fixtures):
    model = root / "build" / "quickstart" / "smollm2-135m.h5"
    if not model.is_file():
        pytest.skip(f"{model} is not there: made by `bash launch/quickstart.sh`")
    reference = json.loads((fixtures / "smollm2" / "reference.json").read_text())
    tokens = fixtures / "smollm2" / "tokens.h5"
    result = supra("score", model, tokens, "--dtype", "bf16")
    assert mean_loss(result) == pytest.approx(reference["mean_loss_bf16"], rel=0.01)


@pytest.mark.parametrize("feature_map", ["dense", "per_head"])
@pytest.mark.parametrize("normalization", ["group_norm", "denominator"])
@pytest.mark.parametrize("slopes", ["lightning", "retnet", "none"])
def test_the_recurrent_form_equals_the_parallel_one(
    slopes, normalization, feature_map, supra, train_tiny, tmp_path
):
    """At every position, of a model with grouped queries."""
    settings = {
        "model.slopes": slopes,
        "model.normalization": normalization,
        "model.feature_map": feature_map,
        "train.steps": 1,
        "train.warmup_steps": 0,
    }
    train_tiny(tmp_path / "run", *(f"{key}={value}" for key, value in settings.items()))
    model = checkpoint(tmp_path / "run", 1)
    rows = write_sequences(tmp_path / "rows.h5", made_up_text(3 * 150, seed=3).reshape(3, 150))
    options = ["--threads", 1, "--out"]
    supra("score", model, rows, *options, tmp_path / "parallel.h5")
    supra("score", model, rows, *options, tmp_path / "recurrent.h5", "--recurrent")
    parallel = read_scores(tmp_path / "parallel.h5")
    assert parallel.shape == (3, 149) and np.all(parallel < 0)
    assert np.max(np.abs(read_scores(tmp_path / "recurrent.h5") - parallel)) < 1e-4


@pytest.mark.parametrize("name", ["llama_tied", "mistral_window"])
def test_a_softmax_model_with_a_cache_equals_the_parallel_one(
    name, imported, supra, fixtures, tmp_path
):
    fixture, out = fixtures / name / "fixture.h5", tmp_path / "cached.h5"
    supra("score", imported[name], fixture, "--recurrent", "--out", out)
    expected = read_scores(fixture)
    assert np.max(np.abs(read_scores(out) - expected) / np.abs(expected)) < 1e-4
    one_thread = tmp_path / "one_thread.h5"
    supra("score", imported[name], fixture, "--recurrent", "--threads", 1, "--out", one_thread)
    assert np.array_equal(read_scores(one_thread), read_scores(out))


def test_a_softmax_model_can_be_scored_as_a_linear_one(imported, supra, fixtures, tmp_path):
    model, fixture = imported["mistral_window"], fixtures / "mistral_window" / "fixture.h5"
    outs = {name: tmp_path / f"{name}.h5" for name in ("softmax", "linear", "recurrent", "other")}
    supra("score", model, fixture, "--out", outs["softmax"], "--attention", "softmax")
    linear = ["--attention", "linear"]
    supra("score", model, fixture, "--out", outs["linear"], *linear)
    supra("score", model, fixture, "--out", outs["recurrent"], *linear, "--recurrent")
    supra("score", model, fixture, "--out", outs["other"], *linear, "--init-seed", 1)
    scores = {name: read_scores(path) for name, path in outs.items()}
    assert scores["softmax"] == pytest.approx(read_scores(fixture), rel=1e-4)
    assert np.max(np.abs(scores["recurrent"] - scores["linear"])) < 1e-4
    assert np.max(np.abs(scores["linear"] - scores["softmax"])) > 0.01
    assert np.max(np.abs(scores["linear"] - scores["other"])) > 0.01


def test_threads_and_batches_change_no_bit(imported, supra, tmp_path):
    rows = made_up_text(40 * 150, seed=4).reshape(40, 150) % 97
    whole = write_sequences(tmp_path / "whole.h5", rows)
    part = write_sequences(tmp_path / "part.h5", rows[5:6].astype(np.uint8))
    for name, file, threads in (("one", whole, 1), ("two", whole, 2), ("part", part, 1)):
        out = tmp_path / f"{name}.h5"
        supra("score", imported["llama_mha"], file, "--out", out, "--threads", threads)
    one, two, alone = (read_scores(tmp_path / f"{name}.h5") for name in ("one", "two", "part"))
    assert np.array_equal(one, two)
    assert np.max(np.abs(one[5:6] - alone)) < 1e-5
    limited = tmp_path / "limited.h5"
    supra("score", imported["llama_mha"], whole, "--out", limited, "--limit", 3)
    assert read_scores(limited).shape == (3, 149)
