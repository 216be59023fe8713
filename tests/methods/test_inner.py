"""The inner problem of each method: objective, start, radius, steps, and what BatchNorm sees of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.threat import GAUSSIAN_SCALE
from bench.conformance.loop import Loop
from methods.absld import ABSLD
from methods.base import Method
from methods.frl import FRLRemargin
from methods.pgd_at import PGDAT
from methods.registry import METHODS
from tests.helpers import formulas
from tests.helpers.formulas import Array
from tests.helpers.stubs import CLASSES, StubStudent, StubTeacher, make_batch, make_context, random_logits

BATCH = make_batch()
Y = BATCH.y.numpy()
CLEAN, ADV, TEACHER = random_logits(0), random_logits(1), random_logits(2, scale=4.0)
ALL = torch.arange(len(Y))
TAU = np.linspace(0.6, 2.0, CLASSES)


def towards_label(z: Array) -> Array:
    return formulas.ce(z, Y)


def away_from_clean(z: Array) -> Array:
    return formulas.kl(formulas.softmax(CLEAN.numpy()), z)


def away_from_teacher(z: Array) -> Array:
    return formulas.kl(formulas.softmax(TEACHER.numpy()), z)


def away_from_tempered_teacher(z: Array) -> Array:
    return formulas.kl(formulas.softmax(TEACHER.numpy() / TAU[Y][:, None]), z)


INNER: list[tuple[str, float, float, str, str, Callable[[Array], Array]]] = [
    ("pgd_at", 8 / 255, 2 / 255, "uniform", "train", towards_label),
    ("trades", 0.031, 0.007, "gaussian", "eval", away_from_clean),
    ("mart", 0.031, 0.007, "gaussian", "eval", towards_label),
    ("cfa", 8 / 255, 2 / 255, "uniform", "train", towards_label),
    ("wat", 0.031, 0.007, "gaussian", "eval", away_from_clean),
    ("dafa", 0.031, 0.007, "gaussian", "eval", away_from_clean),
    ("frl", 8 / 255, 2 / 255, "gaussian", "eval", away_from_clean),
    ("frl_remargin", 8 / 255, 2 / 255, "gaussian", "eval", away_from_clean),
    ("ard", 8 / 255, 2 / 255, "uniform_unclipped", "train", towards_label),
    ("rslad", 8 / 255, 2 / 255, "gaussian", "eval", away_from_teacher),
    ("absld", 8 / 255, 2 / 255, "gaussian", "eval", away_from_tempered_teacher),
    ("ham", 0.031, 0.007, "uniform", "eval", towards_label),
    ("mtard", 8 / 255, 2 / 255, "gaussian", "eval", towards_label),
    ("faal", 8 / 255, 2 / 255, "uniform", "eval", towards_label),
    ("fair_ard", 8 / 255, 2 / 255, "uniform_unclipped", "train", towards_label),
    ("fair_rslad", 8 / 255, 2 / 255, "gaussian", "eval", away_from_teacher),
    ("fair_mtard", 8 / 255, 2 / 255, "gaussian", "eval", towards_label),
    ("flexmatch_at", 8 / 255, 2 / 255, "uniform", "train", towards_label),
    ("npair_at", 8 / 255, 2 / 255, "uniform", "train", towards_label),
]
OWN_START = {"bat"}  # clips its start: tests/methods/test_bat.py
WITH_THE_TEACHER = {"adaad"}  # its objective takes the logits of two networks: tests/methods/test_adaad.py


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the shared ascent loop was asked for."""
    options: dict[str, Any] = {}

    def record(model: nn.Module, x: Tensor, objective: Any, **given: Any) -> Tensor:
        options.update(given, x=x, objective=objective)
        return x.clone()

    monkeypatch.setattr("methods.base.ascend", record)
    return options


def ask(method: Method, epoch: int = 0) -> None:
    ctx = make_context(StubTeacher(TEACHER), natural=StubTeacher(TEACHER), epoch=epoch)
    method.perturb(StubStudent({"clean": (BATCH.x, CLEAN)}), BATCH, ctx)


@pytest.mark.parametrize(("name", "eps", "step_size", "start", "bn", "objective"), INNER, ids=[row[0] for row in INNER])
def test_the_inner_problem(
    name: str,
    eps: float,
    step_size: float,
    start: str,
    bn: str,
    objective: Callable[[Array], Array],
    asked: dict[str, Any],
) -> None:
    method = METHODS[name]()
    if isinstance(method, ABSLD):
        method.temperature_adv.copy_(torch.tensor(TAU))
    ask(method)
    assert (asked["start"], asked["bn"], asked["steps"], asked["norm"]) == (start, bn, 10, "linf")
    assert torch.as_tensor(asked["eps"]).unique().tolist() == pytest.approx([eps])
    assert torch.as_tensor(asked["step_size"]).unique().tolist() == pytest.approx([step_size])
    assert asked["x"] is BATCH.x
    np.testing.assert_allclose(asked["objective"](ADV, ALL).numpy(), objective(ADV.numpy()), rtol=1e-6)


