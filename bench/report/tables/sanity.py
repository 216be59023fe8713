"""The marks of the sanity checks beside the rows of a table, and the sentences under it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.report.tables.model import Row, Sanity
from bench.results.tree import Evaluation

# From best to worst, with what stands behind the name of a row.
SIGNS = {"reliable": "", "suspicious": "†", "unreliable": "‡"}


def worst(evaluations: Iterable[Evaluation]) -> Sanity | None:
    """The worst of several evaluations; None if none of them was examined, as those of older versions."""
    found = [facts for evaluation in evaluations if (facts := evaluation.facts.get("sanity"))]
    if not found:
        return None
    reasons: dict[str, tuple[str, str]] = {}
    for finding in (finding for facts in found for finding in facts["findings"]):
        if _place(finding["level"]) > _place(reasons.get(finding["check"], ("reliable", ""))[0]):
            reasons[finding["check"]] = finding["level"], finding["reason"]
    ordered = sorted(reasons.values(), key=lambda reason: -_place(reason[0]))
    return Sanity(max((facts["mark"] for facts in found), key=_place), tuple(text for _, text in ordered))


def _place(level: str) -> int:
    return list(SIGNS).index(level)


def marked(row: Row) -> str:
    """The name of a row with its sign behind it."""
    sign = SIGNS[row.sanity.mark] if row.sanity else ""
    return f"{row.name} {sign}".rstrip()


def _reasons(row: Row) -> str:
    return "; ".join(row.sanity.reasons) if row.sanity else ""


def sanity_notes(rows: Sequence[Row]) -> list[str]:
    """What the checks say of the rows; nothing if none was examined."""
    examined = [row for row in rows if row.sanity]
    if not examined:
        return []
    flagged = [row for row in examined if row.sanity and row.sanity.mark != "reliable"]
    if flagged:
        lead = "Sanity checks, signs that gradients are masked and robust accuracies too high"
        notes = [f"{lead}: † suspicious, ‡ unreliable; rows without a sign passed all."]
        notes += [f"{marked(row)} ({row.checkpoint}): {_reasons(row)}." for row in flagged]
    else:
        notes = ["Sanity checks: no row shows signs of masked gradients."]
    rest = [f"{row.name} ({row.checkpoint})" for row in rows if not row.sanity]
    return [*notes, *([f"Without sanity checks: {', '.join(rest)}."] if rest else [])]
