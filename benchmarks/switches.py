"""Where the time goes: each switch of the prepared model alone, all of them together, and how cores are shared out."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor, nn

from attacks.prepared import Prepared
from attacks.threat import ThreatModel
from benchmarks import timing
from benchmarks.attacked import ENSEMBLE, Effort, build, run
from benchmarks.subjects import Subject
from benchmarks.tables import Page, spread
from benchmarks.timing import Bare

SWITCHES = ("fold", "channels_last", "compile", "bf16")
FOR_A_GPU = ("bf16",)
ATTACKED = ("apgd-ce", "square")  # one stage of gradients, one of forwards
QUERIES = 5  # of Square per step of APGD, at most, so that both take about as long
GIVEN, OFF, TOGETHER = "the model as it is", "all off", "together"


def usual(device: torch.device) -> list[str]:
    """The switches that a device has a use for."""
    return [switch for switch in SWITCHES if device.type == "cuda" or switch not in FOR_A_GPU]


def prepared_table(
    page: Page, model: nn.Module, subject: Subject, effort: Effort, x: Tensor, y: Tensor, rows: Tensor,
    chosen: Sequence[str], options: argparse.Namespace,
) -> None:  # fmt: skip
    """One row per switch: bare passes and two stages by hand on one batch, against all switches off."""
    device = next(model.parameters()).device
    effort = replace(effort, queries=min(effort.queries, QUERIES * effort.steps))
    batch, labels = x[rows[: subject.block]].to(device), y[rows[: subject.block]].to(device)
    variants = {OFF: [], **{switch: [switch] for switch in chosen}, TOGETHER: list(chosen)}
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


WAYS = {"one process, one thread": (1, 1), "one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}


def workers_table(page: Page, subject: Subject, effort: Effort, options: argparse.Namespace) -> None:
    """The native ensemble on all samples, its blocks shared out among processes and threads; processes are warm."""
    context = multiprocessing.get_context("spawn")
    pools = {way: ProcessPoolExecutor(processes, mp_context=context) for way, (processes, _) in WAYS.items()}
    try:
        tasks = {way: shared_out(pools[way], *WAYS[way], subject, effort, options.samples) for way in WAYS}
        for way, (processes, threads) in WAYS.items():  # every process loads model and samples before the clock runs
            shared_out(pools[way], processes, threads, subject, Effort(1, 1, 1), options.samples)()
        seconds = timing.interleave(tasks, options.rounds, warm_up=False)
    finally:
        for pool in pools.values():
            pool.shutdown()
    alone = statistics.median(seconds[next(iter(WAYS))])
    lines = [[way, spread(found), f"{alone / statistics.median(found):.2f}"] for way, found in seconds.items()]
    page.table("The native ensemble on all samples, blocks shared out", ["", "seconds", "times faster"], lines)


def shared_out(
    pool: ProcessPoolExecutor, processes: int, threads: int, subject: Subject, effort: Effort, samples: int
) -> Callable[[], object]:
    """A task: every process takes every so manieth block."""

    def task() -> None:
        parts = [pool.submit(share, subject, effort, samples, part, processes, threads) for part in range(processes)]
        for part in parts:
            part.result()

    return task


def share(subject: Subject, effort: Effort, samples: int, part: int, parts: int, threads: int) -> None:
    """What one process does."""
    torch.set_num_threads(threads)
    x, y = subject.samples(samples)
    blocks = torch.arange(len(y)).split(subject.block)[part::parts]
    if blocks:
        rows = torch.cat(list(blocks))
        threat, block = subject.threat, subject.block
        run(subject.load(), x[rows], y[rows], ENSEMBLE, "native", threat, effort, seed=0, block=block)
