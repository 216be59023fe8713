"""WAT: weights by cumulative held-out costs, and TRADES where they are equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.contexts import mode
from bench.conformance.fixtures import difference
from bench.conformance.loop import Loop
from methods.trades import TRADES
from methods.wat import WAT
from tests.helpers import formulas
from tests.helpers.formulas import Array
from tests.helpers.method_runs import (
    build,
    class_mean,
    count_passes,
    gradients,
    resume_differences,
    train_one_epoch,
    trained,
)
from tests.helpers.stubs import CLASSES, StubStudent, make_context, random_logits

HELD_OUT = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 4, 4])
VIEWS = [(random_logits(10 + k, len(HELD_OUT)), random_logits(20 + k, len(HELD_OUT))) for k in range(3)]


def steered(method: WAT, views: list[tuple[Tensor, Tensor]]) -> WAT:
    """The method after epochs with these clean and adversarial logits on the held-out samples."""
    ctx = make_context()
    for ctx.epoch, (clean, adv) in enumerate(views):
        ctx.validator = lambda attack, model, at=(clean, adv): (torch.tensor(HELD_OUT), *at)  # type: ignore[misc]
        method.end_epoch(StubStudent({}), ctx)
    return method


def costs(clean: Tensor, adv: Tensor) -> Array:
    """CE + 6 KL per held-out sample."""
    z: Array = clean.numpy()
    return formulas.ce(z, HELD_OUT) + 6 * formulas.kl(formulas.softmax(z), adv.numpy())


def exponential_weights(totals: Array, eta: float) -> Array:
    """K times the softmax of eta times K + 1 totals."""
    return CLASSES * formulas.softmax(eta * totals[None])[0]


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_weights_follow_the_cumulative_class_costs(epochs: int) -> None:
    method = steered(WAT(eta=0.07), VIEWS[:epochs])
    totals = np.zeros(CLASSES + 1)
    for view in VIEWS[:epochs]:
        each = costs(*view)
        totals += np.append(class_mean(each, HELD_OUT, CLASSES), each.mean())
    np.testing.assert_allclose(method.costs.numpy(), totals, rtol=1e-9)
    np.testing.assert_allclose(method.weights.numpy(), exponential_weights(totals, 0.07), rtol=1e-9)
    assert method.class_weight.tolist() == method.weights.tolist()[:CLASSES]


def test_the_released_means_divide_by_full_batches_of_128() -> None:
    method = steered(WAT(costs_mean="released"), VIEWS[:1])
    each = costs(*VIEWS[0])
    sums = np.array([each[k == HELD_OUT].sum() for k in range(CLASSES)])
    totals = np.append(sums * CLASSES / 128, each.sum() / 128)
    np.testing.assert_allclose(method.weights.numpy(), exponential_weights(totals, 0.1), rtol=1e-9)
    with pytest.raises(ValueError, match="WAT: costs_mean: expected exact or released, got 'sum'"):
        WAT(costs_mean="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_the_weights_sum_to_the_number_of_classes(scale: float) -> None:
    method = steered(WAT(), [(scale * clean, scale * adv) for clean, adv in VIEWS])
    assert method.weights.isfinite().all() and (method.weights >= 0).all()
    assert method.weights.sum().item() == pytest.approx(CLASSES)
    assert method.weights[:-1].argmax() == method.costs[:-1].argmax()


def test_at_rate_zero_all_weights_stay_equal() -> None:
    method = steered(WAT(eta=0.0), VIEWS)
    np.testing.assert_allclose(method.weights.numpy(), CLASSES / (CLASSES + 1), rtol=1e-12)


def test_the_first_epoch_is_trades_twice_bit_for_bit() -> None:
    twice = train_one_epoch(build("wat"), lr=0.025)
    assert difference(train_one_epoch(build("trades"), lr=0.05), twice) is None
    settings: dict[str, Any] = {"rounds": 2, "lr": 0.025}
    assert difference(trained(build("wat"), **settings), trained(build("wat", eta=0.0), **settings)) is not None


def test_the_loss_is_that_of_trades_times_the_weights() -> None:
    method = steered(WAT(), VIEWS)
    found, host = gradients(method)[0].loss, gradients(TRADES())[0].loss
    from_y = torch.tensor([0, 3, 3, 3, 7, 1, 0, 9, 4, 4, 7, 3])
    torch.testing.assert_close(found, (method.weights[from_y] + method.weights[-1]) * host)
    assert gradients(WAT())[0].loss.tolist() == (2 * host).tolist()


def test_it_attacks_the_held_out_samples_as_it_attacks_in_training() -> None:
    loop = Loop(build("wat"), 5).begin(0)
    attacks: list[Attack] = []

    def validate(attack: Attack, model: nn.Module | None = None) -> tuple[Tensor, Tensor, Tensor]:
        attacks.append(attack)
        y = loop.y[:5]
        return y, torch.zeros(5, 5), torch.zeros(5, 5)

    batch = loop.batch()
    expected = loop.perturb(batch).x
    loop.ctx.validator = validate
    loop.method.end_epoch(loop.model, loop.ctx)
    (attack,) = attacks
    with mode(loop.model, train=False):
        found = attack(loop.model, batch.x, batch.y, generator=torch.Generator().manual_seed(100))
    assert torch.equal(found, expected)
    assert (attack.threat.norm, attack.threat.eps, attack.stages) == ("linf", 0.031, ())
    assert (attack.passes(5).forward, attack.passes(5).input_grad) == (11, 10)


def test_passes_and_resuming() -> None:
    assert count_passes(build("wat"), epoch=1) == build("wat").passes() == build("trades").passes()
    assert resume_differences(lambda: build("wat", steps=3)) == []


def test_without_held_out_samples_it_does_not_begin() -> None:
    with pytest.raises(ValueError, match="wat: expected held-out training samples to weigh by, got none; use a recipe"):
        WAT().setup(StubStudent({}), make_context())
