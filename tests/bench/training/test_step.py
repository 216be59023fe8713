"""A step in which memory runs out once: what the other processes are asked for, and what is counted, stay the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from bench.core.out_of_memory import BatchLimit, merge_limits
from bench.core.pass_counter import PassCounter
from bench.distributed.process_group import ProcessGroup
from bench.training.step import TrainingStep
from methods.base import Batch, Context
from methods.registry import METHODS

CLASSES, SAMPLES = 3, 8
METHOD = "awp:trades"


class Short(nn.Module):
    """A linear network that runs out of memory in its pass of some number, from 0, and in no other."""

    def __init__(self, failing: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, CLASSES).double()
        self.failing, self.passes = failing, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes - 1 == self.failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.linear(x.double().flatten(1))
        return logits


class Step:
    """A step of a method, with the shapes of what was reduced, in order."""

    def __init__(self, failing: int | None = None) -> None:
        self.model, self.counter = Short(failing), PassCounter()
        self.counter.watch(self.model, "student")
        self.reduced: list[tuple[int, ...]] = []
        method = METHODS[METHOD](num_classes=CLASSES, steps=2)
        ctx = Context(
            epochs=1, steps=1, device=torch.device("cpu"), num_classes=CLASSES, class_counts=torch.ones(CLASSES),
            generator=torch.Generator(), reduce=self._reduce,
        )  # fmt: skip
        method.setup(self.model, ctx)
        self.limit = BatchLimit("test", counter=self.counter)
        self.training_step = TrainingStep(
            method, self.model, ctx, group=ProcessGroup(), limit=self.limit, counter=self.counter
        )

    def _reduce(self, tensor: Tensor) -> Tensor:
        self.reduced.append(tuple(tensor.shape))
        return tensor

    def go(self) -> list[Tensor]:
        """Both halves of the step; the weights around it and the gradients."""
        x = torch.rand(SAMPLES, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        y = torch.arange(SAMPLES) % CLASSES
        batch = Batch(x, y, torch.arange(SAMPLES), y)
        adv = self.training_step.perturb(batch, 0, 0)
        with self.training_step.around(batch, adv):
            found = [parameter.detach().clone() for parameter in self.model.parameters()]
            self.training_step.backward(batch, adv)
        grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return found + grads


WHOLE = Step()
EXPECTED = WHOLE.go()


@pytest.mark.parametrize("failing", range(WHOLE.model.passes))
def test_a_step_in_which_memory_runs_out_once_is_the_step_of_the_others(failing: int) -> None:
    """In whichever pass: a process that reduces more often than the others waits for them for good."""
    step = Step(failing)
    for found, expected in zip(step.go(), EXPECTED, strict=True):
        torch.testing.assert_close(found, expected)
    assert step.limit.size == SAMPLES // 2, "it did run out"
    assert step.model.passes > WHOLE.model.passes
    assert step.reduced == WHOLE.reduced == [(), (CLASSES, 4)]
    assert step.counter.counts == WHOLE.counter.counts, "what had to be done again counts once"


@pytest.mark.parametrize(
    ("sizes", "since", "expected"),
    [
        ([None, None], [None, None], (None, None)),
        ([None, 12], [None, [1, 2]], (12, [1, 2])),
        ([6, 12, None], [[1, 2], [0, 5], None], (6, [0, 5])),
        ([16, 8], [None, [2, 0]], (8, [2, 0])),
        ([], [], (None, None)),
    ],
)
def test_the_smallest_cut_stands_for_all(
    sizes: Sequence[int | None], since: Sequence[list[int] | None], expected: tuple[int | None, list[int] | None]
) -> None:
    found = merge_limits([{"size": size, "since": place} for size, place in zip(sizes, since, strict=True)])
    assert (found.size, found.first_at) == expected
