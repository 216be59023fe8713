"""Adversarial-training methods, one file each, and the contract that they implement.

`METHODS["absld"]` is the class; `METHODS["absld"](num_classes=10, temperature_rate=0.1)` builds one. To add a method,
subclass `Method`, define `perturb` and `loss`, and decorate the class with `@register("mine")`. A composition, which
wraps any method as in `METHODS["awp:trades"]`, subclasses `Wrapper` and is added with `@COMPOSITIONS.register("mine")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacks.plugins.lazy import lazy_names

if TYPE_CHECKING:
    from methods import losses
    from methods.base import Adversarial, Batch, Context, Method, Terms
    from methods.recipes import Recipe
    from methods.registry import COMPOSITIONS, METHODS, register
    from methods.wrapper import Wrapper

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "methods.base": ("Adversarial", "Batch", "Context", "Method", "Terms"),
        "methods.recipes": ("Recipe",),
        "methods.registry": ("COMPOSITIONS", "METHODS", "register"),
        "methods.wrapper": ("Wrapper",),
    },
    submodules=("losses",),
)
