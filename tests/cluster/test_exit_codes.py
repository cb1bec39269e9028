"""What supra itself ends with under srun, and what becomes of the job. What machines do to a run is
in test_faults.py."""

import pytest
from hosts import LOGIN


@pytest.mark.parametrize(
    ("setting", "code", "said"),
    [
        ("train.micro_batch=5", 2, "global_batch 12 is not divisible"),
        ("train.learning_rate=1e30", 3, "is not finite"),
    ],
)
def test_what_no_other_start_would_change_fails_at_once(start_training, setting, code, said):
    training = start_training(40, setting)
    training.submit()
    job = training.end("FAILED")
    assert (job.exit_code, training.log().count("== ")) == (code, 2)
    assert said in training.log()


def test_a_run_that_is_done_is_done_again_at_once(start_training):
    training = start_training(10)
    training.submit()
    training.end()
    losses = training.losses()
    training.submit()
    training.end()
    assert training.losses() == losses
    assert len(training.starts()) == 1


def test_a_slow_link_is_found_before_the_run(start_slurm, supra, tmp_path):
    slurm = start_slurm(3)
    slurm.hosts.limit("n2", "1mbit")
    # The hosts share two cores, so that of their other differences little can be said.
    check = f"srun --mpi=pmix {supra} check-node --folder {tmp_path} --seconds 4"
    tolerant = f"{check} --tolerance 0.1 --varied-tolerance 0"
    said = slurm.on(LOGIN, "sbatch", "--parsable", "-N3", "--wrap", tolerant)
    job = slurm.wait(int(said), 120)
    assert (job.state, job.exit_code) == ("FAILED", 5)
    blamed = [line.split("\t") for line in (tmp_path / "blamed-nodes").read_text().splitlines()]
    assert [host for host, reason in blamed if "links: " in reason] == ["n2"]
