"""Combined findings of the sanity checks of a row's evaluations: does gradient masking inflate its robustness?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.errors import BenchError
from bench.results.tree import Evaluation

# Marks from best to worst, with the sign printed behind the name of a row.
SIGNS = {"reliable": "", "suspicious": "†", "unreliable": "‡"}


@dataclass(frozen=True)
class Sanity:
    """Result of the sanity checks of several evaluations.

    Attributes:
        mark: the worst of their marks.
        reasons: a sentence for each check that was not passed, the worst first.
    """

    mark: str
    reasons: tuple[str, ...] = ()


def combine_findings(evaluations: Iterable[Evaluation]) -> Sanity | None:
    """The worst findings of several evaluations; None if none of them was checked, as those of older versions.

    Raises:
        BenchError: if a mark is none of `SIGNS`.
    """
    every = [evaluation for evaluation in evaluations if evaluation.facts.get("sanity")]
    checked = [evaluation.facts["sanity"] for evaluation in every]
    for evaluation, facts in zip(every, checked, strict=True):
        levels = [facts["mark"], *(finding["level"] for finding in facts["findings"])]
        if odd := [level for level in levels if level not in SIGNS]:
            raise BenchError(
                f"{evaluation.path / 'eval.json'}: expected marks of sanity checks among {', '.join(SIGNS)}, got "
                f"{odd[0]!r}; delete {evaluation.path} and run again"
            )
    if not checked:
        return None
    reasons: dict[str, tuple[str, str]] = {}
    for finding in (finding for facts in checked for finding in facts["findings"]):
        if _severity(finding["level"]) > _severity(reasons.get(finding["check"], ("reliable", ""))[0]):
            reasons[finding["check"]] = finding["level"], finding["reason"]
    ordered = sorted(reasons.values(), key=lambda reason: -_severity(reason[0]))
    return Sanity(max((facts["mark"] for facts in checked), key=_severity), tuple(text for _, text in ordered))


def _severity(level: str) -> int:
    return list(SIGNS).index(level)
