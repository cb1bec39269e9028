"""What is wrong with the input is said in one line that names it, on every rank, in time, and
nothing that was there is lost."""

import json
import shutil

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import checkpoint, made_up_text, write_sequences, write_tokens

BAD_INPUT, NOT_FINITE = 2, 3


def complaint(outcome, code=BAD_INPUT):
    """The one line said by ranks that all ended with this exit code."""
    codes, said = outcome
    assert codes and set(codes) == {code}, f"exit codes {codes}: {said}"
    lines = [line for line in said.splitlines() if line.startswith("supra: ")]
    assert len(lines) == 1, said
    return lines[0]


@pytest.fixture(scope="module")
def trained(train_tiny, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_tiny(folder, "train.steps=2", "train.warmup_steps=1", ranks=2)
    return folder


@pytest.fixture
def hf_folder(fixtures, tmp_path):
    """A Hugging Face folder to break."""
    return shutil.copytree(fixtures / "llama_mha", tmp_path / "hf")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    all_tensors = load_file(path)
    change(all_tensors)
    save_file(all_tensors, path)


def cut(size):
    def change(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])

    return change


def corrupt_header(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[20:60] = b"?" * 40
    path.write_bytes(content)


def shorten(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].copy()


NAME = "model.layers.1.mlp.up_proj.weight"
BAD_MODELS = {
    "empty": (cut(0), ["model.safetensors"]),
    "cut in the header": (cut(100), ["model.safetensors"]),
    "cut in the data": (cut(-1), ["model.safetensors"]),
    "corrupt": (corrupt_header, ["model.safetensors"]),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    "config that is no JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json"]),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(NAME)), [NAME]),
    "extra tensor": (lambda f: edit_tensors(f, lambda t: t.update(q=t[NAME])), ["tensor q"]),
    "misshapen tensor": (lambda f: edit_tensors(f, shorten), ["model.norm.weight", "31", "32"]),
    "architecture": (
        lambda f: edit_config(f, architectures=["GPT2LMHeadModel"], model_type="gpt2"),
        ["config.json", "gpt2"],
    ),
    "unsupported field": (lambda f: edit_config(f, attention_bias=True), ["attention_bias"]),
    "unknown field": (lambda f: edit_config(f, new_trick=3), ["new_trick"]),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_hugging_face_folder_that_cannot_be_imported(case, hf_folder, exit_codes, tmp_path):
    damage, words = BAD_MODELS[case]
    damage(hf_folder)
    out = tmp_path / "model.h5"
    said = complaint(exit_codes(0, "import", hf_folder, out))
    assert all(word in said for word in words), said
    assert not list(tmp_path.glob("model.h5*"))
    out.write_text("kept")
    complaint(exit_codes(0, "import", hf_folder, out, "--force"))
    assert out.read_text() == "kept" and list(tmp_path.glob("model.h5*")) == [out]


def test_a_model_file_is_replaced_only_by_force(hf_folder, exit_codes, supra, tmp_path):
    out = tmp_path / "model.h5"
    out.write_text("kept")
    said = complaint(exit_codes(0, "import", hf_folder, out))
    assert "--force" in said and out.read_text() == "kept"
    supra("import", hf_folder, out, "--force")
    assert h5py.is_hdf5(out)


def other_vocabulary(folder):
    return f"data.train={write_tokens(folder / 'other.h5', np.zeros(9999), vocabulary=300)}"


def no_tokens(folder):
    (folder / "other.h5").write_text("no HDF5")
    return f"data.train={folder / 'other.h5'}"


def folder_below_a_file(folder):
    (folder / "file").write_text("kept")
    return f"run.folder={folder / 'file' / 'run'}"


