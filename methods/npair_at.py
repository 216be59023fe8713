"""Adversarial training with a multi-class N-pair term (N-pair: Sohn, NIPS 2016).

The combination is this suite's own: no paper proposes it, and no published figure belongs to it.

Inner problem:  PGD-AT's: maximise  CE(S(x'), y)  from a uniform start, in train mode.
Outer problem:  minimise  mean CE(S(x'), y) + weight N_i,
                N_i = - sum_j t_ij log softmax_j(a_i . p_j) + norm_weight / 4 (|a_i|^2 + |p_i|^2),
                a = f(x') the anchors, p = f(x) the positives, f the penultimate features (what the last linear layer
                is given), j over the batch, t_ij = 1[y_i = y_j] / #{j: y_j = y_i}. An adversarial input has to find
                the clean inputs of its class among those of all classes.
State:          none.
Defaults:       weight 0.001, of 0.001, 0.01, 0.1 and 1 the best on held-out digits over three seeds, where the others
                cost robustness; norm_weight 0.02; all else as PGD-AT.
Departures:     from Sohn, who draws one pair of each class of a batch: here the batch is as it is drawn, and all of a
                class in it are positives. The clean forward is made in train mode after the adversarial one, so
                BatchNorm moves once more than in PGD-AT. At weight 0 it is not made.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.passes import Passes
from attacks.plugins.ranges import NonNegative
from methods.base import Adversarial, Batch, Context, Terms
from methods.features import has_linear, with_features
from methods.pgd_at import PGDAT
from methods.registry import register


@register("npair_at")
class NPairAT(PGDAT):
    """PGD-AT that also pulls features of adversarial inputs to those of clean inputs of their class.

    Args:
        weight: of the N-pair term; 0 is PGD-AT.
        norm_weight: of the squared norms within that term, a quarter of it each.
    """

    couples_batch = True

    def __init__(self, *, weight: NonNegative = 0.001, norm_weight: NonNegative = 0.02, **inner: Any) -> None:
        super().__init__(**inner)
        self.weight, self.norm_weight = weight, norm_weight

    def passes(self) -> Passes:
        """Adversarial training and the clean forward."""
        clean = int(self.weight != 0)
        return Passes(forward=self.steps + 1 + clean, input_grad=self.steps, backward=1 + clean)

    def setup(self, model: nn.Module, ctx: Context) -> None:
        """Refuse a model without a linear layer."""
        if self.weight and not has_linear(model):
            raise ValueError(
                f"npair_at: expected a model that ends in torch.nn.Linear, whose input are the features, got "
                f"{type(model).__name__} without one; end it in nn.Linear"
            )

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """CE(S(x'), y) + weight N."""
        if not self.weight:
            return super().loss(model, batch, adv, ctx)
        logits, anchors = with_features(model, adv.x)
        clean, positives = with_features(model, batch.x)
        pairs = n_pair(anchors, positives, batch.y, self.norm_weight)
        loss = F.cross_entropy(logits, batch.y, reduction="none") + self.weight * pairs
        return Terms(loss, {"adv": logits, "clean": clean})


def n_pair(anchors: Tensor, positives: Tensor, y: Tensor, norm_weight: float) -> Tensor:
    """The N-pair term of features (N, D) with labels y (N,), per anchor; (N,), in float32 at least."""
    anchors, positives = (f.to(torch.promote_types(f.dtype, torch.float32)) for f in (anchors, positives))
    same = (y[:, None] == y[None, :]).to(anchors.dtype)
    target = same / same.sum(1, keepdim=True)
    with torch.autocast(anchors.device.type, enabled=False):
        scores = anchors @ positives.T
    norms = anchors.square().sum(1) + positives.square().sum(1)
    return -(target * F.log_softmax(scores, 1)).sum(1) + norm_weight / 4 * norms
