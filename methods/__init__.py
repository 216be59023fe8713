"""How a model is trained: adversarial-training methods, one file each.

`METHODS["absld"]` is the class; `METHODS["absld"](num_classes=10, temperature_rate=0.1)` builds one. A method of
your own subclasses `Method`, defines `perturb` and `loss`, and is added with `@register("mine")`. What can be put
around any method, as in `METHODS["awp:trades"]`, subclasses `Wrapper`: `@COMPOSITIONS.register("mine")`.
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

_HOMES = {
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
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'methods' has no attribute {name!r}")
