"""FRL, fair robust learning (Xu et al., ICML 2021, arXiv:2010.06121): Reweight, and Reweight + Remargin.

Inner problem:  TRADES' divergence, 10 steps of 2/255 from a Gaussian start, eval mode; the radius of a sample is eps
                s_y, and all steps of a batch are as long as its largest radius / 4.
Outer problem:  minimise  sum_i w0_y CE_i / sum_i w0_y + beta sum_i w1_y KL(p(x) || p(x'))_i / sum_i w1_y, w0_k = 1/K +
                l0_k - mean(l0), w1 from l1 alike. The sums run over the optimiser step.
State:          multipliers l0, l1, l2 (K,), all zero at first. Before every epoch, from class errors under PGD-20 on
                held-out training samples, e_k clean, b_k boundary (clean minus robust accuracy), e and b overall: l0
                <- P(l0 + r (e_k - e - delta)),  l1 <- P(l1 + 2 r (b_k - b - delta)), P clamps at 0 and rescales to sum
                `limit` what exceeds it;  Remargin: l2 <- l2 + r2 (b_k - b - delta), s = clamp(exp(2 l2), 0.98, 3).
Defaults:       starts from a robust model; 40 epochs, SGD 0.001 / 0.9 / 5e-4, batch 128, beta 1.5, r 0.05 halved in
                the last of 40 epochs, limit 0.5; delta 0.1 (Reweight), 0.07 (with Remargin, r2 0.2). [read in the
                released code; the paper's constraints are known to us from a third-party account]
Departures:     the released start `hot_start.pt` is trained elsewhere; here it is the run of pgd_at in the same plan.
                The released scripts save no checkpoint, and pass the clean batch in train mode again behind the
                adversarial one, so that BatchNorm sees it twice; here once. Remargin alone, gone from the release, is
                not offered.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.passes import Passes
from attacks.pgd import PGD
from attacks.plugins.ranges import Count, NonNegative, Positive
from attacks.threat import ThreatModel
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import class_means, class_sums, cross_entropy, kl_logits, of_class, step_share
from methods.recipes import Recipe, digits
from methods.registry import register
from methods.trades import divergence_from


@register("frl")
class FRL(Method):
    """Reweight: class weights on the clean and the boundary loss, moved by held-out class errors.

    Args:
        beta: weight of the boundary loss.
        delta: slack of the constraints on class errors, as a fraction.
        rate: step of the multipliers l0; l1 moves twice as fast.
        halve_every: epochs after which the rate halves.
        limit: bound on the sum of the multipliers.
        margin_rate: step of the margin multipliers l2; 0 keeps all radii at eps.
        min_scale, max_scale: bounds of the radius scale s.
    """

    recipes = {
        "paper": Recipe(epochs=40, lr=0.001, augment="crop_flip", source="released training script"),
        "digits": digits(epochs=10, lr=0.01, milestones=()),
    }
    warm_start = "pgd_at"
    epoch_settings = ("halve_every",)
    reported: ClassVar[tuple[str, ...]] = ("weight_clean", "weight_boundary")

    multiplier_clean: Tensor
    multiplier_boundary: Tensor
    multiplier_margin: Tensor

    def __init__(
        self,
        *,
        beta: NonNegative = 1.5,
        delta: NonNegative = 0.1,
        rate: NonNegative = 0.05,
        halve_every: Count = 40,
        limit: NonNegative = 0.5,
        margin_rate: NonNegative = 0.0,
        min_scale: Positive = 0.98,
        max_scale: Positive = 2.5,
        **inner: Any,
    ) -> None:
        super().__init__(**inner)
        self.beta, self.delta, self.rate, self.halve_every, self.limit = beta, delta, rate, halve_every, limit
        self.margin_rate, self.min_scale, self.max_scale = margin_rate, min_scale, max_scale
        for name in ("clean", "boundary", "margin"):
            self.register_buffer(f"multiplier_{name}", torch.zeros(self.num_classes, dtype=torch.float64))

    @property
    def weight_clean(self) -> Tensor:
        """Class weights (K,) of the clean loss; they sum to 1."""
        return class_weights(self.multiplier_clean)

    @property
    def weight_boundary(self) -> Tensor:
        """Class weights (K,) of the boundary loss; they sum to 1."""
        return class_weights(self.multiplier_boundary)

    @property
    def radius_scale(self) -> Tensor:
        """Factor (K,) on the radius of each class."""
        return (2 * self.multiplier_margin).exp().clamp(self.min_scale, self.max_scale)

    def passes(self) -> Passes:
        """As TRADES."""
        return Passes(forward=self.steps + 3, input_grad=self.steps, backward=2)

    def setup(self, model: nn.Module, ctx: Context) -> None:
        """Refuse a run without held-out samples, whose errors move the multipliers."""
        if ctx.validator is None:
            raise ValueError("frl: expected held-out training samples to weigh by, got none; use recipe.holdout=true")

    def begin_epoch(self, model: nn.Module, ctx: Context) -> None:
        """Move the multipliers by the class errors on held-out training samples."""
        attack = PGD(ThreatModel(self.norm, self.eps), steps=20, step_size=self.step_size)
        y, clean, adv = ctx.validate(attack, model)
        dtype = self.multiplier_clean.dtype
        clean_right, adv_right = (clean.argmax(1) == y).to(dtype), (adv.argmax(1) == y).to(dtype)
        counts = class_sums(torch.ones_like(clean_right), y, self.num_classes)
        error = 1 - clean_right
        boundary = clean_right - adv_right
        gap_clean = class_means(class_sums(error, y, self.num_classes), counts) - error.mean() - self.delta
        gap_boundary = class_means(class_sums(boundary, y, self.num_classes), counts) - boundary.mean() - self.delta
        rate = self.rate * 0.5 ** ((ctx.epoch + 1) // max(1, self.halve_every))
        self.multiplier_clean.copy_(projected(self.multiplier_clean + rate * gap_clean, self.limit))
        self.multiplier_boundary.copy_(projected(self.multiplier_boundary + 2 * rate * gap_boundary, self.limit))
        self.multiplier_margin.add_(self.margin_rate * gap_boundary)

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise the divergence from the clean prediction within class-wise radii."""
        scale = of_class(self.radius_scale, batch.y, batch.x.dtype)
        largest = of_class(self.radius_scale, batch.step_labels, batch.x.dtype).max()
        x_adv = self.ascend(
            model, batch.x, divergence_from(model, batch), ctx,
            start="gaussian", eps=self.eps * scale, step_size=self.step_size * largest,
        )  # fmt: skip
        return Adversarial(x_adv)

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """Clean and boundary loss, each with its class weights normalised over the step."""
        clean, logits = model(batch.x), model(adv.x)
        loss = self._share(self.weight_clean, batch) * cross_entropy(clean, batch.y)
        loss = loss + self.beta * self._share(self.weight_boundary, batch) * kl_logits(clean, logits)
        return Terms(loss, {"adv": logits, "clean": clean})

    def _share(self, weight: Tensor, batch: Batch) -> Tensor:
        """Per-sample factors whose mean over the step is 1; (N,)."""
        return step_share(weight, batch.y, batch.step_labels, batch.x.dtype)


@register("frl_remargin")
class FRLRemargin(FRL):
    """Reweight + Remargin: besides the weights, classes with a large boundary error train at larger radii."""

    reported = ("weight_clean", "weight_boundary", "radius_scale")

    def __init__(
        self, *, delta: NonNegative = 0.07, margin_rate: NonNegative = 0.2, max_scale: Positive = 3.0, **options: Any
    ) -> None:
        super().__init__(delta=delta, margin_rate=margin_rate, max_scale=max_scale, **options)


def class_weights(multiplier: Tensor) -> Tensor:
    """Class weights 1/K + l_k - mean(l) from multipliers l (K,)."""
    return 1 / len(multiplier) + multiplier - multiplier.mean()


def projected(multiplier: Tensor, limit: float) -> Tensor:
    """Multipliers clamped at 0, rescaled to sum `limit` where their sum exceeds it."""
    clamped = multiplier.clamp_min(0)
    return clamped * (limit / clamped.sum().clamp_min(limit))
