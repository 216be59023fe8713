"""MART: its ablations are methods known by other names, and its logarithms are guarded."""

from __future__ import annotations

import torch

from attacks import objectives
from bench.conformance.fixtures import difference
from methods.base import Adversarial, Batch, Context
from methods.mart import MART, mart
from methods.pgd_at import PGDAT
from methods.registry import METHODS
from tests.helpers.method_runs import build, count_passes, gradients, resume_differences, trained


def test_without_margin_and_divergence_it_is_adversarial_cross_entropy() -> None:
    terms, found = gradients(MART(beta=0.0, margin_weight=0.0))
    plain, expected = gradients(METHODS["pgd_at"]())
    assert torch.equal(terms.loss, plain.loss)
    assert torch.equal(found["adv"], expected["adv"]) and not found["clean"].any()


def test_each_of_its_parts_changes_the_loss() -> None:
    parts = [MART(), MART(margin_weight=0.0), MART(weighted=False), MART(beta=6.0)]
    losses = [gradients(method)[0].loss for method in parts]
    assert len({tuple(loss.tolist()) for loss in losses}) == len(parts)
    assert (losses[0] > losses[1]).all(), "the margin term is positive"
    assert (losses[0] < losses[2]).all(), "no sample weighs more than 1"


def test_certain_predictions_leave_loss_and_gradient_finite() -> None:
    y = torch.tensor([0, 0, 0])
    clean = torch.tensor([[200.0, 0, 0], [0, 200.0, 0], [200.0, 0, 0]], requires_grad=True)
    adv = torch.tensor([[200.0, 0, 0], [0, 200.0, 0], [0, 200.0, 0]], requires_grad=True)
    loss = mart(clean, adv, y, 5.0)
    loss.sum().backward()
    assert loss.isfinite().all() and loss[2] > loss[0]
    for logits in (clean, adv):
        assert logits.grad is not None and logits.grad.isfinite().all()


class GaussianAT(PGDAT):
    """PGD-AT with the clean forward and the attack of MART."""

    def perturb(self, model: torch.nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        x_adv = self.ascend(model, batch.x, objectives.cross_entropy(batch.y), ctx, start="gaussian")
        model(batch.x)
        return Adversarial(x_adv)


def test_the_bare_form_trains_as_adversarial_training_bit_for_bit() -> None:
    threat = {"eps": 0.031, "step_size": 0.007}
    host = trained(GaussianAT(num_classes=5, **threat), rounds=1)
    assert difference(host, trained(build("mart", beta=0.0, margin_weight=0.0), rounds=1)) is None
    assert difference(host, trained(build("mart"), rounds=1)) is not None


def test_passes_and_resuming() -> None:
    method = build("mart")
    assert count_passes(method) == method.passes()
    assert resume_differences(lambda: build("mart", steps=3)) == []


def test_the_wide_network_has_its_own_beta() -> None:
    assert METHODS["mart"].recipes["wrn34_10"].settings == {"beta": 6.0}
