"""Speed of the prepared model with each switch alone and all together, and with cores shared out in other ways."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacks.fast.prepared import Prepared
from attacks.threat import ThreatModel
from bench.core.device import keep_freed_memory
from benchmarks import timing
from benchmarks.attacked import ENSEMBLE, Effort, build, run
from benchmarks.subjects import Subject
from benchmarks.tables import Page, spread, yes
from benchmarks.timing import Bare

SWITCHES = ("fold", "chain", "channels_last", "compile", "bf16")
NEEDS = {"chain": ["fold", "chain"]}  # what is switched on with a switch
WITH_CHAIN = ("fold", "chain", "bf16")
ATTACKED = ("apgd-ce", "square")  # one stage of gradients, one of forwards
QUERIES = 5  # of Square per step of APGD, at most, so that both take about as long
GIVEN, OFF, TOGETHER = "the model as it is", "all off", "together"


def together(chosen: Sequence[str], device: torch.device) -> list[str]:
    """Those of several switches that go together: a chain takes no other layout, and it is what a CPU searches."""
    chain = device.type == "cpu" and "chain" in chosen
    return [switch for switch in chosen if (switch in WITH_CHAIN if chain else switch != "chain")]


def prepared_table(
    page: Page, model: nn.Module, subject: Subject, effort: Effort, x: Tensor, y: Tensor, rows: Tensor,
    chosen: Sequence[str], options: argparse.Namespace,
) -> None:  # fmt: skip
    """One row per switch: bare passes and two stages by hand on one batch, against all switches off."""
    device = next(model.parameters()).device
    effort = replace(effort, queries=min(effort.queries, QUERIES * effort.steps))
    batch, labels = x[rows[: subject.block]].to(device), y[rows[: subject.block]].to(device)
    variants = {
        OFF: [],
        **{switch: NEEDS.get(switch, [switch]) for switch in chosen},
        TOGETHER: together(chosen, device),
    }
    networks: dict[str, nn.Module] = {GIVEN: model}
    preparing: dict[str, float] = {GIVEN: 0.0}
    for name, on in variants.items():
        networks[name], preparing[name] = prepared(model, batch, on)
    columns: dict[str, dict[str, timing.Task]] = {"forward": {}, "gradient": {}, **{stage: {} for stage in ATTACKED}}
    for name, network in networks.items():
        columns["forward"][name] = Bare.fitted(timing.forward, network, batch)
        columns["gradient"][name] = Bare.fitted(timing.gradient, network, batch)
        for stage in ATTACKED:
            columns[stage][name] = by_hand(network, batch, labels, stage, subject.threat, effort)
    found = {column: timing.interleave(tasks, options.rounds) for column, tasks in columns.items()}
    lines = []
    for name, network in networks.items():
        cells = [name, f"{preparing[name]:.2f}"]
        for column, tasks in columns.items():
            cells.append(cell(tasks[name], tasks[OFF], found[column][name], found[column][OFF]))
        lines.append([*cells, getattr(network, "note", None) or getattr(network, "unfolded", None) or ""])
    head = [
        "",
        "preparation, s",
        "forward, us",
        "forward and input gradient, us",
        *(f"{s}, s" for s in ATTACKED),
        "note",
    ]
    page.table(
        f"Switches of the prepared model, on one batch of {len(batch)} that stand: per sample bare, and two stages by "
        f"hand, Square with {effort.queries} queries; in brackets how many times faster than all switches off",
        head, lines,
    )  # fmt: skip


def prepared(model: nn.Module, example: Tensor, on: Sequence[str]) -> tuple[Prepared, float]:
    """A model prepared with some switches on, and the seconds until its first gradient is there."""
    made: list[Prepared] = []

    def prepare() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the table shows the note
            made.append(Prepared(model, example, **{switch: switch in on for switch in SWITCHES}))
        timing.gradient(made[0], example)

    seconds = timing.clock(prepare)
    return made[0], seconds


def by_hand(
    network: nn.Module, x: Tensor, y: Tensor, stage: str, threat: ThreatModel, effort: Effort
) -> Callable[[], object]:
    """A task: a native stage on a batch, without the harness."""
    attack = build(stage, "native", threat, effort)
    return lambda: attack(network, x, y, generator=torch.Generator().manual_seed(0))


def cell(task: timing.Task, off: timing.Task, seconds: list[float], without: list[float]) -> str:
    """Median time, and how many times faster that is than with all switches off."""
    if isinstance(task, Bare) and isinstance(off, Bare):
        each = task.each(seconds)
        return f"{each * 1e6:.1f} ({off.each(without) / each:.2f})"
    middle = statistics.median(seconds)
    return f"{middle:.2f} ({statistics.median(without) / middle:.2f})"


@dataclass(frozen=True)
class Way:
    """How the ensemble is run on all samples.

    Attributes:
        side: "native" or "reference".
        processes: that share the samples.
        threads: of each.
        kept: whether they keep the memory that is freed.
        prepare: switches of the prepared model besides the usual ones.
    """

    side: str
    processes: int
    threads: int
    kept: bool
    prepare: tuple[str, ...] = ()


RELEASED = "released, one process, two threads"
SHARED = "native, two processes, one thread each"
EVERYTHING = f"{SHARED}, searched in bfloat16"
WAYS = {
    RELEASED: Way("reference", 1, 2, False),
    "released, one process, one thread": Way("reference", 1, 1, False),
    "released, one process, two threads, memory kept": Way("reference", 1, 2, True),
    "native, one process, two threads": Way("native", 1, 2, True),
    "native, one process, one thread": Way("native", 1, 1, True),
    "native, one process, one thread, memory not kept": Way("native", 1, 1, False),
    SHARED: Way("native", 2, 1, True),
    EVERYTHING: Way("native", 2, 1, True, ("bf16",)),
}


def workers_table(page: Page, subject: Subject, effort: Effort, options: argparse.Namespace) -> None:
    """Both ensembles on all samples, each way in warm processes of its own; the goal is for everything on."""
    context = multiprocessing.get_context("spawn")
    ways = {name: way for name, way in WAYS.items() if options.released or way.side == "native"}
    pools = {name: ProcessPoolExecutor(way.processes, mp_context=context) for name, way in ways.items()}
    try:
        tasks = {name: shared_out(pools[name], way, subject, effort, options.samples) for name, way in ways.items()}
        for name, way in ways.items():  # every process loads model and samples before the clock runs
            shared_out(pools[name], way, subject, Effort(1, 1, 1), options.samples)()
        seconds = timing.interleave(tasks, options.rounds, warm_up=False)
    finally:
        for pool in pools.values():
            pool.shutdown()
    against = statistics.median(seconds[next(iter(ways))])
    lines = []
    for name, found in seconds.items():
        faster = against / statistics.median(found)
        bar = yes(faster >= options.goal) if options.released and name in (SHARED, EVERYTHING) else ""
        lines.append([name, spread(found), f"{faster:.2f}", bar])
    page.table(
        f"The ensembles on all samples, preparation and verdicts included; the goal is {options.goal:g} times with "
        "everything on",
        ["", "seconds", "times faster than the first", "goal reached"], lines,
    )  # fmt: skip


def shared_out(
    pool: ProcessPoolExecutor, way: Way, subject: Subject, effort: Effort, samples: int
) -> Callable[[], object]:
    """A task: every process takes an equal share of the samples."""

    def task() -> None:
        parts = [pool.submit(share, subject, effort, samples, part, way) for part in range(way.processes)]
        for part in parts:
            part.result()

    return task


def share(subject: Subject, effort: Effort, samples: int, part: int, way: Way) -> None:
    """What one process does."""
    torch.set_num_threads(way.threads)
    if way.kept:
        keep_freed_memory()
    x, y = subject.samples(samples)
    block = min(subject.block, math.ceil(len(y) / way.processes))
    blocks = torch.arange(len(y)).split(block)[part :: way.processes]
    if blocks:
        rows = torch.cat(list(blocks))
        run(
            subject.load(), x[rows], y[rows], ENSEMBLE, way.side, subject.threat, effort, seed=0, block=block,
            prepare=way.prepare,
        )  # fmt: skip
