"""Each loss, and its gradient with respect to the logits, against a NumPy transcription of the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from methods.ard import ARD
from methods.base import Adversarial, Method
from methods.registry import METHODS
from tests.helpers import formulas
from tests.helpers.formulas import Array
from tests.helpers.stubs import CLASSES, StubStudent, StubTeacher, make_batch, make_context, random_logits

CLEAN, ADV, TEACHER = random_logits(0), random_logits(1), random_logits(2, scale=4.0)
BATCH = make_batch()
Y = BATCH.y.numpy()
T = TEACHER.numpy()
L0, L1 = np.linspace(0.0, 0.09, CLASSES), np.linspace(0.08, 0.0, CLASSES) ** 2
NATURAL = random_logits(3, scale=3.0)
FAAL = {mean: formulas.faal_weights(formulas.faal_gains(ADV.numpy(), Y, mean), 0.5)[Y] for mean in (False, True)}
FAIR = np.linspace(5 / 6, 2.5, CLASSES)
TAU_ADV, TAU_CLEAN = np.linspace(0.6, 2.0, CLASSES), np.linspace(3.0, 0.7, CLASSES)
BETAS, WEIGHTS = np.linspace(0.4, 1.5, CLASSES), np.linspace(1.6, 0.3, CLASSES + 1)

Formula = Callable[[Array, Array], float]
CASES: list[tuple[str, dict[str, Any], dict[str, Array], Formula, list[str]]] = [
    ("natural", {}, {}, lambda z, a: formulas.ce(z, Y).mean(), ["clean"]),
    ("pgd_at", {}, {}, lambda z, a: formulas.ce(a, Y).mean(), ["adv"]),
    ("trades", {}, {}, lambda z, a: formulas.trades(z, a, Y, 6.0), ["clean", "adv"]),
    ("trades", {"beta": 1.7}, {}, lambda z, a: formulas.trades(z, a, Y, 1.7), ["clean", "adv"]),
    ("mart", {}, {}, lambda z, a: formulas.mart(z, a, Y, 5.0).mean(), ["clean", "adv"]),
    ("mart", {"beta": 2.0, "margin_weight": 0.0, "weighted": False}, {},
     lambda z, a: (formulas.ce(a, Y) + 2 * formulas.kl(formulas.softmax(z), a)).mean(), ["clean", "adv"]),
    ("cfa", {}, {"beta_scale": BETAS}, lambda z, a: formulas.ce(a, Y).mean(), ["adv"]),
    ("cfa", {"host": "fat"}, {"beta_scale": BETAS}, lambda z, a: formulas.ce(a, Y).mean(), ["adv"]),
    ("cfa", {"host": "trades"}, {"beta_scale": BETAS}, lambda z, a: formulas.cfa_trades(z, a, Y, 6 * BETAS),
     ["clean", "adv"]),
    ("bat", {}, {}, lambda z, a: formulas.bat(z, a, a, Y, 6.0, 1.0), ["adv", "adv", "clean"]),
    ("wat", {}, {"weights": WEIGHTS}, lambda z, a: formulas.wat(z, a, Y, WEIGHTS, 6.0), ["clean", "adv"]),
    ("dafa", {}, {"class_weight": BETAS},
     lambda z, a: (BETAS[Y] * formulas.ce(z, Y) + 6 * formulas.kl(formulas.softmax(z), a)).mean(), ["clean", "adv"]),
    ("dafa", {"host": "at"}, {"class_weight": BETAS}, lambda z, a: (BETAS[Y] * formulas.ce(a, Y)).mean(), ["adv"]),
    *(
        (name, {}, {"multiplier_clean": L0, "multiplier_boundary": L1},
         lambda z, a: formulas.frl(z, a, Y, L0, L1, 1.5), ["clean", "adv"])
        for name in ("frl", "frl_remargin")
    ),
    ("ard", {}, {}, lambda z, a: formulas.ard(T, z, a, Y, 1.0, 30.0), ["adv"]),
    ("ard", {"alpha": 0.3, "temperature": 5.0}, {}, lambda z, a: formulas.ard(T, z, a, Y, 0.3, 5.0), ["adv", "clean"]),
    ("rslad", {}, {}, lambda z, a: formulas.rslad(T, z, a), ["adv", "clean"]),
    ("absld", {}, {"temperature_adv": TAU_ADV, "temperature_clean": TAU_CLEAN},
     lambda z, a: formulas.absld(T, z, a, Y, TAU_ADV, TAU_CLEAN, product=False), ["adv", "clean"]),
    ("absld", {"temperature_mode": "product"}, {"temperature_adv": TAU_ADV, "temperature_clean": TAU_CLEAN},
     lambda z, a: formulas.absld(T, z, a, Y, TAU_ADV, TAU_CLEAN, product=True), ["adv", "clean"]),
    ("ham", {}, {}, lambda z, a: formulas.ce(a, Y).mean(), ["adv"]),
    *(
        ("mtard", {"natural_weight": share}, {},
         lambda z, a, share=share: formulas.mtard(T, NATURAL.numpy(), z, a, share), ["adv", "clean"])
        for share in (0.5, 0.2)
    ),
    ("adaad", {}, {}, lambda z, a: formulas.adaad(T, T, z, a, 1.0), ["adv"]),
    ("adaad", {"alpha": 0.3}, {}, lambda z, a: formulas.adaad(T, T, z, a, 0.3), ["adv", "clean"]),
    ("faal", {}, {}, lambda z, a: (FAAL[False] * formulas.ce(a, Y)).mean(), ["adv"]),
    ("faal", {"margins": "means"}, {}, lambda z, a: (FAAL[True] * formulas.ce(a, Y)).mean(), ["adv"]),
    ("faal", {"host": "trades"}, {},
     lambda z, a: (FAAL[False] * (formulas.ce(z, Y) + 6 * formulas.kl(formulas.softmax(z), a))).mean(),
     ["clean", "adv"]),
    ("faal", {"host": "mart", "beta": 5.0}, {}, lambda z, a: (FAAL[False] * formulas.mart(z, a, Y, 5.0)).mean(),
     ["clean", "adv"]),
    ("fair_ard", {}, {"fair_weight": FAIR}, lambda z, a: formulas.fair(FAIR[Y], [(T / 30, a / 30, 900.0)]), ["adv"]),
    ("fair_rslad", {}, {"fair_weight": FAIR},
     lambda z, a: formulas.fair(FAIR[Y], [(T, a, 5 / 6), (T, z, 1 / 6)]), ["adv", "clean"]),
    ("fair_mtard", {"natural_weight": 0.2}, {"fair_weight": FAIR},
     lambda z, a: formulas.fair(FAIR[Y], [(T, a, 0.8), (NATURAL.numpy(), z, 0.2)]), ["adv", "clean"]),
    # With every label known and at weight 0 these are their hosts; their own files have the rest.
    ("flexmatch_at", {"labelled_fraction": 1.0}, {}, lambda z, a: formulas.ce(a, Y).mean(), ["adv"]),
    ("npair_at", {"weight": 0.0}, {}, lambda z, a: formulas.ce(a, Y).mean(), ["adv"]),
]  # fmt: skip
NAMES = [f"{name}-{'-'.join(map(str, settings.values()))}".rstrip("-") for name, settings, *_ in CASES]


def build(name: str, settings: dict[str, Any], state: dict[str, Array]) -> Method:
    method = METHODS[name](**settings)
    for key, value in state.items():
        getattr(method, key).copy_(torch.tensor(value))
    return method


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The inner maximisation returns this tensor, so that the loss sees known logits."""
    x_adv = BATCH.x.clone()
    monkeypatch.setattr("methods.base.ascend", lambda *args, **options: x_adv)
    return x_adv


