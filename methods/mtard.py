"""MTARD, multi-teacher adversarial distillation (Zhao et al., ECCV 2022).

Inner problem:  maximise  CE(S(x'), y)  over the eps-ball: 10 sign steps of 2/255 at eps 8/255 from x + 0.001 N(0, 1),
                student in eval mode.
Outer problem:  minimise  (1 - w) KL(p_Ta(x') || p_S(x')) + w KL(p_Tn(x) || p_S(x)),  summed over classes, divided by
                10; Ta a robust teacher, on the adversarial input, Tn a natural one, on the clean input. No hard labels.
State:          w, a number, 1/2 at first. Every step, with r_a and r_n the two terms over their values in the first
                step: w <- w - rate (w - r_n / (r_a + r_n)). The term that has fallen less weighs more.
Defaults:       rate 0.025, x 0.1 from epochs 215, 260, 285; 300 epochs, SGD 0.1 / 0.9 / 2e-4, drops at the same
                epochs, batch 128; forwards in the order adversarial, clean. [read in the released code]
Departures:     the release moves w by a batch's own terms before it weighs them; here a step is weighed by the w that
                the steps before it left, since its micro-batches must agree on one. Its 1e-5 in the logarithm of the
                target, which reaches w alone, is left out. The mean over batch and classes, times 10 on CIFAR-100, is
                the sum over classes / 10 for any K (`scale`). The released natural teacher is a network of its own;
                here it is trained by the plan unless --natural-teacher names one. B-MTARD, the extension with teacher
                temperatures, is not offered.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks import objectives
from attacks.passes import Passes
from attacks.plugins.ranges import Fraction, Index, Positive
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import kl
from methods.recipes import Recipe, digits, short
from methods.registry import register

PAPER = Recipe(
    epochs=300, lr=0.1, milestones=(215, 260, 285), weight_decay=2e-4, augment="crop_flip", source="released script"
)


@register("mtard")
class MTARD(Method):
    """Distillation of a robust teacher on adversarial and of a natural teacher on clean inputs, kept in balance.

    Args:
        natural_weight: w at first, the weight of the natural teacher's term.
        weight_rate: how far w moves per step towards the share of the term that has fallen less.
        rate_milestones: epochs, counted from 0, from which that rate is cut by 10.
        scale: factor on the whole loss.
    """

    recipes = {"paper": PAPER, "short": short(PAPER, scale=0.1), "digits": digits(scale=0.1)}
    teachers = ("robust", "natural")
    epoch_settings = ("rate_milestones",)
    reported: ClassVar[tuple[str, ...]] = ("natural_share",)

    natural_share: Tensor
    first: Tensor
    step_sums: Tensor

    def __init__(
        self,
        *,
        natural_weight: Fraction = 0.5,
        weight_rate: Fraction = 0.025,
        rate_milestones: tuple[Index, ...] = (215, 260, 285),
        scale: Positive = 0.1,
        **inner: Any,
    ) -> None:
        super().__init__(**inner)
        self.natural_weight, self.weight_rate, self.scale = natural_weight, weight_rate, scale
        self.rate_milestones = rate_milestones
        self.register_buffer("natural_share", torch.tensor(natural_weight, dtype=torch.float64))
        self.register_buffer("first", torch.zeros(2, dtype=torch.float64))  # the first step's terms: robust, natural
        self.register_buffer("step_sums", torch.zeros(3, dtype=torch.float64))  # of a step's terms, and their number

    def passes(self) -> Passes:
        """Adversarial training, the clean forward, and one forward of each teacher."""
        return Passes(forward=self.steps + 2, input_grad=self.steps, backward=2, teacher=2)

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise cross-entropy, and compute both teachers' soft labels."""
        x_adv = self.ascend(model, batch.x, objectives.cross_entropy(batch.y), ctx, start="gaussian")
        soft = {
            "soft_adv": ctx.teacher("robust", x_adv).softmax(1),
            "soft_clean": ctx.teacher("natural", batch.x).softmax(1),
        }
        return Adversarial(x_adv, extras=soft)

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """The two divergences, weighted by the current balance."""
        logits = model(adv.x)
        clean = model(batch.x)
        robust, natural = kl(adv.extras["soft_adv"], logits), kl(adv.extras["soft_clean"], clean)
        share = self.natural_share.to(robust.dtype)
        loss = self.scale * ((1 - share) * robust + share * natural)
        terms = {"robust": robust.detach(), "natural": natural.detach()}
        return Terms(loss, {"adv": logits, "clean": clean}, extras=terms)

    def observe(self, batch: Batch, adv: Adversarial, terms: Terms, ctx: Context) -> None:
        """Sum the step's terms."""
        values = torch.stack([terms.extras["robust"], terms.extras["natural"]]).to(self.first.dtype)
        self.step_sums.copy_(torch.cat([values.sum(1), values.new_full((1,), values.shape[1])]))

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """Update the balance from the ratio of the step's terms, over all processes, to those of the first step."""
        sums = ctx.reduce(self.step_sums)
        now = sums[:2] / sums[2].clamp_min(1)
        self.first.copy_(torch.where(self.first > 0, self.first, now))
        fallen = now / self.first.clamp_min(1e-12)
        # Terms that are both zero say nothing about the balance.
        target = torch.where(fallen.sum() > 0, fallen[1] / fallen.sum().clamp_min(1e-12), self.natural_share)
        rate = self.weight_rate * 0.1 ** sum(ctx.epoch >= m for m in self.rate_milestones)
        self.natural_share.sub_(rate * (self.natural_share - target))
        self.step_sums.zero_()
