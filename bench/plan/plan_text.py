"""The text of a dry run: jobs, passes, and a rough estimate of time and disk."""

from __future__ import annotations

from pathlib import Path

from bench.plan.cost import Cost, totals
from bench.plan.jobs import Plan, title


def plan_text(plan: Plan, out: Path) -> str:
    """A table of the jobs of a plan with their estimated cost, and the sums of what is missing in a results folder."""
    train, evaluate = totals(plan, out)
    rows = [(title(job), str(job.folder), cost) for job, cost in train]
    rows += [(title(job), str(job.folder), cost) for job, cost in evaluate]
    width = max(len(name) for name, _, _ in rows)
    head = f"{'job':<{width}}  {'forward':>9}  {'in-grad':>9}  {'w-grad':>9}  {'teacher':>9}  {'about':>8}"
    lines = [head, *(_plan_line(name, cost, width) for name, _, cost in rows)]
    missing = [cost for _, _, cost in rows if not cost.done]
    seconds, size = sum(cost.seconds for cost in missing), sum(cost.bytes for cost in missing)
    lines += [
        "",
        f"{len(train)} trainings and {len(evaluate)} evaluations, {len(rows) - len(missing)} of them done already.",
        f"Missing: about {_hours(seconds)} of computing if one job ran after the other, {_size(size)} of disk.",
        "Passes are in samples; those of attacks assume that no sample falls. Times are rough.",
    ]
    return "\n".join(lines)


def _plan_line(name: str, cost: Cost, width: int) -> str:
    passes = cost.passes
    numbers = (passes.forward, passes.input_grad, passes.backward, passes.teacher + passes.teacher_grad)
    counts = "  ".join(f"{_count(number):>9}" for number in numbers)
    return f"{name:<{width}}  {counts}  {'done' if cost.done else _hours(cost.seconds):>8}"


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:g}"


def _hours(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
