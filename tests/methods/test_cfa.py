"""CFA: radii and weights follow the classes' robust training accuracy; without calibration it is its host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import objectives
from attacks.ascent import ascend
from bench.conformance.fixtures import difference, network
from bench.conformance.loop import Loop
from methods.base import Batch
from methods.cfa import CFA
from methods.pgd_at import PGDAT
from methods.trades import TRADES
from tests.helpers.jobs import plan
from tests.helpers.method_runs import (
    ADV,
    BATCH,
    CLEAN,
    Y,
    after_one_epoch,
    build,
    class_mean,
    count_passes,
    gradients,
    resume_differences,
    train_one_epoch,
    trained,
)
from tests.helpers.stubs import CLASSES, StubStudent, make_context

BASES = {"at": 0.5, "trades": 0.3, "fat": 0.7}
HOSTS = list(BASES)
ONES = torch.ones(CLASSES, dtype=torch.float64)
# Right for all but the rows 1, 2 and 9: class 3 has two of four wrong, class 4 one of two.
LOGITS = torch.nn.functional.one_hot(BATCH.y, CLASSES).double()
LOGITS[[1, 2, 9]] = LOGITS[[1, 2, 9]].roll(1, dims=1)


@pytest.mark.parametrize("host", HOSTS)
def test_the_scales_are_a_base_plus_the_accuracy_of_the_epoch_before(host: Any) -> None:
    method = after_one_epoch(CFA(host=host, begin_epoch_index=1), LOGITS, BATCH.y)
    right = LOGITS.argmax(1).numpy() == Y
    accuracy = class_mean(right.astype(float), Y, CLASSES)
    assert accuracy[3] == 0.5 and accuracy[4] == 0.5 and accuracy[0] == 1.0
    assert 0.5 < accuracy[2] < 1.0, "a class that was not seen has the mean of the others"
    np.testing.assert_allclose(method.get_buffer("accuracy").numpy(), accuracy, rtol=1e-12)
    np.testing.assert_allclose(method.get_buffer("radius_scale").numpy(), BASES[host] + accuracy, rtol=1e-12)
    betas = 0.5 + accuracy if host == "trades" else np.ones(CLASSES)
    np.testing.assert_allclose(method.get_buffer("beta_scale").numpy(), betas, rtol=1e-12)
    assert not method.get_buffer("counts").any(), "the next epoch counts anew"


def test_bases_and_the_two_calibrations_are_options() -> None:
    options: dict[str, Any] = {"host": "trades", "begin_epoch_index": 1}
    own = after_one_epoch(CFA(**options, eps_base=0.1, beta_base=0.2), LOGITS, BATCH.y)
    for name, base in (("radius_scale", 0.1), ("beta_scale", 0.2)):
        torch.testing.assert_close(own.get_buffer(name), base + own.get_buffer("accuracy"), rtol=1e-12, atol=0)
    radii = after_one_epoch(CFA(**options, class_beta=False), LOGITS, BATCH.y)
    betas = after_one_epoch(CFA(**options, class_eps=False), LOGITS, BATCH.y)
    assert torch.equal(radii.get_buffer("beta_scale"), ONES) and radii.get_buffer("radius_scale").std() > 0
    assert torch.equal(betas.get_buffer("radius_scale"), ONES) and betas.get_buffer("beta_scale").std() > 0


@pytest.mark.parametrize(("epoch", "calibrated"), [(0, False), (8, False), (9, True), (10, True)])
def test_calibration_begins_in_its_epoch(epoch: int, calibrated: bool) -> None:
    method = after_one_epoch(CFA(host="trades"), LOGITS, BATCH.y, epoch=epoch, epochs=20)
    for scale in ("radius_scale", "beta_scale"):
        assert torch.equal(method.get_buffer(scale), ONES) is not calibrated
    assert method.get_buffer("accuracy").std() > 0, "the accuracy is noted in every epoch"


@pytest.mark.parametrize(
    ("host", "start", "bn"), [("at", "uniform", "train"), ("trades", "gaussian", "eval"), ("fat", "uniform", "eval")]
)
def test_radii_are_class_wise_and_steps_are_not(
    host: Any, start: str, bn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def record(model: nn.Module, x: Tensor, objective: Any, **given: Any) -> Tensor:
        asked.update(given)
        return x.clone()

    monkeypatch.setattr("methods.base.ascend", record)
    method = CFA(host=host)
    scale = torch.linspace(0.6, 1.5, CLASSES, dtype=torch.float64)
    method.radius_scale.copy_(scale)
    method.perturb(StubStudent({"clean": (BATCH.x, CLEAN)}), BATCH, make_context())
    np.testing.assert_allclose(asked["eps"].numpy(), 8 / 255 * scale.numpy()[Y], rtol=1e-12)
    assert (asked["step_size"], asked["start"], asked["bn"]) == (2 / 255, start, bn)


def test_without_calibration_it_is_its_host_bit_for_bit() -> None:
    host = trained(build("pgd_at"), rounds=2)
    assert difference(host, trained(build("cfa", class_eps=False, begin_epoch_index=1), rounds=2)) is None
    assert difference(host, trained(build("cfa", begin_epoch_index=1), rounds=2)) is not None
    assert difference(train_one_epoch(build("pgd_at")), train_one_epoch(build("cfa", begin_epoch_index=1))) is None


def test_with_equal_betas_its_trades_is_trades_by_one_plus_beta() -> None:
    terms, found = gradients(CFA(host="trades"))
    host, expected = gradients(TRADES())
    torch.testing.assert_close(7 * terms.loss, host.loss, rtol=1e-12, atol=0)
    for view in found:
        torch.testing.assert_close(7 * found[view], expected[view], rtol=1e-12, atol=1e-15)


def test_equal_accuracies_are_a_host_with_another_radius() -> None:
    calibrated = CFA(num_classes=5, begin_epoch_index=1)
    calibrated.radius_scale.fill_(0.5 + 0.75)
    loops = [Loop(method, 5).begin(0) for method in (calibrated, PGDAT(num_classes=5, eps=1.25 * 8 / 255))]
    found, expected = (loop.perturb(loop.batch()).x for loop in loops)
    assert torch.equal(found, expected)


def friendly(y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Inner points of host "fat", and those of a plain ascent of some steps from the same start."""
    model, batch = network(5, 0).eval(), Batch(BATCH.x.float(), y, BATCH.index, y)
    ctx = make_context()
    x_adv = CFA(num_classes=5, host="fat", eps=0.03).perturb(model, batch, ctx).x
    generator = torch.Generator().manual_seed(0)
    plain = ascend(
        model, batch.x, objectives.cross_entropy(y),
        eps=0.03, step_size=2 / 255, steps=steps, start="uniform", generator=generator,
    )  # fmt: skip
    return x_adv, plain


