"""A launch over the processes of a torchrun: trainings by all of them together, evaluations side by side.

The first process does what a launch does everywhere; the others do what it tells them. The results folder must be the
same for all, on a disk that the machines share.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.config.settings import RunSettings
from bench.core import device
from bench.core.progress import Progress
from bench.distributed import control
from bench.distributed.control import Follower, JobOutcome, Leader
from bench.distributed.process_group import ProcessGroup
from bench.errors import BenchError, Interrupted, UsageError
from bench.launch.display import Display, DisplayedProgress
from bench.launch.scheduler import RETRY_SECONDS, Schedule, Workspace
from bench.launch.worker import run_job, stop_requests, work
from bench.plan.jobs import Job, TrainJob


def lead(
    schedule: Schedule,
    workspace: Workspace,
    display: Display,
    stopping: threading.Event,
    group: ProcessGroup,
    leader: Leader,
) -> None:
    """Run a schedule with all processes, from the first of them."""
    while schedule.waiting and not stopping.is_set():
        jobs = _due(schedule, group.size)
        if not jobs:
            if schedule.waiting:
                time.sleep(RETRY_SECONDS / 4)
            continue
        for number, job in enumerate(jobs[1:]):
            leader.send(number, "job", job)
        found = [run_job(jobs[0], workspace, DisplayedProgress(jobs[0], display, stopping), group)]
        found += [leader.outcome(number) for number in range(len(jobs) - 1)]
        for job, (outcome, sentence) in zip(jobs, found, strict=True):
            schedule.end(job, outcome, sentence)
            if outcome == "interrupted":  # perhaps another process was asked to stop
                stopping.set()
            if outcome in ("done", "failed"):
                display.ended(job, sentence)


def _due(schedule: Schedule, size: int) -> list[Job]:
    """A training that can start now, or up to `size` evaluations."""
    jobs: list[Job] = []
    while len(jobs) < size and (job := schedule.next()) is not None:
        if jobs and isinstance(job, TrainJob):
            schedule.waiting.insert(0, job)
            break
        jobs.append(job)
        if isinstance(job, TrainJob):
            break
    return jobs


def follow(follower: Follower, workspace: Workspace, group: ProcessGroup) -> None:
    """Do what the first process says, until it dismisses this one."""
    with stop_requests() as stopping:
        for order, job in follower.orders():
            progress = DisplayedProgress(job, Display(), stopping)
            follower.report(
                run_job(job, workspace, progress) if order == "job" else _train_along(job, workspace, progress, group)
            )


def _train_along(job: Job, workspace: Workspace, progress: Progress, group: ProcessGroup) -> JobOutcome:
    """Take part in a training that the first process leads; it alone holds the folder and writes there."""
    try:
        work(job, workspace, progress, group)
    except Interrupted:
        return "interrupted", None
    except BenchError as error:
        return "failed", str(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    return "done", None


@contextmanager
def torchrun_group(settings: RunSettings, workspace: Workspace) -> Iterator[tuple[str, ProcessGroup | None]]:
    """The device that settings resolve to, and the processes of a torchrun, or this one alone.

    In all of these but the first there is no group: they do what they are told, and then nothing is left to do.

    Raises:
        UsageError: if the settings do not go with the processes.
    """
    process = control.process_info()
    if process is None:
        if settings.sync_bn:
            raise UsageError("--sync-bn: is for several processes that train one model; start them with torchrun")
        yield device.resolve(settings.device), ProcessGroup()
        return
    if settings.gpus is not None or settings.workers is not None:
        raise UsageError("--gpus, --workers: torchrun's processes take their place; leave them out")
    from bench.distributed import ddp

    if settings.device != "cpu":
        ddp.claim_gpu(process)
    name = device.resolve(settings.device)
    ddp.check(name, sync_bn=settings.sync_bn)
    group, follower = ddp.join(process, name, sync_bn=settings.sync_bn)
    try:
        if follower is not None:
            follow(follower, workspace, group)
        yield name, None if follower else group
    finally:
        ddp.leave(group)
