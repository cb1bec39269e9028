"""What happens to machines, disks, networks and jobs while a run trains, one fault a test: the run
starts again by itself where it can, ends DONE, and nothing is lost. Each test tells `report` what
happened and how long it took; docs/operations.md shows that as a table."""

import os
import re
import signal
import time

import h5py
import pytest
from hosts import LOGIN, wait_for

STEPS = 100
RATE = "300mbit"  # of the network: a step takes 50 ms at least
FAULT_STEP = 12  # the fault comes when at least this many are done


@pytest.fixture
def begin(start_training):
    """begin(hosts=3): a run that has done some steps."""

    def start(*settings, hosts=2, options=()):
        training = start_training(STEPS, *settings, hosts=hosts, rate=RATE)
        training.submit(*options)
        training.wait_for_step(FAULT_STEP)
        return training

    return start


# A call that is skipped lets the next one meet another, which MPI may notice before the watchdog.
@pytest.mark.parametrize(
    ("fault", "what", "codes"),
    [
        ("skip", "a rank skips a collective", {1, 6}),
        pytest.param("stall", "a rank hangs before a collective", {6}, marks=pytest.mark.long),
    ],
)
def test_a_rank_that_does_not_come_to_a_collective(
    start_training, undisturbed, report, fault, what, codes
):
    training = start_training(STEPS)
    training.submit(environment={"SUPRA_FAULT": f"rank=2,collective=60,do={fault}"})
    training.wait_for_step(1)
    began = time.monotonic()
    wait_for(lambda: any(training.exit_codes()), "all ranks to end", 60)
    seconds = time.monotonic() - began
    training.slurm.on(LOGIN, "scancel", str(training.job_number))
    training.end("CANCELLED")
    assert training.exit_codes()[0] in codes
    assert re.search(r"rank 2 \(n2\) has not entered \w+ #60 of \S+ \(mpi\)", training.log())
    training.submit()
    training.end()
    training.check(undisturbed(STEPS))
    report(training, what, "rank and collective are named", seconds)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_killed_rank(begin, undisturbed, report, launcher):
    training = begin(options=["--launcher", launcher])
    seconds = training.recover(lambda: training.signal_rank(3))
    training.end()
    assert training.exit_codes() == [137, 0]
    training.check(undisturbed(STEPS))
    report(training, f"`kill -9` of a rank, under {launcher}", "the others end", seconds)


@pytest.mark.long
def test_a_stopped_rank_is_named_and_its_host_left_out(begin, undisturbed, report):
    training = begin(hosts=3)
    stopped = training.host_of(2)
    seconds = training.recover(lambda: training.signal_rank(2, signal.SIGSTOP))
    training.end()
    assert f"rank 2 ({stopped})" in training.log()
    assert training.job().excluded == stopped
    training.check(undisturbed(STEPS))
    report(training, "SIGSTOP of a rank", "the rank is named, its host left out", seconds)


@pytest.mark.long
@pytest.mark.parametrize(("what", "rank"), [("the job's first host", 0), ("another host", 2)])
def test_a_host_that_crashes(begin, undisturbed, report, what, rank):
    training = begin(hosts=3)
    crashed = training.host_of(rank)
    seconds = training.recover(lambda: training.slurm.hosts.crash(crashed))
    training.end()
    assert crashed not in training.slurm.nodes(training.job_number)
    training.check(undisturbed(STEPS))
    report(training, f"crash of {what}", "goes on without it", seconds)
    training.slurm.boot(crashed)
    training.slurm.wait_until_idle()


@pytest.mark.long
def test_a_link_that_is_down_for_a_minute(begin, undisturbed, report):
    training = begin()
    hosts, away = training.slurm.hosts, training.host_of(2)

    def unplug():
        hosts.link(away, up=False)
        time.sleep(60)
        hosts.link(away, up=True)

    seconds = training.recover(unplug)
    training.end()
    training.check(undisturbed(STEPS))
    report(
        training, "a link is down for 60 s", "ends on both sides, goes on when it is up", seconds
    )


@pytest.mark.long
def test_a_link_that_is_down_for_less_than_the_limit_is_waited_for(begin, undisturbed, report):
    training = begin()
    hosts, away = training.slurm.hosts, training.host_of(2)
    hosts.link(away, up=False)
    time.sleep(0.5)
    step = training.step()
    time.sleep(2)
    assert training.step() == step < STEPS
    began = time.monotonic()
    hosts.link(away, up=True)
    training.wait_for_step(step + 1)
    seconds = time.monotonic() - began
    training.end()
    assert training.exit_codes() == [0]
    training.check(undisturbed(STEPS))
    report(training, "a link is down for 2.5 s", "the ranks wait", seconds)


def fill(training):
    """Fills the disk of the checkpoints; returns what makes room again."""
    filler = training.folder / "checkpoints" / "filler"
    training.slurm.hosts.on(LOGIN, "dd", "if=/dev/zero", f"of={filler}", "bs=4k", ok=False)
    return lambda: training.slurm.on(LOGIN, "rm", str(filler))


