"""Rules that stop an evaluation: `worst<20%` ends it as soon as the worst class is certain to end below 20 %.

Attacks only turn robust samples into fooled ones, so the samples that are still robust or not attacked yet bound the
figures from above. Everything is counted in whole samples: no rounding decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from bench.errors import UsageError

_RULE = re.compile(r"(average|avg|worst)\s*(<=?)\s*(\d+(?:\.\d+)?|\.\d+)\s*(%?)", re.IGNORECASE)


@dataclass(frozen=True)
class Bounds:
    """Upper bounds of the figures of an evaluation.

    Attributes:
        average: share of the samples that can still end up robust.
        worst: the same of the class with the lowest share.
        worst_class: that class.
    """

    average: Fraction
    worst: Fraction
    worst_class: int

    @staticmethod
    def of(standing: Sequence[int], counts: Sequence[int]) -> Bounds:
        """From the samples of each class that can still end up robust, and all of them; empty classes do not count."""
        shares = [(Fraction(s, n), k) for k, (s, n) in enumerate(zip(standing, counts, strict=True)) if n]
        worst, worst_class = min(shares, default=(Fraction(0), 0))
        return Bounds(Fraction(sum(standing), max(1, sum(counts))), worst, worst_class)

    def __str__(self) -> str:
        return f"average <= {_percent(self.average)} %  worst <= {_percent(self.worst)} % (class {self.worst_class})"


@dataclass(frozen=True)
class Rule:
    """Stop when the upper bound of a figure lies below a limit.

    Attributes:
        figure: "average" or "worst".
        strict: whether the bound has to lie below the limit, not on it.
        limit: a fraction.
    """

    figure: Literal["average", "worst"]
    strict: bool
    limit: Fraction

    @staticmethod
    def parse(text: str) -> Rule:
        """Read a rule such as `worst<20%`, `average<=0.35` or `avg < 35%`.

        Raises:
            UsageError: if it is none, or can never hold.
        """
        match = _RULE.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"--stop-when {text!r}: expected average or worst, < or <=, and a share, such as worst<20% or avg<=0.35"
            )
        name, sign, number, percent = match.groups()
        limit = Fraction(number) / (100 if percent else 1)
        if limit > 1:
            hint = f"; write {number}% for percent" if not percent else ""
            raise UsageError(
                f"--stop-when {text!r}: expected a share of at most 1 or 100 %, got {number}{percent}{hint}"
            )
        if limit == 0 and sign == "<":
            raise UsageError(f"--stop-when {text!r}: no share is below 0; write <=")
        return Rule("worst" if name.lower() == "worst" else "average", sign == "<", limit)

    def holds(self, bounds: Bounds) -> bool:
        """Whether the bounds decide it."""
        value = bounds.worst if self.figure == "worst" else bounds.average
        return value < self.limit or (not self.strict and value == self.limit)

    def __str__(self) -> str:
        return f"{self.figure}{'<' if self.strict else '<='}{float(self.limit * 100):.12g}%"


def _percent(share: Fraction) -> str:
    return f"{float(share * 100):.1f}"
