"""Settings with which single plug-ins are checked, and the checks that they are exempt from, each with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attacks.plugins.registry import Registry
from methods.registry import METHODS


@dataclass(frozen=True)
class CheckOptions:
    """Options for checking one plug-in.

    Attributes:
        arguments: settings to build it with, where the defaults are too slow or would not start within a check.
        reason: the reason for these settings.
        exempt: check -> why it does not apply. The test suite verifies that an exempt check would indeed fail.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    exempt: Mapping[str, str] = field(default_factory=dict)


WHY_CHEAP = "at full length a check would take minutes"
FEW_STEPS = {"steps": 5}
WHY_FEW_STEPS = "half as many inner steps show as much"
WHY_SECOND_EPOCH = "the mechanism begins in a late epoch, and a check trains for two"
DROPS_ONE_BY_ONE = {
    "op_count_independent_of_batch": "samples leave the attack one by one, and each parting costs an operation"
}
RANDOM_SEARCH = {"linear_model_closed_form": "random search does not reach the corner of the ball in few queries"}

CHECK_OPTIONS: Mapping[tuple[str, str], CheckOptions] = {
    **{
        ("method", name): CheckOptions(FEW_STEPS, WHY_FEW_STEPS)
        for name in (
            *("pgd_at", "trades", "frl", "frl_remargin", "ard", "rslad", "absld", "mart", "wat"),
            *("mtard", "adaad", "faal", "fair_ard", "fair_rslad", "fair_mtard"),
        )
    },
    **{
        ("method", name): CheckOptions({**FEW_STEPS, "begin_epoch_index": 1}, WHY_SECOND_EPOCH)
        for name in ("cfa", "dafa")
    },
    ("method", "bat"): CheckOptions(FEW_STEPS, WHY_FEW_STEPS, DROPS_ONE_BY_ONE),
    ("method", "ham"): CheckOptions(
        {**FEW_STEPS, "begin_epoch_index": 0}, "mining begins in epoch 49, and a check trains for two epochs"
    ),
    ("method", "flexmatch_at"): CheckOptions(
        {**FEW_STEPS, "labelled_fraction": 0.4, "tau": 0.4},
        "no network of two epochs is confident, and at these the thresholds move; " + WHY_FEW_STEPS,
    ),
    ("method", "npair_at"): CheckOptions({**FEW_STEPS, "weight": 0.1}, "a weight that shows; " + WHY_FEW_STEPS),
    **{
        ("attack", name): CheckOptions(arguments, WHY_CHEAP, exempt)
        for name, arguments, exempt in (
            ("apgd-ce", {"steps": 6}, {}),
            ("apgd-t", {"steps": 6, "targets": 2}, {}),
            ("fab-t", {"steps": 6, "targets": 2}, {}),
            ("square", {"queries": 20}, RANDOM_SEARCH),
            ("autoattack", {"steps": 6, "targets": 1, "queries": 20}, {}),
            ("autoattack-reference", {"steps": 6, "targets": 1, "queries": 20}, {}),
        )
    },
    ("attack", "autoattack-quick"): CheckOptions({"targets": 2, "starts": 2, "queries": 20}, WHY_CHEAP),
}


def check_options(registry: Registry[Any], name: str) -> CheckOptions:
    """The options of a plug-in: those of the table, or the `check_arguments` of its registration.

    A composition gets the options of all of its parts.
    """
    known = registry.resolve(name)
    if registry is METHODS and ":" in known:
        parts = [check_options(*part) for part in METHODS.parts(known)]
        arguments = {name: value for part in parts for name, value in part.arguments.items()}
        exempt = {check: why for part in parts for check, why in part.exempt.items()}
        return CheckOptions(arguments, "; ".join(part.reason for part in parts if part.reason), exempt)
    if (registry.kind, known) in CHECK_OPTIONS:
        return CHECK_OPTIONS[registry.kind, known]
    return CheckOptions(registry.sketch(known).fact("check_arguments", {}), "its registration says so")
