"""RSLAD, robust soft label adversarial distillation (Zi et al., ICCV 2021, arXiv:2108.07969).

Inner problem:  maximise  KL(p_T(x) || p_S(x'))  over the eps-ball: 10 sign steps of 2/255 at eps 8/255 from x + 0.001
                N(0, 1), student in eval mode; the teacher sees the clean input, once.
Outer problem:  minimise  5/6 KL(p_T(x) || p_S(x')) + 1/6 KL(p_T(x) || p_S(x)),  summed over classes, divided by 10. No
                hard labels.
State:          none.
Defaults:       300 epochs, SGD 0.1 / 0.9 / 2e-4, drops after epochs 215, 260 and 285, batch 128; forwards in the
                order adversarial, clean. [read in the released code]
Departures:     the release takes a mean over batch and classes, times 10 on CIFAR-100 "to keep consistent": both
                amount to the sum over classes / 10, which is used for any K (`scale`). Its 1e-5 inside the logarithm
                of the target does not reach the student and is left out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from attacks import objectives
from attacks.passes import Passes
from attacks.plugins.ranges import Fraction, Positive
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import kl
from methods.recipes import Recipe, digits, short
from methods.registry import register

PAPER = Recipe(
    epochs=300, lr=0.1, milestones=(215, 260, 285), weight_decay=2e-4, augment="crop_flip", source="released script"
)
RECIPES = {
    "paper": PAPER,
    "short": short(PAPER, scale=0.1),
    "digits": digits(scale=0.1),
}


@register("rslad")
class RSLAD(Method):
    """Distillation of a robust teacher's clean predictions, in the attack and in both terms of the loss.

    Args:
        adv_weight: share of the adversarial term.
        scale: factor on the whole loss.
    """

    recipes = RECIPES
    teachers = ("robust",)

    def __init__(self, *, adv_weight: Fraction = 5 / 6, scale: Positive = 0.1, **inner: Any) -> None:
        super().__init__(**inner)
        self.adv_weight, self.scale = adv_weight, scale

    def passes(self) -> Passes:
        """Adversarial training, the clean forward, and one teacher forward."""
        return Passes(forward=self.steps + 2, input_grad=self.steps, backward=2, teacher=1)

    def soft_labels(self, teacher_logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (N, K) of the adversarial and of the clean term; here the same."""
        soft = teacher_logits.softmax(1)
        return soft, soft

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise the divergence from the teacher's clean prediction."""
        soft_adv, soft_clean = self.soft_labels(ctx.teacher("robust", batch.x), batch.y)
        x_adv = self.ascend(model, batch.x, objectives.kl(soft_adv), ctx, start="gaussian")
        return Adversarial(x_adv, extras={"soft_adv": soft_adv, "soft_clean": soft_clean})

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """The two divergences, weighted."""
        logits = model(adv.x)
        clean = model(batch.x)
        loss = self.adv_weight * kl(adv.extras["soft_adv"], logits)
        loss = loss + (1 - self.adv_weight) * kl(adv.extras["soft_clean"], clean)
        return Terms(self.scale * loss, {"adv": logits, "clean": clean})
