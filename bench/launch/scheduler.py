"""The order of jobs: by what they require, and with evaluations split into parts where workers would be idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.core import files
from bench.data.registry import DATASETS
from bench.evaluation import block_store
from bench.plan.jobs import EvalJob, Job, Plan, TrainJob, title

RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Workspace:
    """Folders and plug-ins that all jobs of a launch share.

    Attributes:
        out, data_dir: folders of results and of data sets.
        download: fetch missing data.
        plugins: files or modules that register more.
    """

    out: Path
    data_dir: Path
    download: bool = False
    plugins: tuple[str, ...] = ()


@dataclass
class Report:
    """Summary of a launch.

    Attributes:
        finished: titles of the jobs that were done.
        skipped: number of jobs that were done before.
        failures: title -> sentence.
        interrupted: whether it was asked to stop.
    """

    finished: list[str] = field(default_factory=list)
    skipped: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


class Schedule:
    """The jobs of a launch in the order in which they can start.

    Args:
        plan: the jobs.
        workspace: where their folders are; what is done there is skipped.
        done: keys of runs outside the plan that its jobs start from.
        workers: processes side by side. While fewer jobs can start than that, an evaluation is split into a part
            for each: blocks do not depend on one another. The evaluation itself then waits for its parts.
        own_devices: whether every worker has a GPU of its own; if not, an evaluation on a GPU stays whole.
    """

    def __init__(
        self, plan: Plan, workspace: Workspace, done: Iterable[str], workers: int = 1, *, own_devices: bool = False
    ) -> None:
        self.report = Report()
        self.workers, self.own_devices = workers, own_devices
        self.waiting: list[Job] = []
        self.done: set[str] = set(done)
        self.failed: dict[str, str] = {}
        self.retry_at: dict[str, float] = {}
        self.split: dict[str, set[str]] = {}
        jobs: list[Job] = [
            *_required_first(plan.train),
            *sorted(plan.evaluate, key=lambda job: not job.attack.startswith("autoattack")),
        ]
        for job in jobs:
            if files.is_done(workspace.out / job.folder):
                if isinstance(job, EvalJob):
                    block_store.clear(
                        workspace.out / job.folder
                    )  # left by a process that was killed as it cleared them
                self.done.add(job.id)
                self.report.skipped += 1
            else:
                self.waiting.append(job)

    def next(self, accepts: Callable[[Job], bool] = lambda job: True) -> Job | None:
        """The next job that can start now; None if there is none, or if it is not accepted."""
        self._drop_blocked()
        while (ready := self._ready()) and len(ready) < self.workers and self._split_one(ready):
            continue
        if not ready or not accepts(ready[0]):
            return None
        self.waiting.remove(ready[0])
        return ready[0]

    def end(self, job: Job, outcome: str | None, sentence: str | None) -> None:
        """Record how a job ended: "done", "busy" (held elsewhere), "failed" or "interrupted"."""
        if outcome == "done":
            self.done.add(job.id)
            if not self._is_split_part(job):
                self.report.finished.append(title(job))
        elif outcome == "busy":
            self.retry_at[job.id] = time.monotonic() + RETRY_SECONDS
            self.waiting.append(job)
        elif outcome == "failed":
            whole = job.whole if isinstance(job, EvalJob) and self._is_split_part(job) else job
            self.failed[whole.id] = sentence or "failed"
            self.report.failures[title(whole)] = sentence or "failed"

    def _ready(self) -> list[Job]:
        now = time.monotonic()
        return [
            job
            for job in self.waiting
            if {*job.requires, *self.split.get(job.id, ())} <= self.done and self.retry_at.get(job.id, 0) <= now
        ]

    def _split_one(self, ready: Sequence[Job]) -> bool:
        """Put the parts of an evaluation in front of it; False if none can be split."""
        for job in ready:
            if (
                isinstance(job, EvalJob)
                and job.id not in self.split
                and (job.device == "cpu" or self.own_devices)
                and (count := min(self.workers, _max_parts(job))) > 1
            ):
                parts = [replace(job, part=(number, count)) for number in range(1, count + 1)]
                self.split[job.id] = {part.id for part in parts}
                place = self.waiting.index(job)
                self.waiting[place:place] = parts
                return True
        return False

    def _is_split_part(self, job: Job) -> bool:
        """Whether a job is a part that was split here, and not a shard that was asked for."""
        return isinstance(job, EvalJob) and job.id in self.split.get(job.key, ())

    def _drop_blocked(self) -> None:
        """Remove waiting jobs of which a requirement has failed."""
        for job in list(self.waiting):
            needs = (*job.requires, job.key, *self.split.get(job.id, ()))
            cause = next((self.failed[need] for need in needs if need in self.failed), None)
            if cause is not None:
                self.waiting.remove(job)
                self.failed.setdefault(job.id, cause)
                if isinstance(job, TrainJob):
                    self.report.failures[title(job)] = f"not tried, because what it starts from failed: {cause}"


def _max_parts(job: EvalJob) -> int:
    """The most parts an evaluation can be split into; 1 if it must stay whole, or its size is not known.

    A stop rule looks at all blocks in order.
    """
    full: int | None = DATASETS.sketch(job.dataset).fact("sizes", {}).get("test")
    if job.part is not None or job.stop_when is not None or full is None:
        return 1
    return -(-min(full, job.limit or full) // job.block)


def _required_first(jobs: Sequence[TrainJob]) -> list[TrainJob]:
    """Runs that others start from come first: the longest chain decides when everything is over."""
    needed = {key for job in jobs for key in job.requires}
    return sorted(jobs, key=lambda job: (job.key not in needed, job.role != "teacher"))
