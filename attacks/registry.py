"""Registry of attacks: names to the modules that define them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacks.plugins.registry import Registry

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
        "autoattack": "attacks.autoattack.ensemble",
        "apgd-ce": "attacks.autoattack.apgd",
        "apgd-t": "attacks.autoattack.apgd",
        "fab-t": "attacks.autoattack.fab",
        "square": "attacks.autoattack.square",
        "autoattack-quick": "attacks.autoattack.quick",
        "autoattack-reference": "attacks.autoattack.reference",
    },
)
register = ATTACKS.register
