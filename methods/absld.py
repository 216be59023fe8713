"""ABSLD, anti-bias soft label distillation (Zhao et al., arXiv:2312.05508).

Inner problem:  RSLAD's, with the target softmax(T(x) / tau_adv[y]).
Outer problem:  minimise  5/6 KL(softmax(T(x) / tau_adv[y]) || p_S(x')) + 1/6 KL(softmax(T(x) / tau_clean[y]) ||
                p_S(x)), summed over classes, divided by 10. The student stays at temperature 1; no tau^2 factor.
State:          tau_adv, tau_clean (K,), ones at first. At the end of an epoch, from the class means E of the
                cross-entropy with the hard label, of the same logits as in the loss, g = E - mean(E): tau <-
                clamp(tau - rate g / max|g|, 0.5, 5). Harder classes than average get sharper labels.
Defaults:       rate 0.1, x 0.1 at epochs 215, 260, 285 before that epoch's update; all else as RSLAD. [read in the
                released code; that the two temperatures are meant to act separately is inferred from the variables'
                names]
Departures:     in the released script both tempered logits share one tensor and are divided in place, so that both
                losses and the attack use T(x) / (tau_adv tau_clean): `temperature_mode="product"`. It uses class
                sums, which on balanced data move tau as class means do. It cannot run past its first checkpoint (an
                undefined name) and selects on the test set.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.plugins.ranges import Index, NonNegative, Positive
from methods.base import Adversarial, Batch, Context, Terms
from methods.losses import class_means, class_sums, cross_entropy, tempered
from methods.registry import register
from methods.rslad import RSLAD


@register("absld")
class ABSLD(RSLAD):
    """RSLAD with a temperature per class on the teacher's logits.

    Args:
        temperature_rate: how far the most extreme class moves per epoch.
        temperature_min, temperature_max: bounds of the temperatures.
        temperature_mode: "separate" (intended) or "product" (released).
        rate_milestones: epochs, counted from 0, from which the rate is cut by 10.
    """

    epoch_settings = ("rate_milestones",)
    reported = ("temperature_adv", "temperature_clean")

    temperature_adv: Tensor
    temperature_clean: Tensor
    sums: Tensor

    def __init__(
        self,
        *,
        temperature_rate: NonNegative = 0.1,
        temperature_min: Positive = 0.5,
        temperature_max: Positive = 5.0,
        temperature_mode: Literal["separate", "product"] = "separate",
        rate_milestones: tuple[Index, ...] = (214, 259, 284),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.temperature_rate, self.temperature_mode = temperature_rate, temperature_mode
        self.temperature_min, self.temperature_max = temperature_min, temperature_max
        self.rate_milestones = rate_milestones
        self.register_buffer("temperature_adv", torch.ones(self.num_classes, dtype=torch.float64))
        self.register_buffer("temperature_clean", torch.ones(self.num_classes, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(3, self.num_classes, dtype=torch.float64))  # adv, clean, counts

    def soft_labels(self, teacher_logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (N, K) at the temperatures of each sample's class."""
        adv, clean = self.temperature_adv, self.temperature_clean
        if self.temperature_mode == "product":
            adv = clean = adv * clean
        return tempered(teacher_logits, adv, y), tempered(teacher_logits, clean, y)

    def observe(self, batch: Batch, adv: Adversarial, terms: Terms, ctx: Context) -> None:
        """Add the step's class sums of cross-entropy."""
        losses = [cross_entropy(terms.logits[view].detach(), batch.y) for view in ("adv", "clean")]
        self.sums += class_sums(torch.stack([*losses, torch.ones_like(losses[0])]), batch.y, self.num_classes)

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        """Update both temperatures, and reset the sums."""
        sums = ctx.reduce(self.sums)
        rate = self.temperature_rate * 0.1 ** sum(ctx.epoch >= m for m in self.rate_milestones)
        for row, tau in enumerate((self.temperature_adv, self.temperature_clean)):
            gap = class_means(sums[row], sums[2])
            gap = gap - gap.mean()
            # Where all classes are equally hard, up to rounding, there is no direction to move in.
            step = rate * gap / gap.abs().max().clamp_min(1e-9)
            tau.copy_((tau - step).clamp(self.temperature_min, self.temperature_max))
        self.sums.zero_()
