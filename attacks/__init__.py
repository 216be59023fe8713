"""What can be done to a model: attacks on image classifiers, as immutable settings and pure calls.

An attack is called as `attack(model, x, y, generator=g)` with x (N, C, H, W) in [0, 1] and returns x_adv inside
box and ball. `ATTACKS["pgd"](threat=ThreatModel("linf", 8 / 255), steps=20)` builds one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks import objectives
    from attacks.ascent import ascend
    from attacks.base import Attack
    from attacks.passes import Passes
    from attacks.registry import ATTACKS, register
    from attacks.threat import ThreatModel

_HOMES = {
    "ATTACKS": "attacks.registry",
    "Attack": "attacks.base",
    "Passes": "attacks.passes",
    "ThreatModel": "attacks.threat",
    "ascend": "attacks.ascent",
    "register": "attacks.registry",
}

__all__ = ["ATTACKS", "Attack", "Passes", "ThreatModel", "ascend", "objectives", "register"]


def __getattr__(name: str) -> Any:
    if name == "objectives":
        return importlib.import_module("attacks.objectives")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'attacks' has no attribute {name!r}")
