"""DAFA, distance-aware fair adversarial training (Lee et al., ICLR 2024, arXiv:2401.12532).

Inner problem:  the host's, 10 sign steps from a Gaussian start, eval mode: KL(p(x) || p(x')) with TRADES, CE(S(x'), y)
                with PGD-AT. Radius and step of a sample are w_y 0.031 and w_y 0.007.
Outer problem:  minimise mean w_y CE(S(x), y) + beta KL(p(x) || p(x')) with TRADES, the KL unweighted; mean w_y
                CE(S(x'), y) with PGD-AT.
State:          class_weight (K,), ones before `begin_epoch_index`. From the epoch before that, P_ij is the mean
                probability of class j over adversarial training samples of class i, of the logits that the loss sees;
                once, at its end, w_i = 1 + sum_j t_ij - t_ji with t_ij = strength P_ij P_jj where P_ii < P_jj, 0
                elsewhere: a class takes from each easier one that it is mistaken for. The weights sum to K.
Defaults:       strength 1 (1.5 on CIFAR-100 and STL-10: recipe "cifar100"), weights from epoch 71 of 110 (counted from
                1), beta 6; SGD 0.1 / 0.9 / 5e-4 with Nesterov momentum, rate x 0.1 from epochs 100 and 105, batch 128;
                last checkpoint. [read in the released code]
Departures:     classes with equal P_ii exchange nothing, where the release takes from both; weights are kept from
                falling below 0, which the release leaves open. With PGD-AT it goes each step twice in every epoch, the
                second time along the same sign, unweighted and within the unweighted eps: `doubled_step=True`. With
                TRADES it passes the adversarial batch before the clean one; here the order is that of `trades`, of
                which only BatchNorm's statistics know, so that strength 0 is `trades` bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks import objectives
from attacks.contexts import frozen, mode
from attacks.passes import Passes
from attacks.plugins.ranges import Index, NonNegative, Positive
from attacks.threat import per_sample, project, starting_point
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import class_sums, cross_entropy, kl_logits, of_class
from methods.recipes import Recipe, digits
from methods.registry import register
from methods.trades import divergence_from

RELEASED = Recipe(
    epochs=110, lr=0.1, milestones=(99, 104), nesterov=True, augment="crop_flip", selection="last",
    source="released script",
)  # fmt: skip


@register("dafa")
class DAFA(Method):
    """Class weights and radii that move from easy classes to the hard ones that resemble them.

    Args:
        host: "trades" or "at".
        beta: weight of TRADES' divergence.
        strength: how much is moved, lambda in the paper; 0 is the host.
        begin_epoch_index: first epoch, counted from 0, with weights; the one before measures.
        doubled_step: attack of the released PGD-AT host: a second step, without weights, along the same gradient.
    """

    recipes = {
        "paper": RELEASED,
        "paper_cifar100": replace(RELEASED, settings={"strength": 1.5}),
        "paper_stl10": replace(RELEASED, settings={"strength": 1.5}),
        "digits": digits(),
    }
    epoch_settings = ("begin_epoch_index",)
    reported = ("class_weight",)
    revision = 3
    option_revisions = {"doubled_step": True}

    class_weight: Tensor
    probs: Tensor
    counts: Tensor

    def __init__(
        self,
        *,
        host: Literal["trades", "at"] = "trades",
        beta: NonNegative = 6.0,
        strength: NonNegative = 1.0,
        begin_epoch_index: Index = 70,
        doubled_step: bool = False,
        eps: Positive = 0.031,
        step_size: Positive = 0.007,
        **inner: Any,
    ) -> None:
        super().__init__(eps=eps, step_size=step_size, **inner)
        if doubled_step and host != "at":
            raise ValueError("dafa: doubled_step is the attack of host 'at', got host 'trades'; set one of them only")
        self.host: Literal["trades", "at"] = host
        self.beta, self.strength, self.begin_epoch_index = beta, strength, begin_epoch_index
        self.doubled_step = doubled_step
        k = self.num_classes
        for name, start in (("class_weight", torch.ones(k)), ("probs", torch.zeros(k, k)), ("counts", torch.zeros(k))):
            self.register_buffer(name, start.double())

    def passes(self) -> Passes:
        """As the host."""
        trades = self.host == "trades"
        return Passes(forward=self.steps + (3 if trades else 1), input_grad=self.steps, backward=2 if trades else 1)

    def setup(self, model: nn.Module, ctx: Context) -> None:
        """Refuse a run without an epoch that measures and one that is weighted."""
        if not 1 <= self.begin_epoch_index < ctx.epochs:
            raise ValueError(
                f"dafa: expected begin_epoch_index from 1 to the run's last epoch {ctx.epochs - 1}, got "
                f"{self.begin_epoch_index}; the epoch before it measures: train longer or change dafa.begin_epoch_index"
            )

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise the host's objective within class-wise radii, by class-wise steps."""
        trades, weight = self.host == "trades", self.class_weight[batch.y]
        objective = divergence_from(model, batch) if trades else objectives.cross_entropy(batch.y)
        if self.doubled_step:
            return Adversarial(self._ascend_doubled(model, batch, objective, ctx))
        radius, step = self.eps * weight, self.step_size * weight
        return Adversarial(self.ascend(model, batch.x, objective, ctx, start="gaussian", eps=radius, step_size=step))

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """The host's loss with weighted cross-entropy."""
        weight = of_class(self.class_weight, batch.y, batch.x.dtype)
        if self.host == "at":
            logits = model(adv.x)
            return Terms(weight * cross_entropy(logits, batch.y), {"adv": logits})
        clean, logits = model(batch.x), model(adv.x)
        loss = weight * cross_entropy(clean, batch.y) + self.beta * kl_logits(clean, logits)
        return Terms(loss, {"adv": logits, "clean": clean})

    def observe(self, batch: Batch, adv: Adversarial, terms: Terms, ctx: Context) -> None:
        """In the measuring epoch, sum adversarial probabilities by class."""
        if ctx.epoch == self.begin_epoch_index - 1:
            probs = terms.logits["adv"].detach().softmax(1)
            self.probs += class_sums(probs.T, batch.y, self.num_classes).T
            self.counts += class_sums(torch.ones_like(batch.y), batch.y, self.num_classes)

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        """After the measuring epoch, set the weights for good."""
        if ctx.epoch == self.begin_epoch_index - 1:
            probs = ctx.reduce(self.probs) / ctx.reduce(self.counts).clamp_min(1)[:, None]
            self.class_weight.copy_(distance_weights(probs, self.strength).clamp_min(0))

    def _ascend_doubled(self, model: nn.Module, batch: Batch, objective: objectives.Objective, ctx: Context) -> Tensor:
        """The released ascent: a weighted step, then one without weights along the same gradient."""
        x, rows, weight = batch.x, torch.arange(len(batch.x), device=batch.x.device), self.class_weight[batch.y]
        x_adv = starting_point(x, "gaussian", self.eps, self.norm, ctx.generator)
        searched = ctx.for_attack(model)
        with mode(searched, train=False), frozen(searched), torch.enable_grad():
            for step in range(self.steps):
                here = x_adv.detach().requires_grad_()
                logits = searched(here)
                for watch in ctx.watchers:
                    watch(step, here.detach(), logits.detach(), rows)
                (grad,) = torch.autograd.grad(objective(logits, rows).sum(), here)
                l2 = grad.flatten(1).norm(dim=1).clamp_min(1e-12)
                move = self.step_size * (grad.sign() if self.norm == "linf" else grad / per_sample(l2, x))
                x_adv = project(here.detach() + per_sample(weight, x) * move, x, self.eps * weight, self.norm)
                x_adv = project(x_adv + move, x, self.eps, self.norm)
        return x_adv.detach()


def distance_weights(probs: Tensor, strength: float) -> Tensor:
    """Class weights (K,) from mean probabilities P (K, K) of class j over samples of class i; their sum is K."""
    own = probs.diagonal()
    taken = strength * probs * own * (own[:, None] < own)
    return 1 + taken.sum(1) - taken.sum(0)
