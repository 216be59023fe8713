"""The processes that train one model together: what the trainer asks of them, and what one alone answers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.distributed.control import Leader

Thing = TypeVar("Thing")


class Team:
    """One process alone; `bench.distributed.ddp.Ranks` is a team of several.

    Attributes:
        rank: number of this process, from 0; the first leads: it alone writes files and talks to the user.
        size: number of processes.
        sync_bn: whether BatchNorm's statistics are those of all processes instead of each one's own.
        leader: in the first of several processes, its connections to the others.
    """

    rank, size = 0, 1
    sync_bn = False
    leader: Leader | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def purpose(self) -> tuple[str | int, ...]:
        """What tells a stream of this process alone from those of the others."""
        return () if self.size == 1 else ("process", self.rank)

    @property
    def least(self) -> int:
        """Samples that a step must have; with common statistics every process must have some."""
        return 2 * self.size if self.sync_bn else 2

    def describe(self, normed: bool) -> dict[str, Any]:
        """What run.json says: the number of processes, and whose statistics BatchNorm has used if there is any."""
        whose = "all processes" if self.sync_bn else "each process"
        return {"count": self.size, "batch_norm": whose if normed and self.size > 1 else None}

    def share(self, n: int) -> tuple[int, int]:
        """This process's share of n samples, from first to last.

        Where shares would be single samples, some processes get none.
        """
        active = max(1, min(self.size, n // 2))
        edges = [n * i // active for i in range(active + 1)] + [n] * (self.size - active)
        return edges[self.rank], edges[self.rank + 1]

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        return tensor

    def agree(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return flag

    def gather(self, thing: Thing) -> list[Thing]:
        """What each process holds, for the first one; the others get an empty list."""
        return [thing]

    def prepared(self, model: nn.Module) -> nn.Module:
        """The model as the team trains it."""
        return model

    def level(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over the processes in the place of each tensor."""

    def wrapped(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """The model in a form whose backward passes add up gradients over the processes, divided by their number.

        Args:
            model: with the same weights everywhere.
            unused: whether some parameters have no part in the loss.
        """
        return model

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Within this context a wrapped model's gradients stay in their process."""
        return nullcontext()

    def together(self, job: Any) -> AbstractContextManager[Any]:
        """Within this context every process of the team trains the job."""
        return nullcontext()
