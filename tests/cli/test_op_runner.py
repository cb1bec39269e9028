"""op_runner: ops on files, against numpy; on the device that SUPRA_TEST_DEVICE names, else the CPU."""

import os
import subprocess

import h5py
import numpy as np
import pytest


@pytest.fixture(scope="session")
def op(build, tmp_path_factory):
    """op("rms_norm", {"x": ...}, eps=1e-5): the outputs, by name."""
    program = build / "op_runner"
    if not program.is_file():
        pytest.fail(f"{program} is not built: run `bash tests/run.sh`")
    folder = tmp_path_factory.mktemp("op_runner")

    def call(name, inputs, *options, **attributes):
        with h5py.File(folder / "in.h5", "w") as file:
            for key, value in inputs.items():
                file[key] = value.astype(np.float32)
            file.attrs.update(attributes)
        device = ["--device", os.environ.get("SUPRA_TEST_DEVICE", "cpu")]
        command = [program, name, folder / "in.h5", folder / "out.h5", *device, *options]
        subprocess.run([str(part) for part in command], check=True, timeout=60)
        with h5py.File(folder / "out.h5") as file:
            return {key: file[key][...] for key in file}

    return call


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def test_rms_norm(op):
    x, weight, dy = normal(5, 70), normal(70), normal(5, 71)[:, :70]
    results = op("rms_norm", {"x": x, "weight": weight, "dy": dy}, eps=1e-5)
    rstd = 1 / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
    g = dy * weight
    dx = rstd * (g - x * rstd**2 * (g * x).mean(axis=1, keepdims=True))
    assert results["y"] == pytest.approx(weight * x * rstd, abs=1e-5)
    assert results["dx"] == pytest.approx(dx, abs=1e-5)
    assert results["dweight"] == pytest.approx((dy * x * rstd).sum(axis=0), abs=1e-5)


def test_linear_attention_in_both_forms(op):
    tokens, heads, d = 70, 2, 8
    q, k, v = (normal(1, tokens, heads, d + i)[..., :d] for i in range(3))
    slope = np.array([0.5, 0.01])
    distance = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    decay = np.where(distance >= 0, np.exp(-slope[:, None, None] * np.abs(distance)), 0)
    scores = np.einsum("bthd,bjhd->bhtj", q, k) * decay * 0.3
    expected = np.einsum("bhtj,bjhd->bthd", scores, v)
    inputs = {"q": q, "k": k, "v": v, "slope": slope}
    options = {"rope_base": 0.0, "scale": 0.3, "normalization": "none"}
    for form in ([], ["--recurrent"]):
        y = op("linear_attention", inputs, *form, **options)["y"]
        assert y == pytest.approx(expected, abs=1e-4)


def test_bf16_rounds_inputs_first(op):
    gate, up = np.full((1, 4), 1.0039), np.full((1, 4), 1.0)
    exact = op("swiglu", {"gate": gate, "up": up})["y"]
    rounded = op("swiglu", {"gate": gate, "up": up}, "--dtype", "bf16")["y"]
    assert exact == pytest.approx(gate / (1 + np.exp(-gate)), abs=1e-6)
    assert np.array_equal(rounded, np.full((1, 4), 0.73046875))
