"""FGSM: the fast gradient sign method (Goodfellow et al., ICLR 2015, arXiv:1412.6572).

Maximises: cross-entropy with the true label, by one step of length eps from the image itself; in L2 along the
    normalised gradient.
Defaults: no random start, as in the evaluation of ARD, RSLAD and ABSLD.
"""

from __future__ import annotations

from dataclasses import dataclass

from attacks.pgd import PGD
from attacks.plugins.ranges import Count
from attacks.registry import ATTACKS
from attacks.threat import Start


@ATTACKS.register("fgsm")
@dataclass(frozen=True)
class FGSM(PGD):
    """PGD with a single step of length eps from the original."""

    steps: Count = 1
    start: Start = "zero"

    name = "fgsm"
    step_ratio = 1.0
