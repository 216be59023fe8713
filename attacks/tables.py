"""The table of attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacks.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from attacks.base import Attack

ATTACKS: Registry[Callable[..., Attack]] = Registry(
    kind="attack",
    group="bench.attacks",
    builtin={
        "fgsm": "attacks.fgsm",
        "pgd": "attacks.pgd",
        "pgd-trades": "attacks.pgd",
        "cw": "attacks.cw",
        "autoattack": "attacks.autoattack",
        "apgd-ce": "attacks.apgd",
        "apgd-t": "attacks.apgd",
        "fab-t": "attacks.fab",
        "square": "attacks.square",
        "autoattack-quick": "attacks.quick",
        "autoattack-reference": "attacks.reference",
        "apgd-ce-reference": "attacks.reference",
        "apgd-t-reference": "attacks.reference",
        "fab-t-reference": "attacks.reference",
        "square-reference": "attacks.reference",
    },
)
register = ATTACKS.register
