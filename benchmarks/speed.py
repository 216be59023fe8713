"""Speed of native AutoAttack, against the released implementation and against bare passes of the prepared model.

    python -m benchmarks.speed --samples 500 --rounds 5 results/digits/small_cnn/pgd_at/KEY ...

Both sides and the bare passes take turns in one process, on the same cores, with the same number of threads, and both
keep the memory that tensors free, unless --memory usual. The floor is what the passes of an attack cost bare, on
full batches. The stages run on samples that stand whatever is tried, where both sides make the same
passes but for one in a hundred; ratios are also given per pass. The last table has each way in processes of its own:
the released implementation as it is, and ours with everything on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from attacks.autoattack.reference import reference_version
from attacks.fast.prepared import Prepared
from bench.core.device import keep_freed_memory
from bench.core.pass_counter import KINDS, PassCounter
from benchmarks import switches, timing
from benchmarks.attacked import ENSEMBLE, SIDES, STAGES, Effort, Verdicts, add_effort_options, build, predict, run
from benchmarks.subjects import Subject, add_subject_options, comma_list, subjects
from benchmarks.tables import Page, guarded, spread, yes
from benchmarks.timing import Bare, Floor

PARTS = ("ensemble", "stages", "switches", "workers")
OVERHEAD = 0.15  # over the prepared model's floor, at most


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print every table."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    kept = options.memory == "kept" and keep_freed_memory()
    page = Page(f"Speed of native AutoAttack against {reference_version()}", options.out, options.name)
    page.surroundings(options.device, options.threads)
    effort = Effort.of(options)
    page.line(
        f"{effort.text}; medians of {options.rounds} interleaved runs, with their range; seconds unless said. Memory "
        f"that is freed is {'kept' if kept else 'given back'}, on both sides, where nothing else is said."
    )
    for subject in subjects(options):
        page.line(f"\n## {subject.name}\n")
        measure(page, Bench(subject, options, effort), options)


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject_options(made)
    add_effort_options(made)
    made.add_argument("--samples", type=int, default=500, help="of each model (%(default)s)")
    made.add_argument("--standing", type=int, help="samples of the stages' runs, at most (default: all that stand)")
    made.add_argument("--rounds", type=int, default=5, help="interleaved runs (%(default)s)")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--memory", choices=("kept", "usual"), default="kept", help="what tensors free (%(default)s)")
    made.add_argument(
        "--released", action=argparse.BooleanOptionalAction, default=True, help="the released one among the workers"
    )
    made.add_argument("--device", default="cpu")
    made.add_argument("--parts", type=comma_list(str), default=list(PARTS), help=f"of {','.join(PARTS)}")
    made.add_argument("--goal", type=float, default=2.5, help="how many times faster native should be (%(default)s)")
    made.add_argument("--switches", type=comma_list(str), help="of the prepared model (default: all)")
    made.add_argument("--prepare", type=comma_list(str), default=[], help="bf16, channels_last or compile, for stages")
    made.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the page")
    made.add_argument("--name", default="speed", help="of the page")
    return made


class Bench:
    """A model on its device, as it is and prepared, and its samples."""

    def __init__(self, subject: Subject, options: argparse.Namespace, effort: Effort) -> None:
        self.subject, self.effort, self.device = subject, effort, torch.device(options.device)
        self.model = subject.load().to(self.device)
        self.x, self.y = subject.samples(options.samples)
        self.right = predict(self.model, self.x, self.device, subject.block) == self.y
        example = self.x[: subject.block].to(self.device)
        made: list[Prepared] = []
        extra = dict.fromkeys(options.prepare, True)
        self.preparing = timing.clock(lambda: made.append(Prepared(self.model, example, **extra)))
        self.prepared = made[0]

    def bare(self, rows: Tensor) -> dict[str, Bare]:
        """Tasks: bare passes of the model as it is and prepared, on a full batch of these samples."""
        x = self.x[rows[: self.subject.block]].to(self.device)
        return timing.bare_tasks("model", self.model, x) | timing.bare_tasks("prepared", self.prepared, x)


class Attacked(Protocol):
    """A task that knows how many samples it attacks, and the passes of one run."""

    rows: Tensor

    @property
    def passes(self) -> dict[str, int]:
        """Forward and input_grad, in samples."""

    def __call__(self) -> None:
        """Attack once more, with the same draws."""


@dataclass
class InHarness:
    """The ensemble as an evaluation runs it, preparation, checks and verdicts included."""

    bench: Bench
    side: str
    rows: Tensor
    found: list[Verdicts] = field(default_factory=list)

    def __call__(self) -> None:
        """Attack once more, with the same draws."""
        bench = self.bench
        self.found.append(run(
            bench.model, bench.x[self.rows], bench.y[self.rows], ENSEMBLE, self.side, bench.subject.threat,
            bench.effort, seed=0, block=bench.subject.block, device=bench.device,
        ))  # fmt: skip

    @property
    def stands(self) -> Tensor:
        """Positions of the samples that stood in every run."""
        last = [list(verdicts.stages.values())[-1][1] for verdicts in self.found]
        return self.rows[torch.stack(last).all(0)]

    @property
    def passes(self) -> dict[str, int]:
        """Of one run."""
        return self.found[0].passes


class ByHand:
    """A stage, called block by block; native on the model that was prepared before."""

    def __init__(self, bench: Bench, name: str, side: str, rows: Tensor) -> None:
        self.rows, self.passes = rows, dict.fromkeys(KINDS, 0)
        self._attack = build(name, side, bench.subject.threat, bench.effort)
        self._searched: nn.Module = bench.prepared if side == "native" else bench.model
        self._networks = bench.prepared.networks if side == "native" else (bench.model,)
        samples = [part.to(bench.device) for part in (bench.x[rows], bench.y[rows])]
        self._blocks = list(zip(*(part.split(bench.subject.block) for part in samples), strict=True))

    def __call__(self) -> None:
        """Attack once more, with the same draws."""
        counter = PassCounter()
        watches = [counter.watch(network, "attack") for network in self._networks]
        stream = torch.Generator().manual_seed(0)
        for x, y in self._blocks:
            self._attack(self._searched, x, y, generator=stream)
        for watch in watches:
            watch.remove()
        self.passes = counter.counts["attack"]


def measure(page: Page, bench: Bench, options: argparse.Namespace) -> None:
    """All tables of one model."""
    subject, everyone, goal = bench.subject, torch.arange(len(bench.y)), f"{options.goal:g} times"
    fallen_back = f"; {bench.prepared.note}" if bench.prepared.note else ""
    page.line(
        f"{subject.norm}, eps {subject.eps:.6g}; {len(bench.y)} samples, {int(bench.right.sum())} right, in blocks of "
        f"{subject.block}. Preparing the model: {bench.preparing:.2f} s{fallen_back}.\n"
    )
    sides = {side: InHarness(bench, side, everyone) for side in SIDES}
    if "ensemble" in options.parts:
        rows = [compared(ENSEMBLE, sides, bench.bare(everyone), options)]
        page.table(f"The ensemble in the harness, preparation included, on all samples; the goal is {goal}", HEAD, rows)
    else:
        del sides["reference"]
        sides["native"]()
    stands = intersection([side.stands for side in sides.values()])[: options.standing]
    page.line(f"{len(stands)} samples that stand are what follows is measured on.\n")
    if len(stands) == 0:
        return
    if "stages" in options.parts:
        stages(page, bench, stands, options)
    if "switches" in options.parts:
        chosen = options.switches or switches.SWITCHES
        switches.prepared_table(page, bench.model, subject, bench.effort, bench.x, bench.y, stands, chosen, options)
    if "workers" in options.parts:
        switches.workers_table(page, subject, bench.effort, options)


def intersection(rows: Sequence[Tensor]) -> Tensor:
    """The positions that are in all of several lists, in order."""
    common = set.intersection(*(set(some.tolist()) for some in rows))
    return torch.tensor(sorted(common), dtype=torch.int64)


HEAD = [
    "", "native", "reference", "ratio", "ratio per pass", "native, passes per sample", "reference, passes per sample",
    "floor of native", "native over its floor", "reference over the model's floor", "goal reached",
    "overhead within the bar",
]  # fmt: skip


def stages(page: Page, bench: Bench, rows: Tensor, options: argparse.Namespace) -> None:
    """One row per stage, and one per kind of bare pass from all turns together."""
    bare = bench.bare(rows)
    lines: list[list[str]] = []
    floors: list[dict[str, Floor]] = []
    for name in STAGES:
        sides = {side: ByHand(bench, name, side, rows) for side in SIDES}
        lines.append(compared(name, sides, bare, options, floors))
    title = f"The stages by hand, on samples that stand; at most {OVERHEAD:.0%} over the floor of the prepared model"
    page.table(title, HEAD, lines)
    head = ["", *(f"{label}, microseconds per sample" for label in ("forward", "forward and input gradient"))]
    body = [
        [
            label,
            *(spread([getattr(floor[label], kind) * 1e6 for floor in floors], 1) for kind in ("forward", "gradient")),
        ]
        for label in ("model", "prepared")
    ]
    batch = len(next(iter(bare.values())).x)
    page.table(f"Bare passes, batches of {batch}: median and range of the stages' turns", head, body)


def compared(
    name: str, sides: Mapping[str, Attacked], bare: Mapping[str, Bare], options: argparse.Namespace,
    floors: list[dict[str, Floor]] | None = None,
) -> list[str]:  # fmt: skip
    """Run both sides and the bare passes in turns; the row of the table."""
    seconds = timing.interleave({**sides, **bare}, options.rounds, warm_up=False)
    floor = {label: timing.floor(label, bare, seconds) for label in ("model", "prepared")}
    if floors is not None:
        floors.append(floor)
    native, reference = (statistics.median(seconds[side]) for side in SIDES)
    passes = {side: attacked.passes for side, attacked in sides.items()}
    least = {
        "native": floor["prepared"].seconds(passes["native"]),
        "reference": floor["model"].seconds(passes["reference"]),
    }
    work = {side: floor["model"].seconds(passes[side]) for side in SIDES}  # both in one currency
    per_pass = (reference / work["reference"]) / (native / work["native"])
    overhead = native / least["native"] - 1
    bars = [yes(reference / native >= options.goal), yes(overhead <= OVERHEAD)]
    return [
        name, *(spread(seconds[side]) for side in SIDES), f"{reference / native:.2f}", f"{per_pass:.2f}",
        *(written(passes[side], len(sides[side].rows)) for side in SIDES), f"{least['native']:.2f}", f"{overhead:+.1%}",
        f"{reference / least['reference'] - 1:+.1%}", *bars,
    ]  # fmt: skip


def written(passes: Mapping[str, float], n: int) -> str:
    """Forward + input gradient, per sample."""
    return f"{passes['forward'] / n:.1f} + {passes['input_grad'] / n:.1f}"


if __name__ == "__main__":
    guarded(main)
