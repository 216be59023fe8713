"""Attacks on image classifiers, as immutable settings and pure calls.

An attack is called as `attack(model, x, y, generator=g)` with x (N, C, H, W) in [0, 1] and returns x_adv inside
box and ball. `ATTACKS["pgd"](threat=ThreatModel("linf", 8 / 255), steps=20)` builds one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacks.plugins.lazy import lazy_names

if TYPE_CHECKING:
    from attacks import objectives
    from attacks.ascent import ascend
    from attacks.base import Attack
    from attacks.passes import Passes
    from attacks.registry import ATTACKS, register
    from attacks.threat import ThreatModel

__all__ = ["ATTACKS", "Attack", "Passes", "ThreatModel", "ascend", "objectives", "register"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "attacks.ascent": ("ascend",),
        "attacks.base": ("Attack",),
        "attacks.passes": ("Passes",),
        "attacks.registry": ("ATTACKS", "register"),
        "attacks.threat": ("ThreatModel",),
    },
    submodules=("objectives",),
)
