"""Run the jobs of a plan: one loop that hands them to an executor.

Jobs are folders. A job that is done is skipped, one that another process holds is waited for, and one whose
requirements failed is not tried. `scheduler` says which job is next, `executors` where it runs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Sequence

from bench.distributed.process_group import ProcessGroup
from bench.launch.display import Display
from bench.launch.executors import Executor
from bench.launch.scheduler import RETRY_SECONDS, Report, Schedule, Workspace
from bench.launch.torchrun import TorchrunExecutor
from bench.launch.worker import stop_requests
from bench.launch.worker_pool import WorkerPool
from bench.plan.jobs import Plan


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
    display, leader = display or Display(), None if group is None else group.leader
    count = workers if group is None or leader is None else group.size
    schedule = Schedule(plan, workspace, done, count, own_devices=bool(gpus) or leader is not None)
    with stop_requests() as stopping:
        if group is not None and leader is not None:
            executor: Executor = TorchrunExecutor(workspace, display, stopping, group, leader)
        elif workers == 1 and not gpus:
            executor = Executor(workspace, display, stopping)
        else:
            slots = [gpus[i % len(gpus)] if gpus else None for i in range(workers)]
            executor = WorkerPool(workspace, display, stopping, slots)
        with contextlib.closing(executor):
            _run(schedule, executor, display, stopping)
    schedule.report.interrupted = stopping.is_set()
    return schedule.report


def _run(schedule: Schedule, executor: Executor, display: Display, stopping: threading.Event) -> None:
    while executor.running or (schedule.waiting and not stopping.is_set()):
        if not stopping.is_set():
            submit_ready(schedule, executor)
        if not executor.running:
            time.sleep(RETRY_SECONDS / 4)
            continue
        for job, outcome, sentence in executor.collect():
            schedule.end(job, outcome, sentence)
            if outcome == "interrupted":  # perhaps another process was asked to stop
                stopping.set()
            if outcome in ("done", "failed"):
                display.ended(job, sentence)


def submit_ready(schedule: Schedule, executor: Executor) -> None:
    """Submit jobs that can start now while the executor has room."""
    while executor.has_room() and (job := schedule.next(executor.accepts)) is not None:
        executor.submit(job)
