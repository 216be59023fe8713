"""What single plug-ins need in order to be checked, and which checks do not apply to them: data, each with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attacks.plugins.registry import Registry
from methods.registry import METHODS


@dataclass(frozen=True)
class Special:
    """How one plug-in is checked.

    Attributes:
        arguments: settings to build it with, where the defaults are too slow or would not start within a check.
        reason: why those.
        exempt: check -> why it does not apply. The test suite sees to it that an exempt check would indeed fail.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    exempt: Mapping[str, str] = field(default_factory=dict)


CHEAP = "at full length a check would take minutes"
SHORT = {"steps": 5}
SHORTER = "half as many inner steps show as much"
SECOND_EPOCH = "the mechanism begins in a late epoch, and a check trains for two"
LEAVING = {"op_count_independent_of_batch": "samples leave the attack one by one, and each parting costs an operation"}
NO_CORNER = {"linear_model_closed_form": "random search does not reach the corner of the ball in few queries"}

SPECIALS: Mapping[tuple[str, str], Special] = {
    **{
        ("method", name): Special(SHORT, SHORTER)
        for name in (
            *("pgd_at", "trades", "frl", "frl_remargin", "ard", "rslad", "absld", "mart", "wat"),
            *("mtard", "adaad", "faal", "fair_ard", "fair_rslad", "fair_mtard"),
        )
    },
    **{("method", name): Special({**SHORT, "begin_epoch_index": 1}, SECOND_EPOCH) for name in ("cfa", "dafa")},
    ("method", "bat"): Special(SHORT, SHORTER, LEAVING),
    ("method", "ham"): Special(
        {**SHORT, "begin_epoch_index": 0}, "mining begins in epoch 49, and a check trains for two epochs"
    ),
    ("method", "flexmatch_at"): Special(
        {**SHORT, "labelled_fraction": 0.4, "tau": 0.4},
        "no network of two epochs is confident, and at these the thresholds move; " + SHORTER,
    ),
    ("method", "npair_at"): Special({**SHORT, "weight": 0.1}, "a weight that shows; " + SHORTER),
    **{
        ("attack", f"{name}{suffix}"): Special(arguments, CHEAP, exempt)
        for suffix in ("", "-reference")
        for name, arguments, exempt in (
            ("apgd-ce", {"steps": 6}, {}),
            ("apgd-t", {"steps": 6, "targets": 2}, {}),
            ("fab-t", {"steps": 6, "targets": 2}, {}),
            ("square", {"queries": 20}, NO_CORNER),
            ("autoattack", {"steps": 6, "targets": 1, "queries": 20}, {}),
        )
    },
    ("attack", "autoattack-quick"): Special({"targets": 2, "starts": 2, "queries": 20}, CHEAP),
}


def special(registry: Registry[Any], name: str) -> Special:
    """How a plug-in is checked: as the table says, or with the `check_arguments` of its registration.

    A composition is checked with what all of its parts need.
    """
    known = registry.resolve(name)
    if registry is METHODS and ":" in known:
        parts = [special(*part) for part in METHODS.parts(known)]
        arguments = {name: value for part in parts for name, value in part.arguments.items()}
        exempt = {check: why for part in parts for check, why in part.exempt.items()}
        return Special(arguments, "; ".join(part.reason for part in parts if part.reason), exempt)
    if (registry.kind, known) in SPECIALS:
        return SPECIALS[registry.kind, known]
    return Special(registry.sketch(known).fact("check_arguments", {}), "its registration says so")
