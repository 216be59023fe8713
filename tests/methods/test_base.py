"""The contract's data, the context, and the recipes of the papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from methods.absld import ABSLD
from methods.base import Adversarial, Batch, Method
from methods.recipes import Recipe, digits
from methods.registry import METHODS
from tests.helpers.stubs import CLASSES, StubStudent, StubTeacher, make_batch, make_context, random_logits


def test_rows_select_what_is_trained_on() -> None:
    values = torch.arange(5)
    assert Adversarial(torch.zeros(5)).of(values) is values
    assert Adversarial(torch.zeros(2), rows=torch.tensor([3, 1])).of(values).tolist() == [3, 1]


def test_a_teacher_is_a_module_or_its_logits_without_gradient() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES).double())
    ctx = make_context(teacher)
    assert ctx.teacher("robust") is teacher
    assert not ctx.teacher("robust", make_batch().x.requires_grad_()).requires_grad
    with pytest.raises(ValueError, match=r"expected a teacher in the role 'natural', got \['robust'\]; pass --teacher"):
        ctx.teacher("natural")
    with pytest.raises(ValueError, match=r"in the role 'robust', got \[\]"):
        METHODS["rslad"]().perturb(StubStudent({}), make_batch(), make_context())


def test_a_method_without_problems_says_what_to_override() -> None:
    class Empty(Method):
        pass

    empty, batch = Empty(), make_batch()
    with pytest.raises(NotImplementedError, match="Empty defines no inner problem: override perturb"):
        empty.perturb(StubStudent({}), batch, make_context())
    with pytest.raises(NotImplementedError, match="Empty defines no outer problem: override loss"):
        empty.loss(StubStudent({}), batch, Adversarial(batch.x), make_context())


def test_hooks_default_to_nothing() -> None:
    method, batch, ctx = METHODS["natural"](), make_batch(), make_context()
    student = StubStudent({"clean": (batch.x, random_logits(0))})
    adv = method.perturb(student, batch, ctx)
    terms = method.loss(student, batch, adv, ctx)
    with method.around_step(student, batch, adv, ctx):
        method.observe(batch, adv, terms, ctx)
    for hook in (method.setup, method.begin_epoch, method.after_step, method.end_epoch):
        hook(student, ctx)
    assert method.evaluation_model(student) is student and not method.state_dict()


def test_settings_name_every_argument_of_the_class_and_its_bases() -> None:
    settings = ABSLD(num_classes=7, temperature_rate=0.2, scale=0.5).settings()
    assert list(settings) == [
        "num_classes", "norm", "eps", "step_size", "steps", "adv_weight", "scale",
        "temperature_rate", "temperature_min", "temperature_max", "temperature_mode", "rate_milestones",
    ]  # fmt: skip
    assert (settings["num_classes"], settings["temperature_rate"], settings["scale"]) == (7, 0.2, 0.5)
    with pytest.raises(TypeError, match="temprature_rate"):
        ABSLD(temprature_rate=0.2)


def test_teachers_and_warm_starts_are_declared() -> None:
    declared = {name: (METHODS[name].teachers, METHODS[name].warm_start) for name in METHODS.builtin}
    distilled, by_two = {"ard", "rslad", "absld", "adaad", "fair_ard", "fair_rslad"}, {"mtard", "fair_mtard"}
    fine_tuned = {"frl", "frl_remargin", "faal"}
    for name, (teachers, warm_start) in declared.items():
        assert teachers == (("robust",) if name in distilled else ("robust", "natural") if name in by_two else ())
        assert warm_start == ("pgd_at" if name in fine_tuned else None)


# Learning rate in an epoch counted from 0, epochs and weight decay, as the methods' sources give them.
SCHEDULES: list[tuple[str, str, int, float, dict[int, float]]] = [
    ("natural", "paper", 200, 5e-4, {99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001}),
    ("pgd_at", "paper", 200, 5e-4, {0: 0.1, 99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001}),
    ("trades", "paper", 76, 2e-4, {73: 0.1, 74: 0.01, 75: 0.01}),
    ("mart", "paper", 120, 3.5e-3, {73: 0.01, 74: 1e-3, 88: 1e-3, 89: 1e-4, 98: 1e-4, 99: 1e-5}),
    ("mart", "wrn34_10", 90, 7e-4, {73: 0.1, 74: 0.01, 89: 0.001}),
    ("cfa", "paper", 200, 5e-4, {99: 0.1, 100: 0.01, 150: 0.001}),
    ("cfa", "wrn34_10", 100, 5e-4, {74: 0.1, 75: 0.01, 90: 0.001}),
    ("bat", "paper", 200, 2e-4, {73: 0.1, 74: 0.01, 89: 0.001, 99: 1e-4, 199: 1e-4}),
    ("wat", "paper", 100, 2e-4, {73: 0.1, 74: 0.01, 89: 0.001, 99: 1e-4}),
    ("frl", "paper", 40, 5e-4, {0: 0.001, 39: 0.001}),
    ("frl_remargin", "paper", 40, 5e-4, {0: 0.001, 39: 0.001}),
    ("ard", "paper", 200, 2e-4, {99: 0.1, 100: 0.01, 150: 0.001}),
    ("ard", "released", 200, 2e-4, {99: 0.1, 100: 0.01, 199: 0.01}),
    ("rslad", "paper", 300, 2e-4, {214: 0.1, 215: 0.01, 260: 0.001, 285: 0.0001}),
    ("absld", "paper", 300, 2e-4, {214: 0.1, 215: 0.01, 260: 0.001, 285: 0.0001}),
    ("ham", "paper", 120, 2e-4, {58: 0.1, 59: 0.01, 89: 0.001, 109: 0.0005}),
    ("mtard", "paper", 300, 2e-4, {214: 0.1, 215: 0.01, 260: 0.001, 285: 0.0001}),
    ("adaad", "paper", 200, 5e-4, {0: 0.1, 99: 0.1, 100: 0.01, 150: 0.001}),
    ("faal", "paper", 2, 5e-4, {0: 0.01, 1: 0.001}),
    ("fair_ard", "paper", 200, 2e-4, {99: 0.1, 100: 0.01, 150: 0.001}),
    ("fair_ard", "released", 200, 2e-4, {99: 0.1, 100: 0.01, 199: 0.01}),
    ("fair_rslad", "paper", 300, 2e-4, {214: 0.1, 215: 0.01, 260: 0.001, 285: 0.0001}),
    ("fair_mtard", "paper", 300, 2e-4, {214: 0.1, 215: 0.01, 260: 0.001, 285: 0.0001}),
]
NESTEROV = {"fair_ard", "fair_rslad", "fair_mtard"}


@pytest.mark.parametrize(("name", "recipe", "epochs", "decay", "rates"), SCHEDULES)
def test_the_schedules_of_the_papers(
    name: str, recipe: str, epochs: int, decay: float, rates: dict[int, float]
) -> None:
    found = METHODS[name].recipes[recipe]
    nesterov = name in NESTEROV
    assert (found.epochs, found.weight_decay, found.momentum, found.nesterov) == (epochs, decay, 0.9, nesterov)
    assert found.batch_size == 128 and found.source
    assert {epoch: found.lr_at(epoch) for epoch in rates} == pytest.approx(rates)


@pytest.mark.parametrize("name", METHODS.builtin)
def test_every_method_has_a_paper_and_a_digits_recipe_for_settings_it_knows(name: str) -> None:
    recipes = METHODS[name].recipes
    assert {"paper", "digits"} <= set(recipes)
    for recipe in recipes.values():
        settings: dict[str, Any] = {**METHODS[name]().settings(), **recipe.settings}
        assert METHODS[name](**settings).settings() == settings
        assert isinstance(recipe.augment, (str, type(None))) and recipe.selection in ("best", "last")
    short = recipes["digits"]
    assert (short.settings["eps"], short.settings["step_size"]) == (0.15, 0.15 / 4)
    assert short.selection == "last" and short.augment == "none"


def test_the_defaults_of_each_method() -> None:
    defaults = {name: METHODS[name]().settings() for name in METHODS.builtin}
    assert (defaults["trades"]["beta"], defaults["trades"]["eps"], defaults["trades"]["step_size"]) == (
        6.0,
        0.031,
        0.007,
    )
    assert [defaults["mart"][s] for s in ("beta", "margin_weight", "weighted")] == [5.0, 1.0, True]
    assert [defaults["cfa"][s] for s in ("host", "beta", "beta_base", "begin_epoch_index")] == ["at", 6.0, 0.5, 10]
    assert [defaults["bat"][s] for s in ("beta", "uniform_weight", "grace", "shared_trace")] == [6.0, 1.0, 1, False]
    assert [defaults["wat"][s] for s in ("eta", "beta", "costs_mean")] == [0.1, 6.0, "exact"]
    assert [defaults["dafa"][s] for s in ("host", "strength", "begin_epoch_index")] == ["trades", 1.0, 70]
    assert [defaults["frl"][s] for s in ("beta", "delta", "rate", "limit", "margin_rate")] == [1.5, 0.1, 0.05, 0.5, 0.0]
    assert [defaults["frl_remargin"][s] for s in ("delta", "margin_rate", "min_scale", "max_scale")] == [
        0.07, 0.2, 0.98, 3.0,
    ]  # fmt: skip
    assert [defaults["ard"][s] for s in ("alpha", "temperature", "clean_pass")] == [1.0, 30.0, False]
    assert [defaults["absld"][s] for s in ("temperature_rate", "temperature_mode")] == [0.1, "separate"]
    assert [defaults["mtard"][s] for s in ("natural_weight", "weight_rate", "scale")] == [0.5, 0.025, 0.1]
    assert [defaults["adaad"][s] for s in ("alpha", "scale")] == [1.0, 0.1]
    assert [defaults["faal"][s] for s in ("host", "radius", "margins", "beta")] == ["at", 0.5, "sums", 6.0]
    assert [defaults["ham"][s] for s in ("begin_epoch_index", "mining_step", "reweight")] == [49, 3, "none"]
    assert all(settings["steps"] == 10 for settings in defaults.values())


def test_factors_may_differ_between_milestones() -> None:
    recipe = Recipe(epochs=9, lr=1.0, milestones=(2, 4), factors=(0.5, 0.1))
    assert [recipe.lr_at(epoch) for epoch in (1, 2, 3, 4)] == pytest.approx([1.0, 0.5, 0.5, 0.05])
    with pytest.raises(ValueError, match="one factor for each of 1 milestones, got 2"):
        Recipe(epochs=9, lr=1.0, milestones=(2,), factors=(0.5, 0.1)).lr_at(0)


def test_changes_to_the_digits_recipe_keep_its_threat() -> None:
    recipe = digits(epochs=5, settings={"beta": 2.0})
    assert recipe.epochs == 5 and recipe.settings == {"eps": 0.15, "step_size": 0.0375, "beta": 2.0}


def test_the_distilled_methods_ask_the_teacher_once_a_step() -> None:
    batch: Batch = make_batch()
    for name in ("ard", "rslad", "absld"):
        teacher = StubTeacher(random_logits(2))
        student = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double()
        method, ctx = METHODS[name](), make_context(teacher)
        method.loss(student, batch, method.perturb(student, batch, ctx), ctx)
        assert len(teacher.seen) == 1 and teacher.seen[0] is batch.x
