"""TRADES (Zhang et al., ICML 2019, arXiv:1901.08573).

Inner problem:  maximise  KL(p(x) || p(x'))  over the eps-ball: 10 sign steps of 0.007 at eps 0.031 from x + 0.001 N(0,
                1), model in eval mode.
Outer problem:  minimise  mean CE(S(x), y) + beta KL(p(x) || p(x')),  KL summed over classes, gradients through both.
State:          none.
Defaults:       beta 6; 76 epochs, SGD 0.1 / 0.9 / 2e-4, rate x 0.1 from epoch 75 (counted from 1), batch 128. [read
                in the released code; note eps 0.031, not 8/255 = 0.0314]
Departures:     the script makes two clean forwards in train mode, so that BatchNorm sees the clean batch twice; here
                once. p(x) of the attack is computed once instead of at every step; the value is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attacks import objectives
from attacks.contexts import mode
from attacks.passes import Passes
from attacks.plugins.ranges import NonNegative, Positive
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import cross_entropy, kl_logits
from methods.recipes import Recipe, digits
from methods.registry import register


@register("trades")
class TRADES(Method):
    """Cross-entropy on clean inputs plus a penalty on the divergence of clean and adversarial predictions.

    Args:
        beta: weight of the divergence.
    """

    recipes = {
        "paper": Recipe(
            epochs=76, lr=0.1, milestones=(74,), weight_decay=2e-4, augment="crop_flip", source="released script"
        ),
        "digits": digits(),
        "digits_teacher": digits(epochs=50, milestones=(37, 45)),
    }  # fmt: skip

    def __init__(
        self, *, beta: NonNegative = 6.0, eps: Positive = 0.031, step_size: Positive = 0.007, **inner: Any
    ) -> None:
        super().__init__(eps=eps, step_size=step_size, **inner)
        self.beta = beta

    def passes(self) -> Passes:
        """Adversarial training, the reference of the attack, and the clean forward."""
        return Passes(forward=self.steps + 3, input_grad=self.steps, backward=2)

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise the divergence from the clean prediction."""
        return Adversarial(self.ascend(model, batch.x, divergence_from(model, batch), ctx, start="gaussian"))

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """CE(S(x), y) + beta KL(p(x) || p(x'))."""
        clean, logits = model(batch.x), model(adv.x)
        loss = cross_entropy(clean, batch.y) + self.beta * kl_logits(clean, logits)
        return Terms(loss, {"adv": logits, "clean": clean})


def divergence_from(model: nn.Module, batch: Batch) -> objectives.Objective:
    """KL(p(x) || .) with p(x) of the model in eval mode, computed once."""
    with mode(model, train=False), torch.no_grad():
        return objectives.kl(model(batch.x).softmax(1))
