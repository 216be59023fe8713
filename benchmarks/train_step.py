"""Cost of a training step, against its bare passes and against the step of a plain script.

    python -m benchmarks.train_step                     digits, then a ResNet-18 on images in the shape of CIFAR-10
    python -m benchmarks.train_step --device cuda --batch 128

The floor of a step is what its passes cost bare: each pass that it makes is noted with what tells its cost (network,
mode of BatchNorm, what is differentiated), and each kind is timed over full batches, in the same layout and precision.
Steps, plain steps and bare passes take turns in one process. On a CPU with one thread the seconds are those of the
process, which other programs on the machine do not lengthen, otherwise those of the clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.config.speedups import DEVICE_DEFAULTS, SWITCHES
from bench.core import device as devices
from bench.data.splits import to_float
from bench.training.trainer import Trainer
from benchmarks import kept, per_class, timing
from benchmarks.passes import BarePasses, Kind, often
from benchmarks.plain_steps import STEPS, Written
from benchmarks.subjects import comma_list
from benchmarks.tables import Page, guarded, spread, yes
from benchmarks.trained import Ground, PlainStep, SuiteStep, gradients_differ
from methods.registry import METHODS

PARTS = ("methods", "switches", "per-class")
OVERHEAD, GOAL = 1.15, 1.5  # over the floor, at most; of the plain step, at least
Clock = Callable[[timing.Task], float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print every table."""
    options = parser().parse_args(arguments)
    devices.configure(options.device, options.threads, False, fixed_sizes=True)
    page = Page("Cost of a training step", options.out, "train_step")
    page.surroundings(options.device, options.threads)
    for ground in grounds(options):
        page.line(f"\n## {ground.name}\n")
        chosen = options.methods or METHODS.names()
        if "methods" in options.parts:
            methods_table(page, ground, chosen, options)
        if "switches" in options.parts:
            for method in options.switched:
                switches_table(page, ground, method, options)
                if ground.device == "cpu" and method in STEPS:
                    kept.table(page, ground, method, rounds_of(ground, options))
        if "per-class" in options.parts:
            per_class.table(page, ground, [name for name in chosen if name in per_class.WORK], clock_of(ground))


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--grounds", type=comma_list(str), default=["digits", "resnet18"], help="of digits,resnet18")
    made.add_argument("--batch", type=int, help="samples of a step (default: digits 128; ResNet-18 16, on a GPU 128)")
    made.add_argument("--methods", type=comma_list(str), default=[], help="(default: all that are registered)")
    made.add_argument("--switched", type=comma_list(str), default=["pgd_at", "trades"], help="of the switches' tables")
    made.add_argument("--switches", type=comma_list(str), default=list(SWITCHES), help="(%(default)s)")
    made.add_argument("--train-with", type=comma_list(str), help="of the methods' table (default: the device's)")
    made.add_argument("--parts", type=comma_list(str), default=list(PARTS), help=f"of {','.join(PARTS)}")
    made.add_argument("--rounds", type=int, default=15, help="interleaved runs; a third for ResNet-18 (%(default)s)")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--device", default="cpu")
    made.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the page")
    return made


def grounds(options: argparse.Namespace) -> list[Ground]:
    """What is measured on."""
    place: dict[str, Any] = {"device": options.device, "threads": options.threads}
    batch = options.batch or (16 if options.device == "cpu" else 128)
    known = {
        "digits": Ground("digits", "small_cnn", "small_cnn_wide", options.batch or 128, **place),
        "resnet18": Ground("cifar10", "resnet18", "resnet18", batch, planted=True, **place),
    }
    return [known[name] for name in options.grounds]


