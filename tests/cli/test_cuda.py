"""Training on the CUDA device: the losses of the CPU device, and checkpoints that go both ways.

Runs with a build that has the device, the emulated one or on a node with two GPUs.

Two runs in mixed precision round the same numbers at different places, so their losses differ by as
much as roundings move a loss. How much that is, is measured: by the distance, on the CPU, of the
run in mixed precision from the same run in fp32. As in tests/ops/check.h, three times that is
allowed. In fp32 the devices differ by the order of fp32 sums only.
"""

import os

import numpy as np
import pytest
from tiny import VOCABULARY, checkpoint, losses, metrics, read_scores, write_sequences

BUILD = os.environ.get("SUPRA_BUILD", "")
STEPS = 5
FP32_TOLERANCE = 1e-5  # relative, as between runs on different numbers of ranks

# Head width 64 takes the kernels on tensor cores, the recipe's own the plain ones.
MODELS = {
    "linear, head width 32": ("model.attention=linear",),
    "linear, head width 64": ("model.attention=linear", "model.head_width=64"),
    "softmax, head width 64": ("model.attention=softmax", "model.head_width=64"),
}


@pytest.fixture(scope="module", params=MODELS, ids=list(MODELS))
def settings(request):
    sizes = ("data.sequence_length=80", "train.global_batch=4", "train.micro_batch=2")
    return (*MODELS[request.param], f"train.steps={STEPS}", *sizes)


@pytest.fixture(scope="module")
def trained(train_tiny, settings, tmp_path_factory):
    """trained("cuda", "mixed"): the folder of that run on two ranks."""
    folders = {}

    def call(device, dtype):
        if (device, dtype) not in folders:
            folder = tmp_path_factory.mktemp("run") / f"{device}-{dtype}"
            choice = (f"train.device={device}", f"train.dtype={dtype}")
            train_tiny(folder, *settings, *choice, "checkpoint.every=3", ranks=2)
            folders[device, dtype] = folder
        return folders[device, dtype]

    return call


def test_losses_in_mixed_precision_are_those_of_the_cpu_device(trained):
    exact, cpu, cuda = (
        np.array(losses(trained(*run)))
        for run in (("cpu", "fp32"), ("cpu", "mixed"), ("cuda", "mixed"))
    )
    roundings = np.max(np.abs(cpu - exact))
    assert np.max(np.abs(cuda - cpu)) <= 3 * roundings
    assert roundings < 0.02 * exact[0], "the comparison would admit anything"


def test_losses_in_fp32_are_those_of_the_cpu_device(trained):
    cpu, cuda = (np.array(losses(trained(device, "fp32"))) for device in ("cpu", "cuda"))
    assert np.max(np.abs(cuda - cpu) / cpu) <= FP32_TOLERANCE


@pytest.mark.parametrize(("begins", "ends"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_checkpoint_of_one_device_resumes_on_the_other(
    trained, train_tiny, settings, tmp_path, begins, ends
):
    whole = trained(begins, "fp32")
    folder = tmp_path / "resumed"
    resume = f"run.resume={checkpoint(whole, 3)}"
    choice = (f"train.device={ends}", "train.dtype=fp32")
    train_tiny(folder, *settings, *choice, resume, ranks=2)
    resumed = [line["loss"] for line in metrics(folder) if "loss" in line]
    assert np.allclose(resumed, losses(whole)[3:], rtol=FP32_TOLERANCE, atol=0)


def test_scores_are_those_of_the_cpu_device(trained, settings, supra, tmp_path):
    model = checkpoint(trained("cpu", "fp32"), STEPS)
    rows = np.random.default_rng(1).integers(0, VOCABULARY, (2, 70))
    tokens = write_sequences(tmp_path / "tokens.h5", rows)
    softmax = "model.attention=softmax" in settings
    for form in [[]] if softmax else [[], ["--recurrent"]]:
        scores = []
        for device in ("cpu", "cuda"):
            out = tmp_path / f"{device}.h5"
            supra("score", model, tokens, "--out", out, "--device", device, *form)
            scores.append(read_scores(out))
        assert np.allclose(*scores, rtol=0, atol=1e-4, equal_nan=True)


@pytest.mark.skipif("emulated" not in BUILD, reason="only an emulated node can be made to fail")
@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"SUPRA_EMULATOR_DEVICES": "0"}, "no CUDA driver"),
        ({"SUPRA_EMULATOR_DRIVER": "12040"}, "update the driver"),
        ({"SUPRA_EMULATOR_DEVICES": "1"}, "needs a GPU of its own"),
        ({"SUPRA_EMULATOR_MEMORY": "40"}, "parameters"),
    ],
    ids=["no driver", "old driver", "too few GPUs", "too little memory"],
)
def test_a_node_that_cannot_run_it_is_told_why(
    exit_codes, tiny_run, tmp_path, monkeypatch, environment, complaint
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sizes = ("model.ffn=65536", "train.device=cuda")
    codes, said = exit_codes(2, *tiny_run(tmp_path / "run", *sizes))
    assert codes == [2, 2]
    assert complaint in said