# A setting, or what makes it, and words of the complaint.
BAD_RUNS = {
    "unknown key": ("train.learning_rat=1", ["train.learning_rat", "learning_rate"]),
    "unknown section": ("trian.steps=1", ["trian", "train"]),
    "wrong type": ("train.steps=many", ["train.steps", "many"]),
    "out of range": ("train.beta1=1.5", ["train.beta1", "1.5"]),
    "no such word": ("model.slopes=steep", ["slopes", "steep", "lightning"]),
    "batch not divisible": ("train.micro_batch=5", ["global_batch", "12", "5"]),
    "text shorter than a window": ("data.sequence_length=20000", ["train.h5", "20001", "20000"]),
    "no token file": ("data.train=nowhere.h5", ["nowhere.h5"]),
    "token file that is none": (no_tokens, ["other.h5"]),
    "tokens of another vocabulary": (other_vocabulary, ["other.h5", "300", "256"]),
    "no base": ("model.base=nowhere.h5", ["nowhere.h5"]),
    "no checkpoint": ("run.resume=nowhere", ["nowhere"]),
    "unwritable folder": (folder_below_a_file, ["run.folder", "file/run"]),
}


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("case", BAD_RUNS)
def test_a_run_that_cannot_begin(case, ranks, tiny_run, exit_codes, tmp_path):
    setting, words = BAD_RUNS[case]
    if callable(setting):
        setting = setting(tmp_path)
    said = complaint(exit_codes(ranks, *tiny_run(tmp_path / "run", setting)))
    assert all(word in said for word in words), said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_token_beyond_the_vocabulary_ends_a_run(ranks, tiny_run, supra, tmp_path):
    """Found while training, by any rank that reads it, which ends the others."""
    tokens = made_up_text(5000, seed=1)
    tokens[::33] = 256
    text = write_tokens(tmp_path / "other.h5", tokens)
    result = supra(*tiny_run(tmp_path / "run", f"data.train={text}"), ranks=ranks, ok=False)
    assert result.returncode == BAD_INPUT
    said = [line for line in result.stderr.splitlines() if line.startswith("supra: ")]
    assert 1 <= len(said) <= max(1, ranks)
    assert all(str(text) in line and "is 256, outside the vocabulary" in line for line in said)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_folder_with_a_run_is_not_begun_anew(ranks, trained, tiny_run, exit_codes):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    said = complaint(exit_codes(ranks, *tiny_run(trained)))
    assert str(trained) in said and "run.resume" in said
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_checkpoint_of_another_architecture(ranks, trained, tiny_run, exit_codes):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    run = tiny_run(trained, "run.resume=latest", "model.slopes=retnet")
    said = complaint(exit_codes(ranks, *run))
    assert "lightning" in said and "retnet" in said
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_checkpoint_without_one_of_its_shards(ranks, trained, tiny_run, exit_codes, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (checkpoint(run, 2) / "shard-0001.h5").unlink()
    said = complaint(exit_codes(ranks, *tiny_run(run, "run.resume=latest")))
    assert "shard-0001.h5" in said


@pytest.fixture(scope="module")
def infinite(trained, tmp_path_factory):
    """A checkpoint with an infinite weight, in the embedding of token 1."""
    folder = shutil.copytree(checkpoint(trained, 2), tmp_path_factory.mktemp("infinite") / "base")
    with h5py.File(folder / "shard-0000.h5", "r+") as file:
        file["embedding/trained/parameter"][64] = np.inf
    return folder


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_loss_that_is_not_finite_stops_all_ranks(ranks, infinite, tiny_run, exit_codes, tmp_path):
    text = np.full(5000, 3)
    text[3000:] = 1
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[model]\nbase = "{infinite}"\n'
        f'[data]\ntrain = "{write_tokens(tmp_path / "text.h5", text)}"\nsequence_length = 32\n'
        "[train]\nsteps = 5\nwarmup_steps = 1\nglobal_batch = 12\n"
        f'[run]\nfolder = "{tmp_path / "run"}"\nthreads = 1\n'
    )
    said = complaint(exit_codes(ranks, "train", recipe), NOT_FINITE)
    assert "step 1:" in said and "not finite" in said and "rank " in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_run_that_diverges_stops_before_the_update(ranks, tiny_run, exit_codes, tmp_path):
    settings = ["train.learning_rate=1e30", "train.warmup_steps=0", "checkpoint.every=1"]
    said = complaint(exit_codes(ranks, *tiny_run(tmp_path / "run", *settings)), NOT_FINITE)
    assert "step 2:" in said and "not finite" in said
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == [checkpoint(tmp_path, 1).name]


