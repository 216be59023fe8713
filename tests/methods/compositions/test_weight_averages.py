"""Averages of weights that are evaluated in their place: EMA, SWA and FAWA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.conformance.fixtures import difference, state_of
from methods.averaging import frozen_copy, update_average, warm_decay
from methods.base import Method
from methods.registry import METHODS
from tests.helpers.method_runs import loop_of
from tests.helpers.stubs import make_context


def test_an_average_moves_by_a_share_of_the_way_and_copies_counters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = frozen_copy(model)
    assert not average.training and not any(p.requires_grad for p in average.parameters())
    start, there = state_of(average), {}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
        model(torch.randn(4, 2))
        there = state_of(model)
    update_average(average, model, 0.25)
    for name, tensor in state_of(average).items():
        expected = there[name] if "num_batches" in name else 0.75 * start[name] + 0.25 * there[name]
        torch.testing.assert_close(tensor, expected)
    held = state_of(average)
    update_average(average, model, 0.0)
    held["1.num_batches_tracked"] = there["1.num_batches_tracked"]
    assert difference(held, state_of(average)) is None
    update_average(average, model, 1.0)
    assert difference(there, state_of(average)) is None


def test_a_decay_is_warmed_up() -> None:
    assert [warm_decay(0.999, step) for step in (0, 8)] == [0.1, 0.5]
    assert warm_decay(0.5, 8) == 0.5 and warm_decay(0.5, 100) == 0.5 and warm_decay(0.999, 10**6) == 0.999


def test_ema_is_the_recursion_over_the_weights_after_each_step() -> None:
    loop = loop_of("ema:trades", ema_decay=0.3)
    average = {name: tensor.double().numpy() for name, tensor in state_of(loop.model).items()}
    for step, _ in enumerate(loop.train()):
        decay = min(0.3, (1 + step) / (10 + step))
        for name, tensor in state_of(loop.model).items():
            average[name] = decay * average[name] + (1 - decay) * tensor.double().numpy()
            if "num_batches" in name:
                average[name] = tensor.numpy()
    assert step == 3
    for name, tensor in state_of(loop.method.evaluation_model(loop.model)).items():
        np.testing.assert_allclose(tensor.numpy(), average[name], rtol=1e-5, atol=1e-6)


def test_swa_is_the_mean_of_the_weights_after_the_epochs_from_its_start_on() -> None:
    loop = loop_of("swa:trades", swa_start=0.0)
    seen = []
    for step, _ in enumerate(loop.train()):
        assert (loop.method.evaluation_model(loop.model) is loop.model) == (step <= 1), "nothing is averaged yet"
        if step % 2 == 1:
            seen.append(state_of(loop.model))
    mean = state_of(loop.method.evaluation_model(loop.model))
    for name in (name for name in mean if "num_batches" not in name):
        torch.testing.assert_close(mean[name], (seen[0][name] + seen[1][name]) / 2)
    late = loop_of("swa:trades", swa_start=0.5).run()
    assert difference(state_of(late.model), state_of(late.method.evaluation_model(late.model))) is None


def judged_at(worst: list[float]) -> tuple[Method, nn.Module, list[float]]:
    """FAWA after epochs whose lowest class accuracy is given; the weight it evaluates after each."""
    method, ctx = METHODS["fawa:natural"](num_classes=2, fawa_threshold=0.5, fawa_start=0.0), make_context()
    model, found = nn.Linear(1, 1, bias=False), []
    y = torch.tensor([0, 1]).repeat_interleave(10)
    ctx.num_classes, ctx.epochs = 2, len(worst)
    answers: list[Tensor] = []
    ctx.validator = lambda attack, judged: (y, nn.functional.one_hot(y, 2).float(), answers[-1])
    method.setup(model, ctx)
    for ctx.epoch, accuracy in enumerate(worst):
        said = torch.where((y == 1) & (torch.arange(20) % 10 >= round(10 * accuracy)), 0, y)
        answers.append(nn.functional.one_hot(said, 2).float())
        nn.init.constant_(model.weight, ctx.epoch + 1.0)
        method.end_epoch(model, ctx)
        found.append(next(method.evaluation_model(model).parameters()).item())
    return method, model, found


def test_fawa_leaves_out_epochs_below_its_threshold() -> None:
    method, _, found = judged_at([0.4, 0.5, 0.4, 0.9])
    assert found == pytest.approx([1.0, 2.0, 2.0, 0.85 * 2 + 0.15 * 4]), "the weights, a copy, frozen, moved"
    assert method.get_buffer("fawa_accuracy").tolist() == pytest.approx([1.0, 0.9])


def test_fawa_waits_for_its_start() -> None:
    loop = loop_of("fawa:natural", fawa_threshold=0.0, fawa_start=0.5)
    loop.run(stop=(1, 0))
    assert loop.method.evaluation_model(loop.model) is loop.model
    assert loop.run(start=(1, 0)).method.evaluation_model(loop.model) is not loop.model


def test_fawa_without_held_out_samples_says_so_before_training() -> None:
    with pytest.raises(ValueError, match="fawa: expected held-out training samples to judge by, got none"):
        METHODS["fawa:natural"]().setup(nn.Linear(1, 1), make_context())


def test_an_average_of_averages_is_one_of_what_the_host_would_evaluate() -> None:
    loop = loop_of("swa:ema:trades", swa_start=0.5).run()
    inner: Any = loop.method
    assert difference(state_of(inner.swa_average), state_of(inner.ema_average)) is None, (
        "one epoch of the inner average"
    )
    assert difference(state_of(inner.ema_average), state_of(loop.model)) is not None
