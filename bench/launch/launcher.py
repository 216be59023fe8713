"""Where jobs run: side by side in worker processes, or one after the other in this one.

Jobs are folders. A job that is done is skipped, one that another process holds is waited for, and one whose
requirements failed is not tried. Workers hold a folder's lock while they work in it and die with their parent, so a
killed command leaves nothing that the same command does not repair.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from bench.core import files
from bench.core.progress import Progress
from bench.distributed.process_group import ProcessGroup
from bench.launch.display import Display, DisplayedProgress
from bench.launch.scheduler import RETRY_SECONDS, Report, Schedule, Workspace
from bench.launch.worker import run_job, stop_requests
from bench.plan.jobs import Job, Plan


def launch(
    plan: Plan,
    workspace: Workspace,
    *,
    workers: int,
    gpus: Sequence[str] = (),
    display: Display | None = None,
    done: Iterable[str] = (),
    group: ProcessGroup | None = None,
) -> Report:
    """Run what is missing of a plan.

    Args:
        plan: the jobs.
        workspace: folders and plug-ins.
        workers: processes side by side; 1 runs in this process, unless there are `gpus`.
        gpus: what CUDA_VISIBLE_DEVICES calls the GPUs that workers are bound to, in turn; () binds none.
        display: shows progress.
        done: keys of runs outside the plan that its jobs start from.
        group: the processes of a torchrun, of which this is the first; they take the place of workers.

    Returns:
        What was done and what failed; a failed job does not stop the others.
    """
    several = None if group is None else group.leader
    count = workers if group is None else group.size
    schedule = Schedule(plan, workspace, done, count, own_devices=bool(gpus) or several is not None)
    with stop_requests() as stopping:
        if group is not None and several is not None:
            from bench.launch.torchrun import lead

            lead(schedule, workspace, display or Display(), stopping, group, several)
        elif workers == 1 and not gpus:
            _run_here(schedule, workspace, display or Display(), stopping)
        else:
            slots = [gpus[i % len(gpus)] if gpus else None for i in range(workers)]
            _run_workers(schedule, workspace, slots, display or Display(), stopping)
    schedule.report.interrupted = stopping.is_set()
    return schedule.report


def _run_here(schedule: Schedule, workspace: Workspace, display: Display, stopping: threading.Event) -> None:
    while schedule.waiting and not stopping.is_set():
        job = schedule.next()
        if job is None:
            if schedule.waiting:
                time.sleep(RETRY_SECONDS / 4)
            continue
        progress = DisplayedProgress(job, display, stopping)
        outcome, sentence = run_job(job, workspace, progress)
        schedule.end(job, outcome, sentence)
        if outcome in ("done", "failed"):
            display.ended(job, sentence)


# Worker processes

Slot = str | None  # the GPU that a worker is bound to


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    slot: Slot
    job: Job | None = None


def _run_workers(
    schedule: Schedule, workspace: Workspace, slots: Sequence[Slot], display: Display, stopping: threading.Event
) -> None:
    context = multiprocessing.get_context("spawn")
    stop = context.RawValue("b", 0)  # no lock: a worker that dies must not hold one
    workers: list[_Worker] = []
    try:
        while schedule.waiting or any(w.job for w in workers):
            if stopping.is_set():
                stop.value = 1
                if not any(w.job for w in workers):
                    return
            else:
                _hand_out(schedule, workers, slots, display, lambda slot: _start(context, stop, workspace, slot))
            for worker in _ready([w for w in workers if w.job]):
                _listen(worker, workers, schedule, workspace, display)
    finally:
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        for worker in workers:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()


def _hand_out(
    schedule: Schedule,
    workers: list[_Worker],
    slots: Sequence[Slot],
    display: Display,
    start: Callable[[Slot], _Worker],
) -> None:
    """Give every idle worker a job; workers start when there is work for them, each in a slot that is free."""
    while True:
        idle = next((w for w in workers if w.job is None), None)
        if idle is None and len(workers) >= len(slots):
            return
        job = schedule.next()
        if job is None:
            return
        if idle is None:
            free = Counter(slots) - Counter(w.slot for w in workers)
            idle = start(next(slot for slot in slots if free[slot]))
            workers.append(idle)
        idle.job = job
        if idle.slot is not None:
            display.started(job, idle.slot)
        idle.pipe.send(job)


def _ready(busy: Sequence[_Worker]) -> list[_Worker]:
    if not busy:
        time.sleep(RETRY_SECONDS / 4)
        return []
    by_pipe = {worker.pipe: worker for worker in busy}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout=0.25)]  # type: ignore[index]


def _listen(
    worker: _Worker, workers: list[_Worker], schedule: Schedule, workspace: Workspace, display: Display
) -> None:
    """Handle one message of a worker; a worker that died fails its job."""
    job = worker.job
    if job is None:
        return
    try:
        kind, *rest = worker.pipe.recv()
    except (EOFError, OSError):
        workers.remove(worker)
        worker.process.join()
        sentence = f"its process ended unexpectedly (exit code {worker.process.exitcode}); out of memory?"
        (workspace.out / job.lock_folder).mkdir(parents=True, exist_ok=True)
        files.write_text(workspace.out / job.lock_folder / files.FAILED, sentence + "\n")
        schedule.end(job, "failed", sentence)
        display.ended(job, sentence)
        return
    if kind == "update":
        display.update(job, *rest)
    elif kind == "line":
        display.line(job, *rest)
    else:
        worker.job = None
        schedule.end(job, *rest)
        if rest[0] in ("done", "failed"):
            display.ended(job, rest[1])


def _start(context: Any, stop: Any, workspace: Workspace, slot: Slot) -> _Worker:
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, stop, workspace, slot), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here, slot)


class _Remote(Progress):
    """Progress of a worker, sent to the parent; updates at most ten times a second."""

    def __init__(self, pipe: Connection, stop: Any, gpu: Slot) -> None:
        self._pipe, self._stop, self._last, self.gpu = pipe, stop, 0.0, gpu

    def update(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if now - self._last > 0.1 or done == total:
            self._last = now
            self._pipe.send(("update", done, total, text))

    def line(self, text: str) -> None:
        super().line(text)
        self._pipe.send(("line", text))

    @property
    def stopping(self) -> bool:
        return bool(self._stop.value)


def _work(pipe: Connection, stop: Any, workspace: Workspace, slot: Slot) -> None:
    """Main loop of a worker: jobs in, messages out, until told to end or left alone."""
    if slot is not None:  # before anything asks for a GPU: the worker sees this one alone, whatever a job calls it
        os.environ["CUDA_VISIBLE_DEVICES"] = slot
    from bench.core.plugins import load_plugins

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and tells through the event
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    load_plugins(workspace.plugins)
    with contextlib.suppress(EOFError, OSError):
        while (job := pipe.recv()) is not None:
            outcome, sentence = run_job(job, workspace, _Remote(pipe, stop, slot))
            pipe.send(("end", outcome, sentence))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
