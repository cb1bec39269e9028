"""What is done with checkpoints besides going on from them: inspect, verify, diff, consolidate."""

import json
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from tiny import checkpoint, read_scores, same_tensors, tensors, write_sequences

BAD_INPUT, DIFFER = 2, 7
STEPS = ("train.steps=2", "train.warmup_steps=1", "checkpoint.every=1")
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def run(train_tiny, tmp_path_factory):
    """A run of two steps on two ranks, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train_tiny(folder, *STEPS, ranks=2)
    return folder


@pytest.fixture(scope="module")
def on_three_ranks(run, train_tiny, tmp_path_factory):
    """A run of three ranks from the same first checkpoint, with nothing left to do: its checkpoint
    of step 2 is another one of the same training."""
    folder = tmp_path_factory.mktemp("three") / "run"
    train_tiny(folder, *STEPS, f"run.resume={checkpoint(run, 1)}", "train.global_batch=6", ranks=3)
    return folder


def damage(path, offset):
    """Flips one bit."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def offset_of(shard, dataset):
    with h5py.File(shard) as file:
        return file[dataset].id.get_offset()


@pytest.fixture
def damaged(run, tmp_path):
    """A copy of the run in which a bit of the newest checkpoint is flipped, in some tensor of
    block 1."""
    copy = shutil.copytree(run, tmp_path / "run")
    shard = checkpoint(copy, 2) / "shard-0001.h5"
    damage(shard, offset_of(shard, "/block.1/trained/parameter") + 1000)
    return copy


def test_a_whole_checkpoint_is_verified(run, supra):
    for path in (checkpoint(run, 2), checkpoint(run, 2) / "index.h5"):
        assert ": whole; 3 files, " in supra("verify", path).stdout
    (found,) = json.loads(supra("verify", checkpoint(run, 1), "--json").stdout)
    size = sum(path.stat().st_size for path in checkpoint(run, 1).glob("shard-*"))
    assert found["whole"] and found["damage"] == [] and found["bytes"] == size
    assert found["tensors"] == len([n for n in tensors(checkpoint(run, 1)) if "/" in n])


@pytest.mark.parametrize("ranks", [1, 3])
def test_all_checkpoints_of_a_run_are_verified(ranks, run, supra):
    lines = supra("verify", run, ranks=ranks).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(checkpoint(run, s)) for s in (1, 2)]
    assert all("whole; 3 files" in line for line in lines)


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_flipped_bit_is_named(ranks, damaged, exit_codes, supra):
    codes, said = exit_codes(ranks, "verify", damaged)
    assert set(codes) == {BAD_INPUT} and "1 of 2 checkpoints damaged" in said
    found = json.loads(supra("verify", damaged, "--json", ok=False).stdout)
    assert [entry["whole"] for entry in found] == [True, False]
    (line,) = found[1]["damage"]
    assert "shard-0001.h5" in line and "model.layers.1." in line
    shown = supra("verify", checkpoint(damaged, 2), ok=False).stdout
    assert ": damaged" in shown and line in shown


def test_a_missing_shard_and_a_cut_one_are_both_named(damaged, supra):
    (checkpoint(damaged, 1) / "shard-0000.h5").unlink()
    cut = checkpoint(damaged, 1) / "shard-0001.h5"
    cut.write_bytes(cut.read_bytes()[:-100])
    (found,) = json.loads(supra("verify", checkpoint(damaged, 1), "--json", ok=False).stdout)
    first, second = found["damage"]
    assert "shard-0000.h5" in first and "shard-0001.h5" in second


@pytest.mark.parametrize("what", ["a run without checkpoints", "nothing", "a model file"])
def test_what_is_no_checkpoint_is_not_verified(what, supra, fixtures, exit_codes, tmp_path):
    path = tmp_path / "it"
    if what == "a run without checkpoints":
        (path / "checkpoints").mkdir(parents=True)
    elif what == "a model file":
        supra("import", fixtures / "llama_mha", path)
    codes, said = exit_codes(0, "verify", path)
    assert codes == [BAD_INPUT], said


