"""FAAL, fairness-aware adversarial learning (Zhang et al., CVPR 2024, arXiv:2402.17729).

Inner problem:  host "at": maximise CE(S(x'), y), 10 sign steps of 2/255 at eps 8/255 from a uniform start clipped to
                the box; hosts "trades", "mart": TRADES' divergence from a Gaussian start. Model in eval mode.
Outer problem:  minimise  mean K q[y] l,  l the host's loss: CE(S(x'), y); CE(S(x), y) + 6 KL(p(x) || p(x')); or MART's
                with 6. q, constant, is the worst distribution over classes for the batch: it maximises sum_k a_k q_k
                over the simplex with KL(u || q) <= r, u uniform. Of the margins max_{j != y} p_j - p_y of the
                probabilities on x', a_k is the class sum ("sums") or the class mean ("means", -1 for an absent class).
                Where the a_k differ, q_k is proportional to 1 / (eta - a_k), with eta > max a such that KL(u || q) = r.
State:          class_weight (K,): mean weight K q[y] of each class's samples in the last epoch; 1 before.
Defaults:       r 0.5, host "at", sums; a robust model is fine-tuned for 2 epochs, SGD 0.01, then 0.001 / 0.9 / 5e-4,
                batch 128. [read in the released code; that the paper means class means is inferred]
Departures:     the release hands every batch to a convex solver; eta is found here by bisection, to rounding. It passes
                the adversarial batch before the clean one, and the clean one with host "at" too; here the order is that
                of the hosts, and "at" has no clean pass: only BatchNorm's statistics know. It passes x' once more in
                eval mode to choose among restarts, of which there is one. With sums an absent class counts 0, which
                looks harder than any class that is mostly right; its weight meets no sample.
                It selects on test batches, and starts from checkpoints; here the start is the run of pgd_at in the
                same plan. Its AWP variants perturb along the unweighted host's loss, `awp:faal` along the weighted one.
                "mart" keeps the release's KL attack, where MART itself attacks cross-entropy.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks import objectives
from attacks.passes import Passes
from attacks.plugins.ranges import NonNegative
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import class_means, class_sums, cross_entropy, kl_logits, of_class, sum_dtype
from methods.mart import mart
from methods.recipes import Recipe, digits
from methods.registry import register
from methods.trades import divergence_from

ROUNDING = 1e-9  # margins that differ by less are equal
POINTS, ROUNDS, UPPER = 64, 9, 30.0  # of the search in `worst_case`: points per round, rounds, largest s


@register("faal")
class FAAL(Method):
    """A host whose classes weigh what the worst distribution near the uniform one would give them, batch by batch.

    Args:
        host: loss and attack, "at", "trades" or "mart".
        radius: r, the largest KL(u || q); 0 is the host.
        margins: "sums" (released) or "means" of the margins of a class.
        beta: weight of the divergence in the hosts "trades" and "mart".
    """

    recipes = {
        "paper": Recipe(epochs=2, lr=0.01, milestones=(1,), augment="crop_flip", source="released script"),
        "digits": digits(epochs=10, lr=0.01, milestones=(5,)),
    }
    warm_start = "pgd_at"
    reported = ("class_weight",)
    couples_batch = True

    class_weight: Tensor
    sums: Tensor

    def __init__(
        self,
        *,
        host: Literal["at", "trades", "mart"] = "at",
        radius: NonNegative = 0.5,
        margins: Literal["sums", "means"] = "sums",
        beta: NonNegative = 6.0,
        **inner: Any,
    ) -> None:
        super().__init__(**inner)
        self.host, self.radius, self.margins, self.beta = host, radius, margins, beta
        self.register_buffer("class_weight", torch.ones(self.num_classes, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(2, self.num_classes, dtype=torch.float64))  # weights, samples

    def passes(self) -> Passes:
        """Those of the host."""
        if self.host == "at":
            return Passes(forward=self.steps + 1, input_grad=self.steps, backward=1)
        return Passes(forward=self.steps + 3, input_grad=self.steps, backward=2)

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """The host's attack."""
        if self.host == "at":
            return Adversarial(self.ascend(model, batch.x, objectives.cross_entropy(batch.y), ctx, start="uniform"))
        return Adversarial(self.ascend(model, batch.x, divergence_from(model, batch), ctx, start="gaussian"))

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """The host's loss, each class with its weight in the worst distribution."""
        clean = {} if self.host == "at" else {"clean": model(batch.x)}
        logits = {"adv": model(adv.x), **clean}
        weight = of_class(self._weights(logits["adv"].detach(), batch.y, ctx), batch.y, logits["adv"].dtype)
        return Terms(weight * self._host_loss(logits, batch.y), logits, extras={"weight": weight})

    def observe(self, batch: Batch, adv: Adversarial, terms: Terms, ctx: Context) -> None:
        """Add weights and samples by class."""
        for row, values in enumerate((terms.extras["weight"], torch.ones_like(terms.extras["weight"]))):
            self.sums[row] += class_sums(values, batch.y, self.num_classes)

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        """Record the mean weight of each class."""
        self.class_weight.copy_(class_means(*ctx.reduce(self.sums)))
        self.sums.zero_()

    def _host_loss(self, logits: dict[str, Tensor], y: Tensor) -> Tensor:
        if self.host == "at":
            return cross_entropy(logits["adv"], y)
        if self.host == "trades":
            return cross_entropy(logits["clean"], y) + self.beta * kl_logits(logits["clean"], logits["adv"])
        return mart(logits["clean"], logits["adv"], y, self.beta)

    def _weights(self, logits: Tensor, y: Tensor, ctx: Context) -> Tensor:
        """Class weights K q (K,) for adversarial logits (N, K) of the batch, over all processes."""
        probs = logits.to(sum_dtype(logits.device)).softmax(1)
        margin = objectives.margin(y)(probs, torch.arange(len(y), device=y.device))
        totals = [class_sums(values, y, self.num_classes) for values in (margin, torch.ones_like(y))]
        sums, counts = ctx.reduce(torch.stack(totals))
        if self.margins == "means":
            sums = torch.where(counts > 0, sums / counts.clamp_min(1), -1.0)
        return worst_case(sums, self.radius)


