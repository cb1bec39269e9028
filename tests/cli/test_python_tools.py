"""The Python tools of launch/: text to tokens, tokens to text, documents from manuals, plots."""

import gzip
import json
import os
import stat
import sys
from pathlib import Path

import collect_text
import h5py
import numpy as np
import plot
import pytest
import sentencepiece
import smollm2
import zstandard
from text_tokenizer import TextTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

DOCUMENTS = [
    f"Document {i}: the cat sat on mat {i * i}.\n\nIt slept.  Then <eos> ran." for i in range(300)
]
EOS = "<eos>"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level tokenizer in a folder, whose config names its EOS."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", EOS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(DOCUMENTS, trainer)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": EOS}}))
    return folder


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sentencepiece model."""
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(DOCUMENTS), model_prefix=str(path), vocab_size=80, minloglevel=2
    )
    return path.with_suffix(".model")


def lines(key: str = "text") -> bytes:
    return "".join(json.dumps({key: text}) + "\n" for text in DOCUMENTS).encode()


def expected(tokenizer: Path, documents: list[str]) -> list[int]:
    encode = TextTokenizer(tokenizer)
    return [token for text in documents for token in [*encode.encode(text), encode.eos()]]


def tokens_of(path: Path) -> list[int]:
    with h5py.File(path) as file:
        return file["tokens"][:].tolist()


COMPRESSIONS = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_json_lines_become_documents_joined_by_eos(suffix, tokenizer, tool, tmp_path):
    source, out = tmp_path / f"in{suffix}", tmp_path / "out.h5"
    source.write_bytes(COMPRESSIONS[suffix](lines()))
    tool("pack_text.py", "--tokenizer", tokenizer, "--out", out, "--workers", 2, source)
    assert tokens_of(out) == expected(tokenizer, DOCUMENTS)
    with h5py.File(out) as file:
        assert file["tokens"].dtype == np.uint16
        attributes = dict(file.attrs)
    assert attributes["format"] == "supra-tokens 1"
    assert attributes["documents"] == len(DOCUMENTS)
    assert attributes["tokens"] == len(expected(tokenizer, DOCUMENTS))
    assert attributes["eos"] == 1
    assert attributes["vocabulary"] == TextTokenizer(tokenizer).vocabulary
    assert attributes["tokenizer"] == "tokenizer.json"
    assert attributes["tokenizer_sha256"] == TextTokenizer(tokenizer).sha256()


def test_the_file_does_not_depend_on_the_number_of_workers(tokenizer, tool, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines() * 40)
    for workers in (1, 3):
        out = tmp_path / f"{workers}.h5"
        tool("pack_text.py", "--tokenizer", tokenizer, "--out", out, "--workers", workers, source)
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "3.h5").read_bytes()


def test_a_text_file_is_one_document_however_long(tokenizer, pieces, tool, tmp_path):
    text = "\n".join(DOCUMENTS) * 40
    source, out = tmp_path / "in.txt", tmp_path / "out.h5"
    source.write_text(text)
    for each in (tokenizer, pieces):
        tool("pack_text.py", "--tokenizer", each, "--out", out, source)
        assert tokens_of(out) == expected(each, [text])


def test_a_name_of_a_special_token_in_the_text_is_plain_text(tokenizer):
    encode = TextTokenizer(tokenizer)
    assert encode.eos() not in encode.encode(f"a {EOS} b")


def test_sequences_are_the_first_tokens_in_rows(tokenizer, tool, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.h5"
    source.write_bytes(lines())
    tool("pack_text.py", "--tokenizer", tokenizer, "--out", out, "--sequences", "5,64", source)
    assert tokens_of(out) == np.reshape(expected(tokenizer, DOCUMENTS)[:320], (5, 64)).tolist()
    result = tool(
        "pack_text.py",
        "--tokenizer",
        tokenizer,
        "--out",
        out,
        "--sequences",
        "999,999",
        source,
        ok=False,
    )
    assert "needs 998001 tokens" in result.stderr


def test_eos_may_be_given_by_name_or_id(tokenizer, tool, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.h5"
    source.write_text('{"text": "a"}\n')
    for eos in ("<pad>", "0"):
        tool("pack_text.py", "--tokenizer", tokenizer, "--out", out, "--eos", eos, source)
        assert tokens_of(out)[-1] == 0


BAD_INPUTS = {
    "missing file": ("no.jsonl", None, "there is no file"),
    "unknown suffix": ("in.pdf", b"", "unknown kind of file"),
    "bad JSON": ("in.jsonl", b'{"text": "a"}\n{"text"\n', "line 2: not JSON"),
    "not an object": ("in.jsonl", b"[1]\n", "line 1: not a JSON object"),
    "no such key": ("in.jsonl", lines("body"), "line 1: no \"text\" among ['body']"),
    "not a string": ("in.jsonl", b'{"text": 1}\n', 'line 1: "text" is not a string'),
    "not UTF-8": ("in.jsonl", b'{"text": "\xff"}\n', "is not UTF-8"),
    "truncated gzip": ("in.jsonl.gz", gzip.compress(lines())[:-40], "truncated or corrupt"),
    "truncated zstd": ("in.jsonl.zst", zstandard.compress(lines())[:-40], "truncated or corrupt"),
    "corrupt zstd": ("in.jsonl.zst", b"nonsense", "truncated or corrupt"),
    "no text": ("in.jsonl", b'{"text": ""}\n', "hold no text"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_clear_line_and_no_file(case, tokenizer, tool, tmp_path):
    name, content, message = BAD_INPUTS[case]
    source, out = tmp_path / name, tmp_path / "out.h5"
    out.write_text("kept")
    if content is not None:
        source.write_bytes(content)
    result = tool("pack_text.py", "--tokenizer", tokenizer, "--out", out, source, ok=False)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert out.read_text() == "kept" and not list(tmp_path.glob("*.partial"))


def test_a_tokenizer_that_is_none_is_named(tool, tmp_path):
    source = tmp_path / "tokenizer.json"
    source.write_text("{}")
    out = tmp_path / "out.h5"
    result = tool("pack_text.py", "--tokenizer", source, "--out", out, source, ok=False)
    assert result.stderr.count("\n") == 1


PAGE = """<html><head><title>no</title></head><body><div class="navheader">Next</div>
<h1>Bread &amp; butter</h1><p>Some <em>real</em> prose,
on two lines.<br/></p><pre>int main();</pre><table><tr><td>cell</td></tr></table>
<ul><li><p>An item</p></li></ul><div class="toc"><p>Contents</p><div>inner</div></div>
<p>After.</p></body></html>"""


def test_prose_is_what_is_left_of_a_page():
    assert (
        collect_text.prose_of(PAGE)
        == "Bread & butter\n\nSome real prose, on two lines.\n\nAn item\n\nAfter."
    )


def test_documents_are_split_by_their_names_alone(monkeypatch, tool, tmp_path):
    monkeypatch.setattr(collect_text, "SOURCES", {"package": "*.html"})
    folder = tmp_path / "package"
    folder.mkdir()
    names = [f"{i}.html" for i in range(200)]
    for name in names:
        (folder / name).write_text(f"<p>{'word ' * 300}</p>")
    collect_text.collect(tmp_path, tmp_path / "out")
    parts = {}
    for part in ("train", "validation"):
        written = (tmp_path / "out" / f"{part}.jsonl").read_text().splitlines()
        parts[part] = [json.loads(line)["source"] for line in written]
    assert sorted(parts["train"] + parts["validation"]) == sorted(f"package/{n}" for n in names)
    assert parts["validation"] == [s for s in parts["validation"] if collect_text.is_validation(s)]
    assert 2 <= len(parts["validation"]) <= 20


def test_rotated_pairs_move_half_a_head_apart():
    rows = np.arange(2 * 6, dtype=np.float32)[:, None]
    moved = smollm2.half_split_rows(rows, heads=2)[:, 0]
    assert moved.tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_bf16_is_rounded_to_nearest_even():
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0xBF80FFFF], dtype=np.uint32)
    rounded = smollm2.to_bf16(bits.view(np.float32))
    assert rounded.tolist() == [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF81]


def write_metrics(folder: Path, steps: int) -> None:
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        print(json.dumps({"event": "start", "step": 0, "ranks": 2}), file=file)
        for step in range(1, steps + 1):
            line = {"step": step, "tokens": 512 * step, "loss": 3 + 8 / step, "lr": 1e-4 / step}
            line |= {"grad_norm": 1 + 5 / step, "tokens_per_second": 800.0}
            print(json.dumps(line), file=file)
            if step % 10 == 0:
                line = {"step": step, "tokens": 512 * step, "validation_loss": 3.2 + 8 / step}
                print(json.dumps(line), file=file)
        print(json.dumps({"event": "finish", "step": steps, "peak_memory": 2**30}), file=file)


def test_runs_become_a_picture(tool, tmp_path):
    write_metrics(tmp_path / "first", 60)
    write_metrics(tmp_path / "second", 1)
    with (tmp_path / "second" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "to')
    out = tmp_path / "plot.png"
    tool("plot.py", tmp_path / "first", tmp_path / "second", "--out", out)
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 20_000


def test_a_curve_has_every_step_and_the_events_of_the_program_are_none(tmp_path):
    write_metrics(tmp_path / "run", 20)
    tokens, loss = plot.Run(tmp_path / "run").curve("loss")
    assert tokens.tolist() == [512 * step for step in range(1, 21)]
    assert loss[-1] == 3 + 8 / 20
    assert plot.Run(tmp_path / "run").curve("validation_loss")[0].tolist() == [5120, 10240]


def test_a_run_is_summed_up_in_a_table(tool, tmp_path):
    write_metrics(tmp_path / "run", 20)
    score = tmp_path / "score.txt"
    score.write_text("mean loss 2.500000 nats/token, perplexity 12.182, 100 tokens predicted\n")
    table = tool("summarize.py", tmp_path / "run", "--base-score", score).stdout
    assert "softmax base" in table and "2.5000" in table
    assert "10,240 tokens" in table and "3.6000" in table
    assert "1.00 GiB" in table


def test_a_folder_without_metrics_is_named(tool, tmp_path):
    result = tool("plot.py", tmp_path, "--out", tmp_path / "plot.png", ok=False)
    assert "has no metrics.jsonl" in result.stderr


def write_program(path: Path, ids: list[int]) -> Path:
    """A stand-in for `supra` that prints these tokens, and its arguments to a file beside it."""
    path.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\n"
        f"pathlib.Path({str(path)!r} + '.arguments').write_text(' '.join(sys.argv[1:]))\n"
        f"print(*{ids}, sep='\\n')\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_chat_prints_the_text_of_the_tokens_up_to_eos(tokenizer, tool, tmp_path):
    encode = TextTokenizer(tokenizer)
    reply = encode.encode(" the café")
    program = write_program(tmp_path / "supra", [*reply, encode.eos(), *reply])
    options = ["--tokenizer", tokenizer, "--supra", program, "--prompt", "On", "-n", 9]
    result = tool("chat.py", tmp_path / "model.h5", *options)
    assert result.stdout == "On the café\n"
    arguments = (tmp_path / "supra.arguments").read_text().split()
    assert arguments[:2] == ["generate", os.fspath(tmp_path / "model.h5")]
    assert arguments[3] == ",".join(map(str, encode.encode("On")))
