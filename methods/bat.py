"""BAT, balance adversarial training (Sun et al., AAAI 2023, arXiv:2209.07534).

Inner problem:  maximise KL(p(x) || p(x')): 10 sign steps of 0.007 at eps 0.031 from x + 0.001 N(0, 1) clipped to the
                box, model in eval mode, samples leaving early. x_last is the last iterate before the first that is
                misclassified (the start, if that is it), x_first the one that is misclassified for the second time;
                where that never happens, the last iterate.
Outer problem:  minimise mean CE(S(x_last), y) + beta KL(p(x) || p(x_first)) + KL(p(x_last) || u) + KL(p(x_first) ||
                u), u uniform, KL summed over classes, gradients through both arguments.
State:          none.
Defaults:       beta 6, weight 1 on the uniform terms; 200 epochs, SGD 0.1 / 0.9 / 2e-4, rate x 0.1 from epochs 75, 90,
                100 (counted from 1), batch 128. [read in the released code; the paper's weights are unknown to us]
Departures:     the release makes one grace step after the first misclassified iterate of x_first; `grace=0` stops at
                the first [what the name says; inferred]. It attacks twice from two starts; `shared_trace=True` reads
                both points off one attack, for half the cost. p(x) is computed once; the value is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attacks.objectives import Objective
from attacks.passes import Passes
from attacks.plugins.ranges import Index, NonNegative, Positive
from attacks.threat import per_sample, project, starting_point
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import cross_entropy, kl_logits
from methods.recipes import Recipe, digits
from methods.registry import register
from methods.trades import divergence_from


@register("bat")
class BAT(Method):
    """Cross-entropy just before the boundary, divergence just behind it.

    Args:
        beta: weight of the divergence from the clean prediction.
        uniform_weight: weight of the divergences from the uniform distribution.
        grace: misclassified iterates of x_first from which the attack goes on.
        shared_trace: whether one attack gives both points.
    """

    recipes = {
        "paper": Recipe(
            epochs=200, lr=0.1, milestones=(74, 89, 99), weight_decay=2e-4, augment="crop_flip",
            source="released script",
        ),
        "digits": digits(),
    }  # fmt: skip
    drops_rows = True

    def __init__(
        self,
        *,
        beta: NonNegative = 6.0,
        uniform_weight: NonNegative = 1.0,
        grace: Index = 1,
        shared_trace: bool = False,
        eps: Positive = 0.031,
        step_size: Positive = 0.007,
        **inner: Any,
    ) -> None:
        super().__init__(eps=eps, step_size=step_size, **inner)
        self.beta, self.uniform_weight, self.grace, self.shared_trace = beta, uniform_weight, grace, shared_trace

    def passes(self) -> Passes:
        """One attack or two, their reference, and three training passes."""
        steps = self.steps if self.shared_trace else 2 * self.steps
        return Passes(forward=steps + 4, input_grad=steps, backward=3)

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise the divergence from the clean prediction until the boundary is crossed."""
        objective = divergence_from(model, batch)
        exits = EarlyExit(batch.y, self.grace if self.shared_trace else 0)
        x_first = self._attack(model, batch, ctx, objective, exits)
        x_last = exits.last_correct(x_first)
        if not self.shared_trace:
            x_first = self._attack(model, batch, ctx, objective, EarlyExit(batch.y, self.grace))
        return Adversarial(x_first, extras={"last": x_last})

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """CE(S(x_last), y) + beta KL(p(x) || p(x_first)) and the divergences of both from uniform."""
        last, first, clean = model(adv.extras["last"]), model(adv.x), model(batch.x)
        loss = cross_entropy(last, batch.y) + self.beta * kl_logits(clean, first)
        uniform = torch.zeros_like(first)
        loss = loss + self.uniform_weight * (kl_logits(last, uniform) + kl_logits(first, uniform))
        return Terms(loss, {"adv": first, "clean": clean})

    def _attack(self, model: nn.Module, batch: Batch, ctx: Context, objective: Objective, exits: EarlyExit) -> Tensor:
        start = starting_point(batch.x, "gaussian", self.eps, self.norm, ctx.generator)
        start = project(start, batch.x, self.eps, self.norm)
        return self.ascend(model, batch.x, objective, ctx, start=start, observe=exits)


class EarlyExit:
    """An observer that stops a sample at a misclassified iterate, as in friendly adversarial training.

    Args:
        y: (N,) labels.
        grace: misclassified iterates at which a sample still goes on; it stops at the next.
    """

    def __init__(self, y: Tensor, grace: int) -> None:
        self.y, self.grace_left = y, torch.full_like(y, grace + 1)
        self.crossed = torch.zeros_like(y, dtype=torch.bool)
        self.last: Tensor | None = None

    def __call__(self, step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Record correctly classified iterates, and keep the samples that have grace left."""
        wrong = logits.argmax(1) != self.y[rows]
        self.crossed[rows] |= wrong
        if self.last is None:
            self.last = x_adv.clone()
        else:
            crossed = per_sample(self.crossed[rows], x_adv).bool()
            self.last[rows] = torch.where(crossed, self.last[rows], x_adv)
        self.grace_left[rows] -= wrong.long()
        return self.grace_left[rows] > 0

    def last_correct(self, end: Tensor) -> Tensor:
        """The last iterate before the first misclassified one (N, ...); `end` of the ascent where there is none."""
        if self.last is None:
            return end
        return torch.where(per_sample(self.crossed, end).bool(), self.last, end)
