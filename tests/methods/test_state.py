"""Per-class state: ABSLD's temperatures and FRL's multipliers, against NumPy and against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.base import Attack
from attacks.pgd import PGD
from methods.absld import ABSLD
from methods.base import Adversarial, Terms
from methods.frl import FRL, FRLRemargin, class_weights, projected
from methods.losses import class_means, class_sums
from methods.registry import METHODS
from tests.helpers import formulas
from tests.helpers.formulas import Array
from tests.helpers.stubs import CLASSES, StubStudent, make_batch, make_context, random_logits

BATCH = make_batch()
Y = BATCH.y.numpy()
CLEAN, ADV = random_logits(0), random_logits(1)
ADVERSARIAL = Adversarial(BATCH.x)


def class_mean(values: Array) -> Array:
    """Class means; a class without samples gets the mean of the others."""
    found = np.array([values[k == Y].mean() if np.any(k == Y) else np.nan for k in range(CLASSES)])
    return np.where(np.isnan(found), np.nanmean(found), found)


def epoch_of(method: ABSLD, clean: Tensor = CLEAN, adv: Tensor = ADV, epoch: int = 0) -> ABSLD:
    """One epoch of two equal batches with given logits."""
    terms = Terms(torch.zeros(len(Y)), {"adv": adv, "clean": clean})
    ctx = make_context(epoch=epoch)
    for _ in range(2):
        method.observe(BATCH, ADVERSARIAL, terms, ctx)
    method.end_epoch(StubStudent({}), ctx)
    return method


def test_absld_moves_each_temperature_by_its_own_gap() -> None:
    method = epoch_of(ABSLD())
    for tau, logits in ((method.temperature_adv, ADV), (method.temperature_clean, CLEAN)):
        means = class_mean(formulas.ce(logits.numpy(), Y))
        np.testing.assert_allclose(tau.numpy(), formulas.absld_update(np.ones(CLASSES), means, 0.1), rtol=1e-9)
    assert (method.temperature_adv != method.temperature_clean).any()
    assert not method.sums.any()


def test_the_most_extreme_class_moves_exactly_by_the_rate_and_harder_classes_get_sharper_labels() -> None:
    method = epoch_of(ABSLD(temperature_rate=0.3))
    moved = method.temperature_adv - 1
    assert moved.abs().max().item() == pytest.approx(0.3, abs=1e-12)
    means = class_mean(formulas.ce(ADV.numpy(), Y))
    seen = np.unique(Y)
    assert (np.sign(moved.numpy()) == -np.sign(means - means.mean()))[seen].all()


@pytest.mark.parametrize(("epoch", "rate"), [(213, 0.1), (214, 0.01), (258, 0.01), (259, 0.001), (284, 0.0001)])
def test_the_rate_is_cut_before_the_update_of_its_milestone(epoch: int, rate: float) -> None:
    moved = epoch_of(ABSLD(), epoch=epoch).temperature_adv - 1
    assert moved.abs().max().item() == pytest.approx(rate, rel=1e-9)


def test_equal_gaps_leave_the_temperatures() -> None:
    flat = torch.zeros(len(Y), CLASSES)
    method = epoch_of(ABSLD(), clean=flat, adv=flat)
    assert torch.equal(method.temperature_adv, torch.ones(CLASSES, dtype=torch.float64))
    assert torch.equal(method.temperature_clean, torch.ones(CLASSES, dtype=torch.float64))


def test_temperatures_stay_between_their_bounds() -> None:
    method = ABSLD(temperature_rate=0.4)
    for _ in range(30):
        epoch_of(method)
    assert method.temperature_adv.min() == 0.5 and method.temperature_adv.max() == 5.0
    narrow = ABSLD(temperature_rate=0.4, temperature_min=0.9, temperature_max=1.1)
    epoch_of(narrow)
    assert narrow.temperature_adv.min() >= 0.9 and narrow.temperature_adv.max() <= 1.1


def test_changing_the_clean_temperatures_moves_the_adversarial_branch_in_product_mode_alone() -> None:
    for mode, same in (("separate", True), ("product", False)):
        method = ABSLD(temperature_mode=mode)  # type: ignore[arg-type]
        before, _ = method.soft_labels(ADV, BATCH.y)
        method.temperature_clean.copy_(torch.linspace(0.6, 2.0, CLASSES))
        after, _ = method.soft_labels(ADV, BATCH.y)
        assert torch.equal(before, after) is same


def test_the_modes_of_absld_agree_at_temperature_one() -> None:
    separate, product = (ABSLD(temperature_mode=mode).soft_labels(ADV, BATCH.y) for mode in ("separate", "product"))
    assert all(torch.equal(a, b) for a, b in zip(separate, product, strict=True))


def test_an_unknown_temperature_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="ABSLD: temperature_mode: expected separate or product, got 'both'"):
        ABSLD(temperature_mode="both")  # type: ignore[arg-type]


# FRL

RIGHT = np.random.default_rng(3).random((2, 60))
STEER_Y = np.arange(60) % CLASSES


def answers(threshold: float, row: int) -> Tensor:
    """Logits that are right where a uniform draw exceeds a threshold that grows with the class."""
    right = RIGHT[row] > threshold * (STEER_Y + 1) / CLASSES
    return torch.nn.functional.one_hot(
        torch.tensor(np.where(right, STEER_Y, (STEER_Y + 1) % CLASSES)), CLASSES
    ).double()


def steered(method: FRL, epochs: int = 1) -> tuple[FRL, Array, Array]:
    """The method after some epochs on fixed held-out predictions; class errors and boundary errors."""
    clean = answers(0.5, 0)
    adv = torch.where(torch.tensor(RIGHT[1] > 0.5)[:, None], clean, answers(1.1, 1))
    attacks: list[Attack] = []

    def validate(attack: Attack, model: Any) -> tuple[Tensor, Tensor, Tensor]:
        attacks.append(attack)
        return torch.tensor(STEER_Y), clean, adv

    ctx = make_context(epochs=40)
    ctx.validator = validate
    for ctx.epoch in range(epochs):
        method.begin_epoch(StubStudent({}), ctx)
    attack = attacks[0]
    assert isinstance(attack, PGD) and (attack.steps, attack.start, attack.restarts) == (20, "uniform", 1)
    assert (attack.threat.eps, attack.step_size) == (method.eps, method.step_size)
    clean_right, adv_right = (z.argmax(1).numpy() == STEER_Y for z in (clean, adv))
    errors = np.array([1 - clean_right[k == STEER_Y].mean() for k in range(CLASSES)])
    boundary = np.array([(clean_right[k == STEER_Y].mean() - adv_right[k == STEER_Y].mean()) for k in range(CLASSES)])
    return method, errors, boundary


def test_frl_moves_its_multipliers_by_the_class_errors() -> None:
    method, errors, boundary = steered(FRL(), epochs=3)
    l0 = l1 = np.zeros(CLASSES)
    for _ in range(3):
        l0 = formulas.frl_project(l0 + 0.05 * (errors - errors.mean() - 0.1), 0.5)
        l1 = formulas.frl_project(l1 + 0.1 * (boundary - boundary.mean() - 0.1), 0.5)
    np.testing.assert_allclose(method.multiplier_clean.numpy(), l0, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(method.multiplier_boundary.numpy(), l1, rtol=1e-9, atol=1e-15)
    assert method.multiplier_clean.any() and method.multiplier_boundary.any()
    assert torch.equal(method.radius_scale, torch.ones(CLASSES, dtype=torch.float64))


def test_frl_remargin_moves_the_margins_unclamped() -> None:
    method, _, boundary = steered(FRLRemargin(), epochs=2)
    margin = 2 * 0.2 * (boundary - boundary.mean() - 0.07)
    np.testing.assert_allclose(method.multiplier_margin.numpy(), margin, rtol=1e-9)
    assert margin.min() < 0 < margin.max()
    np.testing.assert_allclose(method.radius_scale.numpy(), np.clip(np.exp(2 * margin), 0.98, 3.0), rtol=1e-9)


def test_the_rate_of_frl_halves_in_the_last_of_forty_epochs() -> None:
    steps = []
    for epoch in (38, 39):
        method, ctx = FRL(delta=0.0), make_context(epoch=epoch, epochs=40)
        ctx.validator = lambda attack, model: (torch.tensor(STEER_Y), answers(0.5, 0), answers(0.5, 0))
        method.begin_epoch(StubStudent({}), ctx)
        steps.append(method.multiplier_clean.clone())
    torch.testing.assert_close(steps[0], 2 * steps[1])


def test_frl_without_held_out_samples_says_so() -> None:
    with pytest.raises(ValueError, match="expected held-out training samples to steer by, got none"):
        FRL().begin_epoch(StubStudent({}), make_context())


@pytest.mark.parametrize("seed", range(5))
def test_class_weights_sum_to_one_and_stay_positive(seed: int) -> None:
    raw = torch.randn(CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    multiplier = projected(raw, 0.5)
    np.testing.assert_allclose(multiplier.numpy(), formulas.frl_project(raw.numpy(), 0.5), rtol=1e-9)
    np.testing.assert_allclose(class_weights(multiplier).numpy(), formulas.frl_weights(multiplier.numpy()), rtol=1e-9)
    assert class_weights(multiplier).sum().item() == pytest.approx(1.0)
    assert class_weights(multiplier).min().item() >= 0.05 - 1e-12


def test_the_projection_leaves_a_small_sum_alone() -> None:
    small = torch.tensor([0.1, 0.2, -0.3])
    assert projected(small, 0.5).tolist() == pytest.approx([0.1, 0.2, 0.0])
    assert projected(2 * small, 0.5).tolist() == pytest.approx([0.5 / 3, 1.0 / 3, 0.0])
    assert projected(-small.abs(), 0.5).tolist() == [0.0, 0.0, 0.0]


# Sums


def test_class_sums_and_means_of_uneven_classes() -> None:
    values = formulas.ce(CLEAN.numpy(), Y)
    sums = class_sums(torch.tensor(values), BATCH.y, CLASSES)
    counts = class_sums(torch.ones(len(Y)), BATCH.y, CLASSES)
    assert counts.tolist() == np.bincount(Y, minlength=CLASSES).tolist() and sums.dtype == torch.float64
    np.testing.assert_allclose(class_means(sums, counts).numpy(), class_mean(values), rtol=1e-9)
    assert class_means(torch.zeros(3), torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


# In test_mtard.py, test_faal.py, test_fair_ard.py and test_flexmatch_*.py.
ELSEWHERE = {"natural_share", "class_weight", "fair_weight", "threshold", "used_share"}


def test_every_reported_state_is_pinned_here_or_with_its_method() -> None:
    reported = {state for name in METHODS.builtin for state in METHODS[name].reported}
    assert reported == {
        "accuracy", "beta_scale", "class_weight",
        "temperature_adv", "temperature_clean", "weight_clean", "weight_boundary", "radius_scale", "kept_share",
    } | ELSEWHERE  # fmt: skip