def test_equal_checkpoints_do_not_differ(run, supra, tmp_path):
    copy = shutil.copytree(checkpoint(run, 2), tmp_path / "copy")
    said = supra("diff", checkpoint(run, 2), copy / "index.h5").stdout
    count = len(tensors(copy)) - 1  # without the losses
    assert said == f"{count} of {count} tensors are equal\n"
    assert NAME in supra("diff", checkpoint(run, 2), copy, "--all").stdout


def test_differences_are_those_that_numpy_finds(run, supra):
    result = supra("diff", checkpoint(run, 1), checkpoint(run, 2), "--json", ok=None)
    assert result.returncode == DIFFER
    found = json.loads(result.stdout)
    assert not found["equal"]
    assert {"name": "step", "a": "1", "b": "2"} in found["state"]
    rows = {row["name"]: row for row in found["tensors"]}
    first, second = (tensors(checkpoint(run, step)) for step in (1, 2))
    for name, a in first.items():
        if not name.startswith(("model/", "optimizer/")):
            continue
        b, row = second[name].astype(float), rows.pop("/" + name)
        a = a.astype(float)
        assert row["differing"] == np.count_nonzero(a != b)
        assert row["equal"] == (row["differing"] == 0) and row["elements"] == a.size
        assert row["max"] == np.max(np.abs(a - b))
        if row["max"] > 0:
            assert row["relative"] == pytest.approx(row["max"] / np.max(np.abs(a)))
            rms = np.sqrt(np.sum((a - b) ** 2) / np.sum(a**2))
            assert row["relative_rms"] == pytest.approx(rms)
    assert not rows


def test_checkpoints_of_other_numbers_of_ranks_are_compared(run, on_three_ranks, supra):
    result = supra("diff", checkpoint(run, 2), checkpoint(on_three_ranks, 2), ok=None)
    assert result.returncode == DIFFER  # another batch
    assert "world_size: 2 | 3" in result.stdout
    assert "recipe, train.global_batch: 12 | 6" in result.stdout


def test_nan_and_single_elements_are_counted(run, supra, tmp_path):
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path in paths:
        supra("consolidate", checkpoint(run, 2), path)
    with h5py.File(paths[1], "r+") as file:
        weight = file["model"][NAME]
        weight[0, 0], weight[1, 1] = np.nan, weight[1, 1] + 1
        del file["optimizer/first_moment"][NAME]
    result = supra("diff", *paths, "--json", ok=None)
    assert result.returncode == DIFFER
    rows = [row for row in json.loads(result.stdout)["tensors"] if not row["equal"]]
    assert [row["name"] for row in rows] == [f"/model/{NAME}", f"/optimizer/first_moment/{NAME}"]
    assert (rows[0]["differing"], rows[0]["nan_a"], rows[0]["nan_b"]) == (2, 0, 1)
    assert rows[0]["max"] == pytest.approx(1)
    assert rows[1]["b"] is None
    table = supra("diff", *paths, ok=None).stdout
    assert "only in A" in table and "2 of" in table
    assert "model.norm.weight" not in table


def test_a_consolidated_file_holds_the_checkpoint(run, supra, tmp_path):
    out = tmp_path / "out.h5"
    supra("consolidate", checkpoint(run, 2), out)
    expected = {n: x for n, x in tensors(checkpoint(run, 2)).items() if n != "losses"}
    found = tensors(out)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.tobytes() == expected[name].tobytes()
    with h5py.File(out) as file, h5py.File(checkpoint(run, 2) / "index.h5") as index:
        file.visititems(lambda _, item: None)
        assert not any(
            item.is_virtual for item in file["model"].values() if isinstance(item, h5py.Dataset)
        )
        for name in ("config", "recipe", "commit", "step", "tokens", "samples", "world_size"):
            assert file.attrs[name] == index.attrs[name]
    assert "tensors are equal" in supra("diff", checkpoint(run, 2), out).stdout
    assert list(tmp_path.iterdir()) == [out]


