"""Micro-batches: what does not fit into memory at once is gone through in parts, with the result of the whole.

A method's two halves are pure, and its loss per sample knows the labels of the whole step; so a part is a slice.
Without BatchNorm and dropout, which look at the samples that they get together, parts change nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from bench.core.device import release
from bench.core.pass_counter import Counter
from bench.errors import BenchError
from methods.base import Adversarial, Batch, Terms

Result = TypeVar("Result")

LEAST_WITH_NORM = 4  # so that no part of an even cut is a single sample, of which BatchNorm has no statistics
DROPPED_PATHS = ("StochasticDepth", "DropPath")  # of torchvision and timm
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


def has_norm(model: nn.Module) -> bool:
    """Whether a model has BatchNorm."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def is_exact(model: nn.Module) -> bool:
    """Whether parts of a batch give what the whole gives, up to rounding."""
    return not any(
        isinstance(module, (_BatchNorm, _DropoutNd)) or type(module).__name__ in DROPPED_PATHS
        for module in model.modules()
    )


def part_of(batch: Batch, adv: Adversarial, first: int, last: int) -> tuple[Batch, Adversarial]:
    """The samples first to last of those that are trained on, as a micro-batch of the same optimiser step.

    Of an attack that left out samples, a part has the others alone: a part of the batch could be left with none.
    """
    span = slice(first, last)
    extras = {name: extra[span] for name, extra in adv.extras.items()}
    if adv.rows is None:
        return rows_of(batch, span), Adversarial(adv.x[span], None, extras)
    every = torch.arange(len(adv.x[span]), device=adv.x.device)
    return rows_of(batch, adv.rows[span]), Adversarial(adv.x[span], every, extras)


def rows_of(batch: Batch, rows: slice | Tensor) -> Batch:
    """Some samples of a batch; the step stays the same."""
    return replace(batch, x=batch.x[rows], y=batch.y[rows], index=batch.index[rows])


def joined(found: Sequence[Adversarial], spans: Sequence[tuple[int, int]]) -> Adversarial:
    """What the parts of a batch have found, as if it had been found at once."""
    if len(found) == 1:
        return found[0]
    rows = None
    if any(adv.rows is not None for adv in found):
        every = [torch.arange(b - a, device=adv.x.device) for adv, (a, b) in zip(found, spans, strict=True)]
        kept = [one if adv.rows is None else adv.rows for adv, one in zip(found, every, strict=True)]
        rows = torch.cat([own + first for own, (first, _) in zip(kept, spans, strict=True)])
    return Adversarial(torch.cat([adv.x for adv in found]), rows, _stacked([adv.extras for adv in found]))


def joined_terms(found: Sequence[Terms], like: Tensor) -> Terms:
    """The terms of the parts of a batch, of none if there were none, detached."""
    if len(found) == 1:
        return found[0]
    if not found:
        return Terms(like.new_zeros(0), {})
    loss = torch.cat([terms.loss.detach() for terms in found])
    return Terms(loss, _stacked([terms.logits for terms in found]), _stacked([terms.extras for terms in found]))


def _stacked(groups: Sequence[Any]) -> dict[str, Tensor]:
    for name, tensor in groups[0].items():
        if tensor.ndim == 0:
            raise BenchError(f"micro-batches: expected one row per sample in {name!r}, got a single number")
    return {name: torch.cat([group[name].detach() for group in groups]) for name in groups[0]}
