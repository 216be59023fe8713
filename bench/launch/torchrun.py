"""A launch over the processes of torchrun: trainings by all of them together, evaluations side by side.

The first process launches as everywhere; the others run what it sends them. The results folder must be the same for
all, on a disk that the machines share.
"""

from __future__ import annotations

import threading
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
from bench.launch.executors import Executor, Result
from bench.launch.scheduler import Workspace
from bench.launch.worker import execute, run_job, stop_requests
from bench.plan.jobs import Job, TrainJob


class TorchrunExecutor(Executor):
    """A training in all processes together, or evaluations side by side, an evaluation in each.

    Args:
        workspace, display, stopping: see `Executor`.
        group: the processes, of which this is the first.
        leader: its connections to the others.
    """

    def __init__(
        self, workspace: Workspace, display: Display, stopping: threading.Event, group: ProcessGroup, leader: Leader
    ) -> None:
        super().__init__(workspace, display, stopping)
        self.group, self.leader = group, leader

    def has_room(self) -> bool:
        """Whether a process is left for another evaluation."""
        return len(self.running) < self.group.size and not any(isinstance(job, TrainJob) for job in self.running)

    def accepts(self, job: Job) -> bool:
        """A training only by itself."""
        return not (self.running and isinstance(job, TrainJob))

    def collect(self) -> list[Result]:
        """Run what was submitted, the first job in this process."""
        jobs, self.running = self.running, []
        for number, job in enumerate(jobs[1:]):
            self.leader.send(number, "job", job)
        progress = DisplayedProgress(jobs[0], self.display, self.stopping)
        outcomes = [run_job(jobs[0], self.workspace, progress, self.group)]
        outcomes += [self.leader.outcome(number) for number in range(len(jobs) - 1)]
        return [(job, *outcome) for job, outcome in zip(jobs, outcomes, strict=True)]


def follow(follower: Follower, workspace: Workspace, group: ProcessGroup) -> None:
    """Run the jobs that the first process sends, until it dismisses this one."""
    with stop_requests() as stopping:
        for order, job in follower.orders():
            progress = DisplayedProgress(job, Display(), stopping)
            follower.report(
                run_job(job, workspace, progress) if order == "job" else _join_training(job, workspace, progress, group)
            )


def _join_training(job: Job, workspace: Workspace, progress: Progress, group: ProcessGroup) -> JobOutcome:
    """Take part in a training of all processes; the first one alone locks the folder and writes there."""
    try:
        execute(job, workspace, progress, group)
    except Interrupted:
        return "interrupted", None
    except BenchError as error:
        return "failed", str(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    return "done", None


@contextmanager
def torchrun_group(settings: RunSettings, workspace: Workspace) -> Iterator[tuple[str, ProcessGroup | None]]:
    """The device that settings resolve to, and the processes of torchrun, or this one alone.

    In all processes but the first there is no group: they run what the first one sends, and nothing is left to do.

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
