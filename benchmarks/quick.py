"""autoattack-quick against the full native ensemble: verdicts and passes, as a markdown table.

    python -m benchmarks.quick --samples 200 --masked first results/digits/small_cnn/trades/KEY ...
    python -m benchmarks.quick --checkpoint FILE --model FILE.py:BUILDER --mean A,B,C --std D,E,F --data-dir DIR

Both see the same samples under the same seeds. Every attack x model x seed is stored when it is finished, as in
`benchmarks.parity`, and the full ensemble's results are shared with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import bars
from benchmarks.attacked import ENSEMBLE, Effort, add_effort_options
from benchmarks.parity import add_course_options, with_masked
from benchmarks.subjects import add_subject_options, comma_list, subjects
from benchmarks.tables import Page, guarded, number, yes
from benchmarks.units import Unit, measured

FEWER = 10.0  # times as many passes as the full ensemble's have to go on what quick's buy
HEAD = [
    "", "seed", "full, %", "quick, %", "difference", "standard error", "quick alone leaves", "full alone leaves",
    "passes, full", "passes, quick", "ratio", "within the bars",
]  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """Both on one model under one seed.

    Attributes:
        full, quick: robust accuracy in percent.
        gap: quick minus full, positive where quick is weaker, in points; its error is over samples.
        left_by_quick, left_by_full: samples that stand against one of them alone.
        passes: full and quick, forward and input-gradient passes per sample that is right.
    """

    full: float
    quick: float
    gap: bars.Gap
    left_by_quick: int
    left_by_full: int
    passes: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Passes of the full ensemble over those of quick."""
        return bars.ratio(*self.passes)

    @property
    def near(self) -> bool:
        """Whether the verdicts are within 0.1 points, or two standard errors, either way."""
        return abs(self.gap.mean) <= max(bars.POINTS, bars.ERRORS * self.gap.error)

    @property
    def met(self) -> bool:
        """Whether both bars are met."""
        return self.near and self.ratio >= FEWER


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    options = parser().parse_args(arguments)
    chosen = with_masked(subjects(options), options.masked)
    page = Page("autoattack-quick against autoattack", options.out, "quick")
    page.surroundings("cpu", 1)
    page.line(
        f"{options.samples} samples of each model, the same for both. Bars: robust accuracies within {bars.POINTS} "
        f"points or {bars.ERRORS:g} paired standard errors of each other, {FEWER:g} times fewer passes.\n"
    )
    plan = [(subject, seed) for subject in chosen for seed in options.seeds]
    units = [
        Unit("all", subject, ENSEMBLE, side, seed, options.samples, Effort.of(options))
        for subject, seed in plan
        for side in ("native", "quick")
    ]
    outcomes = measured(units, jobs=options.jobs, cache=options.cache)
    found = [judged(*pair) for pair in zip(outcomes[::2], outcomes[1::2], strict=True)]
    labels = [(f"{subject.name}, {subject.norm} {subject.eps:.4g}", str(seed)) for subject, seed in plan]
    page.table("By model and seed", HEAD, [row(label, each) for label, each in zip(labels, found, strict=True)])
    page.line(summary(found))


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject_options(made)
    add_effort_options(made)
    made.add_argument("--samples", type=int, default=400, help="of each model (%(default)s)")
    made.add_argument("--seeds", type=comma_list(int), default=[2, 3, 4])
    add_course_options(made)
    return made


def judged(full: Mapping[str, Any], quick: Mapping[str, Any]) -> Judged:
    """Compare the two results of one model and seed."""
    stands = [np.array([[verdict == "1" for verdict in [*of["stages"].values()][-1]]]) for of in (full, quick)]
    dear, cheap = (sum(of["passes"].values()) / max(1, of["right"]) for of in (full, quick))
    return Judged(
        full=bars.accuracies(stands[0])[0], quick=bars.accuracies(stands[1])[0], gap=bars.gap(stands[1], stands[0]),
        left_by_quick=int((stands[1] & ~stands[0]).sum()), left_by_full=int((stands[0] & ~stands[1]).sum()),
        passes=(dear, cheap),
    )  # fmt: skip


def row(label: tuple[str, str], found: Judged) -> list[str]:
    """A line of the table."""
    return [
        *label, f"{found.full:.2f}", f"{found.quick:.2f}", f"{found.gap.mean:+.2f}", number(found.gap.error),
        str(found.left_by_quick), str(found.left_by_full), *(f"{each:.0f}" for each in found.passes),
        f"{found.ratio:.1f}", yes(found.met),
    ]  # fmt: skip


def summary(found: Sequence[Judged]) -> str:
    """The largest difference and the smallest saving."""
    worst = max(found, key=lambda each: abs(each.gap.mean))
    met = sum(each.met for each in found)
    return (
        f"Largest difference {worst.gap.mean:+.2f} points (standard error {number(worst.gap.error)}); smallest ratio "
        f"of passes {min(each.ratio for each in found):.1f}; bars met in {met} of {len(found)}."
    )


if __name__ == "__main__":
    guarded(main)
