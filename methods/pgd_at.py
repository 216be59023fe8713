"""PGD adversarial training (Madry et al., ICLR 2018, arXiv:1706.06083; schedule of Rice et al., ICML 2020).

Inner problem:  maximise  CE(S(x'), y)  over the eps-ball: 10 sign steps of 2/255 at eps 8/255 from a uniform start
                clipped to the box. The model is in train mode during the attack, so BatchNorm uses and moves batch
                statistics at each of the steps.
Outer problem:  minimise  mean CE(S(x'), y).
State:          none.
Defaults:       Rice et al.'s script: 200 epochs, SGD 0.1 / 0.9 / 5e-4, drops at 100 and 150, batch 128, crops with
                reflection padding. [read in the released code]
Departures:     the script's last attack forward only serves the choice among restarts, and a forward for logging
                follows each step; neither is made here, so BatchNorm moves 11 times a step and not 13. The learning
                rate drops at epoch boundaries, one step later than there. `bn="eval"` attacks in eval mode.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from attacks import objectives
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import cross_entropy
from methods.registry import register


@register("pgd_at")
class PGDAT(Method):
    """Cross-entropy on adversarial inputs.

    Args:
        bn: mode of the model during the attack, "train" or "eval".
    """

    def __init__(self, *, bn: Literal["train", "eval"] = "train", **inner: Any) -> None:
        super().__init__(**inner)
        self.bn: Literal["train", "eval"] = bn

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise cross-entropy."""
        objective = objectives.cross_entropy(batch.y)
        return Adversarial(self.ascend(model, batch.x, objective, ctx, start="uniform", bn=self.bn))

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """CE(S(x'), y)."""
        logits = model(adv.x)
        return Terms(cross_entropy(logits, batch.y), {"adv": logits})