def worst_case(gain: Tensor, radius: float) -> Tensor:
    """K times the distribution q over classes that maximises sum_k gain_k q_k subject to KL(u || q) <= radius.

    Args:
        gain: (K,), in the precision of the result.
        radius: bound on the divergence from the uniform distribution u.

    Returns:
        (K,) weights of mean 1; all ones where the gains are equal up to rounding, or the radius is 0.
    """
    below = gain.max() - gain
    reach = below.max()
    if radius == 0 or len(gain) < 2:
        return torch.ones_like(gain)
    gaps = (below / reach.clamp_min(ROUNDING)).log()
    # KL(u || q) falls as eta - max(gain) = reach e^s grows: each round narrows the interval of s by many points.
    low = gain.new_full((), -len(gain) * (radius + math.log(len(gain))))
    high = gain.new_full((), UPPER)
    steps = torch.linspace(0, 1, POINTS + 1, dtype=gain.dtype, device=gain.device)
    for _ in range(ROUNDS):
        s = low + (high - low) * steps
        divergence = -math.log(len(gain)) - _log_shares(gaps, s).mean(1)
        i = ((divergence > radius).sum() - 1).clamp(0, POINTS - 1)
        low, high = s[torch.stack((i, i + 1))].unbind()
    weights = len(gain) * _log_shares(gaps, (low + high)[None] / 2)[0].exp()
    return torch.where(reach > ROUNDING, weights, torch.ones_like(gain))


def _log_shares(gaps: Tensor, s: Tensor) -> Tensor:
    """The logarithms (P, K) of q_k proportional to 1 / (e^s + e^gap_k), for every s (P,)."""
    score = -torch.logaddexp(s[:, None], gaps)
    return score - score.logsumexp(1, keepdim=True)