def test_natural_training_attacks_nothing(asked: dict[str, Any]) -> None:
    method = METHODS["natural"]()
    assert method.perturb(StubStudent({}), BATCH, make_context()).x is BATCH.x
    assert asked == {}


def test_every_method_has_its_inner_problem_pinned() -> None:
    assert {"natural", *(row[0] for row in INNER)} | OWN_START | WITH_THE_TEACHER == set(METHODS.builtin)


def test_frl_gives_each_class_its_radius_and_the_batch_one_step(asked: dict[str, Any]) -> None:
    method = FRLRemargin()
    multiplier = torch.linspace(-0.4, 0.8, CLASSES, dtype=torch.float64)
    method.multiplier_margin.copy_(multiplier)
    ask(method)
    scale = np.clip(np.exp(2 * multiplier.numpy()), 0.98, 3.0)
    np.testing.assert_allclose(asked["eps"].numpy(), (8 / 255 * scale)[Y], rtol=1e-6)
    np.testing.assert_allclose(float(asked["step_size"]), (8 / 255 * scale)[Y].max() / 4, rtol=1e-6)


def test_absld_attacks_with_the_product_of_temperatures_in_product_mode(asked: dict[str, Any]) -> None:
    method = ABSLD(temperature_mode="product")
    method.temperature_adv.copy_(torch.tensor(TAU))
    method.temperature_clean.copy_(torch.tensor(TAU[::-1].copy()))
    ask(method)
    tempered = formulas.softmax(TEACHER.numpy() / (TAU * TAU[::-1])[Y][:, None])
    np.testing.assert_allclose(asked["objective"](ADV, ALL).numpy(), formulas.kl(tempered, ADV.numpy()), rtol=1e-6)


def test_pgd_at_can_attack_in_eval_mode(asked: dict[str, Any]) -> None:
    ask(PGDAT(bn="eval"))
    assert asked["bn"] == "eval"


@pytest.mark.parametrize("name", ["trades", "rslad"])
def test_settings_of_the_inner_attack_are_settings_of_the_method(name: str, asked: dict[str, Any]) -> None:
    ask(METHODS[name](eps=0.15, step_size=0.04, steps=7, norm="l2"))
    assert (asked["eps"], asked["step_size"], asked["steps"], asked["norm"]) == (0.15, 0.04, 7, "l2")


UPDATES = [
    ("natural", 1), ("pgd_at", 11), ("trades", 2), ("mart", 2), ("frl", 2), ("cfa", 11), ("bat", 3), ("wat", 2),
    ("dafa", 2), ("ard", 11), ("rslad", 2), ("absld", 2), ("ham", 1), ("mtard", 2), ("adaad", 1), ("faal", 1),
    ("fair_ard", 11), ("fair_rslad", 2), ("fair_mtard", 2), ("flexmatch_at", 11),
    ("npair_at", 12),
]  # fmt: skip


@pytest.mark.parametrize(("name", "updates"), UPDATES)
def test_how_often_batch_norm_moves_in_a_step(name: str, updates: int) -> None:
    begin = {"ham": 0, "cfa": 1, "dafa": 1}
    settings: dict[str, Any] = {"num_classes": 3, **({"begin_epoch_index": begin[name]} if name in begin else {})}
    loop = Loop(METHODS[name](**settings), 3).begin(0)
    norm = loop.model[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked is not None
    loop.step(loop.batch())
    assert int(norm.num_batches_tracked) == updates


def test_the_clean_prediction_of_trades_is_that_of_the_eval_mode() -> None:
    loop = Loop(METHODS["trades"](num_classes=3), 3).begin(0)
    batch = loop.batch()
    x_adv = loop.perturb(batch).x
    loop.model.eval()
    with torch.no_grad():
        target = loop.model(batch.x).softmax(1)
    generator = torch.Generator().manual_seed(100)
    expected = ascend(
        loop.model, batch.x, lambda z, rows: (target[rows] * -z.log_softmax(1)).sum(1),
        eps=0.031, step_size=0.007, steps=10, start="gaussian", generator=generator,
    )  # fmt: skip
    assert (x_adv == expected).float().mean() > 0.99
    assert GAUSSIAN_SCALE == 0.001
