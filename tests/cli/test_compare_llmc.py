"""What bench/compare_llmc.sh writes for llm.c, reads from it, and makes of that."""

import json
import math
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "peers"))
import compare_llmc
from compare_llmc import Row

PROGRAM = """int main() {
    int B = 4; // batch size 4
    int T = 64; // sequence length 64
    int val_num_batches = 5;
    for (int b = 0; b < B; b++) work(B * T);
"""


def test_only_the_constants_of_the_program_change():
    assert compare_llmc.with_sizes(PROGRAM, Row(1, 1024, 1)) == PROGRAM.replace(
        "B = 4;", "B = 1;"
    ).replace("T = 64;", "T = 1024;").replace("val_num_batches = 5;", "val_num_batches = 1;")


@pytest.mark.parametrize("program", [PROGRAM.replace("int T =", "const T ="), 2 * PROGRAM])
def test_a_program_without_the_constants_is_refused(program):
    with pytest.raises(SystemExit, match="train_gpt2.c has [02] lines with 'int"):
        compare_llmc.with_sizes(program, Row(1, 1024, 1))


def test_the_first_step_and_what_is_no_step_are_told_apart():
    lines = [
        "num_parameters: 124475904\n",
        "val loss 10.975818\n",
        "step 0: train loss 10.986027 (took 7195.695376 ms)\n",
        "step 1: train loss 10.946744 (took 5912.360237 ms)\n",
        "generating:\n",
    ]
    assert compare_llmc.steps_told(lines) == [
        {"loss": 10.986027, "seconds": pytest.approx(7.195695376)},
        {"loss": 10.946744, "seconds": pytest.approx(5.912360237)},
    ]


def test_a_model_file_is_a_header_and_the_tensors(tmp_path):
    path = tmp_path / "gpt2.bin"
    layers, width, heads, vocabulary, padded, tokens = 2, 8, 2, 30, 32, 16
    compare_llmc.write_model(path, layers, width, heads, vocabulary, padded, tokens)
    header = np.fromfile(path, "<i4", 256)
    assert header[:9].tolist() == [20240326, 3, 16, 30, 2, 2, 8, 32, 0]
    values = np.fromfile(path, "<f4", offset=1024)
    weights = layers * 12 * width * width  # of the blocks' matrices
    vectors = layers * (4 + 3 + 1 + 4 + 1) * width + 2 * width  # norms, biases, last norm
    embeddings = (padded + tokens) * width
    assert len(values) == embeddings + weights + vectors
    assert np.std(values[:embeddings]) == pytest.approx(0.02, rel=0.2)
    norm = values[embeddings:][: layers * 2 * width]  # weights of all layers, then biases
    assert norm.tolist() == [1] * (layers * width) + [0] * (layers * width)
    assert values[-2 * width :].tolist() == [1] * width + [0] * width


def test_a_token_file_is_a_header_and_16_bit_ids(tmp_path):
    path = tmp_path / "tokens.bin"
    compare_llmc.write_tokens(path, np.array([0, 7, 50256]))
    assert np.fromfile(path, "<i4", 256)[:4].tolist() == [20240520, 1, 3, 0]
    assert np.fromfile(path, "<u2", offset=1024).tolist() == [0, 7, 50256]


def test_both_models_have_the_same_weights_in_matrices_and_the_same_attention():
    ours = tomllib.loads(compare_llmc.RECIPE.read_text())["model"]
    c = compare_llmc
    assert (ours["layers"], ours["width"], ours["heads"]) == (c.LAYERS, c.WIDTH, c.HEADS)
    assert (ours["vocabulary"], ours["attention"]) == (c.PADDED_VOCABULARY, "softmax")
    assert "kv_heads" not in ours and ours["tied_head"]
    tensors = c.parameter_tensors(c.LAYERS, c.WIDTH, c.PADDED_VOCABULARY, c.MAX_TOKENS)
    theirs = sum(math.prod(shape) for shape, _ in tensors if len(shape) == 3)
    assert ours["layers"] * ours["width"] * (4 * ours["width"] + 3 * ours["ffn"]) == theirs


@pytest.mark.parametrize("loss", [3.3, 13.0, math.nan])
def test_a_run_that_does_not_begin_untrained_is_refused(loss):
    compare_llmc.check_untrained("llm.c", math.log(50257) + 0.15, 50257)
    with pytest.raises(SystemExit, match=r"first loss of llm.c is .* 10.82"):
        compare_llmc.check_untrained("llm.c", loss, 50257)


def test_the_table_compares_model_flops():
    ours = {"model_flops_per_token": 8e8, "products_flops_per_second": 4e11}
    samples = {
        "supra": [
            ours | {"tokens_per_second": rate, "peak_memory": 2**31} for rate in (400, 450, 425)
        ],
        "llmc": [{"tokens_per_second": rate, "peak_memory": 6 * 2**30} for rate in (40, 30, 50)],
    }
    result = json.loads(json.dumps(compare_llmc.summary(Row(1, 1024, 1), samples)))
    assert compare_llmc.table([result]).splitlines()[-1] == (
        "| B 1, T 1024 | 425.0 | 340.0 | 85.0% | 2.00 | 40.0 | 32.0 | 8.0% | 6.00 "
        "| 10.00 (8.50 - 15.00) |"
    )
