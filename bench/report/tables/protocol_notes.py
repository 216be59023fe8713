"""Notes on what rows share: the evaluation protocol of their attacks, and the training attack."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.config.protocols import PROTOCOLS, Protocol
from bench.report.tables.columns import TITLES, Column, base_attack, column_titles, eps_text, protocols
from bench.report.tables.model import Table
from bench.results.outcomes import CLEAN


def protocol_note(table: Table) -> str:
    """The protocol that all attacks of a table belong to, or those of each column; empty if there is none."""
    attacked = [column for column in table.shown if column.attack != CLEAN]
    found = [set(protocols(column)) for column in attacked]
    if not found or not all(found):
        return ""
    shared = [PROTOCOLS[name] for name in PROTOCOLS if all(name in names for names in found)]
    if not shared:
        names = column_titles(table.shown)
        each = [f"{names[column]} of {' and '.join(protocols(column))}" for column in attacked]
        return f"Protocols, by the attacks' settings: {'; '.join(each)}."
    whole = [protocol for protocol in shared if not _missing(protocol, attacked)]
    texts = [_protocol_text(protocol, attacked, table.eps or 0.0) for protocol in whole or shared]
    return f"Protocol, by the attacks' settings: {'; '.join(texts)}."


def _missing(protocol: Protocol, columns: Sequence[Column]) -> list[str]:
    there = {base_attack(column.attack) for column in columns}
    return [TITLES.get(base_attack(attack), attack) for attack in protocol.attacks if base_attack(attack) not in there]


def _protocol_text(protocol: Protocol, columns: Sequence[Column], eps: float) -> str:
    missing = _missing(protocol, columns)
    text = protocol.name + (f" without {', '.join(missing)}" if missing else "")
    if math.isclose(eps, protocol.eps, rel_tol=1e-9):
        return text
    return f"{text}, its steps scaled from eps {eps_text(protocol.eps)} to {eps_text(eps)}"


def uniform_note(table: Table) -> str:
    """The training attack, if several methods share one radius, number of steps and step size; else empty."""
    rows = [row for row in table.rows if "eps" in (row.run.facts.get("settings") or {})]
    attacks = {tuple(row.run.facts["settings"].get(name) for name in ("eps", "steps", "step_size")) for row in rows}
    if len({row.run.text("method") for row in rows}) < 2 or len(attacks) != 1:
        return ""
    eps, steps, step_size = attacks.pop()
    return f"Training attack, the same for all methods that have one: eps {eps:.6g}, {steps} steps of {step_size:.6g}."
