"""The process group that trains one model, as the trainer sees it; here for a single process, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.distributed.control import Leader

T = TypeVar("T")


class ProcessGroup:
    """A group of one process; `bench.distributed.ddp.TorchProcessGroup` has several.

    Attributes:
        rank: of this process, from 0; rank 0 alone writes files and talks to the user.
        size: number of processes.
        sync_bn: whether BatchNorm's batch statistics are those of all processes instead of each process's share.
        leader: in the first of several processes, its connections to the others.
    """

    rank, size = 0, 1
    sync_bn = False
    leader: Leader | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    @property
    def seed_purpose(self) -> tuple[str | int, ...]:
        """What a random stream that differs between processes is derived from; see `bench.core.seeding.derive`."""
        return () if self.size == 1 else ("process", self.rank)

    @property
    def min_samples(self) -> int:
        """Samples that a step needs; with `sync_bn` every process needs some."""
        return 2 * self.size if self.sync_bn else 2

    def describe(self, has_batchnorm: bool) -> dict[str, Any]:
        """Fields for run.json: the number of processes, and whose batch statistics BatchNorm has used."""
        whose = "all processes" if self.sync_bn else "each process"
        return {"count": self.size, "batch_norm": whose if has_batchnorm and self.size > 1 else None}

    def share(self, n: int) -> tuple[int, int]:
        """(start, end) of this process's share of n samples.

        Where shares would be single samples, some processes get none.
        """
        active = max(1, min(self.size, n // 2))
        edges = [n * i // active for i in range(active + 1)] + [n] * (self.size - active)
        return edges[self.rank], edges[self.rank + 1]

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        return tensor

    def any_rank(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return flag

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the first one, [] in the others."""
        return [value]

    def convert_batchnorm(self, model: nn.Module) -> nn.Module:
        """The model with the BatchNorm layers that the group needs."""
        return model

    def sync_batchnorm_stats(self, tensors: Iterable[Tensor]) -> None:
        """Replace running statistics by their mean over the processes."""

    def data_parallel(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """A wrapper of the model whose backward passes average gradients over the processes.

        Args:
            model: with the same weights everywhere.
            unused: whether the loss does not depend on some parameters.
        """
        return model

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Within this context gradients are accumulated in each process, not all-reduced."""
        return nullcontext()

    def run_on_all(self, job: Any) -> AbstractContextManager[Any]:
        """Within this context every process of the group trains the job."""
        return nullcontext()
