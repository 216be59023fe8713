"""ARD, adversarially robust distillation (Goldblum et al., AAAI 2020, arXiv:1905.09747).

Inner problem:  maximise  CE(S(x'), y): 10 sign steps of 2/255 at eps 8/255 from a uniform start that is not clipped to
                the box; student in train mode, so BatchNorm uses and moves batch statistics at each step.
Outer problem:  minimise  alpha t^2 / K KL(softmax(T(x) / t) || softmax(S(x') / t)) + (1 - alpha) CE(S(x), y), KL
                summed over classes; T robust, frozen, on clean inputs.
State:          none.
Defaults:       t 30, alpha 1; 200 epochs, SGD 0.1 / 0.9 / 2e-4, drops at 100 and 150, batch 128. [read in the
                released code]
Departures:     the release divides by K (a mean over batch and classes); so does this. Its second drop has no effect,
                because a local copy of the rate is multiplied: recipe "released" keeps one drop. It always runs a
                clean student forward, which at alpha 1 only moves BatchNorm: off here, `clean_pass=True` brings it
                back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from attacks import objectives
from attacks.passes import Passes
from attacks.plugins.ranges import Fraction, Positive
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import cross_entropy, kl
from methods.recipes import Recipe, digits, short
from methods.registry import register

PAPER = Recipe(
    epochs=200, lr=0.1, milestones=(100, 150), weight_decay=2e-4, augment="crop_flip", source="released script"
)

LARGER = replace(PAPER, batch_size=256, source="released script, CIFAR-100")


@register("ard")
class ARD(Method):
    """Distillation at a high temperature from a robust teacher's clean predictions.

    Args:
        alpha: weight of the distillation term; the rest goes to clean cross-entropy.
        temperature: t, of teacher and student.
        clean_pass: run the clean forward even where alpha 1 makes it irrelevant to the loss.
    """

    recipes = {
        "paper": PAPER,
        "released": Recipe(
            epochs=200, lr=0.1, milestones=(100,), weight_decay=2e-4, augment="crop_flip",
            settings={"clean_pass": True}, source="released script as it runs",
        ),
        "paper_cifar100": LARGER,
        "short": short(PAPER, scale=0.1),
        "short_cifar100": short(LARGER, scale=0.1),
        "digits": digits(scale=0.1),
    }  # fmt: skip
    teachers = ("robust",)

    def __init__(
        self, *, alpha: Fraction = 1.0, temperature: Positive = 30.0, clean_pass: bool = False, **inner: Any
    ) -> None:
        super().__init__(**inner)
        self.alpha, self.temperature, self.clean_pass = alpha, temperature, clean_pass

    def passes(self) -> Passes:
        """Adversarial training and one teacher forward; the clean forward where it is made."""
        clean = int(self.alpha < 1 or self.clean_pass)
        return Passes(
            forward=self.steps + 1 + clean, input_grad=self.steps, backward=1 + int(self.alpha < 1), teacher=1
        )

    def loss_overhead(self) -> Passes:
        """The clean forward, which has no backward."""
        return Passes(forward=int(self.clean_pass and self.alpha == 1))

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise cross-entropy, and compute the teacher's soft labels."""
        soft = (ctx.teacher("robust", batch.x) / self.temperature).softmax(1)
        objective = objectives.cross_entropy(batch.y)
        x_adv = self.ascend(model, batch.x, objective, ctx, start="uniform_unclipped", bn="train")
        return Adversarial(x_adv, extras={"soft": soft})

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """The distillation term, and clean cross-entropy where alpha < 1."""
        logits = {"adv": model(adv.x)}
        if self.alpha < 1 or self.clean_pass:
            logits["clean"] = model(batch.x)
        distilled = kl(adv.extras["soft"], logits["adv"] / self.temperature) / self.num_classes
        loss = self.alpha * self.temperature**2 * distilled
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * cross_entropy(logits["clean"], batch.y)
        return Terms(loss, logits)
