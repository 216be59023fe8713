"""FAAL: the worst distribution over classes, and what is left of the method without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from bench.conformance.fixtures import difference
from methods.base import Adversarial, Method
from methods.faal import FAAL, worst_case
from methods.mart import mart
from methods.pgd_at import PGDAT
from methods.trades import TRADES
from tests.helpers import formulas, method_runs
from tests.helpers.formulas import Array
from tests.helpers.stubs import CLASSES, StubStudent, make_batch, make_context, random_logits

BATCH = make_batch()
CLEAN, ADV = random_logits(0), random_logits(1)


def gains(num_classes: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(num_classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def divergence(weights: Tensor) -> float:
    """KL(u || q) of weights K q."""
    return -weights.log().mean().item()


@pytest.mark.parametrize(
    ("num_classes", "radius"), [*((k, r) for k in (2, 10, 100) for r in (1e-9, 1e-4, 0.5, 3.0)), (1000, 0.5)]
)
def test_the_divergence_equals_the_radius(num_classes: int, radius: float) -> None:
    one_apart = torch.zeros(num_classes, dtype=torch.float64)
    one_apart[0] = 1e-3
    for gain in (gains(num_classes, 0), gains(num_classes, 1, scale=1e4), one_apart, -one_apart):
        weights = worst_case(gain, radius)
        assert divergence(weights) == pytest.approx(radius, rel=1e-6, abs=1e-12)
        assert weights.mean().item() == pytest.approx(1.0) and (weights > 0).all()


@pytest.mark.filterwarnings("ignore:Values in x were outside bounds")  # of steps of older versions of SLSQP
@pytest.mark.parametrize("seed", range(3))
def test_no_other_distribution_in_reach_gains_more(seed: int) -> None:
    gain, k = gains(4, seed).numpy(), 4
    found = worst_case(torch.tensor(gain), 0.5).numpy() / k
    best = minimize(
        lambda q: -(gain @ q), np.full(k, 1 / k), method="SLSQP", bounds=[(1e-6, 1)] * k,
        constraints=[{"type": "eq", "fun": lambda q: q.sum() - 1},
                     {"type": "ineq", "fun": lambda q: 0.5 + np.log(k) + np.log(q).mean()}],
        options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    assert best.success
    np.testing.assert_allclose(found, best.x, atol=1e-4)
    assert gain @ found >= -best.fun - 1e-6


def test_two_classes_have_a_closed_form() -> None:
    reach = (1 - np.exp(-2 * 0.3)) ** 0.5
    weights = worst_case(torch.tensor([0.2, -7.0], dtype=torch.float64), 0.3)
    assert weights.tolist() == pytest.approx([1 + reach, 1 - reach], abs=1e-9)


@pytest.mark.parametrize("mean", [False, True])
def test_the_weights_are_those_of_plain_bisection(mean: bool) -> None:
    gain = formulas.faal_gains(ADV.numpy(), BATCH.y.numpy(), mean)
    found = worst_case(torch.tensor(gain), 0.5)
    np.testing.assert_allclose(found.numpy(), formulas.faal_weights(gain, 0.5), rtol=1e-9)
    absent = np.setdiff1d(np.arange(CLASSES), BATCH.y.numpy())
    assert len(absent) and (gain[absent] == (-1.0 if mean else 0.0)).all()


def test_only_the_order_and_the_ratios_of_the_gaps_matter() -> None:
    gain = gains(6, 3)
    torch.testing.assert_close(worst_case(gain, 0.5), worst_case(7 * gain - 2, 0.5), rtol=1e-9, atol=0)
    assert worst_case(gain, 0.5).argsort().tolist() == gain.argsort().tolist()


def test_equal_gains_and_a_radius_of_zero_weigh_all_classes_alike() -> None:
    ones = torch.ones(7, dtype=torch.float64)
    assert torch.equal(worst_case(0.3 * ones, 0.5), ones)
    assert torch.equal(worst_case(0.3 * ones + 1e-16 * gains(7, 0), 0.5), ones)
    assert torch.equal(worst_case(gains(7, 0), 0.0), ones)


def test_single_precision_is_enough() -> None:
    weights = worst_case(gains(10, 0).float(), 0.5)
    assert weights.dtype == torch.float32 and divergence(weights) == pytest.approx(0.5, abs=1e-4)


def trained(method: Method) -> dict[str, Tensor]:
    """Weights, statistics and momentum after six epochs."""
    return method_runs.trained(method, keep=("model/", "momentum/"))


@pytest.mark.parametrize(
    ("host", "alone"),
    [("at", PGDAT(num_classes=5, bn="eval")), ("trades", TRADES(num_classes=5, eps=8 / 255, step_size=2 / 255))],
)
def test_at_radius_zero_it_is_its_host_bit_for_bit(host: Any, alone: Method) -> None:
    expected = trained(alone)
    assert difference(expected, trained(FAAL(num_classes=5, host=host, radius=0.0))) is None
    assert difference(expected, trained(FAAL(num_classes=5, host=host))) is not None


def loss_of(method: FAAL, **changes: Any) -> tuple[Tensor, Tensor]:
    """Loss and weight per sample, on given logits."""
    student = StubStudent({"clean": (BATCH.x, CLEAN), "adv": (BATCH.x.clone(), ADV)})
    ctx = make_context()
    for name, value in changes.items():
        setattr(ctx, name, value)
    terms = method.loss(student, BATCH, Adversarial(student.inputs["adv"]), ctx)
    return terms.loss.detach(), terms.extras["weight"]


def test_at_radius_zero_the_host_mart_has_the_loss_of_mart() -> None:
    loss, _ = loss_of(FAAL(host="mart", radius=0.0))
    assert torch.equal(loss, mart(CLEAN, ADV, BATCH.y, 6.0))


def test_a_harder_class_weighs_more_and_the_history_has_the_mean_weights() -> None:
    method, ctx = FAAL(margins="means"), make_context()
    _, weight = loss_of(method)
    gain = formulas.faal_gains(ADV.numpy(), BATCH.y.numpy(), mean=True)
    seen = np.unique(BATCH.y.numpy())
    assert weight[[int(np.flatnonzero(BATCH.y.numpy() == k)[0]) for k in seen]].argsort().tolist() == (
        gain[seen].argsort().tolist()
    )
    student = StubStudent({"adv": (BATCH.x, ADV)})
    adv = Adversarial(BATCH.x)
    for _ in range(3):
        method.observe(BATCH, adv, method.loss(student, BATCH, adv, ctx), ctx)
    method.end_epoch(student, ctx)
    expected: Array = formulas.faal_weights(gain, 0.5)
    np.testing.assert_allclose(method.class_weight.numpy()[seen], expected[seen], rtol=1e-6)
    assert not method.sums.any()


def test_processes_agree_on_the_weights_of_the_whole_step() -> None:
    _, alone = loss_of(FAAL())
    _, doubled = loss_of(FAAL(), reduce=lambda tensor: 2 * tensor)
    torch.testing.assert_close(doubled, alone, rtol=1e-9, atol=0)
    tilted = torch.zeros(2, CLASSES, dtype=torch.float64)
    tilted[0, 3] = 50.0
    _, moved = loss_of(FAAL(), reduce=lambda tensor: tensor + tilted)
    assert moved[1] == moved.max() > alone[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"host": "awp"}, "FAAL: host: expected at, trades or mart, got 'awp'"),
        ({"margins": "max"}, "FAAL: margins: expected sums or means, got 'max'"),
        ({"radius": -0.1}, "FAAL: radius: expected a number of at least 0, got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FAAL(**settings)