def sequences(rows):
    return lambda path: write_sequences(path, np.array(rows))


BAD_SEQUENCES = {
    "token beyond the vocabulary": (sequences([[1, 2], [3, 256]]), ["256"]),
    "negative token": (sequences([[1, -2]]), ["-2"]),
    "one token": (sequences([[1], [2]]), ["rows.h5", "[2, 1]"]),
    "one dimension": (sequences([1, 2, 3]), ["rows.h5", "tokens"]),
    "fractions": (sequences([[1.5, 2.5]]), ["rows.h5", "tokens"]),
    "nothing": (sequences(np.zeros((0, 5), dtype=int)), ["rows.h5"]),
    "no HDF5": (lambda path: path.write_text("no HDF5"), ["rows.h5"]),
    "no file": (lambda path: None, ["rows.h5"]),
}


@pytest.mark.parametrize("form", [[], ["--recurrent"]])
@pytest.mark.parametrize("case", BAD_SEQUENCES)
def test_sequences_that_cannot_be_scored(case, form, trained, exit_codes, tmp_path):
    write, words = BAD_SEQUENCES[case]
    write(tmp_path / "rows.h5")
    out = tmp_path / "out.h5"
    out.write_text("kept")
    model = checkpoint(trained, 2)
    said = complaint(exit_codes(0, "score", model, tmp_path / "rows.h5", "--out", out, *form))
    assert all(word in said for word in words), said
    assert out.read_text() == "kept"


def edit_model(change):
    def damage(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


def reshape_norm(file):
    del file["model/model.norm.weight"]
    file["model/model.norm.weight"] = np.ones(31, dtype=np.float32)


def write_integers(file):
    del file["model/model.norm.weight"]
    file["model/model.norm.weight"] = np.ones(32, dtype=np.int32)


BAD_MODEL_FILES = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:5000]), ["model.h5"]),
    "no HDF5": (lambda path: path.write_text("no HDF5"), ["model.h5"]),
    "no config": (edit_model(lambda f: f.attrs.pop("config")), ["model.h5", "config"]),
    "another format": (edit_model(lambda f: f.attrs.update(format="x")), ["model.h5"]),
    "missing parameter": (
        edit_model(lambda f: f.pop("model/model.norm.weight")),
        ["model.norm.weight"],
    ),
    "extra parameter": (edit_model(lambda f: f.update({"model/extra": [1.0]})), ["extra"]),
    "misshapen parameter": (edit_model(reshape_norm), ["model.norm.weight", "[31]", "[32]"]),
    "integers": (edit_model(write_integers), ["model.norm.weight", "int32"]),
}


@pytest.mark.parametrize("case", BAD_MODEL_FILES)
def test_a_model_file_that_cannot_be_used(case, hf_folder, supra, exit_codes, tmp_path):
    damage, words = BAD_MODEL_FILES[case]
    model, rows = tmp_path / "model.h5", write_sequences(tmp_path / "rows.h5", np.ones((2, 4)))
    supra("import", hf_folder, model)
    damage(model)
    said = complaint(exit_codes(0, "score", model, rows))
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["train"], ["train", "a", "b"], ["score", "--dtype=fp8", "a", "b"]]
)
def test_a_command_line_that_makes_no_sense(arguments, exit_codes):
    codes, said = exit_codes(0, *arguments)
    assert codes == [BAD_INPUT] and said
