"""What bench/compare_torch.sh decides with: agreement, ratios, settings, and its table."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "peers"))
import compare_attention
import compare_torch
from compare_torch import Row, Setting


def steps(loss: float, grad_norm: float = 5.0) -> list[dict]:
    first = {"step": 1, "loss": 9.0, "grad_norm": 6.0}
    return [first, {"step": 2, "loss": loss, "grad_norm": grad_norm}]


@pytest.mark.parametrize("dtype", ["fp32", "mixed"])
def test_runs_agree_up_to_the_tolerance_of_their_dtype(dtype):
    loss, grad_norm = compare_torch.TOLERANCES[dtype]
    within = steps(8 * (1 + 0.9 * loss), 5 * (1 - 0.9 * grad_norm))
    assert compare_torch.disagreement(steps(8), within, dtype) is None
    further = compare_torch.disagreement(steps(8), steps(8 * (1 + 1.1 * loss)), dtype)
    assert further.startswith(f"step 2, {dtype}: loss is 8 in supra")
    steeper = compare_torch.disagreement(steps(8), steps(8, 5 * (1 + 1.1 * grad_norm)), dtype)
    assert "grad_norm" in steeper


def test_what_is_not_a_number_agrees_with_nothing():
    assert "nan" in compare_torch.disagreement(steps(8), steps(float("nan")), "mixed")


def test_a_missing_step_is_no_agreement():
    with pytest.raises(ValueError):
        compare_torch.disagreement(steps(8), steps(8)[:1], "fp32")


def test_a_rate_counts_all_tokens_of_the_steps():
    row = Row("", "linear", "mixed", tokens=2048, pairs=1)
    assert row.batch == 4
    assert compare_torch.rate(row, [{"seconds": 2.0}, {"seconds": 6.0}]) == 2 * 8192 / 8


@pytest.mark.parametrize(("tokens", "micro_batch"), [(512, 8), (2048, 2), (8192, 1)])
def test_other_lengths_keep_the_tokens_of_a_micro_batch(tokens, micro_batch):
    row = Row("", "linear", "mixed", tokens, pairs=1)
    assert compare_torch.at_length(Setting(2, True), row) == Setting(micro_batch, True)


def test_tokens_are_the_same_each_time_and_of_the_vocabulary():
    tokens = compare_torch.made_up_tokens(10_001)
    assert np.array_equal(tokens, compare_torch.made_up_tokens(10_001))
    assert tokens.max() < compare_torch.VOCABULARY
    # As many of the most frequent 1% as ln(V / 100) / ln V of the freely drawn half tells.
    assert np.mean(tokens[::2] < compare_torch.VOCABULARY // 100) == pytest.approx(0.57, abs=0.02)


def test_a_row_of_the_table_shows_both_sides():
    side = {"setting": {"micro_batch": 2, "recompute": True}, "tokens_per_second": 901.4}
    side |= {"peak_memory": 3 * 2**30, "loss": 9.5}
    other = {"setting": {"micro_batch": 1}, "tokens_per_second": 600, "loss": 9.25}
    other |= {"peak_memory": 2**30}
    result = {"row": {"name": "SUPRA"}, "supra": side, "torch": other, "ratio": (1.5, 1.25, 1.75)}
    assert compare_torch.table([result]).splitlines()[-1] == (
        "| SUPRA | micro-batch 2, recompute | 901 | 3.00 | 9.5000 "
        "| micro-batch 1 | 600 | 1.00 | 9.2500 | 1.50 (1.25 - 1.75) |"
    )


def test_both_passes_of_the_shape_are_taken_from_the_bench():
    shape = compare_attention.Shape(4, 2048, 9, 9, 64)
    sizes = ["B 4 T 2048 H 9/9 d 64 rope", "B 4 T 2048 H 9/9 d 640 rope"]
    results = [{"sizes": s, "pass": p} for p in ("backward", "forward") for s in sizes]
    found = compare_attention.passes({"results": results}, shape)
    assert [(p, r["sizes"]) for p, r in found.items()] == [
        ("forward", sizes[0]), ("backward", sizes[0])
    ]  # fmt: skip
    with pytest.raises(KeyError):
        compare_attention.passes({"results": results[:1]}, shape)


def test_the_table_of_attention_has_medians_and_ratios_of_times():
    result = {
        "shape": {"batch": 4, "tokens": 2048, "heads": 9, "kv_heads": 9, "width": 64},
        "seconds": {"supra": [0.02, 0.01, 0.03], "eager": [0.1] * 3, "compiled": [0.05] * 3},
        "share_of_product_rate": {"forward": 0.25, "backward": 0.5},
        "ratio": {"eager": (5, 3.3, 10), "compiled": (2.5, 1.7, 5)},
    }
    row = compare_attention.table([result]).splitlines()[-1]
    assert row == (
        "| B 4 T 2048 H 9/9 d 64 | 20.0 | 25% / 50% | 100.0 | 50.0 | 5.0 (3.3 - 10.0) "
        "| 2.5 (1.7 - 5.0) |"
    )
