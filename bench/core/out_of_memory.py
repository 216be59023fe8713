"""Micro-batches: what does not fit into memory at once is gone through in parts, with the result of the whole.

A method's two halves are pure, and its loss per sample knows the labels of the whole step; so a part is a slice.
Without BatchNorm and dropout, which look at the samples that they get together, parts change nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from bench.core.device import release
from bench.core.pass_counter import Counter
from bench.errors import BenchError

Result = TypeVar("Result")

# The last is what cuDNN's convolutions say when no algorithm finds room for its workspace.
WORDS = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "unable to find an engine")


class Cut:
    """How many samples go through a network at once.

    Args:
        what: whose samples, for messages.
        size: at most; None is all of them.
        least: the smallest size that is tried.
        refusal: why there can be no parts; "" if there can.
        tell: is told when memory has run out.
        counter: counts passes; those of what has failed are taken back.

    Attributes:
        since: where memory first ran out, as the caller names places; None if it never did.
    """

    def __init__(
        self,
        what: str,
        size: int | None = None,
        *,
        least: int = 1,
        refusal: str = "",
        tell: Callable[[str], None] | None = None,
        counter: Counter | None = None,
    ) -> None:
        self.what, self.size, self.least, self.refusal, self.tell = what, size, least, refusal, tell
        self.counter = counter or Counter()
        self.since: list[int] | None = None

    def spans(self, n: int) -> list[tuple[int, int]]:
        """From which sample to which each part goes; as even as they can be, none for no samples."""
        count = -(-n // min(n, self.size or n)) if n else 0
        edges = [n * i // count for i in range(count + 1)] if count else []
        return list(zip(edges[:-1], edges[1:], strict=True))

    def spared(self, work: Callable[[], Result], n: int, place: Sequence[int] = ()) -> Result:
        """Do what can be done again, with parts half as large whenever memory runs out.

        Args:
            work: cuts n samples by `spans`, anew each time.
            n: samples.
            place: where this happens, to be remembered.

        Raises:
            BenchError: if there can be no parts, or no smaller ones.
        """
        before = self.counter.snapshot()
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._halve(n, place)
            self.counter.restore(before)
            release()  # only here, past the handler, does nothing hold on to what the attempt has allocated

    def row(self) -> dict[str, int]:
        """What the history says of an epoch: nothing where batches are whole."""
        return {} if self.size is None else {"micro_batch": self.size}

    def describe(self, *, asked: int | None, exact: bool) -> dict[str, Any] | None:
        """What run.json says; None where batches are whole.

        Args:
            asked: the size that the user has given.
            exact: whether parts give what the whole gives.
        """
        if self.size is None:
            return None
        return {"size": self.size, "asked": asked, "out_of_memory_at": self.since, "exact": exact}

    def state(self) -> dict[str, Any]:
        """What a state must hold."""
        return {"size": self.size, "since": self.since}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.size, self.since = state["size"], state["since"]

    def _halve(self, n: int, place: Sequence[int]) -> None:
        size = min(n, self.size or n)
        if self.refusal:
            raise BenchError(f"{self.what}: out of memory with {size} samples at once; {self.refusal}") from None
        if size <= self.least:
            raise BenchError(
                f"{self.what}: out of memory with {size} samples at once, and fewer cannot be tried; take a smaller "
                "model or a device with more memory"
            ) from None
        self.size = max(self.least, -(-size // 2))
        self.since = self.since or list(place)
        if self.tell is not None:
            self.tell(f"out of memory with {size} samples at once: going on with {self.size}")


def smallest(states: Sequence[Mapping[str, Any]]) -> Cut:
    """What stands for the cuts of several processes: the smallest size, and where memory first ran out in any.

    Args:
        states: of the cuts, as `Cut.state` gives them; of none, nothing is cut.
    """
    found = Cut("all processes", min((state["size"] for state in states if state["size"] is not None), default=None))
    found.since = min((state["since"] for state in states if state["since"] is not None), default=None)
    return found


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the host has run out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)
    )
