"""How the processes of a torchrun talk: orders, outcomes, and what ends whom."""

from __future__ import annotations

import threading
import time
from multiprocessing import Pipe

import pytest

from bench.distributed.control import Follower, Leader, Place
from bench.errors import BenchError
from bench.plan.jobs import TrainJob
from tests.helpers.jobs import small


class Quit(Exception):
    """In place of the end of the process."""


class Wire:
    """A leader of two and its follower's end, with what would have ended the process."""

    def __init__(self, grace: float = 30.0) -> None:
        here, self.there = Pipe()
        self.said: list[str] = []
        self.over = threading.Event()
        self.leader = Leader(Place(0, 2, 0), [here], grace, self.quit)

    def quit(self, place: Place, sentence: str) -> None:
        self.said.append(f"{place}: {sentence}")
        self.over.set()


@pytest.fixture
def job() -> TrainJob:
    return small(methods=("natural",)).train[0]


def test_everyone_trains_and_says_how_it_ended(job: TrainJob) -> None:
    wire = Wire()
    with wire.leader.together(job):
        assert wire.there.recv() == ("train", job)
        wire.there.send(("done", None))
    with (
        pytest.raises(BenchError, match=r"^process 2 of 2: no space left$"),
        wire.leader.together(job),
    ):
        wire.there.send(("failed", "no space left"))
    wire.leader.dismiss()
    wire.there.close()
    assert not wire.over.wait(0.1), "a process that was dismissed may go"


def test_the_end_of_another_process_ends_the_first(job: TrainJob) -> None:
    wire = Wire()
    wire.there.close()
    assert wire.over.wait(10)
    assert wire.said[0].startswith("process 1 of 2: process 2 of 2 has ended before its work was done; what is stored")


def test_who_waits_in_a_training_for_a_process_that_has_failed_gives_up(job: TrainJob) -> None:
    wire = Wire(grace=0.05)
    with pytest.raises(BenchError, match=r"^process 2 of 2: no such file$"), wire.leader.together(job):
        wire.there.send(("failed", "no such file"))
        assert wire.over.wait(10)
    assert wire.said == ["process 1 of 2: process 2 of 2 has failed: no such file"]


def test_an_evaluation_that_has_failed_ends_nothing_but_itself(job: TrainJob) -> None:
    wire = Wire(grace=0.05)
    wire.leader.tell(0, "job", job)
    assert wire.there.recv() == ("job", job)
    wire.there.send(("failed", "attack fgsm: expected finite values"))
    assert wire.leader.outcome(0) == ("failed", "attack fgsm: expected finite values")
    assert not wire.over.wait(0.2), "nobody waits for it"
    with wire.leader.together(job):
        wire.there.send(("done", None))
        assert not wire.over.wait(0.2), "nor in what comes next"


def test_a_first_process_that_fails_alone_does_not_wait_for_good(job: TrainJob) -> None:
    wire = Wire(grace=0.05)

    def release() -> None:
        wire.over.wait(10)
        wire.there.send(("interrupted", None))

    threading.Thread(target=release).start()
    with pytest.raises(BenchError, match="^disk full$"), wire.leader.together(job):
        raise BenchError("disk full")
    assert wire.said == ["process 1 of 2: has failed, and the others wait for it: disk full"]


def test_a_follower_does_what_it_is_told_until_it_is_dismissed_or_alone(job: TrainJob) -> None:
    here, there = Pipe()
    said: list[str] = []
    follower = Follower(Place(1, 2, 1), there, lambda place, sentence: said.append(sentence))
    for order in (("train", job), ("job", job), None):
        here.send(order)
    assert list(follower.orders()) == [("train", job), ("job", job)]
    assert said == []
    here, there = Pipe()
    Follower(Place(1, 2, 1), there, lambda place, sentence: said.append(sentence))
    here.close()
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    assert said == ["the first process has ended; what is stored is whole, run the same command again"]