def rounds_of(ground: Ground, options: argparse.Namespace) -> int:
    """Interleaved runs: fewer where a step takes seconds."""
    return max(1, options.rounds // 3) if ground.planted else int(options.rounds)


def clock_of(ground: Ground) -> Clock:
    """Seconds of the process where it has one thread, else of the clock on the wall."""
    if ground.device != "cpu" or ground.threads > 1:
        return timing.clock

    def clock(task: timing.Task) -> float:
        began = time.process_time()
        task()
        return time.process_time() - began

    return clock


def repeated(task: timing.Task, times: int) -> timing.Task:
    """A task so many times, as in training, where a step finds the caches as the one before has left them."""

    def run() -> None:
        for _ in range(times):
            task()

    return run


def turns(tasks: Mapping[Any, timing.Task], rounds: int, clock: Clock) -> list[dict[Any, float]]:
    """Seconds of each task, turn by turn; every second turn goes the opposite way."""
    found = []
    for turn in range(rounds):
        order = list(tasks) if turn % 2 == 0 else list(reversed(list(tasks)))
        found.append({name: clock(tasks[name]) for name in order})
    return found


HEAD = [
    "", "declared: F + Bx + Bw, T + Tx", "made", "floor, ms", "step, ms", "over the floor", f"at most {OVERHEAD}",
    "plain: F + Bx + Bw, T", "plain step, ms", "times faster", f"at least {GOAL}", "plain over the floor",
    "gradients differ by",
]  # fmt: skip


def methods_table(page: Page, ground: Ground, methods: Sequence[str], options: argparse.Namespace) -> None:
    """A row per method: its step against its floor and against the plain step."""
    clock, each_kind = clock_of(ground), BareTimes()
    measured = [Measured(name, ground, options.train_with, clock) for name in methods]
    for _ in range(rounds_of(ground, options)):
        for one in measured:
            one.turn(clock, each_kind)
    switches = ", ".join(measured[0].suite.trainer.job.train_with) or "none"
    page.table(
        f"Every method, switches: {switches}; medians of {rounds_of(ground, options)} turns. Passes per sample are "
        "forward + to the input + to the weights of the student, forward + to the input of the teacher. Last: how many "
        "times the floor the plain step takes, which is the most that there is to gain, and the relative difference "
        "of gradients in float64, from equal weights, draws and images",
        HEAD, [one.row(ground) for one in measured],
    )  # fmt: skip
    body = [[kind.name, f"{statistics.median(found) * 1e6:.1f}"] for kind, found in each_kind.items()]
    page.table("Bare passes, microseconds per sample", ["", "median"], body)


class BareTimes(dict[Kind, list[float]]):
    """Seconds per sample of each kind of pass, from all turns."""

    def add(self, kind: Kind, seconds: float) -> None:
        """Note a turn."""
        self.setdefault(kind, []).append(seconds)


class Measured:
    """A method's step, the plain one, and the bare passes of which the first is made.

    Args:
        name: of the method.
        ground: what is trained on.
        switches: of `bench.config.speedups`; None takes the device's.
        clock: seconds of a task.
    """

    def __init__(self, name: str, ground: Ground, switches: Sequence[str] | None, clock: Clock) -> None:
        self.name, self.suite = name, SuiteStep(ground.trainer(name, switches))
        self.plain = PlainStep(name, ground.trainer(name, [])) if name in STEPS else None
        self.ledger = self.suite.counted()
        self.script = self.plain.counted() if self.plain else None
        trainer = self.suite.trainer
        declared = trainer.method.passes() * ground.batch
        self.dropped = self.ledger.short_of(declared.as_dict()) if trainer.method.drops_rows else {}
        x = trainer.networks.images(to_float(trainer.train.x[: len(self.suite.rows)]))
        self.bare = {kind: BarePasses(kind, net, x).fitted(clock) for kind, net in self.ledger.networks.items()}
        self.times = often(self.suite, timing.LONG_ENOUGH / 2, clock)
        self.floors: list[float] = []
        self.steps: list[float] = []
        self.scripts: list[float] = []

    def turn(self, clock: Clock, each_kind: BareTimes) -> None:
        """Time everything once: what is compared is next to each other, bare passes on both sides of the step."""
        before = {kind: clock(task) for kind, task in self.bare.items()}
        self.steps.append(clock(repeated(self.suite, self.times)) / self.times)
        if self.plain is not None:
            self.scripts.append(clock(repeated(self.plain, self.times)) / self.times)
        after = {kind: clock(self.bare[kind]) for kind in reversed(list(self.bare))}
        each = {kind: task.each((before[kind] + after[kind]) / 2) for kind, task in self.bare.items()}
        self.floors.append(self.ledger.seconds(each, self.dropped))
        for kind, seconds in each.items():
            each_kind.add(kind, seconds)

    def row(self, ground: Ground) -> list[str]:
        """The cells of the method."""
        over = ratios(self.steps, self.floors)
        declared = self.suite.trainer.method.passes().as_dict()
        cells = [
            self.name, passes(declared), passes(self.ledger.totals(), ground.batch),
            *(f"{statistics.median(times) * 1e3:.2f}" for times in (self.floors, self.steps)),
            spread(over), yes(statistics.median(over) <= OVERHEAD),
        ]  # fmt: skip
        if self.plain is None or self.script is None:
            return [*cells, *["-"] * (len(HEAD) - len(cells))]
        faster, most = ratios(self.scripts, self.steps), ratios(self.scripts, self.floors)
        return [
            *cells, passes(self.script.totals(), ground.batch), f"{statistics.median(self.scripts) * 1e3:.2f}",
            spread(faster), yes(statistics.median(faster) >= GOAL), f"{statistics.median(most):.2f}",
            differences(self.suite.trainer, self.plain),
        ]  # fmt: skip


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Turn by turn."""
    return [a / b for a, b in zip(above, below, strict=True)]


def differences(trainer: Trainer, plain: PlainStep) -> str:
    """How far gradients are apart; with bfloat16 in float32, since autocast leaves float64 alone."""
    rough = "bf16" in trainer.job.train_with
    found = gradients_differ(trainer, plain, torch.float32 if rough else torch.float64)
    return f"{found:.1e}" + (" (bf16)" if rough else "")


def passes(counts: Mapping[str, float], batch: int = 1) -> str:
    """`13 + 10 + 2, 1 + 0`."""
    text = {name: f"{value / batch:.1f}".removesuffix(".0") for name, value in counts.items()}
    return "{forward} + {input_grad} + {backward}, {teacher} + {teacher_grad}".format(**text)


def switches_table(page: Page, ground: Ground, method: str, options: argparse.Namespace) -> None:
    """One row per switch alone and all together, against the plain step, where all is off."""
    if method not in STEPS:
        return
    base = ground.trainer(method, [])
    ways = {
        "all off: the plain step": Written(), "what does not change computed once": Written(once=True),
        "frozen parameters in the attack": Written(frozen=True), "both": Written(once=True, frozen=True),
    }  # fmt: skip
    tasks: dict[str, Any] = {name: PlainStep(method, base, how) for name, how in ways.items()}
    usual = list(DEVICE_DEFAULTS.get(ground.device.partition(":")[0], ()))
    lists = {"the suite's step, no switch": [], **{switch: [switch] for switch in options.switches}}
    lists |= {"together, as is usual here": usual, "together, all": list(options.switches)}
    tasks |= {name: SuiteStep(ground.trainer(method, switches)) for name, switches in lists.items()}
    for task in tasks.values():
        task()
    clock = clock_of(ground)
    times = often(tasks[next(iter(lists))], timing.LONG_ENOUGH / 2, clock)
    found = turns({name: repeated(task, times) for name, task in tasks.items()}, rounds_of(ground, options), clock)
    off, none = ([turn[name] for turn in found] for name in (next(iter(ways)), next(iter(lists))))
    rows = []
    for name, task in tasks.items():
        seconds = [turn[name] for turn in found]
        against = [spread([a / b for a, b in zip(slow, seconds, strict=True)]) for slow in (off, none)]
        trainer = task.trainer if isinstance(task, SuiteStep) else None
        differs = differences(trainer, tasks[next(iter(ways))]) if trainer else "-"
        note = "; ".join(trainer.networks.left_out) if trainer else ""
        rows.append([name, f"{statistics.median(seconds) / times * 1e3:.2f}", *against, differs, note])
    head = ["", "step, ms", "times faster than all off", "than no switch", "gradients differ by", "note"]
    page.table(f"{method}: switches alone and together, medians of {len(found)} turns", head, rows)


if __name__ == "__main__":
    guarded(main)
