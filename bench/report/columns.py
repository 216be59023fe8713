"""Columns of a table: an attack under one protocol. Figures measured differently never share a column."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attacks.registry import canonical
from bench.outcomes import CLEAN
from bench.protocols import belonging
from bench.report.frame import Evaluation

TITLES = {
    CLEAN: "Clean",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "pgd_trades": "PGD-TRADES",
    "cw": "CW",
    "autoattack": "AutoAttack",
    "autoattack_reference": "AutoAttack (reference)",
    "autoattack_quick": "Quick",
}


@dataclass(frozen=True)
class Column:
    """One attack under one protocol; equal columns may be averaged over seeds and compared.

    Attributes:
        attack: name as stored.
        samples: digest of the test samples it was measured on.
        n: their number.
        norm: of the threat model; empty for `clean`, like the rest.
        eps: radius in units of x.
        implementation: "native", or the package that ran it and its version.
        settings: canonical JSON of the attack's settings.
        stages: of the attack, in order.
        left_out: stage and reason, for each that was left out.
        block: samples per block.
        test_subset: size of the stated part of the test set, if it is a part.
    """

    attack: str
    samples: str
    n: int
    norm: str = ""
    eps: float | None = None
    implementation: str = ""
    settings: str = "{}"
    stages: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    block: int | None = None
    test_subset: int | None = None

    @property
    def title(self) -> str:
        """Name as tables print it."""
        return TITLES.get(canonical(self.attack), self.attack)

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorting key: clean first, the usual attacks next, then by name and protocol."""
        known = list(TITLES)
        name = canonical(self.attack)
        place = known.index(name) if name in known else len(known)
        return (place, name, -self.n, self.implementation, self.settings, self.samples, self.block or 0, self.left_out)


def column_of(evaluation: Evaluation, attack: str) -> Column:
    """The column that the clean or the attacked predictions of an evaluation belong to."""
    facts = evaluation.facts
    subset = facts.get("test_subset")
    common: dict[str, Any] = {"samples": evaluation.samples, "n": len(evaluation.outcomes), "test_subset": subset}
    if attack == CLEAN:
        return Column(CLEAN, **common)
    return Column(
        attack,
        norm=str(facts.get("norm") or ""),
        eps=None if facts.get("eps") is None else float(facts["eps"]),
        implementation=str(facts.get("implementation") or ""),
        settings=json.dumps(facts.get("attack_settings") or {}, sort_keys=True),
        stages=(*(facts.get("stages") or ()), *(facts.get("stopped") or {}).get("not_run", ())),
        left_out=tuple(sorted((facts.get("left_out") or {}).items())),
        block=facts.get("block"),
        **common,
    )


def titles(columns: Sequence[Column]) -> dict[Column, str]:
    """Printed name of each column; an attack that stands there more than once is named by protocol, else numbered."""
    names: dict[Column, str] = {}
    for column in columns:
        same = [other for other in columns if other.title == column.title]
        named = [", ".join(protocols(other)) for other in same]
        apart = len(set(named)) == len(same) and all(named)
        extra = named[same.index(column)] if apart else str(same.index(column) + 1)
        names[column] = column.title if len(same) == 1 else f"{column.title} ({extra})"
    return names


def protocols(column: Column) -> tuple[str, ...]:
    """Names of the protocols that the attack of a column belongs to, by its settings."""
    return belonging(column.attack, json.loads(column.settings), column.norm, column.eps)


def threat_text(norm: str, eps: float | None) -> str:
    """A threat model in words: `Linf, eps 8/255`."""
    if eps is None:
        return "no attack"
    name = {"linf": "Linf", "l2": "L2"}.get(norm, norm)
    return f"{name}, eps {eps_text(eps)}" if norm != "linf" or not _in_255(eps) else f"Linf, eps {round(eps * 255)}/255"


def eps_text(eps: float) -> str:
    """A radius in the units of x, without trailing zeros."""
    return f"{eps:.6g}"


def _in_255(eps: float) -> bool:
    return eps > 0 and abs(eps * 255 - round(eps * 255)) < 1e-6


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in words: `steps 20, step_size 0.0375`; empty and switched-off ones are left out."""
    shown = {name: value for name, value in settings.items() if value not in (None, "", [], {})}
    return ", ".join(f"{name} {_value_text(value)}" for name, value in sorted(shown.items()))


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return f"({settings_text(value)})"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "(" + ", ".join(_value_text(item) for item in value) + ")"
    return str(value)
