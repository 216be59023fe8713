"""AWP, adversarial weight perturbation (Wu et al., NeurIPS 2020, arXiv:2004.05884), around any method.

Inner problem:  the host's; then, at its adversarial inputs, v = gamma ||w|| g / ||g|| for each weight tensor w with the
                gradient g of the host's mean loss on the step: one normalised step towards a larger loss.
Outer problem:  the host's, at w + v instead of w; the optimiser's step is added to w.
State:          none.
Defaults:       gamma 0.005 from the first epoch on. The paper's AT-AWP is gamma 0.01; its TRADES-AWP gamma 0.005 from
                the 10th of 200 epochs (`awp_start` 0.045, a share of the run), at eps 8/255 with steps of 2/255: the
                recipes "at_awp" and "trades_awp". Without them the schedule is the host's own. [read in the released
                code; TRADES-AWP's augmentation is inferred]
Departures:     the release finds v by an SGD step of a second network, here it is the gradient itself: with v
                normalised, and no momentum or decay in that step, its learning rate cancels [inferred]. Perturbed are
                tensors of two and more dimensions with "weight" in their name, as there. After the step the release
                subtracts v, here the weights get w plus what the optimiser moved: a step that moves nothing restores
                every bit. BatchNorm's statistics are put back after the trial pass, so they move once, by the pass of
                the loss, at w + v; in the variant of the release that perturbs the model itself they move in the trial
                pass too. AT-AWP attacks the first batch of each epoch in eval mode, here none. At gamma 0 no trial pass
                is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.passes import Passes
from attacks.plugins.ranges import Fraction, NonNegative
from methods.base import Adversarial, Batch, Context
from methods.recipes import EPS_8, RICE
from methods.registry import COMPOSITIONS
from methods.wrapper import Wrapper


@COMPOSITIONS.register("awp")
class AWP(Wrapper):
    """Steps are taken at weights that were moved against the step before.

    Args:
        gamma: length of the perturbation, relative to the norm of each weight tensor; 0 is the bare method.
        awp_start: share of the run's epochs before the first that perturbs.
    """

    recipes = {
        "at_awp": replace(RICE, settings={"gamma": 0.01}, source="released script"),
        "trades_awp": replace(
            RICE, augment="crop_flip", source="released script",
            settings={"gamma": 0.005, "awp_start": 0.045, "eps": EPS_8, "step_size": EPS_8 / 4},
        ),
    }  # fmt: skip

    def __init__(self, *, gamma: NonNegative = 0.005, awp_start: Fraction = 0.0, **host: Any) -> None:
        super().__init__(**host)
        self.gamma, self.awp_start = gamma, awp_start

    def added_passes(self, host: Passes) -> Passes:
        """One more forward and backward pass of the loss."""
        if self.gamma == 0:
            return Passes()
        return Passes(forward=host.backward, backward=host.backward) + self.loss_overhead()

    @contextmanager
    def around_step(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Iterator[None]:
        """Perturb the weights before the step, and subtract the perturbation after it."""
        active = self.gamma > 0 and ctx.epoch >= self.awp_start * ctx.epochs
        # Summed over processes: each of them has to decide alike whether there is a step, whatever rows it has.
        active = active and int(ctx.reduce(torch.tensor(len(adv.x)))) >= 2
        weights = perturbed_tensors(model) if active else []
        originals = [weight.detach().clone() for weight in weights]
        if weights:
            self._perturb(model, weights, batch, adv, ctx)
        perturbed = [weight.detach().clone() for weight in weights]
        try:
            with super().around_step(model, batch, adv, ctx):
                yield
        finally:
            with torch.no_grad():
                for weight, original, moved in zip(weights, originals, perturbed, strict=True):
                    weight.sub_(moved).add_(original)

    def _perturb(self, model: nn.Module, weights: list[Tensor], batch: Batch, adv: Adversarial, ctx: Context) -> None:
        """Move the weights along the gradient of the host's loss."""
        loss = super().loss

        def gradient() -> list[Tensor]:
            totals = [torch.zeros_like(weight) for weight in weights]
            for micro_batch in ctx.micro_batches(batch, adv):
                terms = loss(model, *micro_batch, ctx)
                grads = torch.autograd.grad(terms.loss.sum(), weights, allow_unused=True, materialize_grads=True)
                torch._foreach_add_(totals, grads)
            return totals

        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            totals = ctx.retry_smaller(gradient, adv)
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)
        with torch.no_grad():
            for weight, total in zip(weights, map(ctx.reduce, totals), strict=True):
                weight.add_(total * (self.gamma * weight.norm() / (total.norm() + 1e-20)))


def perturbed_tensors(model: nn.Module) -> list[Tensor]:
    """The tensors that are perturbed: weights of two and more dimensions that are trained."""
    named = model.named_parameters()
    return [weight for name, weight in named if "weight" in name and weight.ndim > 1 and weight.requires_grad]
