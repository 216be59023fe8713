"""DAFA: weights from class distances, measured once, and its hosts before and without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import objectives
from bench.conformance.fixtures import difference, network
from bench.conformance.loop import Loop
from methods.base import Adversarial, Batch, Context, Terms
from methods.dafa import DAFA, distance_weights
from methods.pgd_at import PGDAT
from methods.registry import METHODS
from tests.helpers import formulas
from tests.helpers.formulas import Array
from tests.helpers.jobs import plan
from tests.helpers.method_runs import (
    ADV,
    BATCH,
    CLEAN,
    Y,
    build,
    count_passes,
    resume_differences,
    train_one_epoch,
    trained,
)
from tests.helpers.stubs import CLASSES, StubStudent, make_context

HOSTS = ["trades", "at"]
ONES = torch.ones(CLASSES, dtype=torch.float64)
Y5 = BATCH.y % 5


def random_means(seed: int, classes: int = CLASSES) -> Array:
    """Mean probabilities by class, with a heavy diagonal of different height."""
    return formulas.softmax(np.random.default_rng(seed).normal(size=(classes, classes)) + 2 * np.eye(classes))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strength", [1.0, 1.5])
def test_the_weights_are_those_of_the_pairwise_definition_and_sum_to_k(seed: int, strength: float) -> None:
    p = random_means(seed)
    found = distance_weights(torch.tensor(p), strength)
    np.testing.assert_allclose(found.numpy(), formulas.dafa_weights(p, strength), rtol=1e-12)
    assert found.sum().item() == pytest.approx(CLASSES, abs=1e-9)
    assert found.std() > 0.05


def test_weight_moves_from_the_easier_of_two_classes_to_the_harder_by_their_likeness() -> None:
    p = torch.tensor([[0.5, 0.4, 0.1], [0.1, 0.9, 0.0], [0.0, 0.1, 0.9]], dtype=torch.float64)
    weight = distance_weights(p, 1.0)
    assert weight.tolist() == pytest.approx([1 + 0.4 * 0.9 + 0.1 * 0.9, 1 - 0.4 * 0.9, 1 - 0.1 * 0.9])


def test_equally_hard_classes_exchange_nothing() -> None:
    p = torch.full((4, 4), 0.1, dtype=torch.float64) + 0.6 * torch.eye(4, dtype=torch.float64)
    assert distance_weights(p, 1.0).tolist() == [1.0] * 4


def measured(method: DAFA, epochs: int) -> DAFA:
    """The method after epochs of two steps of given logits, the last of which it measures in."""
    for epoch in range(epochs):
        ctx = make_context(epoch=epoch, epochs=10)
        for shift in (0, 3):
            adv = ADV.roll(shift, dims=1) if epoch == epochs - 1 else -ADV
            method.observe(BATCH, Adversarial(BATCH.x), Terms(torch.zeros(len(Y)), {"adv": adv, "clean": CLEAN}), ctx)
        method.end_epoch(StubStudent({}), ctx)
    return method


def test_the_distances_are_mean_adversarial_probabilities_of_the_epoch_before() -> None:
    method = measured(DAFA(begin_epoch_index=3), 3)
    probs = np.concatenate([formulas.softmax(np.roll(ADV.numpy(), shift, axis=1)) for shift in (0, 3)])
    y = np.concatenate([Y, Y])
    p = np.array([probs[y == k].mean(axis=0) if (y == k).any() else np.zeros(CLASSES) for k in range(CLASSES)])
    own = p.diagonal()
    taken = np.array([[p[i, j] * p[j, j] * (own[i] < own[j]) for j in range(CLASSES)] for i in range(CLASSES)])
    np.testing.assert_allclose(method.class_weight.numpy(), 1 + taken.sum(1) - taken.sum(0), rtol=1e-9)
    assert method.class_weight.sum().item() == pytest.approx(CLASSES)


def test_weights_are_set_once_and_for_good() -> None:
    assert torch.equal(measured(DAFA(begin_epoch_index=4), 3).class_weight, ONES)
    once = measured(DAFA(begin_epoch_index=2), 2).class_weight.clone()
    method = measured(DAFA(begin_epoch_index=2), 2)
    ctx = make_context(epoch=2)
    method.observe(BATCH, Adversarial(BATCH.x), Terms(torch.zeros(len(Y)), {"adv": CLEAN}), ctx)
    method.end_epoch(StubStudent({}), ctx)
    assert torch.equal(method.class_weight, once) and once.std() > 0


def test_a_network_that_answers_one_class_leaves_no_negative_weight() -> None:
    method = DAFA(begin_epoch_index=1)
    certain = torch.zeros(len(Y), CLASSES, dtype=torch.float64)
    certain[:, 3] = 20.0
    ctx = make_context(epoch=0)
    method.observe(BATCH, Adversarial(BATCH.x), Terms(torch.zeros(len(Y)), {"adv": certain}), ctx)
    method.end_epoch(StubStudent({}), ctx)
    assert method.class_weight.min() == 0 and method.class_weight[3] == 0


def asked_for(method: DAFA, monkeypatch: pytest.MonkeyPatch, epoch: int = 5) -> tuple[Array, Array]:
    """Radii and steps of the inner problem, with class weights from 0.7 to 1.6."""
    asked: dict[str, Any] = {}

    def record(model: nn.Module, x: Tensor, objective: Any, **given: Any) -> Tensor:
        asked.update(given)
        return x.clone()

    monkeypatch.setattr("methods.base.ascend", record)
    method.class_weight.copy_(torch.linspace(0.7, 1.6, CLASSES, dtype=torch.float64))
    method.perturb(StubStudent({"clean": (BATCH.x, CLEAN)}), BATCH, make_context(epoch=epoch))
    return asked["eps"].numpy(), asked["step_size"].numpy()


@pytest.mark.parametrize("host", HOSTS)
def test_radius_and_step_of_a_sample_follow_its_class(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    radius, step = asked_for(DAFA(host=host), monkeypatch)
    weight = np.linspace(0.7, 1.6, CLASSES)[Y]
    np.testing.assert_allclose(radius, 0.031 * weight, rtol=1e-12)
    np.testing.assert_allclose(step, 0.007 * weight, rtol=1e-12)


@pytest.mark.parametrize("epoch", [0, 9])
@pytest.mark.parametrize("lightest", [0.4, 1.0])
def test_the_released_attack_goes_each_step_twice_in_every_epoch(epoch: int, lightest: float) -> None:
    """The release: a step of w a within w eps, then one of a within eps, both along the same sign."""
    method = DAFA(num_classes=5, host="at", doubled_step=True, begin_epoch_index=5, step_size=0.02)
    method.class_weight.copy_(torch.linspace(lightest, 1.8, 5, dtype=torch.float64))
    model, y = network(5, 0).double().eval(), Y5
    batch = Batch(BATCH.x, y, BATCH.index, y)
    found = method.perturb(model, batch, make_context(epoch=epoch)).x
    weight = method.class_weight[y].view(-1, 1, 1, 1)
    x = batch.x
    here = x + 0.001 * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = 0
    for _ in range(10):
        here.requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(here), y)
        sign = torch.autograd.grad(loss, here)[0].sign()
        turned += int((((here - x) * sign < -0.031 * weight) & (weight < 1)).sum())
        for radius, step in ((0.031 * weight, 0.02 * weight), (0.031 * torch.ones_like(weight), 0.02)):
            here = torch.clamp(here.detach() + step * sign, x - radius, x + radius)
        here = here.clamp(0, 1)
    torch.testing.assert_close(found, here, rtol=0, atol=1e-12)
    assert (turned > 0) == (lightest < 1), "one step of the summed length would not do where the sign turns"


def test_watchers_see_every_iterate_of_the_released_attack() -> None:
    method, batch = DAFA(num_classes=5, host="at", doubled_step=True), Batch(BATCH.x, Y5, BATCH.index, Y5)
    seen: list[tuple[int, Tensor]] = []
    ctx = make_context()
    ctx.watchers = (lambda step, x_adv, logits, rows: seen.append((step, logits.argmax(1))),)
    method.perturb(network(5, 0).double(), batch, ctx)
    assert [step for step, _ in seen] == list(range(10)) and not any(wrong.requires_grad for _, wrong in seen)


def test_at_strength_zero_it_is_trades_bit_for_bit() -> None:
    trades = trained(build("trades"), rounds=2)
    assert difference(trades, trained(build("dafa", strength=0.0, begin_epoch_index=1), rounds=2)) is None
    assert difference(trades, trained(build("dafa", begin_epoch_index=1), rounds=2)) is not None
    assert difference(train_one_epoch(build("trades")), train_one_epoch(build("dafa", begin_epoch_index=1))) is None


class GaussianAT(PGDAT):
    """PGD-AT with the start of DAFA's host."""

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        return Adversarial(self.ascend(model, batch.x, objectives.cross_entropy(batch.y), ctx, start="gaussian"))


