"""Runs that are told to stop, that meet bad batches, or whose disk is full: nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest
from conftest import MPI_ENVIRONMENT
from tiny import checkpoint, losses, metrics, same_tensors, write_tokens

NOT_FINITE, REQUEUE = 3, 4
STEPS = 300
SETTINGS = [
    f"train.steps={STEPS}",
    "checkpoint.every=50",
    "run.log_samples=true",
    "data.validation=",
]


@pytest.fixture(scope="module")
def undisturbed(train_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train_tiny(folder, *SETTINGS, ranks=2)
    return folder


def samples(folder):
    """The windows of each step over all ranks, and the numbers of its samples in the order."""
    steps = {}
    for path in sorted(folder.glob("samples-*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            step = steps.setdefault(line["step"], {"numbers": [], "windows": []})
            first = line["first_sample"]
            step["numbers"] += range(first, first + len(line["windows"]))
            step["windows"] += line["windows"]
    return steps


def events(folder, kind):
    return [line for line in metrics(folder) if line.get("event") == kind]


def started(build, arguments, ranks):
    """A run in the background, once it has done a few steps."""
    command = [*(["mpirun", "-n", ranks] if ranks else []), build / "supra", *arguments]
    process = subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | MPI_ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step   7/"):
            return process
    pytest.fail(f"the run ended with {process.wait()} before its seventh step")


@pytest.mark.parametrize("ranks_after", [2, 3])
def test_a_signal_ends_the_run_after_its_step_and_loses_nothing(
    ranks_after, undisturbed, build, tiny_run, train_tiny, tmp_path
):
    run = tmp_path / "run"
    process = started(build, tiny_run(run, *SETTINGS), 2)
    process.send_signal(signal.SIGUSR1)  # mpirun hands it on to the ranks
    process.stdout.read()
    assert process.wait(60) == REQUEUE
    [stop] = events(run, "stop")
    assert 7 <= stop["step"] < STEPS and checkpoint(run, stop["step"]).is_dir()

    train_tiny(run, *SETTINGS, "run.resume=latest", ranks=ranks_after)
    if ranks_after == 2:
        assert losses(run) == losses(undisturbed)
        assert same_tensors(checkpoint(run, STEPS), checkpoint(undisturbed, STEPS))
    assert len(losses(run)) == STEPS
    seen = samples(run)
    assert sorted(seen) == list(range(1, STEPS + 1))
    for step, what in seen.items():
        assert sorted(what["numbers"]) == list(range(12 * (step - 1), 12 * step))
        assert sorted(what["windows"]) == sorted(samples(undisturbed)[step]["windows"])


def test_sigterm_is_a_wish_to_stop_too(build, tiny_run, tmp_path):
    run = tmp_path / "run"
    process = started(build, tiny_run(run, *SETTINGS), 0)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # the same wish, said twice
    process.stdout.read()
    assert process.wait(60) == REQUEUE


def test_a_second_signal_later_ends_at_once(build, tiny_run, tmp_path, monkeypatch):
    """In a step that never ends, for one: this one stalls in front of a collective."""
    monkeypatch.setenv("SUPRA_FAULT", "rank=0,collective=60,do=stall")
    process = started(build, tiny_run(tmp_path / "run", *SETTINGS), 0)
    done = 0
    while len(metrics(tmp_path / "run")) > done:
        done = len(metrics(tmp_path / "run"))
        time.sleep(1)
    process.send_signal(signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 128 + signal.SIGUSR1


def test_the_global_batch_may_change_and_no_sample_is_left_out(train_tiny, tmp_path):
    run = tmp_path / "run"
    common = ["run.log_samples=true", "data.validation=", "run.resume=latest"]
    train_tiny(run, *common, "train.steps=5", ranks=2)
    train_tiny(run, *common, "train.steps=9", "train.global_batch=6", ranks=3)
    numbers = [number for step in samples(run).values() for number in step["numbers"]]
    assert sorted(numbers) == list(range(5 * 12 + 4 * 6))


@pytest.fixture(scope="module")
def bad_batch(train_tiny, tmp_path_factory):
    """A recipe in which one window of the text gives an infinite loss."""
    folder = tmp_path_factory.mktemp("bad")
    train_tiny(folder / "base", "train.steps=1", "train.warmup_steps=0", "data.validation=")
    with h5py.File(checkpoint(folder / "base", 1) / "shard-0000.h5", "r+") as file:
        file["embedding/trained/parameter"][64] = np.inf  # token 1
    text = np.full(5000, 3)
    text[1000] = 1
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[model]\nbase = "{checkpoint(folder / "base", 1)}"\n'
        f'[data]\ntrain = "{write_tokens(folder / "text.h5", text)}"\nsequence_length = 32\n'
        "[train]\nsteps = 13\nwarmup_steps = 1\nglobal_batch = 12\nlearning_rate = 1e-4\n"
        '[run]\nfolder = "run"\nthreads = 1\nlog_samples = true\n[checkpoint]\nevery = 2\n'
    )
    return recipe


def options(*settings):
    return [part for setting in settings for part in ("--set", setting)]


def samples_passed_over(run, kind):
    [event] = events(run, kind)
    assert "not finite" in event["what"] and event["skipped"] == 1
    return range(event["first_sample"], event["first_sample"] + event["samples"])


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_bad_batch_is_skipped(ranks, bad_batch, supra, tmp_path):
    run = tmp_path / "run"
    settings = options(f"run.folder={run}", "watch.on_not_finite=skip")
    supra("train", bad_batch, *settings, ranks=ranks)
    skipped = samples_passed_over(run, "skip")
    assert len(losses(run)) == 13 and np.all(np.isfinite(losses(run)))
    assert len(skipped) == 12
    numbers = [number for step in samples(run).values() for number in step["numbers"]]
    assert sorted([*numbers, *skipped]) == list(range(14 * 12))


def test_a_bad_batch_is_skipped_after_going_back(bad_batch, supra, tmp_path):
    run = tmp_path / "run"
    settings = options(f"run.folder={run}", "watch.on_not_finite=roll_back")
    supra("train", bad_batch, *settings, ranks=2)
    skipped = samples_passed_over(run, "roll_back")
    assert len(losses(run)) == 13 and np.all(np.isfinite(losses(run)))
    # What was trained on after the checkpoint gone back to, and before the bad batch, is passed
    # over too: the weights forget it, the order of samples goes on.
    [event] = events(run, "roll_back")
    assert event["step"] % 2 == 0 and skipped[0] == 12 * event["step"]
    numbers = [number for step in samples(run).values() for number in step["numbers"]]
    assert sorted([*numbers, *skipped]) == list(range(max(numbers) + 1))


def test_only_so_many_batches_are_skipped(bad_batch, supra, tmp_path):
    run = tmp_path / "run"
    settings = options(f"run.folder={run}", "watch.on_not_finite=skip", "watch.max_skipped=0")
    result = supra("train", bad_batch, *settings, ranks=2, ok=False)
    assert result.returncode == NOT_FINITE
    assert "watch.max_skipped" in result.stderr and "samples " in result.stderr


def test_a_spike_is_passed_over(train_tiny, tmp_path):
    """Every loss that rises at all counts as one."""
    spikes = ["watch.on_spike=skip", "watch.spike_window=4", "watch.spike_deviations=1.5"]
    train_tiny(tmp_path / "run", "data.validation=", *spikes, "train.learning_rate=0.03", ranks=2)
    assert all("standard deviations" in event["what"] for event in events(tmp_path / "run", "skip"))
    assert len(losses(tmp_path / "run")) == 20


def on_a_small_disk(run, command):
    """Runs it with a disk of its own for the checkpoints, on which one has room and two have not;
    returns what is left there too."""
    (run / "checkpoints").mkdir(parents=True)
    script = (
        'mount -t tmpfs -o size=5m tmpfs "$1" || exit 77; folder=$1; shift; "$@"; code=$?; '
        'ls "$folder"; exit $code'
    )
    small = ["unshare", "--mount", "bash", "-c", script, "bash", run / "checkpoints"]
    result = subprocess.run(
        [str(part) for part in [*small, *command]],
        env=os.environ | MPI_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if result.returncode == 77 or result.stderr.startswith("unshare:"):
        pytest.skip(f"no disk can be mounted: {result.stderr}")
    return result


def test_a_full_disk_stops_the_run_or_not_as_the_recipe_says(build, tiny_run, tmp_path):
    settings = ["data.validation=", "train.steps=6", "checkpoint.every=2", "run.resume=latest"]
    settings += ["model.ffn=512"]
    run = tmp_path / "stopped"
    stopped = on_a_small_disk(run, [build / "supra", *tiny_run(run, *settings)])
    assert stopped.returncode == 1, stopped.stderr
    assert "no checkpoint of step 4" in stopped.stderr and "No space left" in stopped.stderr
    assert stopped.stdout.splitlines()[-1] == "step-00000002"

    run = tmp_path / "went_on"
    settings += ["checkpoint.on_failure=go_on"]
    went_on = on_a_small_disk(run, [build / "supra", *tiny_run(run, *settings)])
    assert len(losses(run)) == 6
    # But the last one must be: without it, all would be lost.
    assert went_on.returncode == 1 and "no checkpoint of step 6" in went_on.stderr
    assert [e["step"] for e in events(run, "checkpoint") if "error" in e] == [4, 6]
    assert went_on.stdout.splitlines()[-1] == "step-00000002"


def test_a_damaged_checkpoint_is_passed_over_and_never_silently_all(train_tiny, tmp_path):
    run = tmp_path / "run"
    settings = ["data.validation=", "checkpoint.every=2", "train.steps=6"]
    train_tiny(run, *settings)
    whole = losses(run)
    shutil.rmtree(checkpoint(run, 6))
    newest = checkpoint(run, 4) / "shard-0000.h5"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 16
    newest.write_bytes(data)
    said = train_tiny(run, *settings, "run.resume=latest").stdout
    assert "step-00000004" in said and "resumed from" in said and "step-00000002" in said
    assert losses(run) == whole

    for index in run.glob("checkpoints/*/index.h5"):
        os.truncate(index, 1000)
    refused = train_tiny(run, *settings, "run.resume=latest", ok=False)
    assert refused.returncode == 2 and "none of the 3 checkpoints" in refused.stderr


def test_what_a_killed_write_left_is_removed_at_the_next_start(train_tiny, tmp_path):
    run = tmp_path / "run"
    settings = ["data.validation=", "checkpoint.every=4", "run.resume=latest"]
    train_tiny(run, *settings, "train.steps=5")
    left = run / "checkpoints" / "step-00000008.0123456789abcdef.tmp"
    left.mkdir()
    (left / "shard-0000.h5").write_bytes(b"part")
    train_tiny(run, *settings, "train.steps=6")
    assert not left.exists()


def test_a_run_that_goes_another_way_needs_a_folder_of_its_own(train_tiny, tmp_path):
    run = tmp_path / "run"
    settings = ["data.validation=", "train.steps=6", "checkpoint.every=2"]
    train_tiny(run, *settings)
    again = [*settings, f"run.resume={checkpoint(run, 2)}"]
    refused = train_tiny(run, *again, ok=False)
    assert refused.returncode == 2 and "later steps than 2, up to 6" in refused.stderr
    train_tiny(tmp_path / "other", *again)
    assert same_tensors(checkpoint(tmp_path / "other", 6), checkpoint(run, 6))
