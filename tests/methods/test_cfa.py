"""CFA: radii and weights follow the classes' robust training accuracy; without calibration it is its host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

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
    ("host", "start", "bn"), [("at", "uniform", "train"), ("trades", "gaussian", "eval"), ("fat", "uniform", "train")]
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
    assert (torch.as_tensor(asked["step_size"], dtype=torch.float64) == 2 / 255).all()
    assert (asked["start"], asked["bn"]) == (start, bn)


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


def friendly(model: nn.Module, x: Tensor, y: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Inner points of host "fat" as released, one sample at a time, and how many steps each sample has gone."""
    noise = torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    low, high = x - radius.view(-1, 1, 1, 1), x + radius.view(-1, 1, 1, 1)
    here = (low + noise * (high - low)).clamp(0, 1)
    control, gone = [3] * len(y), torch.zeros(len(y), dtype=torch.int64)
    model.train()
    for _ in range(10):
        here = here.detach().requires_grad_()
        logits = model(here)
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y), here)
        moves = [i for i in range(len(y)) if control[i] > 0]
        for i in moves:
            control[i] -= int(logits[i].argmax() != y[i])
        if not moves:
            break
        ahead = torch.clamp(here.detach() + 2 / 255 * grad.sign(), low, high).clamp(0, 1)
        here = here.detach().index_copy(0, torch.tensor(moves), ahead[moves])
        gone[moves] += 1
    return here.detach(), gone


@pytest.mark.parametrize("seed", range(3))
def test_friendly_attacks_are_those_of_the_release(seed: int) -> None:
    """In train mode on the whole batch, statistics included; a sample goes on from three misclassified iterates."""
    released, model = (network(5, seed).double() for _ in range(2))
    with torch.no_grad():
        y = network(5, seed).double().train()(BATCH.x).argmax(1)
    y[::3] = (y[::3] + 1) % 5
    batch, method = Batch(BATCH.x, y, BATCH.index, y), CFA(num_classes=5, host="fat", eps=0.06)
    method.radius_scale.copy_(torch.linspace(0.6, 1.5, 5))
    expected, gone = friendly(released, batch.x, y, 0.06 * method.radius_scale[y])
    found = method.perturb(model, batch, make_context()).x
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for name, tensor in released.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), tensor, rtol=1e-9, atol=1e-12)
    assert gone.min() == 3 and gone.max() == 10, "some are wrong from the start, some never fall"


def test_a_friendly_attack_ends_with_its_last_moving_sample() -> None:
    model = network(5, 0).double().train()
    with torch.no_grad():
        y = (model(BATCH.x).argmax(1) + 1) % 5
    batch = Batch(BATCH.x, y, BATCH.index, y)
    CFA(num_classes=5, host="fat", eps=0.001).perturb(model, batch, make_context())
    assert model.get_buffer("1.num_batches_tracked") == 1 + 4, "all are wrong at once: three steps, and a look"


@pytest.mark.parametrize("host", HOSTS)
def test_declared_passes_are_exact_where_some_sample_moves_to_the_end(host: str) -> None:
    method = build("cfa", host=host, begin_epoch_index=1)
    later = build("cfa", host=host, begin_epoch_index=1)
    assert count_passes(method) == method.passes() == count_passes(later, epoch=1)


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