def test_friendly_attacks_take_three_steps_more_than_they_need() -> None:
    model = network(5, 0).eval()
    with torch.no_grad():
        predicted = model(BATCH.x.float()).argmax(1)
    assert torch.equal(*friendly((predicted + 1) % 5, steps=3)), "wrong from the start: three steps"
    x_adv, plain = friendly(predicted, steps=10)
    unmoved = (x_adv == plain).flatten(1).all(1)
    assert unmoved.any(), "what does not fall goes all the way"


@pytest.mark.parametrize("host", ["at", "trades"])
def test_declared_passes_are_exact_where_no_sample_leaves(host: str) -> None:
    method = build("cfa", host=host, begin_epoch_index=1)
    later = build("cfa", host=host, begin_epoch_index=1)
    assert count_passes(method) == method.passes() == count_passes(later, epoch=1)


def test_friendly_attacks_cost_at_most_what_is_declared() -> None:
    method = build("cfa", host="fat", begin_epoch_index=1)
    found, declared = count_passes(method), method.passes()
    assert found.forward < declared.forward and found.input_grad < declared.input_grad
    assert found.backward == declared.backward == 1


@pytest.mark.parametrize("host", HOSTS)
def test_resuming_at_any_step_changes_nothing(host: str) -> None:
    assert resume_differences(lambda: build("cfa", host=host, begin_epoch_index=1, steps=3)) == []


def test_a_run_that_would_end_before_calibration_is_refused() -> None:
    with pytest.raises(ValueError, match="cfa: calibration begins in epoch 10 and the run has 10; train longer"):
        CFA().setup(StubStudent({}), make_context(epochs=10))
    with pytest.raises(ValueError, match="CFA: host: expected at, trades or fat, got 'mart'"):
        CFA(host="mart")  # type: ignore[arg-type]


def test_its_beginning_follows_the_length_of_the_run() -> None:
    begins = {
        epochs: plan(methods=("cfa",), epochs=epochs).train[0].settings["begin_epoch_index"] for epochs in (2, 30, 60)
    }
    assert begins == {2: 0, 30: 2, 60: 3}
    (wide,) = plan(methods=("cfa",), dataset="cifar10", recipe="wrn34_10").train
    assert wide.settings["begin_epoch_index"] == 10


def test_the_released_form_of_the_weights_is_that_of_the_paper() -> None:
    """The release keeps beta / (1 + beta) and weighs CE by one minus that."""
    method = CFA(host="trades")
    method.beta_scale.copy_(torch.linspace(0.4, 1.5, CLASSES))
    loss = gradients(method)[0].loss.detach()
    share = (6 * method.beta_scale / (1 + 6 * method.beta_scale))[BATCH.y]
    log_p, log_q = CLEAN.log_softmax(1), ADV.log_softmax(1)
    ce = -log_p.gather(1, BATCH.y[:, None]).squeeze(1)
    torch.testing.assert_close(loss, (1 - share) * ce + share * (log_p.exp() * (log_p - log_q)).sum(1))
