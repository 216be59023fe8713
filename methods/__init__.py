"""Adversarial-training methods, one file each, and the contract that they implement.

`METHODS["absld"]` is the class; `METHODS["absld"](num_classes=10, temperature_rate=0.1)` builds one. To add a method,
subclass `Method`, define `perturb` and `loss`, and decorate the class with `@register("mine")`. A composition, which
wraps any method as in `METHODS["awp:trades"]`, subclasses `Wrapper` and is added with `@COMPOSITIONS.register("mine")`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods import losses
    from methods.base import Adversarial, Batch, Context, Method, Terms
    from methods.recipes import Recipe
    from methods.registry import COMPOSITIONS, METHODS, register
    from methods.wrapper import Wrapper

_MODULES = {
    **dict.fromkeys(("Adversarial", "Batch", "Context", "Method", "Terms"), "methods.base"),
    **dict.fromkeys(("COMPOSITIONS", "METHODS", "register"), "methods.registry"),
    "Recipe": "methods.recipes",
    "Wrapper": "methods.wrapper",
}

__all__ = [
    "COMPOSITIONS",
    "METHODS",
    "Adversarial",
    "Batch",
    "Context",
    "Method",
    "Recipe",
    "Terms",
    "Wrapper",
    "losses",
    "register",
]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("methods.losses")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'methods' has no attribute {name!r}")
