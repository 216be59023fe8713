"""A miniature training loop on synthetic images, with the order of hooks and seeding of `bench.training.trainer`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.contexts import mode
from bench.conformance.fixtures import images, network
from methods.base import HIDDEN, Adversarial, Batch, Context, Method, Terms, Validation

EPOCHS, STEPS = 2, 2
VALIDATION_PER_CLASS = 3
Position = tuple[int, int]


def unchanged(module: nn.Module) -> None:
    """Leave a network unchanged."""


@dataclass(frozen=True)
class LoopOptions:
    """Options of a loop.

    Attributes:
        relabel: map of the class labels (K,), applied to all samples; None keeps them.
        alter: modifies the student and every teacher in place before training.
        lr: learning rate.
        batch_norm: whether student and teachers have BatchNorm.
        dtype: dtype of networks, images and the method's floating-point state; None keeps each.
    """

    relabel: Tensor | None = None
    alter: Callable[[nn.Sequential], None] = unchanged
    lr: float = 0.05
    batch_norm: bool = True
    dtype: torch.dtype | None = None


@dataclass
class Loop:
    """Two epochs of two steps; a batch holds at least two samples of every class."""

    method: Method
    num_classes: int
    options: LoopOptions = field(default_factory=LoopOptions)

    def __post_init__(self) -> None:
        self.size = max(16, 2 * self.num_classes)
        self.model = self._network(0)
        self.teachers = {
            role: self._network(1 + i).eval().requires_grad_(False) for i, role in enumerate(self.method.teachers)
        }
        self.method.to(self.options.dtype)
        self.x = self._images(STEPS * self.size, 0)
        self.y = self.method.visible_labels(self._labels(STEPS * self.size))
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=self.options.lr, momentum=0.9)
        self.ctx = Context(
            epochs=EPOCHS, steps=STEPS, device=torch.device("cpu"), num_classes=self.num_classes,
            class_counts=torch.bincount(self.y[self.y != HIDDEN], minlength=self.num_classes),
            generator=torch.Generator(),
            lr=self.options.lr, teachers=self.teachers, validator=self._validate,
        )  # fmt: skip
        self.method.setup(self.model, self.ctx)

    def _network(self, seed: int) -> nn.Sequential:
        model = network(self.num_classes, seed, batch_norm=self.options.batch_norm)
        self.options.alter(model)
        return model.to(self.options.dtype).train()

    def _images(self, n: int, seed: int) -> Tensor:
        return images(n, seed).to(self.options.dtype)

    def _labels(self, n: int) -> Tensor:
        y = torch.arange(n) % self.num_classes
        return y if self.options.relabel is None else self.options.relabel[y]

    def _validate(self, attack: Attack, model: nn.Module | None = None) -> Validation:
        model = model or self.model
        n = VALIDATION_PER_CLASS * self.num_classes
        x, y = self._images(n, 1), self._labels(n)
        with mode(model, train=False):
            x_adv = attack(model, x, y, generator=torch.Generator().manual_seed(self.ctx.epoch))
            with torch.no_grad():
                return y, model(x), model(x_adv)

    def begin(self, epoch: int) -> Loop:
        """Begin an epoch."""
        self.ctx.epoch, self.ctx.step = epoch, 0
        self.model.train()
        self.ctx.generator.manual_seed(epoch)
        self.method.begin_epoch(self.model, self.ctx)
        return self

    def batch(self, step: int = 0) -> Batch:
        """The batch of a step."""
        rows = torch.arange(step * self.size, (step + 1) * self.size)
        return Batch(self.x[rows], self.y[rows], rows, self.y[rows])

    def perturb(self, batch: Batch) -> Adversarial:
        """The inner maximisation, from the stream of the current epoch and step."""
        self.ctx.generator.manual_seed(100 + STEPS * self.ctx.epoch + self.ctx.step)
        return self.method.perturb(self.model, batch, self.ctx)

    def step(self, batch: Batch) -> Terms:
        """One optimiser step with its hooks."""
        adv = self.perturb(batch)
        with self.method.around_step(self.model, batch, adv, self.ctx):
            terms = self._backward(batch, adv)
            self.method.observe(batch, adv, terms, self.ctx)
            if len(terms.loss):
                self.optimiser.step()
        self.method.after_step(self.model, self.ctx)
        return terms

    def _backward(self, batch: Batch, adv: Adversarial) -> Terms:
        if len(adv.x) < 2:
            return Terms(batch.x.new_zeros(0), {})
        terms = self.method.loss(self.model, batch, adv, self.ctx)
        self.optimiser.zero_grad(set_to_none=True)
        terms.loss.mean().backward()
        return terms

    def train(self, start: Position = (0, 0), stop: Position = (EPOCHS, 0)) -> Iterator[Terms]:
        """Train from one (epoch, step) to another; yields the terms of each step."""
        for epoch in range(EPOCHS):
            for step in range(STEPS):
                if (epoch, step) < start:
                    self.ctx.epoch = epoch
                    continue
                if (epoch, step) >= stop:
                    return
                if step == 0:
                    self.begin(epoch)
                self.ctx.epoch, self.ctx.step = epoch, step
                yield self.step(self.batch(step))
                if step == STEPS - 1:
                    self.method.end_epoch(self.model, self.ctx)

    def run(self, start: Position = (0, 0), stop: Position = (EPOCHS, 0)) -> Loop:
        """Train from one (epoch, step) to another."""
        for _ in self.train(start, stop):
            pass
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Copies of what a run stores: state of model and method, and momentum."""
        stored = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        stored |= {f"method/{name}": tensor for name, tensor in self.method.state_dict().items()}
        for i, parameter in enumerate(self.model.parameters()):
            momentum = self.optimiser.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                stored[f"momentum/{i}"] = momentum
        return {name: tensor.detach().clone() for name, tensor in stored.items()}

    def save(self) -> bytes:
        """The serialised tensors."""
        buffer = io.BytesIO()
        torch.save(self.tensors(), buffer)
        return buffer.getvalue()

    def load(self, stored: bytes) -> Loop:
        """Restore serialised tensors."""
        tensors: dict[str, Any] = torch.load(io.BytesIO(stored), weights_only=True)
        for owner in ("model", "method"):
            state = {n.removeprefix(f"{owner}/"): t for n, t in tensors.items() if n.startswith(f"{owner}/")}
            getattr(self, owner).load_state_dict(state)
        for i, parameter in enumerate(self.model.parameters()):
            if f"momentum/{i}" in tensors:
                self.optimiser.state[parameter]["momentum_buffer"] = tensors[f"momentum/{i}"]
        return self
