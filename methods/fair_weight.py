"""The class weights of Fair-ARD (Yue et al., NeurIPS 2023), around any method: `fair_weight:ard`, `fair_weight:absld`.

Inner problem:  the host's; of each sample, kappa_i counts the points on the attack's way, the start included and the
                end not, at which the student is right.
Outer problem:  the host's per-sample loss times w[y].
State:          w (K,), ones at first. At the end of an epoch, from the class means kappa_k of the counts: w_k =
                (kappa_k + 1e-5)^-power, scaled to sum K, then clamped to [5/6, 5/2] and not scaled again. Classes that
                fall early in the attack weigh more.
Defaults:       power 2, bounds 5/6 and 5/2. [read in the released code]
Departures:     class means over the samples seen, where the release divides by N / K, which is the same on balanced
                data. Where a host drops rows within its attack, those that it keeps are counted; if it attacks twice,
                the points of both attacks are. At power 0 all weights are 1: the host bit for bit. With ABSLD and
                others outside the paper the composition is ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.plugins.ranges import NonNegative, at_least, between
from methods.base import HIDDEN, Adversarial, Batch, Context, Terms
from methods.losses import class_means, class_sums, of_class
from methods.registry import COMPOSITIONS
from methods.wrapper import Wrapper

KAPPA = "fair_kappa"


@COMPOSITIONS.register("fair_weight")
class FairWeight(Wrapper):
    """Class weights on the host's loss that follow how soon the samples of a class fall in its attack.

    Args:
        fair_power: exponent of the class means of kappa; 0 is the bare method.
        fair_min, fair_max: bounds of the weights.
    """

    reported: ClassVar[tuple[str, ...]] = ("fair_weight",)

    fair_weight: Tensor
    fair_sums: Tensor

    def __init__(
        self,
        *,
        fair_power: NonNegative = 2.0,
        fair_min: Annotated[float, between(0, 1, open_low=True)] = 5 / 6,
        fair_max: Annotated[float, at_least(1)] = 5 / 2,
        **host: Any,
    ) -> None:
        super().__init__(**host)
        self.fair_power, self.fair_min, self.fair_max = fair_power, fair_min, fair_max
        self.register_buffer("fair_weight", torch.ones(self.num_classes, dtype=torch.float64))
        self.register_buffer("fair_sums", torch.zeros(2, self.num_classes, dtype=torch.float64))  # kappa, samples

    def visible_labels(self, y: Tensor) -> Tensor:
        """Refuse a host that hides labels: its samples have no class to be weighted by."""
        seen = super().visible_labels(y)
        if bool((seen == HIDDEN).any()):
            raise ValueError(
                "fair_weight: expected a host that reads every label, got one that hides some; take another"
            )
        return seen

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """The host's attack, with an observer that counts correct iterates."""
        counter = KappaCounter(batch.y)
        adv = super().perturb(model, batch, replace(ctx, watchers=(*ctx.watchers, counter)))
        return replace(adv, extras={**adv.extras, KAPPA: adv.of(counter.correct)})

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """The host's loss, weighted by class."""
        terms = super().loss(model, batch, adv, ctx)
        return replace(terms, loss=of_class(self.fair_weight, adv.of(batch.y), terms.loss.dtype) * terms.loss)

    def observe(self, batch: Batch, adv: Adversarial, terms: Terms, ctx: Context) -> None:
        """Add the step's class sums of kappa."""
        super().observe(batch, adv, terms, ctx)
        y, kappa = adv.of(batch.y), adv.extras[KAPPA]
        for row, values in enumerate((kappa, torch.ones_like(kappa))):
            self.fair_sums[row] += class_sums(values, y, self.num_classes)

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        """Update the weights from the epoch's class means, and reset the sums."""
        super().end_epoch(model, ctx)
        kappa = class_means(*ctx.reduce(self.fair_sums))
        raw = (kappa + 1e-5) ** -self.fair_power
        self.fair_weight.copy_((raw * (self.num_classes / raw.sum())).clamp(self.fair_min, self.fair_max))
        self.fair_sums.zero_()


class KappaCounter:
    """An observer that counts for each sample the iterates that are classified correctly."""

    def __init__(self, y: Tensor) -> None:
        self.y = y
        self.correct = torch.zeros(len(y), device=y.device)

    def __call__(self, step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> None:
        """Count one iterate."""
        self.correct[rows] += (logits.argmax(1) == self.y[rows]).to(self.correct.dtype)