def test_at_strength_zero_its_other_host_is_adversarial_training_bit_for_bit() -> None:
    plain = trained(GaussianAT(num_classes=5, eps=0.031, step_size=0.007), rounds=2)
    for options in ({"strength": 0.0}, {"strength": 0.0, "beta": 1.0}):
        assert difference(plain, trained(build("dafa", host="at", begin_epoch_index=1, **options), rounds=2)) is None
    assert difference(plain, trained(build("dafa", host="at", begin_epoch_index=1), rounds=2)) is not None


@pytest.mark.parametrize("host", HOSTS)
def test_passes_are_those_of_the_host_before_and_after(host: str) -> None:
    method = build("dafa", host=host, begin_epoch_index=1)
    after = count_passes(build("dafa", host=host, begin_epoch_index=1), epoch=1)
    assert count_passes(method) == after == method.passes()
    assert method.passes() == (build("trades") if host == "trades" else build("pgd_at")).passes()


@pytest.mark.parametrize("host", HOSTS)
def test_resuming_changes_nothing_within_the_measuring_epoch_too(host: str) -> None:
    assert resume_differences(lambda: build("dafa", host=host, begin_epoch_index=1, steps=3)) == []


@pytest.mark.parametrize("begin", [0, 10, 70])
def test_a_run_without_an_epoch_to_measure_in_or_to_weigh_in_is_refused(begin: int) -> None:
    with pytest.raises(
        ValueError, match=f"dafa: expected begin_epoch_index from 1 to the run's last epoch 9, got {begin}"
    ):
        DAFA(begin_epoch_index=begin).setup(StubStudent({}), make_context(epochs=10))