@pytest.mark.parametrize(("name", "settings", "state", "formula", "order"), CASES, ids=NAMES)
def test_loss_gradient_and_order_of_forwards(
    name: str,
    settings: dict[str, Any],
    state: dict[str, Array],
    formula: Formula,
    order: list[str],
    still: torch.Tensor,
) -> None:
    method = build(name, settings, state)
    teacher = StubTeacher(TEACHER)
    natural = StubTeacher(NATURAL)
    ctx = make_context(teacher, natural=natural)
    student = StubStudent({"clean": (BATCH.x, CLEAN), "adv": (still, ADV)})
    adv = method.perturb(student, BATCH, ctx)
    student.calls.clear()
    terms = method.loss(student, BATCH, adv, ctx)
    terms.loss.mean().backward()

    assert student.calls == order
    assert list(terms.logits) and all(terms.logits[view] is student.logits[view] for view in terms.logits)
    assert all(x is BATCH.x or x is still for x in teacher.seen) and bool(teacher.seen) == ("robust" in method.teachers)
    assert all(x is BATCH.x for x in natural.seen) and len(natural.seen) == ("natural" in method.teachers)
    clean, attacked = CLEAN.numpy(), ADV.numpy()
    np.testing.assert_allclose(terms.loss.mean().item(), formula(clean, attacked), rtol=1e-6)
    expected = {
        "clean": formulas.gradient(lambda z: formula(z, attacked), clean),
        "adv": formulas.gradient(lambda a: formula(clean, a), attacked),
    }
    for view, logits in student.logits.items():
        found = np.zeros_like(clean) if logits.grad is None else logits.grad.numpy()
        np.testing.assert_allclose(found, expected[view], rtol=1e-5, atol=1e-8)


def test_every_method_has_a_transcription() -> None:
    assert {name for name, *_ in CASES} == set(METHODS.builtin)


def test_the_clean_pass_of_ard_can_be_brought_back() -> None:
    student = StubStudent({"clean": (BATCH.x, CLEAN), "adv": (BATCH.x.clone(), ADV)})
    adv = Adversarial(student.inputs["adv"], extras={"soft": TEACHER.softmax(1)})
    terms = ARD(clean_pass=True).loss(student, BATCH, adv, make_context())
    assert student.calls == ["adv", "clean"]
    terms.loss.sum().backward()
    assert student.logits["clean"].grad is None


def test_ham_averages_over_the_hard_rows_alone() -> None:
    rows = torch.tensor([1, 4, 5])
    hard = random_logits(1, n=3)
    student = StubStudent({"adv": (BATCH.x[rows], hard)})
    adv = Adversarial(student.inputs["adv"], rows=rows)
    terms = METHODS["ham"]().loss(student, BATCH, adv, make_context())
    np.testing.assert_allclose(terms.loss.detach().numpy(), formulas.ce(hard.numpy(), Y[rows]), rtol=1e-9)


def test_rslad_has_the_scale_of_ten_classes_for_any_number_of_classes() -> None:
    student = StubStudent({"clean": (BATCH.x, CLEAN[:, :4]), "adv": (BATCH.x.clone(), ADV[:, :4])})
    soft = TEACHER[:, :4].softmax(1)
    adv = Adversarial(student.inputs["adv"], extras={"soft_adv": soft, "soft_clean": soft})
    loss = METHODS["rslad"](num_classes=4).loss(student, BATCH, adv, make_context()).loss.mean().item()
    mean_bk = formulas.rslad(T[:, :4], CLEAN[:, :4].numpy(), ADV[:, :4].numpy())
    np.testing.assert_allclose(loss, mean_bk * 4 / 10, rtol=1e-6)
