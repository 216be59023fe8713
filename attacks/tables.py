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
        "autoattack": "attacks.reference",
        "apgd-ce": "attacks.reference",
        "apgd-t": "attacks.reference",
        "fab-t": "attacks.reference",
        "square": "attacks.reference",
        "autoattack-native": "attacks.autoattack",
        "autoattack-quick": "attacks.quick",
        "apgd-ce-native": "attacks.apgd",
        "apgd-t-native": "attacks.apgd",
        "fab-t-native": "attacks.fab",
        "square-native": "attacks.square",
    },
)
register = ATTACKS.register