def test_a_consolidated_file_is_a_model_file(run, supra, tiny_data, tmp_path):
    out, rows = tmp_path / "out.h5", tmp_path / "rows.h5"
    supra("consolidate", checkpoint(run, 2), out, "--model-only")
    assert all(name.startswith("model/") for name in tensors(out))
    write_sequences(rows, np.arange(32).reshape(2, 16))
    scores = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for model, score in zip((checkpoint(run, 2), out), scores, strict=True):
        supra("score", model, rows, "--out", score)
    assert np.array_equal(*map(read_scores, scores))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        data = {{ train = "{tiny_data / "train.h5"}", sequence_length = 32 }}
        train = {{ steps = 1, global_batch = 2, warmup_steps = 0 }}
        run = {{ threads = 1 }}
        """
    )
    runs = [tmp_path / "from checkpoint", tmp_path / "from file"]
    for base, folder in zip((checkpoint(run, 2), out), runs, strict=True):
        supra("train", recipe, "--set", f"model.base={base}", "--set", f"run.folder={folder}")
    assert same_tensors(*(checkpoint(folder, 1) for folder in runs))


def test_a_consolidated_file_in_bf16_is_the_rounded_one(run, supra, tmp_path):
    out = tmp_path / "out.h5"
    supra("consolidate", checkpoint(run, 2), out, "--dtype", "bf16")
    exact, rounded = tensors(checkpoint(run, 2)), tensors(out)
    for name, values in rounded.items():
        rounding = 2**-8 if name.startswith("model/") else 0
        assert np.allclose(values, exact[name], rtol=rounding, atol=0)
    with h5py.File(out) as file:
        for group, bytes_each in (("model", 2), ("optimizer/second_moment", 4)):
            dataset = file[group][NAME]
            assert dataset.id.get_storage_size() == bytes_each * dataset.size


def test_a_damaged_checkpoint_is_not_consolidated(damaged, exit_codes, supra, tmp_path):
    out = tmp_path / "out.h5"
    codes, said = exit_codes(0, "consolidate", checkpoint(damaged, 2), out)
    assert codes == [BAD_INPUT]
    assert "shard-0001.h5" in said and "model.layers.1." in said
    assert not list(tmp_path.glob("out.h5*"))
    out.write_text("kept")
    codes, said = exit_codes(0, "consolidate", checkpoint(damaged, 1), out)
    assert codes == [BAD_INPUT] and "--force" in said and out.read_text() == "kept"
    supra("consolidate", checkpoint(damaged, 1), out, "--force")
    assert h5py.is_hdf5(out)


def test_hdf5_tools_read_what_is_written(run, supra, tmp_path):
    out = tmp_path / "out.h5"
    supra("consolidate", checkpoint(run, 2), out, "--dtype", "bf16")
    with h5py.File(out) as file:
        value = float(file["model"]["model.norm.weight"].astype("f4")[0])
    for path in (out, checkpoint(run, 2) / "index.h5", checkpoint(run, 2) / "shard-0000.h5"):
        listing = subprocess.run(["h5ls", "-r", path], capture_output=True, text=True, check=True)
        assert "Dataset" in listing.stdout
    dumped = subprocess.run(
        ["h5dump", "-d", "/model/model.norm.weight", "-y", "-w", "40", out],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    first = dumped.split("DATA {")[1].split(",")[0].strip()
    assert float(first) == pytest.approx(value, rel=1e-5)


def test_inspect_shows_a_checkpoint(run, supra):
    said = supra("inspect", checkpoint(run, 2)).stdout
    for part in ("step             2", "world_size       2", "commit", "tokens", "samples", NAME):
        assert part in said, said
    for part in ("[train]", "shard-0000.h5", "shard-0001.h5", "checksums of tensors in 2 shards"):
        assert part in said, said
    assert '"regions"' not in said
    found = json.loads(supra("inspect", checkpoint(run, 2), "--json").stdout)
    assert found["attributes"]["step"] == 2
    for shard in found["shards"]:
        size = (checkpoint(run, 2) / shard["file"]).stat().st_size
        assert shard["bytes"] == shard["found_bytes"] == size and len(shard["checksum"]) == 16


def test_inspect_shows_shards_that_are_missing_or_cut(damaged, supra):
    (checkpoint(damaged, 1) / "shard-0000.h5").unlink()
    (checkpoint(damaged, 1) / "shard-0001.h5").write_bytes(b"short")
    rows = supra("inspect", checkpoint(damaged, 1)).stdout.splitlines()
    shards = [row for row in rows if row.startswith("shard-")]
    assert "missing" in shards[0] and "has 5 B" in shards[1]
