"""Native AutoAttack against the released implementation: verdicts, passes and minimal norms, as markdown tables.

    python -m benchmarks.parity --samples 400 --jobs 2 --masked first results/digits/small_cnn/trades/KEY ...
    python -m benchmarks.parity --checkpoint FILE --model FILE.py:BUILDER --mean A,B,C --std D,E,F --data-dir DIR

Without folders and checkpoints small networks are trained on digits first. Both sides run the same samples under the
same list of seeds. Every attack x model x seed is stored when it is finished: the same command goes on after an
interruption, and a change of an implementation runs that side again. Times are not measured here, see
`benchmarks.speed`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attacks.autoattack.reference import reference_version
from benchmarks import bars
from benchmarks.attacked import ENSEMBLE, SIDES, STAGES, Effort, add_effort_options
from benchmarks.subjects import Subject, add_subject_options, comma_list, masked, subjects
from benchmarks.tables import Page, guarded, number, yes
from benchmarks.units import Kind, Unit, measured

FEW = 8  # samples on which the passes of what stands are counted
GAP_HEAD = ["", *(f"{side}, % per seed" for side in SIDES), *SIDES, "difference", "standard error", "within the bar"]

Results = dict[tuple[str, str], list[dict[str, Any]]]  # (attack, side) -> one result per seed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print every table."""
    options = parser().parse_args(arguments)
    chosen = with_masked(subjects(options), options.masked)
    page = Page(f"Native AutoAttack against {reference_version()}", options.out, "parity")
    page.surroundings("cpu", 1)
    seeds = ", ".join(map(str, options.seeds))
    searched = f"; native searches with {', '.join(options.prepare)}" if options.prepare else ""
    page.line(f"Seeds {seeds} on both sides; {Effort.of(options).text}{searched}.")
    page.line(
        f"Bars: native's mean robust accuracy at most {bars.POINTS} points plus {bars.ERRORS:g} paired standard errors "
        f"(over samples) above the reference's; passes per standing sample and FAB's median norm within "
        f"{bars.SHARE:.0%} of it, FAB's forwards also fewer.\n"
    )
    results = first_phase(chosen, options)
    standing = second_phase(chosen, results, options)
    missed = [fault for subject in chosen for fault in tables(page, subject, results[subject], standing[subject])]
    page.line("All bars are met." if not missed else "Bars not met:\n\n" + "\n".join(f"- {fault}" for fault in missed))


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject_options(made)
    add_effort_options(made)
    made.add_argument("--samples", type=int, default=400, help="of each model (%(default)s)")
    made.add_argument("--norms", type=int, default=100, help="samples whose minimal norms are compared (%(default)s)")
    made.add_argument("--seeds", type=comma_list(int), default=[0, 1, 2, 3, 4])
    made.add_argument("--alone", choices=("all", "none"), default="all", help="run each stage alone, too (%(default)s)")
    made.add_argument("--prepare", type=comma_list(str), default=[], help="bf16, channels_last or compile, for native")
    add_course_options(made)
    return made


