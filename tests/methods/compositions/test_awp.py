"""Adversarial weight perturbation: where the weights are moved, by how much, and that they come back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks.contexts import mode
from bench.conformance.fixtures import difference, state_of
from bench.conformance.loop import Loop, LoopOptions
from bench.training.microbatch import micro_batch
from methods.base import Adversarial
from methods.compositions.awp import perturbed_tensors
from methods.registry import METHODS
from tests.helpers.method_runs import K


def begun(name: str = "awp:trades", options: LoopOptions | None = None, **settings: Any) -> Loop:
    """A loop in whose first epoch the weights have been trained a little."""
    loop = Loop(METHODS[name](num_classes=K, **settings), K, options or LoopOptions()).begin(0)
    loop.step(loop.batch())
    return loop


def test_awp_moves_every_weight_tensor_by_gamma_times_its_norm_along_the_gradient() -> None:
    loop = begun(gamma=0.02)
    batch = loop.batch(1)
    adv = loop.perturb(batch)
    before = {name: weight.detach().clone() for name, weight in loop.model.named_parameters()}
    proxy = copy.deepcopy(loop.model)
    METHODS["trades"]().loss(proxy, batch, adv, loop.ctx).loss.mean().backward()
    with loop.method.around_step(loop.model, batch, adv, loop.ctx):
        for (name, weight), copied in zip(loop.model.named_parameters(), proxy.parameters(), strict=True):
            moved = (weight.detach() - before[name]).double().numpy()
            grad, old = copied.grad.double().numpy(), before[name].double().numpy()  # type: ignore[union-attr]
            ratio = 0.02 * np.sqrt((old**2).sum()) / np.sqrt((grad**2).sum()) if weight.ndim > 1 else 0.0
            np.testing.assert_allclose(moved, ratio * grad, atol=2e-7 + 1e-5 * np.abs(moved).max())


def test_awp_equals_the_released_way_with_a_proxy_network() -> None:
    """A second network takes an SGD step on minus the loss; what it moved is normalised, added, and taken off again."""
    found, plain = (
        begun(gamma=0.01, options=LoopOptions(batch_norm=False)),
        begun("trades", options=LoopOptions(batch_norm=False)),
    )
    plain.model.load_state_dict(found.model.state_dict())
    for (_, state), theirs in zip(plain.optimiser.state.items(), found.optimiser.state.values(), strict=True):
        state["momentum_buffer"].copy_(theirs["momentum_buffer"])
    batch = found.batch(1)
    adv, expected = found.perturb(batch), plain.model
    proxy = copy.deepcopy(expected)
    sgd = torch.optim.SGD(proxy.parameters(), lr=0.1)
    sgd.zero_grad()
    (-plain.method.loss(proxy, batch, adv, plain.ctx).loss.mean()).backward()
    sgd.step()
    moves = []
    with torch.no_grad():
        for weight, theirs in zip(expected.parameters(), proxy.parameters(), strict=True):
            delta = theirs - weight
            moves.append(0.01 * weight.norm() / (delta.norm() + 1e-20) * delta if weight.ndim > 1 else 0 * delta)
            weight.add_(moves[-1])
    plain.optimiser.zero_grad()
    plain.method.loss(expected, batch, adv, plain.ctx).loss.mean().backward()
    plain.optimiser.step()
    with torch.no_grad():
        for weight, move_ in zip(expected.parameters(), moves, strict=True):
            weight.sub_(move_)
    with found.method.around_step(found.model, batch, adv, found.ctx):
        found._backward(batch, adv)
        found.optimiser.step()
    for weight, theirs in zip(found.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight, theirs, rtol=1e-5, atol=1e-6)


def test_a_step_that_moves_nothing_gets_every_weight_back_and_no_statistic_moves() -> None:
    loop = begun(gamma=0.1)
    batch = loop.batch(1)
    adv = loop.perturb(batch)
    before = state_of(loop.model)
    with loop.method.around_step(loop.model, batch, adv, loop.ctx):
        assert difference(before, state_of(loop.model)) is not None
        statistics = {name: tensor for name, tensor in state_of(loop.model).items() if "running" in name}
        assert statistics and difference(statistics, {name: before[name] for name in statistics}) is None
    assert difference(before, state_of(loop.model)) is None
    assert all(parameter.grad is None or parameter.requires_grad for parameter in loop.model.parameters())


def test_batch_norm_moves_once_a_step_around_which_weights_are_perturbed() -> None:
    counts = []
    for name in ("trades", "awp:trades"):
        loop = begun(name)
        counts.append(loop.model.state_dict()["1.num_batches_tracked"].item())
    assert counts == [2, 2], "the clean and the adversarial pass of the loss, and none of the trial"


def test_awp_raises_the_hosts_loss_and_leaves_gradients_alone() -> None:
    loop = begun(gamma=0.01)
    batch = loop.batch(1)
    adv = loop.perturb(batch)
    grads = [None if p.grad is None else p.grad.clone() for p in loop.model.parameters()]

    def loss() -> float:
        with mode(loop.model, train=True), torch.no_grad():
            return loop.method.loss(copy.deepcopy(loop.model), batch, adv, loop.ctx).loss.mean().item()

    before = loss()
    with loop.method.around_step(loop.model, batch, adv, loop.ctx):
        assert loss() > before + 1e-3
        for grad, parameter in zip(grads, loop.model.parameters(), strict=True):
            assert grad is None or torch.equal(grad, parameter.grad)  # type: ignore[arg-type]


def test_awp_waits_for_its_start_and_for_two_rows() -> None:
    loop = begun(gamma=0.1, awp_start=0.5)
    batch = loop.batch(1)
    adv = loop.perturb(batch)

    def moved(adversarial: Adversarial) -> bool:
        before = state_of(loop.model)
        with loop.method.around_step(loop.model, batch, adversarial, loop.ctx):
            return difference(before, state_of(loop.model)) is not None

    assert not moved(adv), "epoch 0 of 2 is before half of the run"
    loop.ctx.epoch = 1
    assert moved(adv)
    assert not moved(Adversarial(adv.x[:1], rows=torch.tensor([0]), extras=adv.extras))


def test_awp_finds_the_same_perturbation_in_parts_and_over_processes() -> None:
    """Parts of a step add up, and so do processes, of which each has a share of the step."""
    points = []
    for parts, processes in ((1, 1), (3, 1), (1, 2)):
        loop = begun(options=LoopOptions(batch_norm=False))
        batch = loop.batch(1)
        adv = loop.perturb(batch)
        spans = [(len(adv.x) * i // parts, len(adv.x) * (i + 1) // parts) for i in range(parts)]
        loop.ctx.micro_batches = lambda b, a, spans=spans: [micro_batch(b, a, *span) for span in spans]  # type: ignore[misc]
        loop.ctx.reduce = lambda total, count=processes: count * total  # type: ignore[misc]
        with loop.method.around_step(loop.model, batch, adv, loop.ctx):
            points.append(state_of(loop.model))
    for name, tensor in points[0].items():
        torch.testing.assert_close(points[1][name], tensor)
        torch.testing.assert_close(points[2][name], tensor)


def test_statistics_are_put_back_also_where_the_trial_pass_fails() -> None:
    loop = begun()
    batch = loop.batch(1)
    adv, before = loop.perturb(batch), state_of(loop.model)

    def fail(b: Any, a: Any) -> Iterator[Any]:
        yield b, a
        raise torch.OutOfMemoryError("no room")

    loop.ctx.micro_batches = fail
    with pytest.raises(torch.OutOfMemoryError), loop.method.around_step(loop.model, batch, adv, loop.ctx):
        raise AssertionError("the step must not begin")
    assert difference(before, state_of(loop.model)) is None


def test_awp_perturbs_trained_weights_of_two_and_more_dimensions_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 3))
    model[4].weight.requires_grad_(False)  # type: ignore[union-attr]
    found = {id(weight) for weight in perturbed_tensors(model)}
    assert found == {id(model[0].weight), id(model[3].weight)}
