"""WAT, worst-class adversarial training (Li and Liu, AAAI 2023, arXiv:2302.04025).

Inner problem:  TRADES': maximise KL(p(x) || p(x')), 10 sign steps of 0.007 at eps 0.031 from a Gaussian start, eval
                mode.
Outer problem:  minimise mean (w_y + w_all) (CE(S(x), y) + beta KL(p(x) || p(x'))), gradients through both arguments.
State:          weights (K + 1,), one per class and w_all, all ones in the first epoch, and costs (K + 1,), zeros at
                first. At the end of an epoch the inner problem is solved on held-out training samples in eval mode;
                the class means and the overall mean of CE + beta KL are added to costs, and weights <- K softmax(eta
                costs), over all K + 1 entries, which therefore sum to K. Hedge against the worst class.
Defaults:       eta 0.1, beta 6; 100 epochs, SGD 0.1 / 0.9 / 2e-4, rate x 0.1 from epochs 75, 90, 100 (counted from 1),
                batch 128; 300 held-out samples per class. [read in the released code]
Departures:     the release divides class sums by a K-th of full batches of 128, which makes costs lower by the gap in
                the last batch (2.3 % on 3,000 samples) and assumes equal classes, and the overall sum by full batches
                too: `costs_mean="released"`. A sample weighs 2 in the first epoch and 2 K / (K + 1) in later ones if
                all costs are equal, as released.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.passes import Passes
from attacks.plugins.ranges import NonNegative
from attacks.threat import ThreatModel
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import class_means, class_sums, cross_entropy, kl_logits, of_class
from methods.recipes import Recipe, digits
from methods.registry import register
from methods.trades import TRADES

RELEASED_BATCH = 128


@register("wat")
class WAT(TRADES):
    """TRADES with class weights that grow exponentially with the classes' cumulative held-out loss.

    Args:
        eta: rate of the exponential weights.
        costs_mean: "exact" means over the held-out samples, or "released", over full batches and equal classes.
    """

    recipes = {
        "paper": Recipe(
            epochs=100, lr=0.1, milestones=(74, 89, 99), weight_decay=2e-4, augment="crop_flip",
            source="released script",
        ),
        "digits": digits(),
    }  # fmt: skip
    reported = ("class_weight",)

    weights: Tensor
    costs: Tensor

    def __init__(
        self, *, eta: NonNegative = 0.1, costs_mean: Literal["exact", "released"] = "exact", **options: Any
    ) -> None:
        super().__init__(**options)
        self.eta = eta
        self.costs_mean: Literal["exact", "released"] = costs_mean
        self.register_buffer("weights", torch.ones(self.num_classes + 1, dtype=torch.float64))
        self.register_buffer("costs", torch.zeros(self.num_classes + 1, dtype=torch.float64))

    @property
    def class_weight(self) -> Tensor:
        """Weights (K,) of the classes, without that of all samples."""
        return self.weights[:-1]

    def setup(self, model: nn.Module, ctx: Context) -> None:
        """Refuse a run without held-out samples, whose losses set the weights."""
        if ctx.validator is None:
            raise ValueError("wat: expected held-out training samples to weigh by, got none; use a recipe with holdout")

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """TRADES' loss times the weight of the class and that of all."""
        terms = super().loss(model, batch, adv, ctx)
        weight = of_class(self.weights[:-1] + self.weights[-1], batch.y, terms.loss.dtype)
        return replace(terms, loss=weight * terms.loss)

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        """Add the losses on held-out training samples to the costs, and update the weights."""
        y, clean, adv = ctx.validate(_InnerAttack(self, ctx), model)
        cost = cross_entropy(clean, y) + self.beta * kl_logits(clean, adv)
        self.costs += self._means(cost, y)
        self.weights.copy_(self.num_classes * (self.eta * self.costs).softmax(0))

    def _means(self, cost: Tensor, y: Tensor) -> Tensor:
        """Class means and overall mean of held-out costs (V,); (K + 1,)."""
        sums, counts = (class_sums(values, y, self.num_classes) for values in (cost, torch.ones_like(cost)))
        if self.costs_mean == "exact":
            return torch.cat([class_means(sums, counts), sums.sum()[None] / len(y)])
        full = -(-len(y) // RELEASED_BATCH) * RELEASED_BATCH
        return torch.cat([sums * self.num_classes, sums.sum()[None]]) / full


@dataclass(frozen=True)
class _InnerAttack:
    """The inner problem of a method as an attack on held-out samples."""

    method: Method
    ctx: Context
    stages = ()

    @property
    def threat(self) -> ThreatModel:
        """Norm and radius of the method."""
        return ThreatModel(self.method.norm, self.method.eps)

    def passes(self, num_classes: int) -> Passes:
        """The steps and the clean reference."""
        return Passes(forward=self.method.steps + 1, input_grad=self.method.steps)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Adversarial inputs like x."""
        batch = Batch(x, y, torch.arange(len(y), device=y.device), y)
        return self.method.perturb(model, batch, replace(self.ctx, generator=generator)).x
