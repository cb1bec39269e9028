"""Training from the command line: the same losses on any number of ranks, after any stop."""

import json
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from tiny import checkpoint, losses, metrics, same_tensors, tensors, validation_losses

STEPS = 20
STOP = 10
TOLERANCE = 1e-5


def relative_difference(a, b):
    return np.max(np.abs(np.subtract(a, b)) / np.abs(b))


@pytest.fixture(scope="module")
def one_rank(train_tiny, tmp_path_factory):
    """A whole run on one rank."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train_tiny(folder, "train.micro_batch=2")
    return folder


@pytest.fixture(scope="module")
def two_ranks(train_tiny, tmp_path_factory):
    """A whole run on two ranks, with a checkpoint half-way."""
    folder = tmp_path_factory.mktemp("two") / "run"
    train_tiny(folder, f"checkpoint.every={STOP}", ranks=2)
    return folder


@pytest.fixture(scope="module")
def three_ranks(train_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("three") / "run"
    train_tiny(folder, "train.micro_batch=4", "train.recompute=block", ranks=3)
    return folder


@pytest.fixture(scope="module")
def four_ranks(train_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("four") / "run"
    train_tiny(folder, f"checkpoint.every={STOP}", ranks=4)
    return folder


def stopped(folder, copy):
    """A copy of a run as if it had been killed after its first checkpoint."""
    shutil.copytree(folder, copy)
    shutil.rmtree(checkpoint(copy, STEPS))
    return copy


def test_training_learns(one_rank):
    loss = losses(one_rank)
    assert len(loss) == STEPS
    assert loss[0] == pytest.approx(np.log(256), abs=0.5)
    assert loss[-1] < loss[0] - 0.2
    validation = validation_losses(one_rank)
    assert list(validation) == [0, STEPS]
    assert validation[STEPS] < validation[0] - 0.2


def test_losses_do_not_depend_on_ranks(one_rank, two_ranks, three_ranks, four_ranks):
    for run in (two_ranks, three_ranks, four_ranks):
        assert relative_difference(losses(run), losses(one_rank)) < TOLERANCE
        for step, loss in validation_losses(run).items():
            assert loss == pytest.approx(validation_losses(one_rank)[step], rel=TOLERANCE)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_losses_do_not_depend_on_the_micro_batch(micro_batch, one_rank, train_tiny, tmp_path):
    train_tiny(tmp_path / "run", f"train.micro_batch={micro_batch}")
    assert relative_difference(losses(tmp_path / "run"), losses(one_rank)) < TOLERANCE


def test_bytes_of_a_rank_fall_as_one_over_ranks(one_rank, two_ranks, three_ranks, four_ranks):
    whole = metrics(one_rank)[0]["memory"]
    for ranks, run in ((2, two_ranks), (3, three_ranks), (4, four_ranks)):
        start = metrics(run)[0]
        assert start["event"] == "start" and start["ranks"] == ranks
        for kind in ("parameters", "optimizer"):
            assert start["memory"][kind] * ranks == pytest.approx(whole[kind], rel=0.02)


def test_the_same_run_twice_gives_the_same_bits(two_ranks, train_tiny, tmp_path):
    train_tiny(tmp_path / "run", ranks=2)
    assert losses(tmp_path / "run") == losses(two_ranks)
    assert same_tensors(checkpoint(tmp_path / "run", STEPS), checkpoint(two_ranks, STEPS))


def test_a_resumed_run_gives_the_bits_of_one_that_never_stopped(two_ranks, train_tiny, tmp_path):
    run = stopped(two_ranks, tmp_path / "run")
    train_tiny(run, "run.resume=latest", f"checkpoint.every={STOP}", ranks=2)
    assert losses(run) == losses(two_ranks)
    assert validation_losses(run) == validation_losses(two_ranks)
    assert same_tensors(checkpoint(run, STEPS), checkpoint(two_ranks, STEPS))


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_a_run_resumes_on_other_ranks(ranks, four_ranks, train_tiny, tmp_path):
    """By the path of a checkpoint, in a folder of its own."""
    train_tiny(tmp_path / "run", f"run.resume={checkpoint(four_ranks, STOP)}", ranks=ranks)
    after = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert relative_difference(after, losses(four_ranks)[STOP:]) < TOLERANCE


def test_resuming_a_finished_run_changes_nothing(one_rank, train_tiny, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(one_rank, run)
    train_tiny(run, "run.resume=latest", "train.micro_batch=2")
    assert losses(run) == losses(one_rank)
    assert same_tensors(checkpoint(run, STEPS), checkpoint(one_rank, STEPS))


def test_latest_begins_a_run_where_there_is_none(one_rank, train_tiny, tmp_path):
    train_tiny(tmp_path / "run", "run.resume=latest", "train.micro_batch=2")
    assert losses(tmp_path / "run") == losses(one_rank)


def test_mixed_precision_is_deterministic_and_near_fp32(one_rank, train_tiny, tmp_path):
    runs = [tmp_path / name for name in ("a", "b")]
    for run in runs:
        train_tiny(run, "train.dtype=mixed", "train.recompute=block", ranks=2)
    assert losses(runs[0]) == losses(runs[1])
    assert same_tensors(*(checkpoint(run, STEPS) for run in runs))
    assert relative_difference(losses(runs[0]), losses(one_rank)) < 0.01


def test_a_converted_base_stays_frozen_while_its_new_weights_learn(
    supra, train_tiny, fixtures, tmp_path
):
    base, text = tmp_path / "base.h5", tmp_path / "text.h5"
    supra("import", fixtures / "llama_tied", base)
    recipe = tmp_path / "recipe.toml"
    random = np.random.default_rng(0)
    with h5py.File(text, "w") as file:
        file["tokens"] = random.integers(0, 97, 2000).astype(np.uint16)
        attributes = {"format": "supra-tokens 1", "vocabulary": 97, "eos": 0, "documents": 1}
        file.attrs.update(attributes)
    recipe.write_text(
        f'[model]\nbase = "{base}"\nqk_norm = true\n'
        f'[data]\ntrain = "{text}"\nsequence_length = 24\n'
        "[train]\nsteps = 3\nglobal_batch = 4\nwarmup_steps = 1\nlearning_rate = 1e-3\n"
        f'[run]\nfolder = "{tmp_path / "first"}"\nthreads = 1\n'
    )
    for dtype in ("fp32", "mixed"):
        run = tmp_path / dtype
        settings = [f"train.dtype={dtype}", f"run.folder={run}"]
        options = [part for setting in settings for part in ("--set", setting)]
        supra("train", recipe, "--set", "train.train=new_weights", *options, ranks=2)
        original, trained = tensors(base), tensors(checkpoint(run, 3))
        for name, values in original.items():
            assert np.array_equal(trained[name], values), name
        added = {name for name in trained if name.startswith("model/")} - original.keys()
        assert {name.split("self_attn.")[1] for name in added} == {
            "feature_map.weight",
            "feature_map.bias",
            "q_norm.weight",
            "k_norm.weight",
        }
        moments = {name for name in trained if name.startswith("optimizer/second_moment/")}
        assert len(moments) == len(added)
        # The second step of two: everything is trained, from the checkpoint as a base.
        again = [f"model.base={checkpoint(run, 3)}", f"run.folder={run}-all", settings[0]]
        options = [part for setting in again for part in ("--set", setting)]
        supra("train", recipe, *options)
        after = tensors(checkpoint(tmp_path / f"{dtype}-all", 3))
        assert all(not np.array_equal(after[name], original[name]) for name in original)


def test_validation_is_what_score_says_of_the_checkpoint(one_rank, supra, tiny_data):
    said = supra(
        "score",
        checkpoint(one_rank, STEPS),
        tiny_data / "validation.h5",
        "--sequence-length",
        32,
    ).stdout
    loss = float(said.split("mean loss ")[1].split()[0])
    assert loss == pytest.approx(validation_losses(one_rank)[STEPS], rel=TOLERANCE)


def test_every_step_says_what_it_did(two_ranks):
    lines = metrics(two_ranks)
    steps = [line for line in lines if "loss" in line]
    assert [line["tokens"] for line in steps] == [12 * 32 * (i + 1) for i in range(STEPS)]
    assert steps[4]["lr"] == pytest.approx(3e-3)
    assert steps[0]["lr"] == pytest.approx(3e-3 / 5)
    for line in steps:
        assert line["grad_norm"] > 0 and line["z_loss"] > 0 and line["tokens_per_second"] > 0
        assert line["tokens_per_second_per_rank"] * 2 == pytest.approx(line["tokens_per_second"])
        assert {"gather", "forward", "backward", "reduce", "optimizer", "data"} <= set(
            line["seconds"]
        )
        assert line["memory"] == lines[0]["memory"]
    assert lines[-1]["event"] == "finish"
    assert lines[-1]["peak_memory"] > sum(lines[0]["memory"].values())


def said_by(*command, folder):
    command = [str(part) for part in command]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout


def test_other_programs_read_a_checkpoint(two_ranks, tmp_path):
    index = checkpoint(two_ranks, STEPS) / "index.h5"
    with h5py.File(index) as file:
        norm = file["model/model.norm.weight"]
        assert norm.shape == (64,) and norm.is_virtual
        values = norm[:]
        assert file.attrs["step"] == STEPS and file.attrs["world_size"] == 2
        assert "sequence_length = 32" in file.attrs["recipe"]
    assert np.all(np.isfinite(values)) and not np.all(values == 1)
    listed = said_by("h5ls", "-r", index, folder=tmp_path)
    assert "/model/model.layers.1.self_attn.q_proj.weight Dataset {64, 64}" in listed
    dumped = said_by("h5dump", "-d", "/model/model.norm.weight", index, folder=tmp_path)
    assert f"{values[0]:.6g}"[:6] in dumped
    shard = index.with_name("shard-0001.h5")
    with h5py.File(index) as whole, h5py.File(shard) as file:
        label = f"supra-shard 2, shard 1 of checkpoint {whole.attrs['checkpoint_id']}\n"
        assert shard.read_bytes().startswith(label.encode())
        assert file.attrs["rank"] == 1
        part = file["block.0/trained/first_moment"][:]
    assert np.all(np.isfinite(part)) and np.any(part != 0)
    listed = said_by("h5ls", "-r", shard, folder=tmp_path)
    assert f"/block.0/trained/parameter Dataset {{{len(part)}}}" in listed
    dumped = said_by("h5dump", "-d", "/block.0/trained/first_moment", shard, folder=tmp_path)
    assert f"( {len(part)} ) / ( {len(part)} )" in dumped


def test_the_layout_of_a_checkpoint_leads_to_its_tensors(two_ranks):
    folder = checkpoint(two_ranks, STEPS)
    seal, rest = (folder / "index.h5").read_bytes()[:512], (folder / "index.h5").stat().st_size
    title, version, sealed, unit, checksum = seal.rstrip(b"\0").split()
    assert (title, version, unit) == (b"supra-seal", b"1", b"bytes")
    assert int(sealed) == rest - 512 and len(checksum) == 16
    with h5py.File(folder / "index.h5") as file:
        layout = json.loads(file.attrs["layout"])
        whole = {name: data[:].ravel() for name, data in file["model"].items()}
    shards = [path.read_bytes() for path in sorted(folder.glob("shard-*.h5"))]
    assert [len(shard) for shard in shards] == [shard["bytes"] for shard in layout["shards"]]
    for tensor in layout["tensors"]:
        region = layout["regions"][tensor["region"]]
        weights = region["datasets"][0]
        assert (weights["name"], weights["type"]) == ("parameter", "fp32")
        parts = [
            np.frombuffer(shard, "<f4", region["shard_size"], weights["position"])
            for shard in shards
        ]
        first = tensor["offset"]
        found = np.concatenate(parts)[first : first + tensor["size"]]
        assert np.array_equal(found, whole[tensor["name"]])


def test_bf16_is_shown_as_numbers(supra, fixtures, tmp_path):
    model = tmp_path / "model.h5"
    supra("import", fixtures / "llama_tied", model)
    with h5py.File(model) as file:
        weight = file["model/model.norm.weight"]
        assert weight.id.get_type().get_size() == 2
        values = weight[:]
    dumped = said_by("h5dump", "-d", "/model/model.norm.weight", model, folder=tmp_path)
    rows = dumped.split("DATA {")[1].split("}")[0].splitlines()
    shown = [float(x) for row in rows for x in row.partition(":")[2].split(",") if x.strip()]
    assert shown == pytest.approx(values.tolist(), rel=1e-5)


def test_inspect_shows_a_checkpoint(two_ranks, supra):
    said = supra("inspect", checkpoint(two_ranks, STEPS), "--stats").stdout
    assert "sequence_length = 32" in said
    assert "/model/model.layers.0.self_attn.feature_map.weight" in said
    assert "[128, 64]" in said
