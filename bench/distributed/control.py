"""Control of torchrun's processes: which one this is, and how the first sends jobs to the others.

Each of the others has a connection to the first, apart from the process group for tensors: a process that dies closes
its connection, however it dies, and no process waits for an all-reduce that never completes. Free of torch.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from bench.core.progress import log
from bench.errors import BenchError

GRACE_SECONDS = 60.0  # between the failure of one process and the end of those that wait for it in a training
JobOutcome = tuple[str, "str | None"]


@dataclass(frozen=True)
class ProcessInfo:
    """Rank of this process among those of a torchrun.

    Attributes:
        rank, size: rank, from 0, and number of processes over all machines.
        local_rank: rank on this machine.
    """

    rank: int
    size: int
    local_rank: int

    def __str__(self) -> str:
        return f"process {self.rank + 1} of {self.size}"


def process_info() -> ProcessInfo | None:
    """What torchrun's environment variables say of this process; None if it is alone."""
    values = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(value.isdecimal() for value in values) or int(values[1]) < 2:
        return None
    return ProcessInfo(*map(int, values))


def abort(process: ProcessInfo, sentence: str) -> NoReturn:
    """End this process at once, from any thread: the main one may be waiting for an all-reduce that never completes."""
    log.error("%s", sentence)
    print(f"bench: {process}: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


class Leader:
    """The first process's connections to the others.

    Args:
        process: this one.
        others: a connection to each of the others, in the order of their ranks.
        grace: seconds, see `GRACE_SECONDS`.
        quit: ends this process with a sentence.
    """

    def __init__(
        self,
        process: ProcessInfo,
        others: Sequence[Connection],
        grace: float = GRACE_SECONDS,
        quit: Callable[[ProcessInfo, str], None] = abort,
    ) -> None:
        self.process, self.others, self.grace, self.quit = process, others, grace, quit
        self._outcomes: list[queue.Queue[JobOutcome]] = [queue.Queue() for _ in others]
        self._training: object | None = None  # the one that all processes are in
        self._dismissed = False
        for number in range(len(others)):
            threading.Thread(target=self._listen, args=(number,), daemon=True).start()

    def send(self, number: int, order: str, job: Any) -> None:
        """Send an order to another process, the number-th from 0."""
        with contextlib.suppress(OSError):  # a process that has died is noticed by the listening thread
            self.others[number].send((order, job))

    def outcome(self, number: int) -> JobOutcome:
        """Wait for the outcome of the last order to another process."""
        return self._outcomes[number].get()

    @contextlib.contextmanager
    def run_on_all(self, job: Any) -> Iterator[None]:
        """Within this context every process trains the job.

        Raises:
            BenchError: if one of the others has failed.
        """
        self._training = object()
        for number in range(len(self.others)):
            self.send(number, "train", job)
        try:
            yield
        except BaseException as error:
            with self._deadline(f"has failed, and the others wait for it: {error}"):
                for number in range(len(self.others)):
                    self.outcome(number)
            raise
        finally:
            self._training = None
        for number in range(len(self.others)):
            status, sentence = self.outcome(number)
            if status == "failed":
                raise BenchError(f"process {number + 2} of {self.process.size}: {sentence}")

    def dismiss(self) -> None:
        """Tell the other processes to end."""
        self._dismissed = True
        for other in self.others:
            with contextlib.suppress(OSError):
                other.send(None)

    def _listen(self, number: int) -> None:
        """Queue the outcomes of another process; end this one if that dies before it is dismissed."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                status, sentence = self.others[number].recv()
                if status == "failed":
                    self._abort_unless_training_ends(number, str(sentence))
                self._outcomes[number].put((status, sentence))
        if not self._dismissed:
            self.quit(
                self.process,
                f"process {number + 2} of {self.process.size} has ended before its work was done; what is stored is "
                "whole, run the same command again to go on",
            )

    @contextlib.contextmanager
    def _deadline(self, sentence: str) -> Iterator[None]:
        """End this process if the context takes longer than the grace period."""
        timer = threading.Timer(self.grace, lambda: self.quit(self.process, sentence))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _abort_unless_training_ends(self, number: int, sentence: str) -> None:
        """End this process if, after the grace period, it still waits for one that has failed in a training."""
        training = self._training
        if training is None:
            return

        def give_up() -> None:
            if self._training is training:
                self.quit(self.process, f"process {number + 2} of {self.process.size} has failed: {sentence}")

        timer = threading.Timer(self.grace, give_up)
        timer.daemon = True
        timer.start()


class Follower:
    """Another process's connection to the first.

    Args:
        process: this one.
        first: the connection.
        quit: ends this process with a sentence.
    """

    def __init__(
        self, process: ProcessInfo, first: Connection, quit: Callable[[ProcessInfo, str], None] = abort
    ) -> None:
        self.process, self.first, self.quit = process, first, quit
        self._orders: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def orders(self) -> Iterator[tuple[str, Any]]:
        """Orders of the first process, until it dismisses this one."""
        while (order := self._orders.get()) is not None:
            yield order

    def report(self, outcome: JobOutcome) -> None:
        """Send the outcome of the last order to the first process."""
        with contextlib.suppress(OSError):
            self.first.send(outcome)

    def _listen(self) -> None:
        order: Any = ()
        with contextlib.suppress(EOFError, OSError):
            while order is not None:
                order = self.first.recv()
                self._orders.put(order)
            return
        self.quit(self.process, "the first process has ended; what is stored is whole, run the same command again")
