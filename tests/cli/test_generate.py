"""supra generate: what it draws, and from what."""

import subprocess

import numpy as np
import pytest
from tiny import checkpoint, made_up_text, read_scores, write_sequences


@pytest.fixture(scope="module")
def model(train_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "run"
    train_tiny(folder)
    return checkpoint(folder, 20)


@pytest.fixture(scope="module")
def softmax_models(supra, fixtures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("softmax")
    for name in ("llama_tied", "mistral_window"):
        supra("import", fixtures / name, folder / f"{name}.h5")
    return folder


@pytest.fixture(scope="module")
def generate(model, supra):
    def call(prompt, *options, by=model, **how):
        text = ",".join(map(str, prompt))
        result = supra("generate", by, "--prompt-tokens", text, *options, **how)
        return [int(line) for line in result.stdout.split()]

    return call


@pytest.mark.parametrize("length", [1, 300])
def test_temperature_0_takes_the_likeliest_token(length, generate, model, supra, tmp_path):
    """The prompt of 300 is longer than what is read at once."""
    prompt = made_up_text(length, seed=5).tolist()
    drawn = generate(prompt, "-n", 3, "--temperature", 0)
    rows = np.array([[*prompt, *drawn[:2], token] for token in range(256)])
    out = tmp_path / "scores.h5"
    supra("score", model, write_sequences(tmp_path / "rows.h5", rows), "--out", out)
    last = read_scores(out)[:, -1]
    assert np.exp(last.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)
    assert len(drawn) == 3 and last[drawn[2]] == pytest.approx(last.max(), abs=1e-5)


@pytest.mark.parametrize("name", ["llama_tied", "mistral_window"])
def test_a_softmax_model_generates_what_forwards_over_the_whole_say(
    name, softmax_models, generate, supra, tmp_path
):
    """Each token is the likeliest after all those before it, by the parallel form; the prompt is
    longer than what is read at once, and much longer than the window of Mistral."""
    model = softmax_models / f"{name}.h5"
    prompt = (made_up_text(300, seed=6) % 97).tolist()
    drawn = generate(prompt, "-n", 24, "--temperature", 0, by=model)
    assert len(drawn) == 24
    for i in (0, 1, 11, 23):
        rows = np.array([[*prompt, *drawn[:i], token] for token in range(97)])
        out = tmp_path / f"scores-{i}.h5"
        supra("score", model, write_sequences(tmp_path / f"rows-{i}.h5", rows), "--out", out)
        last = read_scores(out)[:, -1]
        assert last[drawn[i]] == pytest.approx(last.max(), abs=1e-5)
    assert generate(prompt, "-n", 24, "--temperature", 0, "--threads", 1, by=model) == drawn


def test_a_prompt_may_come_through_standard_input(generate, model, build):
    """As `supra generate` prints it, so that one continues another."""
    first = generate([1, 2, 3], "-n", 8, "--temperature", 0)
    text = "1,2,3\n" + "".join(f"{token}\n" for token in first[:4])
    command = [build / "supra", "generate", model, "--prompt-tokens", "-", "-n", "4"]
    continued = subprocess.run(
        [*command, "--temperature", "0"], input=text, capture_output=True, text=True, check=True
    )
    assert [int(line) for line in continued.stdout.split()] == first[4:]


def test_a_seed_draws_the_same_tokens(generate):
    prompt = [1, 2, 3]
    first = generate(prompt, "-n", 30, "--seed", 7)
    assert len(first) == 30 and all(0 <= token < 256 for token in first)
    assert generate(prompt, "-n", 30, "--seed", 7) == first
    assert generate(prompt, "-n", 10, "--seed", 7) == first[:10]
    assert generate(prompt, "-n", 30, "--seed", 8) != first


def test_a_small_top_p_leaves_only_the_likeliest(generate):
    greedy = generate([1, 2, 3], "-n", 10, "--temperature", 0)
    assert generate([1, 2, 3], "-n", 10, "--top-p", 1e-6) == greedy


def test_it_ends_before_the_stop_token(generate):
    drawn = generate([9], "-n", 20, "--seed", 1)
    stop = drawn[5]
    expected = drawn[: drawn.index(stop)]
    assert generate([9], "-n", 20, "--seed", 1, "--stop-token", stop) == expected


@pytest.mark.parametrize("prompt", ["", "1,", "1,,2", "a", "1 2", "-1", "256", "99999999999"])
def test_a_prompt_that_is_none_is_refused(prompt, model, supra):
    result = supra("generate", model, f"--prompt-tokens={prompt}", ok=False)
    assert result.returncode == 2
    assert "prompt" in result.stderr and not result.stdout
