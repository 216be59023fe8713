"""What the tests of single methods share: training in small, counting passes, stopping and resuming, given logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.passes import Passes
from bench.conformance.loop import EPOCHS, STEPS, Loop, Scene
from bench.conformance.material import difference
from bench.core.pass_counter import PassCounter
from methods import flexmatch_at
from methods.base import Adversarial, Batch, Method, Terms
from methods.registry import METHODS
from tests.helpers.formulas import Array, Labels
from tests.helpers.scripted import Scripted, make_batch, make_context, random_logits

K = 5  # classes of a loop
BATCH = make_batch()
Y = BATCH.y.numpy()
CLEAN, ADV = random_logits(0), random_logits(1)
POSITIONS = [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS) if epoch + step]


def student_of(loop: Loop) -> dict[str, Tensor]:
    """Weights and statistics of the student."""
    return {name: tensor for name, tensor in loop.tensors().items() if name.startswith("model/")}


def trained(method: Method, *, classes: int = K, rounds: int = 3, lr: float = 0.05) -> dict[str, Tensor]:
    """The student after some rounds of two epochs."""
    loop = Loop(method, classes, Scene(lr=lr))
    for _ in range(rounds):
        loop.run()
    return student_of(loop)


def first_epoch(method: Method, *, classes: int = K, lr: float = 0.05) -> dict[str, Tensor]:
    """The student after one epoch."""
    return student_of(Loop(method, classes, Scene(lr=lr)).run(stop=(1, 0)))


def build(name: str, classes: int = K, **settings: Any) -> Method:
    """A registered method."""
    return METHODS[name](num_classes=classes, **settings)


def loop_of(name: str, **settings: Any) -> Loop:
    """A loop of a registered method, at its beginning."""
    return Loop(build(name, **settings), K)


def what_differs_after_resuming(make: Callable[[], Method], classes: int = K) -> list[tuple[tuple[int, int], str]]:
    """Where a run that was stopped at some step and resumed by a fresh object differs from an undisturbed one."""
    undisturbed = Loop(make(), classes).run().tensors()
    found = []
    for position in POSITIONS:
        stored = Loop(make(), classes).run(stop=position).save()
        changed = difference(undisturbed, Loop(make(), classes).load(stored).run(start=position).tensors())
        if changed is not None:
            found.append((position, changed))
    return found


def counted(method: Method, epoch: int = 0, classes: int = K) -> Passes:
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


def gradients(method: Method, batch: Batch = BATCH) -> tuple[Terms, dict[str, Tensor]]:
    """Terms on given logits, and the gradients of the mean loss; zeros where a view is not asked for."""
    student = Scripted({"clean": (batch.x, CLEAN), "adv": (batch.x.clone(), ADV)})
    terms = method.loss(student, batch, Adversarial(student.inputs["adv"]), make_context())
    terms.loss.mean().backward()
    return terms, {v: torch.zeros_like(z) if z.grad is None else z.grad for v, z in student.logits.items()}


def observed(method: Method, logits: Tensor, y: Tensor, *, epoch: int = 0, epochs: int = 10) -> Method:
    """The method after an epoch of one step with these adversarial logits."""
    batch = Batch(BATCH.x, y, BATCH.index, y)
    ctx = make_context(epoch=epoch, epochs=epochs)
    method.observe(batch, Adversarial(BATCH.x), Terms(torch.zeros(len(y)), {"adv": logits}), ctx)
    method.end_epoch(Scripted({}), ctx)
    return method


@contextmanager
def fixed_split(visible: Tensor) -> Iterator[None]:
    """Whatever the labels are, these are the ones that may be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flexmatch_at, "stratified", lambda y, fraction, seed: visible)
        yield


def class_mean(values: Array, y: Labels, classes: int) -> Array:
    """Class means; a class without samples gets the mean of the others."""
    found = np.array([values[k == y].mean() if np.any(k == y) else np.nan for k in range(classes)])
    return np.where(np.isnan(found), np.nanmean(found), found)
