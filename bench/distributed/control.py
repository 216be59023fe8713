"""The processes that torchrun has started: which one this is, and how the first tells the others what to do.

They talk over a connection each, apart from the one for tensors: a process that dies closes its own, however it dies,
and nobody waits for a sum that will never come. Free of torch.
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

GRACE_SECONDS = 60.0  # that a process which has failed waits for the others to fail in the same place
Outcome = tuple[str, "str | None"]


@dataclass(frozen=True)
class Place:
    """Which of several processes this is.

    Attributes:
        rank, size: number, from 0, and count over all machines.
        local: number on this machine.
    """

    rank: int
    size: int
    local: int

    def __str__(self) -> str:
        return f"process {self.rank + 1} of {self.size}"


def place() -> Place | None:
    """What torchrun says of this process; None if it is alone."""
    words = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(word.isdecimal() for word in words) or int(words[1]) < 2:
        return None
    return Place(*map(int, words))


def end(place: Place, sentence: str) -> NoReturn:
    """End this process at once, from whatever thread, with a sentence: it may be waiting for what never comes."""
    log.error("%s", sentence)
    print(f"bench: {place}: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


class Leader:
    """The first process's connections to the others.

    Args:
        place: of this process.
        others: a connection to each of the others, in the order of their ranks.
        grace: seconds, see `GRACE_SECONDS`.
        quit: ends this process with a sentence.
    """

    def __init__(
        self,
        place: Place,
        others: Sequence[Connection],
        grace: float = GRACE_SECONDS,
        quit: Callable[[Place, str], None] = end,
    ) -> None:
        self.place, self.others, self.grace, self.quit = place, others, grace, quit
        self._outcomes: list[queue.Queue[Outcome]] = [queue.Queue() for _ in others]
        self._turn: object | None = None  # the training that is open
        self._over = False
        for number in range(len(others)):
            threading.Thread(target=self._listen, args=(number,), daemon=True).start()

    def tell(self, number: int, order: str, job: Any) -> None:
        """Give another process, the number-th from 0, something to do."""
        with contextlib.suppress(OSError):  # who does not listen has died, which the listening thread notices
            self.others[number].send((order, job))

    def outcome(self, number: int) -> Outcome:
        """How another process has ended what it was told."""
        return self._outcomes[number].get()

    @contextlib.contextmanager
    def together(self, job: Any) -> Iterator[None]:
        """Have every process train a job meanwhile.

        Raises:
            BenchError: if one of the others has failed.
        """
        self._turn = object()
        for number in range(len(self.others)):
            self.tell(number, "train", job)
        try:
            yield
        except BaseException as error:
            with self._patience(f"has failed, and the others wait for it: {error}"):
                for number in range(len(self.others)):
                    self.outcome(number)
            raise
        finally:
            self._turn = None
        for number in range(len(self.others)):
            how, sentence = self.outcome(number)
            if how == "failed":
                raise BenchError(f"process {number + 2} of {self.place.size}: {sentence}")

    def dismiss(self) -> None:
        """Let the others end."""
        self._over = True
        for other in self.others:
            with contextlib.suppress(OSError):
                other.send(None)

    def _listen(self, number: int) -> None:
        """Pass on what another process says; its silence for good, unless it was dismissed, ends this one."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                how, sentence = self.others[number].recv()
                if how == "failed":
                    self._watch(number, str(sentence))
                self._outcomes[number].put((how, sentence))
        if not self._over:
            self.quit(
                self.place,
                f"process {number + 2} of {self.place.size} has ended before its work was done; what is stored is "
                "whole, run the same command again to go on",
            )

    @contextlib.contextmanager
    def _patience(self, sentence: str) -> Iterator[None]:
        """End this process with a sentence if what it does meanwhile takes too long."""
        timer = threading.Timer(self.grace, lambda: self.quit(self.place, sentence))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _watch(self, number: int, sentence: str) -> None:
        """See that this process does not wait for good for one that has failed in a training; else none waits."""
        turn = self._turn
        if turn is None:
            return

        def give_up() -> None:
            if self._turn is turn:
                self.quit(self.place, f"process {number + 2} of {self.place.size} has failed: {sentence}")

        timer = threading.Timer(self.grace, give_up)
        timer.daemon = True
        timer.start()


class Follower:
    """Another process's connection to the first.

    Args:
        place: of this process.
        first: the connection.
        quit: ends this process with a sentence.
    """

    def __init__(self, place: Place, first: Connection, quit: Callable[[Place, str], None] = end) -> None:
        self.place, self.first, self.quit = place, first, quit
        self._orders: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def orders(self) -> Iterator[tuple[str, Any]]:
        """What the first process tells this one to do, until it is dismissed."""
        while (order := self._orders.get()) is not None:
            yield order

    def report(self, outcome: Outcome) -> None:
        """Say how it ended."""
        with contextlib.suppress(OSError):
            self.first.send(outcome)

    def _listen(self) -> None:
        order: Any = ()
        with contextlib.suppress(EOFError, OSError):
            while order is not None:
                order = self.first.recv()
                self._orders.put(order)
            return
        self.quit(self.place, "the first process has ended; what is stored is whole, run the same command again")
