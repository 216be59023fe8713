"""AdaAD, adaptive adversarial distillation (Huang et al., CVPR 2023).

Inner problem:  maximise  KL(p_T(x') || p_S(x'))  over the eps-ball: 10 sign steps of 2/255 at eps 8/255 from x + 0.001
                N(0, 1), student in eval mode. The teacher sees every iterate, and the gradient flows through it too.
Outer problem:  minimise  alpha KL(p_T(x') || p_S(x')) + (1 - alpha) KL(p_T(x) || p_S(x)),  summed over classes, divided
                by 10, the targets constant. No hard labels.
State:          none.
Defaults:       alpha 1; 200 epochs, SGD 0.1 / 0.9 / 5e-4, drops at 100 and 150, batch 128. [read in the released
                code]
Departures:     the release passes the clean batch before the adversarial one, at alpha 1 too; here behind it, and only
                where alpha < 1: BatchNorm's statistics alone know. It takes the mean over batch and classes on CIFAR-10
                (the sum over classes / 10, which is `scale`) and the sum over classes on CIFAR-100, ten times RSLAD's:
                scale 1 in its recipe there. Its README trains at eps 8/255, its script's default is twice that: recipe
                "wide", eps 16/255 in steps of 4/255. It selects on the test set, and its teachers are models of the
                RobustBench zoo: --teacher robustbench:ID.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks.ascent import Observer
from attacks.passes import Passes
from attacks.plugins.ranges import Fraction, Positive
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import kl, kl_logits
from methods.recipes import Recipe, digits, short
from methods.registry import register

PAPER = Recipe(epochs=200, lr=0.1, milestones=(100, 150), augment="crop_flip", source="released script")


@register("adaad")
class AdaAD(Method):
    """Distillation where student and robust teacher disagree most: the attack looks for it through both.

    Args:
        alpha: share of the adversarial term.
        scale: factor on the whole loss.
    """

    recipes = {
        "paper": PAPER,
        "short": short(PAPER, scale=0.1),
        "paper_cifar100": replace(PAPER, settings={"scale": 1.0}, source="released script, CIFAR-100"),
        "wide": replace(
            PAPER, settings={"eps": 16 / 255, "step_size": 4 / 255},
            source="released script as it is without arguments",
        ),
        "digits": digits(scale=0.1),
    }  # fmt: skip
    teachers = ("robust",)

    def __init__(self, *, alpha: Fraction = 1.0, scale: Positive = 0.1, **inner: Any) -> None:
        super().__init__(**inner)
        self.alpha, self.scale = alpha, scale

    def passes(self) -> Passes:
        """Student and teacher go through the attack together; the clean forwards where alpha < 1."""
        clean = int(self.alpha < 1)
        return Passes(
            forward=self.steps + 1 + clean, input_grad=self.steps, backward=1 + clean,
            teacher=self.steps + 1 + clean, teacher_grad=self.steps,
        )  # fmt: skip

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise the divergence of student and teacher, both on the iterate."""
        both = _Joint(ctx.for_attack(model), ctx.teacher("robust"))
        watchers = tuple(partial(_observe_student, watch) for watch in ctx.watchers)
        x_adv = self.ascend(both, batch.x, _divergence, replace(ctx, watchers=watchers), start="gaussian")
        extras = {"soft_adv": ctx.teacher("robust", x_adv).softmax(1)}
        if self.alpha < 1:
            extras["soft_clean"] = ctx.teacher("robust", batch.x).softmax(1)
        return Adversarial(x_adv, extras=extras)

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """The divergence on adversarial inputs, and on clean ones where alpha < 1."""
        logits = {"adv": model(adv.x)}
        loss = self.alpha * kl(adv.extras["soft_adv"], logits["adv"])
        if self.alpha < 1:
            logits["clean"] = model(batch.x)
            loss = loss + (1 - self.alpha) * kl(adv.extras["soft_clean"], logits["clean"])
        return Terms(self.scale * loss, logits)


class _Joint(nn.Module):
    """Logits (N, 2, K) of student and teacher on the same input."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.student(x), self.teacher(x)], 1)


def _divergence(logits: Tensor, rows: Tensor) -> Tensor:
    """KL(p_T || p_S) of joint logits (M, 2, K), with gradients through both; (M,)."""
    student, teacher = logits.unbind(1)
    return kl_logits(teacher, student)


def _observe_student(watch: Observer, step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> Tensor | None:
    """Call a watcher with the student's logits alone, as in the ascent of any other method."""
    return watch(step, x_adv, logits[:, 0], rows)