@pytest.mark.long
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
    start_training, undisturbed, report
):
    training = start_training(STEPS, rate=RATE)
    training.slurm.hosts.mount_disk(training.folder / "checkpoints", "64m")
    training.submit()
    training.wait_for_step(FAULT_STEP)
    make_room = fill(training)
    training.wait_until_requeued()
    assert training.exit_codes() == [1]
    assert "No space left on device" in training.log()
    seconds = training.recover(make_room)
    training.end()
    training.check(undisturbed(STEPS))
    report(
        training, "the disk is full at a checkpoint", "stops; goes on once there is room", seconds
    )


@pytest.mark.long
def test_a_full_disk_is_only_said_where_the_recipe_goes_on(start_training, undisturbed, report):
    training = start_training(STEPS, "checkpoint.on_failure=go_on", rate=RATE)
    training.slurm.hosts.mount_disk(training.folder / "checkpoints", "64m")
    training.submit()
    training.wait_for_step(FAULT_STEP)
    make_room = fill(training)
    wait_for(lambda: "No space left on device" in training.log(), "a checkpoint to fail", 30)
    make_room()
    training.end()
    assert training.exit_codes() == [0]
    training.check(undisturbed(STEPS))
    report(training, 'the same, `checkpoint.on_failure = "go_on"`', "trains on", 0)


def flip_a_bit(checkpoint):
    shard = checkpoint / "shard-0001.h5"
    with h5py.File(shard) as file:
        datasets = []
        file.visititems(lambda _, item: datasets.append(item) if hasattr(item, "shape") else None)
        middle = datasets[0].id.get_offset() + datasets[0].nbytes // 2
    with shard.open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 4]))


def delete_a_shard(checkpoint):
    (checkpoint / "shard-0002.h5").unlink()


def truncate_the_index(checkpoint):
    index = checkpoint / "index.h5"
    os.truncate(index, index.stat().st_size // 2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("a bit of the newest checkpoint flips", flip_a_bit),
        ("a shard of the newest checkpoint is deleted", delete_a_shard),
        ("the index of the newest checkpoint is cut in half", truncate_the_index),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(begin, undisturbed, report, what, damage):
    training = begin()
    before = newest = None

    def kill_and_damage():
        nonlocal before, newest
        training.signal_rank(1)
        training.wait_until_requeued()
        before, newest = training.checkpoints()[-2:]
        damage(newest)

    seconds = training.recover(kill_and_damage)
    assert f"checkpoint {newest} is passed over" in training.log()
    assert f"resumed from {before}" in training.log()
    training.end()
    training.check(undisturbed(STEPS))
    report(training, what, "named and passed over for the one before", seconds)


@pytest.mark.long
def test_a_rank_killed_while_a_checkpoint_is_written(begin, undisturbed, report):
    training = begin()
    ranks = training.ranks()

    def kill_at_a_write():
        folder = training.folder / "checkpoints"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any("." in name for name in os.listdir(folder)):
                os.kill(ranks[1], signal.SIGKILL)
                return
        raise TimeoutError("no checkpoint was seen while it was written")

    seconds = training.recover(kill_at_a_write)
    training.end()
    training.check(undisturbed(STEPS))
    report(training, "`kill -9` while a checkpoint is written", "the one before counts", seconds)


@pytest.mark.long
def test_a_cancelled_run_goes_on_when_it_is_submitted_again(begin, undisturbed, report):
    training = begin()

    def cancel_and_submit():
        training.slurm.on(LOGIN, "scancel", str(training.job_number))
        training.end("CANCELLED")
        training.submit()

    seconds = training.recover(cancel_and_submit)
    training.end()
    assert training.exit_codes() == [4, 0]
    training.check(undisturbed(STEPS))
    report(training, "`scancel`, and submitted again", "stops with a checkpoint", seconds)


@pytest.mark.long
def test_preemption(begin, undisturbed, report):
    training = begin()
    urgent = ["sbatch", "-purgent", "-N2", "--wrap=sleep 2"]
    seconds = training.recover(lambda: training.slurm.on(LOGIN, *urgent))
    training.end()
    assert training.exit_codes() == [4, 0]
    training.check(undisturbed(STEPS))
    report(training, "preemption, by a job of 2 s", "stops with a checkpoint", seconds)


@pytest.mark.long
def test_the_time_limit(start_training, undisturbed, report):
    steps = 600
    training = start_training(steps, rate="100mbit")
    training.submit("--time", "1", "--ahead", "40")
    wait_for(lambda: "was told to stop" in training.log(), "the signal ahead of the limit", 90)
    seconds = training.recover(lambda: None)
    training.end(seconds=900)
    assert set(training.exit_codes()) == {4, 0}
    training.check(undisturbed(steps))
    report(training, "the time limit", "stops with a checkpoint, ahead of it", seconds)
