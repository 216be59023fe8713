"""The executor of this process; those of worker processes and of torchrun are in `worker_pool` and `torchrun`."""

from __future__ import annotations

import threading

from bench.launch.display import Display, DisplayedProgress
from bench.launch.scheduler import Workspace
from bench.launch.worker import run_job
from bench.plan.jobs import Job

Result = tuple[Job, str, "str | None"]  # a job, how it ended ("done", "busy", "interrupted", "failed"), why it failed


class Executor:
    """Runs jobs one after the other in this process; others override how.

    Args:
        workspace: folders and plug-ins.
        display: shows progress.
        stopping: is set when jobs are to save and end.

    Attributes:
        running: jobs that were submitted and have not ended.
    """

    def __init__(self, workspace: Workspace, display: Display, stopping: threading.Event) -> None:
        self.workspace, self.display, self.stopping = workspace, display, stopping
        self.running: list[Job] = []

    def has_room(self) -> bool:
        """Whether another job can be submitted now."""
        return not self.running

    def accepts(self, job: Job) -> bool:
        """Whether a job can run beside those that are running."""
        return True

    def submit(self, job: Job) -> None:
        """Take a job that is accepted."""
        self.running.append(job)

    def collect(self) -> list[Result]:
        """Wait a moment, or until jobs have ended; the results of those that have."""
        job = self.running.pop()
        return [(job, *run_job(job, self.workspace, DisplayedProgress(job, self.display, self.stopping)))]

    def close(self) -> None:
        """End what was started."""
