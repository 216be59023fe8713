"""Counting of forward and backward passes through the networks of a run, in samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

KINDS = ("forward", "input_grad", "backward")


class PassCounter:
    """Hooks that count forward, input-gradient and weight-gradient passes, in one column per owner.

    A backward pass counts as input gradient if the input of the network asks for a gradient, else as a pass to the
    weights.
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self._override: str | None = None

    def watch(self, model: nn.Module, owner: str) -> torch.utils.hooks.RemovableHandle:
        """Count the passes of a model in the column of an owner: "student", "teacher"."""

        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            column = self.counts.setdefault(self._override or owner, dict.fromkeys(KINDS, 0))
            n = output.shape[0]  # the hook below must not hold the output: it would keep the whole graph alive
            column["forward"] += n
            if torch.is_grad_enabled() and output.requires_grad:
                kind = "input_grad" if inputs[0].requires_grad else "backward"
                output.register_hook(lambda grad: _add(column, kind, n))

        return model.register_forward_hook(after)

    @contextmanager
    def count_as(self, owner: str) -> Iterator[None]:
        """Count everything in another column within this context: "validation"."""
        before, self._override = self._override, owner
        try:
            yield
        finally:
            self._override = before

    def snapshot(self) -> dict[str, dict[str, int]]:
        """The counts as they are, for `restore`."""
        return {owner: dict(column) for owner, column in self.counts.items()}

    def add(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Add the counts of another process."""
        for owner, column in counts.items():
            total = self.counts.setdefault(owner, dict.fromkeys(KINDS, 0))
            for kind, n in column.items():
                total[kind] += n

    def restore(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Go on from stored counts."""
        self.counts = {owner: dict(column) for owner, column in counts.items()}


def _add(column: dict[str, int], kind: str, n: int) -> None:
    column[kind] += n
