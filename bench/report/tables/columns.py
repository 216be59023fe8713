"""Columns of a table: an attack under one protocol. Figures measured differently never share a column."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attacks.plugins.registry import canonical
from bench.config.protocols import matching_protocols
from bench.results.outcomes import CLEAN
from bench.results.tree import Evaluation

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
        revision: of the attack's code; 0 if none is stated.
        source: hash of a plug-in's file; empty for an attack of the suite.
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
    revision: int = 0
    source: str = ""

    @property
    def title(self) -> str:
        """Name as tables print it."""
        return TITLES.get(canonical(self.attack), self.attack)

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorting key: clean first, the attacks of the suite next, then by name and protocol."""
        known = list(TITLES)
        name = canonical(self.attack)
        place = known.index(name) if name in known else len(known)
        measured = (-self.n, self.implementation, self.settings, self.samples, self.block or 0, self.left_out)
        return (place, name, *measured, -self.revision, self.source, self.stages)

    @property
    def revision_text(self) -> str:
        """Revision of the code: `revision 3`, of a plug-in `revision 1, source 0f3a92bd`; empty if none is stated."""
        stated = [f"revision {self.revision}"] if self.revision else []
        return ", ".join([*stated, *([f"source {source_text(self.source)}"] if self.source else [])])


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
        revision=int(facts.get("revision") or 0),
        source=str(facts.get("source") or ""),
        **common,
    )


def superseded(columns: Iterable[Column]) -> dict[Column, Column]:
    """Map columns that differ from others only in an older revision to the newest of those."""
    columns, newest = list(columns), dict[Column, Column]()
    for column in sorted(columns, key=lambda column: column.revision):
        newest[_without_revision(column)] = column
    latest = {column: newest[_without_revision(column)] for column in columns}
    return {column: other for column, other in latest.items() if column.revision < other.revision}


def _without_revision(column: Column) -> Column:
    return replace(column, revision=0, source="")


def column_titles(columns: Sequence[Column]) -> dict[Column, str]:
    """Printed title of each column.

    An attack with several columns is named with its protocols, else with its revision, else with a number.
    """
    names: dict[Column, str] = {}
    for column in columns:
        same = [other for other in columns if other.title == column.title]
        candidates = [[", ".join(protocols(other)) for other in same], [other.revision_text for other in same]]
        numbers = [str(place + 1) for place in range(len(same))]
        suffixes = next((texts for texts in candidates if all(texts) and len(set(texts)) == len(same)), numbers)
        names[column] = column.title if len(same) == 1 else f"{column.title} ({suffixes[same.index(column)]})"
    return names


def source_text(source: str) -> str:
    """The hash of a plug-in's file, or of several, cut to eight digits."""
    return "+".join(digest[:8] for digest in source.split("+"))


def protocols(column: Column) -> tuple[str, ...]:
    """Names of the protocols that the attack of a column belongs to, by its settings."""
    return matching_protocols(column.attack, json.loads(column.settings), column.norm, column.eps)


def threat_text(norm: str, eps: float | None) -> str:
    """A threat model in words: `Linf, eps 8/255`."""
    if eps is None:
        return "no attack"
    name = {"linf": "Linf", "l2": "L2"}.get(norm, norm)
    return f"{name}, eps {eps_text(eps, norm)}"


def eps_text(eps: float, norm: str = "linf") -> str:
    """A radius in the units of x, without trailing zeros; for Linf as a multiple of 1/255 where it is one."""
    steps = eps * 255
    return f"{round(steps)}/255" if norm == "linf" and eps > 0 and abs(steps - round(steps)) < 1e-6 else f"{eps:.6g}"


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


def base_attack(attack: str) -> str:
    """An attack's name without its implementation: our AutoAttack and the reference's are one attack."""
    return canonical(attack).removesuffix("_reference")
