"""Stub networks with given logits, and a batch and a context to go with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.conformance.fixtures import images
from methods.base import Batch, Context

CLASSES, SAMPLES = 10, 12


class StubStudent(nn.Module):
    """Returns given logits, a leaf tensor each, for known inputs, and records the order of its calls."""

    def __init__(self, answers: dict[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.inputs = {name: x for name, (x, _) in answers.items()}
        self.logits = {name: logits.clone().requires_grad_() for name, (_, logits) in answers.items()}
        self.calls: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        name = next(name for name, known in self.inputs.items() if known is x)
        self.calls.append(name)
        return self.logits[name]


class StubTeacher(nn.Module):
    """Returns the same logits for every input, and records the inputs."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.logits


def random_logits(seed: int, n: int = SAMPLES, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(n, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_batch(n: int = SAMPLES) -> Batch:
    """Unevenly many samples of some of the classes, in double precision."""
    y = torch.tensor([0, 3, 3, 3, 7, 1, 0, 9, 4, 4, 7, 3])[:n]
    return Batch(images(n, 0).double(), y, torch.arange(n), y)


def make_context(
    teacher: nn.Module | None = None, *, natural: nn.Module | None = None, epoch: int = 0, epochs: int = 10
) -> Context:
    given = {"robust": teacher, "natural": natural}
    teachers = {role: module for role, module in given.items() if module is not None}
    return Context(
        epochs=epochs, steps=1, device=torch.device("cpu"), num_classes=CLASSES, class_counts=torch.ones(CLASSES),
        generator=torch.Generator().manual_seed(0), epoch=epoch, teachers=teachers,
    )  # fmt: skip
