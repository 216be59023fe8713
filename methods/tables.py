"""The table of training methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacks.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from methods.base import Method

METHODS: Registry[Callable[..., Method]] = Registry(
    kind="method",
    group="bench.methods",
    builtin={
        "natural": "methods.natural",
        "pgd_at": "methods.pgd_at",
        "trades": "methods.trades",
        "mart": "methods.mart",
        "frl": "methods.frl",
        "frl_remargin": "methods.frl",
        "cfa": "methods.cfa",
        "bat": "methods.bat",
        "wat": "methods.wat",
        "dafa": "methods.dafa",
        "ard": "methods.ard",
        "rslad": "methods.rslad",
        "absld": "methods.absld",
        "ham": "methods.ham",
    },
)
register = METHODS.register
