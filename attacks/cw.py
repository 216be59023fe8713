"""CW: ascent on the margin of Carlini and Wagner (IEEE S&P 2017, arXiv:1608.04644) within the threat model.

Maximises: max over k != y of z_k, minus z_y. The released evaluations add a confidence of 50 inside a hinge,
    which keeps the hinge active: the gradient is that of the plain margin.
Defaults: 30 steps of eps / 4 from the image itself, as in the evaluation of the ARD family (Linf).
Departures: iterates are clipped to [0, 1] at every step, not only at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.objectives import Objective, margin
from attacks.pgd import PGD
from attacks.plugins.ranges import Count
from attacks.registry import ATTACKS
from attacks.threat import Start


@ATTACKS.register("cw")
@dataclass(frozen=True)
class CW(PGD):
    """PGD on the margin instead of cross-entropy."""

    steps: Count = 30
    start: Start = "zero"

    name = "cw"

    def objective(self, y: Tensor) -> Objective:
        """What is maximised: the margin."""
        return margin(y)