def add_course_options(parser: argparse.ArgumentParser) -> None:
    """Options of a benchmark that goes through units: on which models besides, and where all is kept."""
    parser.add_argument("--masked", choices=("none", "first", "all"), default="none", help="also with masked gradients")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (%(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("results/benchmarks/cache"), help="what is finished")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the page")


def with_masked(given: list[Subject], which: str) -> list[Subject]:
    """The models, and those that are also attacked behind a masking."""
    count = {"none": 0, "first": 1, "all": len(given)}[which]
    return [*given, *(masked(subject) for subject in given[:count])]


def first_phase(chosen: Sequence[Subject], options: argparse.Namespace) -> dict[Subject, Results]:
    """Ensemble on all samples, stages alone on those that are right, and minimal norms."""
    plan: list[tuple[Subject, str, str, Unit]] = []
    for subject in chosen:
        for seed in options.seeds:
            for name in (ENSEMBLE, *alone(options)):
                for side in SIDES:
                    kind: Kind = "all" if name == ENSEMBLE else "right"
                    plan.append((subject, name, side, unit(kind, subject, name, side, seed, options)))
        for side in SIDES if options.norms else ():
            few = tuple(range(options.norms))
            plan.append((subject, "norms", side, unit("norms", subject, "fab-t", side, 0, options, few)))
    return gathered(plan, options)


def alone(options: argparse.Namespace) -> tuple[str, ...]:
    """The stages that are also run alone."""
    return STAGES if options.alone == "all" else ()


def second_phase(
    chosen: Sequence[Subject], results: Mapping[Subject, Results], options: argparse.Namespace
) -> dict[Subject, Results]:
    """Each stage once more on a few samples that stood whatever was tried, so that both sides make every pass."""
    plan = []
    for subject in chosen:
        for name in alone(options):
            rows = standing_rows(results[subject], name)[:FEW]
            for side in SIDES if rows else ():
                plan.append((subject, name, side, unit("rows", subject, name, side, options.seeds[0], options, rows)))
    return {subject: {} for subject in chosen} | gathered(plan, options)


def unit(
    kind: Kind, subject: Subject, name: str, side: str, seed: int, options: argparse.Namespace,
    rows: tuple[int, ...] = (),
) -> Unit:  # fmt: skip
    """A unit with the effort of the options."""
    prepare = tuple(options.prepare) if side == "native" else ()
    return Unit(kind, subject, name, side, seed, options.samples, Effort.of(options), rows, prepare)


def gathered(plan: Sequence[tuple[Subject, str, str, Unit]], options: argparse.Namespace) -> dict[Subject, Results]:
    """The results of a plan, by model, attack and side."""
    found: dict[Subject, Results] = {}
    outcomes = measured([item for *_, item in plan], jobs=options.jobs, cache=options.cache)
    for (subject, name, side, _), outcome in zip(plan, outcomes, strict=True):
        found.setdefault(subject, {}).setdefault((name, side), []).append(outcome)
    return found


def verdicts(results: Results, name: str, side: str, stage: str) -> bars.Verdicts:
    """Who stands after a stage, (seeds, n)."""
    return np.array([[verdict == "1" for verdict in outcome["stages"][stage]] for outcome in results[name, side]])


def standing_rows(results: Results, stage: str) -> tuple[int, ...]:
    """Positions of the samples that stood against a stage alone under every seed of both sides."""
    stood = np.concatenate([verdicts(results, stage, side, stage) for side in SIDES])
    rows = results[stage, "native"][0]["rows"]
    return tuple(row for row, column in zip(rows, stood.T, strict=True) if all(column))


def tables(page: Page, subject: Subject, results: Results, standing: Results) -> list[str]:
    """Print the tables of a model; returns what misses its bar."""
    outcome = results[ENSEMBLE, "native"][0]
    page.line(
        f"\n## {subject.name}\n\n{subject.norm}, eps {subject.eps:.6g}; {len(outcome['rows'])} samples, "
        f"{outcome['right']} right, in blocks of {subject.block}.\n"
    )
    missed = []
    stages = list(outcome["stages"])
    rows = [compared(f"after {stage}", results, ENSEMBLE, stage) for stage in stages]
    page.table("Robust accuracy of the ensemble, after each stage", GAP_HEAD, rows)
    missed += [f"ensemble {row[0]}" for row in rows if row[-1] != yes(True)]
    if (STAGES[0], "native") in results:
        missed += alone_tables(page, results, standing)
    if ("norms", "native") in results:
        row = minimal(results)
        head = [
            "samples",
            *(f"{side}, median" for side in SIDES),
            "ratio",
            "ratio per sample, quartiles",
            "within the bar",
        ]
        page.table("Minimal norms that FAB finds on samples that are right", head, [row])
        missed += ["FAB's median norm"] if row[-1] != yes(True) else []
    return [f"{subject.name}: {fault}" for fault in missed]


def alone_tables(page: Page, results: Results, standing: Results) -> list[str]:
    """Print the tables of the stages that were run alone; returns what misses its bar."""
    missed = []
    rows = [compared(stage, results, stage, stage) for stage in STAGES]
    page.table("Each stage alone on every sample that is right", GAP_HEAD, rows)
    missed += [f"{row[0]} alone" for row in rows if row[-1] != yes(True)]
    rows = [counted(stage, results, standing) for stage in STAGES]
    head = [
        "",
        *(f"{side}, all" for side in SIDES),
        *(f"{side}, standing" for side in SIDES),
        "ratio",
        "within the bar",
    ]
    page.table(
        f"Passes per sample, forward + input gradient: mean over all that are right, and of up to {FEW} that stand "
        "whatever is tried; their ratio is native over reference",
        head, rows,
    )  # fmt: skip
    missed += [f"passes of {row[0]}" for row in rows if row[-1] == yes(False)]
    return missed


def compared(label: str, results: Results, name: str, stage: str) -> list[str]:
    """Both sides' robust accuracy, seed by seed and on average, and whether the difference is within the bar."""
    native, reference = (verdicts(results, name, side, stage) for side in SIDES)
    listed = [bars.accuracies(side) for side in (native, reference)]
    gap = bars.gap(native, reference)
    return [
        label, *(" ".join(f"{share:.2f}" for share in seeds) for seeds in listed),
        *(f"{statistics.mean(seeds):.2f}" for seeds in listed),
        f"{gap.mean:+.2f}", number(gap.error), yes(gap.met),
    ]  # fmt: skip


def counted(stage: str, results: Results, standing: Results) -> list[str]:
    """Passes of a stage per sample, on all that are right and on what stands."""
    everyone = [shares(results[stage, side]) for side in SIDES]
    cells = [stage, *(written(passes) for passes in everyone)]
    if (stage, "native") not in standing:
        return [*cells, "-", "-", "-", "none stands"]
    native, reference = (shares(standing[stage, side]) for side in SIDES)
    ratios = [number(bars.ratio(native[kind], reference[kind]), 3) for kind in ("forward", "input_grad")]
    agree = bars.passes_agree(native, reference, fewer_forwards=stage == "fab-t")
    return [*cells, written(native), written(reference), " and ".join(ratios), yes(agree)]


def shares(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean passes per attacked sample."""
    return {
        kind: statistics.mean(outcome["passes"][kind] / max(1, len(outcome["rows"])) for outcome in outcomes)
        for kind in ("forward", "input_grad")
    }


def written(passes: Mapping[str, float]) -> str:
    """Forward + input gradient."""
    return f"{passes['forward']:.1f} + {passes['input_grad']:.1f}"


def minimal(results: Results) -> list[str]:
    """Both sides' median minimal norm, their ratio, and the spread of the ratio over samples."""
    both = [
        np.array([np.inf if size is None else size for size in results["norms", side][0]["norms"]]) for side in SIDES
    ]
    native, reference = (float(np.median(side)) for side in both)
    each = sorted(bars.ratio(float(a), float(b)) for a, b in zip(*both, strict=True))
    quartiles = " to ".join(number(each[round(at * (len(each) - 1))], 4) for at in (0.25, 0.75))
    middle = bars.ratio(native, reference)
    return [
        str(len(each)), f"{native:.5f}", f"{reference:.5f}", number(middle, 4), quartiles,
        yes(bars.near(native, reference)),
    ]  # fmt: skip


if __name__ == "__main__":
    guarded(main)
