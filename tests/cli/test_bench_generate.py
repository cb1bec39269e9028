"""supra bench generate: that it tells what generation keeps, for either attention."""

import json

import pytest


@pytest.fixture(scope="module")
def model(supra, fixtures, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "model.h5"
    supra("import", fixtures / "mistral_window", path)
    return path


def measured(supra, model, tmp_path, *options):
    file = tmp_path / "generate.json"
    short = ["--lengths", "5,300", "--tokens", 2, "--rounds", 2]
    said = supra("bench", "generate", model, *short, "--json", file, *options).stdout
    return json.loads(file.read_text()), said


@pytest.mark.parametrize("filling", [[], ["--fill-above", 100]])
def test_a_linear_state_is_the_same_at_every_length_and_a_cache_is_not(
    filling, supra, model, tmp_path
):
    linear, _ = measured(supra, model, tmp_path, "--attention", "linear", *filling)
    softmax, said = measured(supra, model, tmp_path, *filling)
    assert linear["format"] == "supra-bench 1" and linear["bench"] == "generate"
    assert (linear["attention"], softmax["attention"]) == ("linear", "softmax")
    for found in (linear, softmax):
        assert [point["length"] for point in found["lengths"]] == [5, 300]
        assert [point["filled"] for point in found["lengths"]] == [False, bool(filling)]
        for point in found["lengths"]:
            seconds = point["seconds_per_token"]
            assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
            assert seconds["repetitions"] == 4
            assert point["memory_bytes"] >= point["memory_growth_bytes"] >= 0
    states = [[point["state_bytes"] for point in found["lengths"]] for found in (linear, softmax)]
    assert states[0][0] == states[0][1]
    assert states[1][0] < states[1][1]
    assert ("filled" in said) == bool(filling)


@pytest.mark.parametrize("options", [["--lengths", "0"], ["--lengths", "a"], ["--tokens", "0"]])
def test_what_cannot_be_measured_is_refused(options, supra, model):
    assert supra("bench", "generate", model, *options, ok=False).returncode == 2
