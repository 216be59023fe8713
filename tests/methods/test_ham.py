"""HAM keeps exactly the samples that fall early, and saves the work of the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import objectives
from attacks.ascent import ascend
from attacks.contexts import mode
from bench.conformance.fixtures import difference
from bench.conformance.loop import Loop
from bench.core.pass_counter import PassCounter
from methods.base import Adversarial, Batch
from methods.ham import HAM

SETTINGS: dict[str, Any] = {"num_classes": 4, "begin_epoch_index": 0, "eps": 0.1, "step_size": 0.02}


def mining(**changes: Any) -> Loop:
    return Loop(HAM(**{**SETTINGS, **changes}), 4).begin(0)


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    with mode(model, train=False), torch.no_grad():
        prediction: Tensor = model(x).argmax(1)
    return prediction


def easier(loop: Loop, wrong: int) -> Batch:
    """The batch with the student's own predictions as labels, but for the first `wrong`."""
    batch = loop.batch()
    y = predicted(loop.model, batch.x)
    y[:wrong] = (y[:wrong] + 1) % 4
    return Batch(batch.x, y, batch.index, y)


def after(loop: Loop, batch: Batch, steps: int) -> Tensor:
    """The iterate after some steps of a plain attack from the same start."""
    generator = torch.Generator().manual_seed(100)
    return ascend(
        loop.model, batch.x, objectives.cross_entropy(batch.y), eps=0.1, step_size=0.02, steps=steps,
        start="uniform", generator=generator,
    )  # fmt: skip


@pytest.mark.parametrize("step", [0, 3, 9])
def test_exactly_the_misclassified_after_the_mining_step_are_kept(step: int) -> None:
    loop = mining(mining_step=step)
    batch = easier(loop, wrong=5)
    adv = loop.perturb(batch)
    fallen = (predicted(loop.model, after(loop, batch, step)) != batch.y).nonzero().flatten()
    assert adv.rows is not None and 0 < len(fallen) < len(batch.y)
    assert adv.rows.tolist() == fallen.tolist()
    torch.testing.assert_close(adv.x, after(loop, batch, 10)[fallen], rtol=0, atol=1e-6)
    assert torch.equal(adv.of(batch.y), batch.y[fallen])


def test_dropped_rows_cost_no_further_pass() -> None:
    loop, counter = mining(), PassCounter()
    batch = easier(loop, wrong=5)
    n = len(batch.y)
    counter.watch(loop.model, "student")
    adv = loop.perturb(batch)
    kept = len(adv.x)
    # The forwards of steps 1 to 4 see all, the fourth being the one that judges; six more see the kept.
    assert counter.counts["student"]["forward"] == 4 * n + 6 * kept
    assert counter.counts["student"]["input_grad"] == 4 * n + 6 * kept
    assert kept < n


def test_batch_norm_sees_the_hard_rows_alone() -> None:
    loop = mining()
    batch = easier(loop, wrong=5)
    adv = loop.perturb(batch)
    seen: list[int] = []
    loop.model.register_forward_hook(lambda module, inputs, logits: seen.append(len(inputs[0])))
    terms = loop.method.loss(loop.model, batch, adv, loop.ctx)
    assert seen == [len(adv.x)] == [len(terms.loss)]


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_step_without_two_hard_samples_trains_nothing_and_is_counted(wrong: int) -> None:
    loop = mining(eps=1e-6, step_size=1e-6)
    batch = easier(loop, wrong=wrong)
    before = loop.tensors()
    terms = loop.step(batch)
    weights = {name: tensor for name, tensor in loop.tensors().items() if not name.startswith("method/")}
    assert len(terms.loss) == 0
    assert difference({k: v for k, v in before.items() if k in weights}, weights) is None
    loop.method.end_epoch(loop.model, loop.ctx)
    assert loop.method.get_buffer("kept_share").sum() <= wrong


def test_the_kept_share_is_that_of_each_class() -> None:
    method = HAM(**SETTINGS)
    loop = Loop(method, 4).begin(0)
    y = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    batch = Batch(loop.x[:8], y, torch.arange(8), y)
    terms = method.loss(loop.model, batch, Adversarial(batch.x), loop.ctx)
    for rows in ([0, 4, 5], [0, 1, 4, 5]):
        method.observe(batch, Adversarial(batch.x[rows], rows=torch.tensor(rows)), terms, loop.ctx)
    method.end_epoch(loop.model, loop.ctx)
    assert method.kept_share.tolist() == [3 / 8, 1.0, 0.0, 0.0]
    assert not method.counts.any()


def test_before_mining_begins_all_are_trained_on() -> None:
    loop = Loop(HAM(**{**SETTINGS, "begin_epoch_index": 1}), 4).begin(0)
    batch = easier(loop, wrong=5)
    assert loop.perturb(batch).rows is None
    assert loop.begin(1).perturb(batch).rows is not None


def test_l1max_weights_have_mean_one_and_follow_the_largest_change() -> None:
    loop = mining(reweight="l1max")
    batch = easier(loop, wrong=5)
    adv = loop.perturb(batch)
    assert adv.rows is not None
    weight = adv.extras["weight"]
    assert weight.mean().item() == pytest.approx(1.0, abs=1e-5) and weight.std() > 0
    with mode(loop.model, train=False), torch.no_grad():
        iterates = [loop.model(after(loop, batch, step)).softmax(1)[adv.rows] for step in range(10)]
    change = torch.stack([(b - a).abs().sum(1) for a, b in zip(iterates, iterates[1:], strict=False)]).amax(0)
    torch.testing.assert_close(weight, change / change.mean(), rtol=1e-3, atol=1e-4)
    weighted = loop.method.loss(loop.model.eval(), batch, adv, loop.ctx).loss
    plain = loop.method.loss(loop.model, batch, Adversarial(adv.x, adv.rows), loop.ctx).loss
    torch.testing.assert_close(weighted, weight * plain)


def test_a_run_that_would_never_mine_is_refused() -> None:
    with pytest.raises(ValueError, match="ham: mining begins in epoch 2 and the run has 2; train longer or lower"):
        Loop(HAM(num_classes=4, begin_epoch_index=2), 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reweight": "mean"}, "HAM: reweight: expected none or l1max, got 'mean'"),
        ({"mining_step": 10}, "ham: expected mining_step from 0 to steps - 1 = 9, got 10"),
        ({"mining_step": -1}, "HAM: mining_step: expected a whole number of at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HAM(**settings)
