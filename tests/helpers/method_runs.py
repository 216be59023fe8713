"""Short runs of a method for its tests: train, count passes, stop and resume, gradients on given logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.passes import Passes
from bench.conformance.fixtures import difference
from bench.conformance.loop import EPOCHS, STEPS, Loop, LoopOptions
from bench.core.pass_counter import PassCounter
from methods import flexmatch_at
from methods.base import Adversarial, Batch, Method, Terms
from methods.registry import METHODS
from tests.helpers.formulas import Array, Labels
from tests.helpers.stubs import StubStudent, make_batch, make_context, random_logits

K = 5  # classes of a loop
BATCH = make_batch()
Y = BATCH.y.numpy()
CLEAN, ADV = random_logits(0), random_logits(1)
POSITIONS = [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS) if epoch + step]


def student_of(loop: Loop) -> dict[str, Tensor]:
    """Weights and statistics of the student."""
    return {name: tensor for name, tensor in loop.tensors().items() if name.startswith("model/")}


def trained(
    method: Method, *, classes: int = K, rounds: int = 3, lr: float = 0.05, keep: tuple[str, ...] = ("model/",)
) -> dict[str, Tensor]:
    """The student after some rounds of two epochs; `keep` adds "momentum/" and "method/", the method's state."""
    loop = Loop(method, classes, LoopOptions(lr=lr))
    for _ in range(rounds):
        loop.run()
    return {name: tensor for name, tensor in loop.tensors().items() if name.startswith(keep)}


def train_one_epoch(method: Method, *, classes: int = K, lr: float = 0.05) -> dict[str, Tensor]:
    """The student after one epoch."""
    return student_of(Loop(method, classes, LoopOptions(lr=lr)).run(stop=(1, 0)))


def build(name: str, classes: int = K, **settings: Any) -> Method:
    """A registered method."""
    return METHODS[name](num_classes=classes, **settings)


def loop_of(name: str, **settings: Any) -> Loop:
    """An untrained loop of a registered method."""
    return Loop(build(name, **settings), K)


def resume_differences(make: Callable[[], Method], classes: int = K) -> list[tuple[tuple[int, int], str]]:
    """Steps at which a run that is stopped and resumed by a new object differs from an undisturbed one, and where."""
    undisturbed = Loop(make(), classes).run().tensors()
    found = []
    for position in POSITIONS:
        stored = Loop(make(), classes).run(stop=position).save()
        changed = difference(undisturbed, Loop(make(), classes).load(stored).run(start=position).tensors())
        if changed is not None:
            found.append((position, changed))
    return found


def count_passes(method: Method, epoch: int = 0, classes: int = K) -> Passes:
    """Passes per sample of one step."""
    loop, counter = Loop(method, classes), PassCounter()
    if epoch:
        loop.run(stop=(epoch, 0))
    loop.begin(epoch)
    counter.watch(loop.model, "student")
    batch = loop.batch()
    loop.step(batch)
    counts = counter.counts["student"]
    return Passes(**{kind: counts.get(kind, 0) / len(batch.x) for kind in ("forward", "input_grad", "backward")})


def gradients(
    method: Method, batch: Batch = BATCH, extras: Mapping[str, Tensor] | None = None
) -> tuple[Terms, dict[str, Tensor]]:
    """Terms on given logits, and the gradients of the mean loss; zeros for logits that the loss does not use."""
    student = StubStudent({"clean": (batch.x, CLEAN), "adv": (batch.x.clone(), ADV)})
    terms = method.loss(student, batch, Adversarial(student.inputs["adv"], extras=extras or {}), make_context())
    terms.loss.mean().backward()
    return terms, {v: torch.zeros_like(z) if z.grad is None else z.grad for v, z in student.logits.items()}


def after_one_epoch(method: Method, logits: Tensor, y: Tensor, *, epoch: int = 0, epochs: int = 10) -> Method:
    """The method after an epoch of one step with these adversarial logits."""
    batch = Batch(BATCH.x, y, BATCH.index, y)
    ctx = make_context(epoch=epoch, epochs=epochs)
    method.observe(batch, Adversarial(BATCH.x), Terms(torch.zeros(len(y)), {"adv": logits}), ctx)
    method.end_epoch(StubStudent({}), ctx)
    return method


@contextmanager
def fixed_labels(visible: Tensor) -> Iterator[None]:
    """Make flexmatch_at use the labels of this mask (N,)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flexmatch_at, "stratified", lambda y, fraction, seed: visible)
        yield


def class_mean(values: Array, y: Labels, classes: int) -> Array:
    """Class means; a class without samples gets the mean of the others."""
    found = np.array([values[k == y].mean() if np.any(k == y) else np.nan for k in range(classes)])
    return np.where(np.isnan(found), np.nanmean(found), found)
