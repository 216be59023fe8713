"""Split a batch into micro-batches when it does not fit into memory, and try again with smaller ones.

A method's two halves are pure, and its loss per sample knows the labels of the whole step, so a micro-batch is a slice.
Without BatchNorm and dropout, which depend on the samples in a batch, results equal those of the whole up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from bench.core.device import release_memory
from bench.core.pass_counter import PassCounter
from bench.errors import BenchError

Result = TypeVar("Result")

# The last is cuDNN's message when no convolution algorithm finds room for its workspace.
MESSAGES = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "unable to find an engine")


class BatchLimit:
    """How many samples go through a network at once; halved whenever memory runs out.

    Args:
        what: job or attack, for messages.
        size: the largest micro-batch; None is the whole batch.
        least: the smallest micro-batch that is tried.
        refusal: why a batch cannot be split; "" if it can.
        tell: called with a message when memory has run out.
        counter: counts passes; those of a failed attempt are taken back.

    Attributes:
        first_at: position at which memory first ran out, such as (epoch, step); None if it never did.
    """

    def __init__(
        self,
        what: str,
        size: int | None = None,
        *,
        least: int = 1,
        refusal: str = "",
        tell: Callable[[str], None] | None = None,
        counter: PassCounter | None = None,
    ) -> None:
        self.what, self.size, self.least, self.refusal, self.tell = what, size, least, refusal, tell
        self.counter = counter or PassCounter()
        self.first_at: list[int] | None = None

    def spans(self, n: int) -> list[tuple[int, int]]:
        """(start, end) of the micro-batches of n samples, as even as possible; none for no samples."""
        count = -(-n // min(n, self.size or n)) if n else 0
        edges = [n * i // count for i in range(count + 1)] if count else []
        return list(zip(edges[:-1], edges[1:], strict=True))

    def retry_smaller(self, work: Callable[[], Result], n: int, position: Sequence[int] = ()) -> Result:
        """Call `work`; if memory runs out, call it again with micro-batches half as large.

        Args:
            work: splits n samples by `spans`, anew at each call.
            n: samples.
            position: see `first_at`.

        Raises:
            BenchError: if the batch cannot be split, or no smaller.
        """
        before = self.counter.snapshot()
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(n, position)
            self.counter.restore(before)
            release_memory()  # after the handler: inside it the traceback holds what the attempt has allocated

    def row(self) -> dict[str, int]:
        """Fields for an epoch in history.jsonl: none where batches are whole."""
        return {} if self.size is None else {"micro_batch": self.size}

    def describe(self, *, asked: int | None, exact: bool) -> dict[str, Any] | None:
        """Fields for run.json; None where batches are whole.

        Args:
            asked: the size that the user has given.
            exact: whether micro-batches give the result of the whole batch, up to rounding.
        """
        if self.size is None:
            return None
        return {"size": self.size, "asked": asked, "out_of_memory_at": self.first_at, "exact": exact}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on; stored in state.pt."""
        return {"size": self.size, "since": self.first_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.size, self.first_at = state["size"], state["since"]

    def _halve(self, n: int, position: Sequence[int]) -> None:
        size = min(n, self.size or n)
        if self.refusal:
            raise BenchError(f"{self.what}: out of memory with {size} samples at once; {self.refusal}") from None
        if size <= self.least:
            raise BenchError(
                f"{self.what}: out of memory with {size} samples at once, and fewer cannot be tried; take a smaller "
                "model or a device with more memory"
            ) from None
        self.size = max(self.least, -(-size // 2))
        self.first_at = self.first_at or list(position)
        if self.tell is not None:
            self.tell(f"out of memory with {size} samples at once: going on with {self.size}")


def merge_limits(states: Sequence[Mapping[str, Any]]) -> BatchLimit:
    """One limit for several processes: the smallest size, and the first position at which memory ran out in any.

    Args:
        states: what `BatchLimit.state_dict` returned in each process.
    """
    merged = BatchLimit(
        "all processes", min((state["size"] for state in states if state["size"] is not None), default=None)
    )
    merged.first_at = min((state["since"] for state in states if state["since"] is not None), default=None)
    return merged


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the host has run out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)
    )
