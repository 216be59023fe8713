"""Orders and outcomes between the processes of a torchrun, and the end of those whose peers have died."""

from __future__ import annotations

import threading
import time
from multiprocessing import Pipe

import pytest

from bench.distributed.control import Follower, Leader, ProcessInfo
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
        self.leader = Leader(ProcessInfo(0, 2, 0), [here], grace, self.quit)

    def quit(self, process: ProcessInfo, sentence: str) -> None:
        self.said.append(f"{process}: {sentence}")
        self.over.set()


@pytest.fixture
def job() -> TrainJob:
    return small(methods=("natural",)).train[0]


def test_every_process_trains_and_reports_its_outcome(job: TrainJob) -> None:
    wire = Wire()
    with wire.leader.run_on_all(job):
        assert wire.there.recv() == ("train", job)
        wire.there.send(("done", None))
    with (
        pytest.raises(BenchError, match=r"^process 2 of 2: no space left$"),
        wire.leader.run_on_all(job),
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


def test_a_training_that_waits_for_a_failed_process_gives_up(job: TrainJob) -> None:
    wire = Wire(grace=0.05)
    with pytest.raises(BenchError, match=r"^process 2 of 2: no such file$"), wire.leader.run_on_all(job):
        wire.there.send(("failed", "no such file"))
        assert wire.over.wait(10)
    assert wire.said == ["process 1 of 2: process 2 of 2 has failed: no such file"]


def test_a_failed_evaluation_ends_no_process(job: TrainJob) -> None:
    wire = Wire(grace=0.05)
    wire.leader.send(0, "job", job)
    assert wire.there.recv() == ("job", job)
    wire.there.send(("failed", "attack fgsm: expected finite values"))
    assert wire.leader.outcome(0) == ("failed", "attack fgsm: expected finite values")
    assert not wire.over.wait(0.2), "nobody waits for it"
    with wire.leader.run_on_all(job):
        wire.there.send(("done", None))
        assert not wire.over.wait(0.2), "nor in what comes next"


def test_a_first_process_that_fails_alone_does_not_wait_forever(job: TrainJob) -> None:
    wire = Wire(grace=0.05)

    def release() -> None:
        wire.over.wait(10)
        wire.there.send(("interrupted", None))

    threading.Thread(target=release).start()
    with pytest.raises(BenchError, match="^disk full$"), wire.leader.run_on_all(job):
        raise BenchError("disk full")
    assert wire.said == ["process 1 of 2: has failed, and the others wait for it: disk full"]


def test_a_follower_takes_orders_until_it_is_dismissed_or_alone(job: TrainJob) -> None:
    here, there = Pipe()
    said: list[str] = []
    follower = Follower(ProcessInfo(1, 2, 1), there, lambda process, sentence: said.append(sentence))
    for order in (("train", job), ("job", job), None):
        here.send(order)
    assert list(follower.orders()) == [("train", job), ("job", job)]
    assert said == []
    here, there = Pipe()
    Follower(ProcessInfo(1, 2, 1), there, lambda process, sentence: said.append(sentence))
    here.close()
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    assert said == ["the first process has ended; what is stored is whole, run the same command again"]
