"""Speed of a training step whose process keeps the memory that tensors free, and one whose process does not."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache

import torch

from bench.core.device import keep_freed_memory
from benchmarks.tables import Page, spread
from benchmarks.timing import Task
from benchmarks.trained import Ground, PlainStep, SuiteStep

PLAIN, SUITE = "the plain step", "the suite's step, as is usual here"


def table(page: Page, ground: Ground, method: str, rounds: int) -> None:
    """Both steps in two processes of one thread, one that keeps freed memory and one that does not, in turns.

    A process cannot go back to what the C library does by itself, so each way has one of its own.
    """
    context = multiprocessing.get_context("spawn")
    pools = {kept: ProcessPoolExecutor(1, mp_context=context) for kept in (False, True)}
    found: dict[tuple[str, bool], list[float]] = {(step, kept): [] for step in (PLAIN, SUITE) for kept in pools}
    try:
        for _ in range(rounds + 1):  # the first builds models, and is left out
            for (step, kept), seconds in found.items():
                seconds.append(pools[kept].submit(timed, ground, method, step, kept).result())
    finally:
        for pool in pools.values():
            pool.shutdown()
    rows = []
    for step in (PLAIN, SUITE):
        given_back, kept_here = found[step, False][1:], found[step, True][1:]
        faster = [slow / fast for slow, fast in zip(given_back, kept_here, strict=True)]
        cells = (f"{statistics.median(seconds) * 1e3:.2f}" for seconds in (given_back, kept_here))
        rows.append([step, *cells, spread(faster)])
    head = ["", "memory given back, ms", "kept, ms", "times faster"]
    page.table(f"{method}: memory that tensors free, medians of {rounds} turns", head, rows)


def timed(ground: Ground, method: str, step: str, kept: bool) -> float:
    """Seconds of this process for a step, warm."""
    if kept:
        keep_freed_memory()
    torch.set_num_threads(ground.threads)
    task = _task(ground, method, step)
    task()
    began = time.process_time()
    task()
    return time.process_time() - began


@lru_cache
def _task(ground: Ground, method: str, step: str) -> Task:
    return PlainStep(method, ground.trainer(method, [])) if step == PLAIN else SuiteStep(ground.trainer(method, None))