def test_unknown_hosts_and_the_attack_of_another_host_are_refused() -> None:
    with pytest.raises(ValueError, match="DAFA: host: expected trades or at, got 'fat'"):
        DAFA(host="fat")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dafa: doubled_step is the attack of host 'at', got host 'trades'"):
        DAFA(doubled_step=True)


def test_the_released_schedule() -> None:
    for name, settings in (("paper", {}), ("paper_cifar100", {"strength": 1.5})):
        recipe = METHODS["dafa"].recipes[name]
        assert (recipe.epochs, recipe.weight_decay, recipe.nesterov, recipe.selection) == (110, 5e-4, True, "last")
        assert {epoch: recipe.lr_at(epoch) for epoch in (98, 99, 103, 104)} == pytest.approx(
            {98: 0.1, 99: 0.01, 103: 0.01, 104: 0.001}
        )
        assert recipe.settings == settings


def test_its_beginning_follows_the_length_of_the_run() -> None:
    begins = {
        epochs: plan(methods=("dafa",), epochs=epochs).train[0].settings["begin_epoch_index"] for epochs in (2, 11, 30)
    }
    assert begins == {2: 1, 11: 7, 30: 19}


def test_the_loop_measures_on_logits_of_train_mode() -> None:
    loop = Loop(build("dafa", begin_epoch_index=1), 5).begin(0)
    terms = loop.step(loop.batch())
    method = loop.method
    assert loop.model.training
    probs = terms.logits["adv"].detach().softmax(1).double()
    expected = torch.stack([probs[loop.batch().y == k].sum(0) for k in range(5)])
    torch.testing.assert_close(method.get_buffer("probs"), expected, rtol=1e-6, atol=1e-9)
