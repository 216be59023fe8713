"""AdaAD: an attack whose gradient flows through the teacher, and what it is when the teacher is constant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.passes import Passes
from bench.conformance.fixtures import difference
from bench.conformance.loop import Loop
from methods.adaad import AdaAD
from methods.base import Method
from methods.rslad import RSLAD
from tests.helpers import formulas
from tests.helpers.formulas import Array
from tests.helpers.jobs import job_of, plan
from tests.helpers.stubs import CLASSES, make_batch, make_context, random_logits

BATCH = make_batch(4)


def linear(seed: int) -> nn.Sequential:
    """A linear classifier of 1 x 8 x 8 images in double precision."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double()
    with torch.no_grad():
        model[1].weight.copy_(random_logits(seed, n=64).T / 4)
    return model


def logits_of(model: nn.Sequential, x: Array) -> Array:
    """Its logits, in NumPy."""
    weight, bias = (p.detach().numpy() for p in model.parameters())
    return np.asarray(x.reshape(len(x), -1) @ weight.T + bias)


def test_the_attack_climbs_the_divergence_through_student_and_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.base.ascend", lambda *args, **options: ascend(*args, **{**options, "start": "zero"}))
    student, teacher = linear(0), linear(1).requires_grad_(False)
    batch = replace(BATCH, x=0.25 + BATCH.x / 2)  # away from the faces of the box
    adv = AdaAD(steps=1, eps=0.1, step_size=0.05).perturb(student, batch, make_context(teacher))

    x = batch.x.numpy()
    target = formulas.softmax(logits_of(teacher, x))
    through_both = formulas.gradient(
        lambda at: formulas.kl(formulas.softmax(logits_of(teacher, at)), logits_of(student, at)).sum(), x
    )
    through_student = formulas.gradient(lambda at: formulas.kl(target, logits_of(student, at)).sum(), x)
    clear = np.abs(through_both) > 1e-6
    assert clear.mean() > 0.99
    np.testing.assert_allclose((adv.x.numpy() - x)[clear], 0.05 * np.sign(through_both)[clear], atol=1e-9)
    assert (np.sign(through_student) != np.sign(through_both)).mean() > 0.05, "the way through the teacher must matter"


class Unmoved(nn.Module):
    """A teacher with the same logits for every input."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("logits", torch.linspace(-1, 2, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_buffer("logits").expand(len(x), -1)


def trained(method: Method, teacher: nn.Module | None = None) -> dict[str, Tensor]:
    """Weights, statistics and momentum after six epochs."""
    loop = Loop(method, 5)
    if teacher is not None:
        loop.teachers["robust"] = teacher
    for _ in range(3):
        loop.run()
    return loop.tensors()


def test_with_a_teacher_that_is_constant_in_x_it_is_rslad_bit_for_bit() -> None:
    def both(teacher: nn.Module | None) -> str | None:
        return difference(
            trained(RSLAD(num_classes=5, eps=0.1, step_size=0.025), teacher),
            trained(AdaAD(num_classes=5, alpha=5 / 6, eps=0.1, step_size=0.025), teacher),
        )

    assert both(Unmoved(5)) is None
    assert both(None) is not None


def test_passes_through_the_teacher_are_declared() -> None:
    assert AdaAD().passes() == Passes(forward=11, input_grad=10, backward=1, teacher=11, teacher_grad=10)
    assert AdaAD(alpha=0.5, steps=3).passes() == Passes(
        forward=5, input_grad=3, backward=2, teacher=5, teacher_grad=3
    )  # fmt: skip


def test_the_recipes_of_the_release() -> None:
    def settings(recipe: str, dataset: str = "cifar10") -> list[float]:
        found = job_of(plan(methods=("adaad",), dataset=dataset, recipe=recipe), "adaad").settings
        return [found[name] for name in ("eps", "step_size", "scale")]

    assert settings("paper") == pytest.approx([8 / 255, 2 / 255, 0.1])
    assert settings("paper", "cifar100") == settings("short", "cifar100") == pytest.approx([8 / 255, 2 / 255, 1.0])
    assert settings("wide") == pytest.approx([16 / 255, 4 / 255, 0.1])


def test_who_watches_the_attack_sees_the_student_alone() -> None:
    student, teacher = linear(0), linear(1).requires_grad_(False)
    seen: list[tuple[Tensor, Tensor]] = []
    ctx = replace(
        make_context(teacher), watchers=(lambda step, x_adv, logits, rows: seen.append((x_adv, logits)),)
    )  # fmt: skip
    AdaAD(steps=3).perturb(student, BATCH, ctx)
    assert len(seen) == 3
    for x_adv, logits in seen:
        assert torch.equal(logits, student(x_adv).detach())
