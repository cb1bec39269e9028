"""kill -9 of a random rank at a random moment, again and again in one run: nothing is lost."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest
from training import RANKS

# Kills come at most this many steps after a start, and this many seconds later still.
STEPS_BETWEEN, SECONDS_BETWEEN = 12, 0.4


def survive(training, undisturbed, kills, seed):
    """Kills a rank `kills` times, some while the ranks still start, and lets the run end."""
    chance = random.Random(seed)
    training.submit("--starts", str(2 * kills))
    start = 0
    while kills > 0:
        ranks = training.wait_for_ranks(start)
        start = training.job().restarts + 1
        training.wait_for_step(training.step() + chance.randrange(STEPS_BETWEEN))
        time.sleep(chance.uniform(0, SECONDS_BETWEEN))
        with suppress(ProcessLookupError):  # a start that failed by itself counts for nothing
            os.kill(ranks[chance.randrange(RANKS)], signal.SIGKILL)
            kills -= 1
    training.end(seconds=600)
    training.check(undisturbed)


def test_three_kills_of_random_ranks_lose_nothing(start_training, undisturbed):
    survive(start_training(150), undisturbed(150), kills=3, seed=7)


@pytest.mark.long
def test_fifty_kills_of_random_ranks_lose_nothing(start_training, undisturbed):
    survive(start_training(1500), undisturbed(1500), kills=50, seed=11)
