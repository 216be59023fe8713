"""CFA, class-wise calibrated fair adversarial training (Wei et al., CVPR 2023, arXiv:2303.14460).

The calibration alone. What the paper calls CFA has a weight average besides, FAWA: `--methods fawa:cfa`.

Inner problem:  the host's, 10 steps of 2/255, within the radius eps s_y. AT: CE(S(x'), y), uniform start clipped to
                the box, model in train mode. TRADES: KL(p(x) || p(x')), Gaussian start, eval mode. FAT: as AT, but
                the step from its third misclassified iterate is a sample's last; it stays in the batch.
Outer problem:  minimise mean CE(S(x'), y) with AT and FAT; mean (CE(S(x), y) + b_y KL(p(x) || p(x'))) / (1 + b_y) with
                TRADES, gradients through both.
State:          accuracy (K,): the classes' accuracy on the adversarial training samples of the last epoch, of the
                logits that the loss sees. From `begin_epoch_index` on it sets the next epoch's radius_scale s =
                eps_base + accuracy and beta_scale, b = beta (beta_base + accuracy); before, both scales are 1.
Defaults:       eps 8/255, eps_base 0.5 (AT), 0.3 (TRADES), 0.7 (FAT), beta_base 0.5, beta 6 [read in the paper];
                calibration from epoch 10 (counted from 0); 200 epochs, SGD 0.1 / 0.9 / 5e-4, drops at 100 and 150,
                batch 128, crops with reflection padding; WRN-34-10 100 epochs, drops at 75 and 90. [read in the
                released code]
Departures:     the paper's Algorithm 1 prints eps where b_k needs beta, a misprint; the release has beta. Division by
                1 + b_y makes host TRADES smaller than `trades` by that factor, as released. The release makes more
                forwards in train mode, of which only BatchNorm's statistics know: a clean one for logging after each
                step, with TRADES a second clean one in the loss, with FAT a second one of x'.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks import objectives
from attacks.passes import Passes
from attacks.plugins.ranges import Index, NonNegative, Positive
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import class_means, class_sums, cross_entropy, kl_logits, of_class
from methods.recipes import RICE, Recipe, digits
from methods.registry import register
from methods.trades import divergence_from

EPS_BASE = {"at": 0.5, "trades": 0.3, "fat": 0.7}
FAT_GRACE = 3


@register("cfa")
class CFA(Method):
    """Class-wise radii and class-wise TRADES weights that follow the classes' robust training accuracy.

    Args:
        host: "at", "trades" or "fat".
        beta: weight of TRADES' divergence.
        eps_base: radius scale of a class without accuracy, lambda_1 in the paper; None takes the host's.
        beta_base: the same of beta, lambda_2.
        class_eps: whether radii are calibrated (CCM).
        class_beta: whether TRADES' weights are (CCR).
        begin_epoch_index: first epoch, counted from 0, that is calibrated.
    """

    recipes = {
        "paper": replace(RICE, source="released script, PreActResNet-18"),
        "wrn34_10": Recipe(
            epochs=100, lr=0.1, milestones=(75, 90), augment="crop_flip_reflect", settings={"begin_epoch_index": 10},
            source="released script, WRN-34-10",
        ),
        "digits": digits(),
    }  # fmt: skip
    epoch_settings = ("begin_epoch_index",)
    reported = ("accuracy", "radius_scale", "beta_scale")
    drops_rows = True  # the attack of host "fat" ends with its last moving sample
    option_revisions = {"host": "fat"}

    accuracy: Tensor
    radius_scale: Tensor
    beta_scale: Tensor
    counts: Tensor

    def __init__(
        self,
        *,
        host: Literal["at", "trades", "fat"] = "at",
        beta: NonNegative = 6.0,
        eps_base: Positive | None = None,
        beta_base: NonNegative = 0.5,
        class_eps: bool = True,
        class_beta: bool = True,
        begin_epoch_index: Index = 10,
        **inner: Any,
    ) -> None:
        super().__init__(**inner)
        self.host: Literal["at", "trades", "fat"] = host
        self.beta, self.eps_base, self.beta_base = beta, eps_base, beta_base
        self.class_eps, self.class_beta, self.begin_epoch_index = class_eps, class_beta, begin_epoch_index
        for name in ("radius_scale", "beta_scale"):
            self.register_buffer(name, torch.ones(self.num_classes, dtype=torch.float64))
        self.register_buffer("accuracy", torch.zeros(self.num_classes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(2, self.num_classes, dtype=torch.float64))  # right, seen

    def passes(self) -> Passes:
        """As the host."""
        trades = self.host == "trades"
        return Passes(forward=self.steps + (3 if trades else 1), input_grad=self.steps, backward=2 if trades else 1)

    def setup(self, model: nn.Module, ctx: Context) -> None:
        """Refuse a run that would end before calibration begins."""
        if self.begin_epoch_index >= ctx.epochs:
            raise ValueError(
                f"cfa: calibration begins in epoch {self.begin_epoch_index} and the run has {ctx.epochs}; "
                "train longer or lower cfa.begin_epoch_index"
            )

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise the host's objective within class-wise radii."""
        radius = self.eps * self.radius_scale[batch.y]
        if self.host == "trades":
            objective = divergence_from(model, batch)
            return Adversarial(self.ascend(model, batch.x, objective, ctx, start="gaussian", eps=radius))
        objective = objectives.cross_entropy(batch.y)
        friendly = _Friendly(batch, self.step_size) if self.host == "fat" else None
        x_adv = self.ascend(
            model, batch.x, objective, ctx, start="uniform", eps=radius, bn="train",
            step_size=None if friendly is None else friendly.step_size, observe=friendly,
        )  # fmt: skip
        return Adversarial(x_adv)

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """The host's loss, TRADES with class-wise weights."""
        if self.host != "trades":
            logits = model(adv.x)
            return Terms(cross_entropy(logits, batch.y), {"adv": logits})
        clean, logits = model(batch.x), model(adv.x)
        beta = of_class(self.beta * self.beta_scale, batch.y, batch.x.dtype)
        loss = (cross_entropy(clean, batch.y) + beta * kl_logits(clean, logits)) / (1 + beta)
        return Terms(loss, {"adv": logits, "clean": clean})

    def observe(self, batch: Batch, adv: Adversarial, terms: Terms, ctx: Context) -> None:
        """Count samples by class, and those that are right under attack."""
        right = terms.logits["adv"].detach().argmax(1) == batch.y
        for row, values in enumerate((right, torch.ones_like(right))):
            self.counts[row] += class_sums(values, batch.y, self.num_classes)

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        """Record the accuracies, and calibrate the next epoch by them."""
        self.accuracy.copy_(class_means(*ctx.reduce(self.counts)))
        if ctx.epoch + 1 >= self.begin_epoch_index:
            base = EPS_BASE[self.host] if self.eps_base is None else self.eps_base
            if self.class_eps:
                self.radius_scale.copy_(base + self.accuracy)
            if self.class_beta and self.host == "trades":
                self.beta_scale.copy_(self.beta_base + self.accuracy)
        self.counts.zero_()


class _Friendly:
    """An observer that sets the steps of a sample to 0 after the one from its third misclassified iterate.

    Such samples are still passed: BatchNorm, in train mode, normalises by the whole batch.
    """

    def __init__(self, batch: Batch, step_size: float) -> None:
        self.y, self.grace_left = batch.y, torch.full_like(batch.y, FAT_GRACE)
        self.step_size = torch.full((len(batch.y),), step_size, dtype=batch.x.dtype, device=batch.x.device)

    def __call__(self, step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> Tensor | None:
        moves = self.grace_left > 0
        self.step_size.mul_(moves)
        self.grace_left -= (moves & (logits.argmax(1) != self.y)).long()
        return None if moves.any() else rows[:0]
