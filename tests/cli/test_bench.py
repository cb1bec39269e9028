"""`supra bench`: what its files say, not how fast anything is."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, run
from tiny import losses

Bench = Callable[..., tuple[dict, str]]


@pytest.fixture(scope="module")
def bench(supra: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """bench("ops", "--op", "linear", ranks=2): the JSON it writes, and the table it prints."""
    folder = tmp_path_factory.mktemp("bench")

    def call(name: str, *arguments: object, ranks: int = 0) -> tuple[dict, str]:
        path = folder / f"{name}.json"
        result = supra("bench", name, *arguments, "--json", path, ranks=ranks)
        return json.loads(path.read_text()), result.stdout

    return call


@pytest.fixture(scope="module")
def step(bench: Bench, tiny_run: Callable[..., list[object]]) -> Bench:
    """step("train.dtype=mixed", steps=2, ranks=3): a few steps of the tiny recipe."""

    def call(*settings: str, steps: int = 2, ranks: int = 0) -> tuple[dict, str]:
        recipe = tiny_run(Path("unused"), *settings)[1:]
        return bench("step", *recipe, "--steps", steps, "--warmup", 0, ranks=ranks)

    return call


def check_spread(spread: dict, repetitions: int) -> None:
    assert list(spread) == ["median", "min", "max", "repetitions"]
    assert 0 <= spread["min"] <= spread["median"] <= spread["max"]
    assert spread["repetitions"] == repetitions


def test_a_file_says_what_its_figures_depend_on(bench: Bench) -> None:
    found, printed = bench("ops", "--op", "cast", "--rounds", 1, "--seconds", 1e-6, "--threads", 1)
    assert list(found)[:5] == ["format", "bench", "date", "program", "machine"]
    assert found["format"] == "supra-bench 1"
    assert found["bench"] == "ops"
    assert found["program"].keys() == {"commit", "compiler", "build_type", "command"}
    assert found["program"]["command"][1:5] == ["bench", "ops", "--op", "cast"]
    machine = found["machine"]
    assert machine.keys() == {
        "host", "cpu", "cores", "memory_bytes", "instruction_set", "load_average",
        "busy_cores_before", "device", "ranks", "busy_cores_meanwhile",
    }  # fmt: skip
    assert machine["device"].startswith("cpu, 1 thread, ")
    assert machine["ranks"] == 1
    assert found["program"]["commit"] in printed


def test_ops_are_set_against_the_ceiling_that_binds(bench: Bench) -> None:
    found, printed = bench(
        "ops", "--op", "rms_norm,feature_map", "--dtype", "bf16,fp32", "--rounds", 2,
        "--seconds", 1e-6, "--threads", 1,
    )  # fmt: skip
    ceilings = found["ceilings"]
    for spread in [*ceilings["product_flops_per_second"].values(),
                   ceilings["memory_bytes_per_second"]]:  # fmt: skip
        check_spread(spread, 2)
    results = found["results"]
    assert {(r["op"], r["pass"], r["dtype"]) for r in results} == {
        (op, direction, dtype)
        for op in ("rms_norm", "feature_map")
        for direction in ("forward", "backward")
        for dtype in ("bf16", "fp32")
    }
    for r in results:
        check_spread(r["seconds"], 2)
        seconds = r["seconds"]["median"]
        assert r["flops_per_second"] == pytest.approx(r["flops"] / seconds)
        assert r["bytes_per_second"] == pytest.approx(r["bytes"] / seconds)
        products = ceilings["product_flops_per_second"][r["dtype"]]["median"]
        computing = r["flops"] / products
        moving = r["bytes"] / ceilings["memory_bytes_per_second"]["median"]
        assert r["ceiling"] == ("products" if computing > moving else "memory")
        assert r["share_of_ceiling"] == pytest.approx(max(computing, moving) / seconds)
        assert f"{r['op']} {r['pass']}, {r['sizes']}" in printed
    norm = next(r for r in results if r["op"] == "rms_norm" and r["pass"] == "forward")
    rows, width = 2048, 576  # x, y and rstd, and the weight
    assert norm["sizes"].startswith(f"N {rows} D {width}")
    assert norm["bytes"] == 2 * rows * width * 2 + rows * 4 + width * 2


def test_calls_that_memory_cannot_hold_are_named(bench: Bench) -> None:
    found, printed = bench(
        "ops", "--op", "swiglu", "--dtype", "fp32", "--rounds", 1, "--seconds", 1e-6,
        "--memory", 0.2,
    )  # fmt: skip
    measured = {r["sizes"] for r in found["results"]}
    assert len(measured) == len(found["left_out"]) == 1
    assert f"left out, it needs more --memory: {found['left_out'][0]}" in printed


def test_calls_are_chosen_by_their_sizes(
    bench: Bench, supra: Callable[..., Result], tmp_path: Path
) -> None:
    chosen = ["ops", "--op", "linear_attention", "--dtype", "bf16", "--rounds", 1]
    chosen += ["--seconds", 1e-6, "--sizes"]
    found, _ = bench(*chosen, "B 1 T 1 ")
    assert [r["sizes"].split()[:4] for r in found["results"]] == [["B", "1", "T", "1"]]
    other = supra("bench", *chosen, "B 1 T 3 ", ok=False)
    assert 'no op\'s name contains linear_attention with sizes "B 1 T 3 "' in other.stderr


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_step_moves_what_zero3_must(step: Bench, ranks: int) -> None:
    found, _ = step("train.dtype=mixed", "train.micro_batch=2", "model.layers=4", ranks=ranks)
    moved = found["step"]["traffic"]
    least = found["step"]["least_traffic"]
    assert moved["gathered_bytes"] == least["gathered_bytes"]
    assert moved["reduced_bytes"] == least["reduced_bytes"]
    assert (moved["gathered_bytes"] > 0) == (ranks > 1)
    assert found["machine"]["ranks"] == ranks


def test_a_step_is_that_of_training(
    step: Bench, train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    settings = ("train.steps=3", "train.warmup_steps=0")
    train_tiny(tmp_path, *settings)
    found, _ = step(*settings, steps=3)
    assert found["step"]["losses"] == losses(tmp_path)


def test_what_is_told_of_a_step(step: Bench) -> None:
    found, printed = step(ranks=2)
    told = found["step"]
    for spread in [told["seconds"], told["tokens_per_second"], told["peak_flops_per_second"],
                   *told["phases"].values()]:  # fmt: skip
        check_spread(spread, 2)
    assert told["tokens"] == 12 * 32
    rate = told["tokens_per_second"]["median"]
    assert told["tokens_per_second_per_rank"] == rate / 2
    peak = told["peak_flops_per_second"]["median"]
    assert told["mfu"] == pytest.approx(told["model_flops_per_token"] * rate / peak)
    assert told["op_flops_per_token"] == pytest.approx(told["model_flops_per_token"])
    assert list(told["phases"]) == [
        "data", "gather", "forward", "backward", "reduce", "optimizer", "checkpoint", "other",
    ]  # fmt: skip
    assert told["memory"]["arena_bytes"]["gathered"] > 0
    assert told["memory"]["peak_resident_bytes"] > sum(told["memory"]["arena_bytes"].values())
    ops = {(op["op"], op["sizes"]): op for op in told["ops"]}
    assert len(ops) == len(told["ops"])
    up = ops["linear_forward", "N 32 I 64 O 128"]
    assert up["calls"] == 2 * 2 * 6  # gate and up of two layers, in each of six micro-batches
    assert up["flops"] == up["calls"] * 2 * 32 * 64 * 128
    for line in ("tokens/s/rank", "model-flops utilisation", "outside of ops", "least of ZeRO-3"):
        assert line in printed


def test_recomputation_is_told_beside_the_model_flops(step: Bench) -> None:
    told = step("train.recompute=block")[0]["step"]
    assert 1.2 < told["op_flops_per_token"] / told["model_flops_per_token"] < 4 / 3


def test_tokens_may_be_made_up(
    supra: Callable[..., Result], root: Path, tmp_path: Path
) -> None:
    recipe = root / "launch" / "recipes" / "tiny.toml"
    missing = tmp_path / "missing.h5"
    arguments = ["bench", "step", recipe, "--set", f"data.train={missing}", "--steps", 1]
    refused = supra(*arguments, ok=False)
    assert refused.returncode == 2
    assert str(missing) in refused.stderr
    supra(*arguments, "--synthetic")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_collectives_over_sizes(bench: Bench, ranks: int) -> None:
    found, printed = bench(
        "collectives", "--min", 1200, "--max", 10800, "--factor", 3, "--rounds", 2,
        "--seconds", 1e-6, ranks=ranks,
    )  # fmt: skip
    sizes = [1200, 3600, 10800]
    assert [(r["collective"], r["bytes"]) for r in found["results"]] == [
        (collective, size)
        for collective in ("all_gather", "reduce_scatter", "all_gather_host", "broadcast_host")
        for size in sizes
    ]
    for r in found["results"]:
        check_spread(r["seconds"], 2)
        algorithm = r["bytes"] / r["seconds"]["median"]
        share = 1 if r["collective"] == "broadcast_host" else (ranks - 1) / ranks
        assert r["algorithm_bytes_per_second"] == pytest.approx(algorithm)
        assert r["bus_bytes_per_second"] == pytest.approx(algorithm * share)
        assert r["collective"] in printed


@pytest.fixture(scope="module")
def scaling(root: Path, build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What bench/scaling.py writes about the tiny model."""
    path = tmp_path_factory.mktemp("scaling") / "scaling.json"
    recipe = root / "launch" / "recipes" / "tiny.toml"
    result = run(
        [sys.executable, root / "bench" / "scaling.py", recipe, "--supra", build / "supra",
         "--synthetic", "--ranks", "1x1,2x1", "--batch", "1,2", "--set", "train.global_batch=2",
         "--rounds", "2", "--steps", "1", "--json", path],
        timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return path


def test_scaling_compares_within_rounds(scaling: Path) -> None:
    results = json.loads(scaling.read_text())["results"]
    assert [(r["axis"], r["value"], r["ranks"], r["threads"]) for r in results] == [
        ("ranks", "1x1", 1, 1), ("ranks", "2x1", 2, 1), ("batch", "1", 1, 1), ("batch", "2", 1, 1),
    ]  # fmt: skip
    for r in results:
        check_spread(r["tokens_per_second"], 2)
        check_spread(r["of_the_first"], 2)
    assert results[0]["of_the_first"]["min"] == results[0]["of_the_first"]["max"] == 1
    of_two_ranks = results[1]["tokens_per_second"]["median"]
    of_one = results[0]["tokens_per_second"]
    ratio = results[1]["of_the_first"]["median"]
    assert of_two_ranks / of_one["max"] <= ratio <= of_two_ranks / of_one["min"]


def generation(folder: Path, attention: str) -> Path:
    spread = {"median": 0.01, "min": 0.009, "max": 0.02, "repetitions": 3}
    lengths = [
        {"length": n, "seconds_per_token": spread, "memory_bytes": n << 20} for n in (256, 512)
    ]
    head = {
        "format": "supra-bench 1", "bench": "generate", "date": "2026-01-02T03:04:05Z",
        "program": {"commit": "0123456789ab"},
        "machine": {"cpu": "a processor", "device": "cpu, 2 threads", "ranks": 1},
    }  # fmt: skip
    path = folder / f"{attention}.json"
    path.write_text(json.dumps(head | {"attention": attention, "lengths": lengths}))
    return path


def test_every_bench_can_be_plotted(
    bench: Bench,
    step: Bench,
    scaling: Path,
    tool: Callable[..., Result],
    tmp_path: Path,
) -> None:
    measured = {
        "ops": bench("ops", "--op", "cast", "--rounds", 1, "--seconds", 1e-6)[0],
        "step": step()[0],
        "collectives": bench("collectives", "--max", 4096, "--rounds", 1, ranks=2)[0],
    }
    sources = {"scaling": [scaling]}
    for name, found in measured.items():
        sources[name] = [tmp_path / f"{name}.json"]
        sources[name][0].write_text(json.dumps(found))
    sources["generate"] = [generation(tmp_path, a) for a in ("linear", "softmax")]
    sources["step"] *= 2
    for name, files in sources.items():
        out = tmp_path / f"{name}.png"
        tool("plot.py", *files, "--out", out)
        assert out.read_bytes().startswith(b"\x89PNG")
    mixed = tool("plot.py", *sources["ops"], *sources["step"], "--out", out, ok=False)
    assert "one kind of bench, not ops and step" in mixed.stderr
    no_bench = tmp_path / "other.json"
    no_bench.write_text("[]")
    refused = tool("plot.py", no_bench, "--out", out, ok=False)
    assert f"error: {no_bench} is no file of supra bench" in refused.stderr


def test_what_cannot_be_measured_or_written_is_refused(
    supra: Callable[..., Result], tmp_path: Path
) -> None:
    nothing = supra("bench", "ops", "--op", "no_such_op", ok=False)
    assert nothing.returncode == 2
    assert "no_such_op" in nothing.stderr
    file = tmp_path / "no" / "such" / "folder" / "ops.json"
    nowhere = supra("bench", "ops", "--op", "cast", "--json", file, ok=False)
    assert nowhere.returncode == 2
    assert str(file.parent) in nowhere.stderr
