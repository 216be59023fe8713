"""Standard training: no adversary. The baseline whose robustness is about zero.

Inner problem:  none.
Outer problem:  minimise  mean CE(S(x), y).
State:          none.
Defaults:       the schedule of Rice et al. 2020 for PGD-AT.
Departures:     none.
"""

from __future__ import annotations

from torch import nn

from attacks.passes import Passes
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import cross_entropy
from methods.registry import register


@register("natural")
class Natural(Method):
    """Cross-entropy on clean inputs."""

    def passes(self) -> Passes:
        """One forward and one backward."""
        return Passes(forward=1, backward=1)

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """The clean inputs."""
        return Adversarial(batch.x)

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """CE(S(x), y)."""
        logits = model(batch.x)
        return Terms(cross_entropy(logits, batch.y), {"clean": logits})
