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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench import store
from bench.errors import BenchError, Interrupted
from bench.jobs import EvalJob, Plan, TrainJob
from bench.progress import Progress, log_to

Job = TrainJob | EvalJob
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Site:
    """What every job of a launch shares.

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
    """How a launch ended.

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


class Display:
    """Shows what jobs do; this one shows nothing."""

    def update(self, job: Job, done: int, total: int, text: str) -> None:
        """Progress of one job."""

    def line(self, job: Job, text: str) -> None:
        """A line worth keeping."""

    def ended(self, job: Job, sentence: str | None) -> None:
        """A job ended; the sentence says why it failed."""


def title(job: Job) -> str:
    """The name of a job in progress lines and messages."""
    return f"train {job.title}" if isinstance(job, TrainJob) else f"{job.attack} on {job.title}"


def launch(plan: Plan, site: Site, *, workers: int, display: Display | None = None, done: Iterable[str] = ()) -> Report:
    """Run what is missing of a plan.

    Args:
        plan: the jobs.
        site: folders and plug-ins.
        workers: processes side by side; 1 runs in this process.
        display: shows progress.
        done: keys of runs outside the plan that its jobs start from.

    Returns:
        What was done and what failed; a failed job does not stop the others.
    """
    schedule = _Schedule(plan, site, done)
    with _stop_requests() as stopping:
        if workers == 1:
            _run_here(schedule, site, display or Display(), stopping)
        else:
            _run_workers(schedule, site, workers, display or Display(), stopping)
    schedule.report.interrupted = stopping.is_set()
    return schedule.report


class _Schedule:
    """Which jobs wait, run, are done or failed."""

    def __init__(self, plan: Plan, site: Site, done: Iterable[str]) -> None:
        self.report = Report()
        self.waiting: list[Job] = []
        self.done: set[str] = set(done)
        self.failed: dict[str, str] = {}
        self.later: dict[str, float] = {}
        jobs: list[Job] = [
            *_urgent_first(plan.train),
            *sorted(plan.evaluate, key=lambda job: not job.attack.startswith("autoattack")),
        ]
        for job in jobs:
            if store.is_done(site.out / job.folder):
                self.done.add(job.key)
                self.report.skipped += 1
            else:
                self.waiting.append(job)

    def next(self) -> Job | None:
        """The next job that can start now."""
        self._drop_hopeless()
        now = time.monotonic()
        for job in self.waiting:
            if set(job.requires) <= self.done and self.later.get(job.key, 0) <= now:
                self.waiting.remove(job)
                return job
        return None

    def end(self, job: Job, outcome: str | None, sentence: str | None) -> None:
        """Take note of how a job ended: "done", "busy" (held elsewhere), "failed" or "interrupted"."""
        if outcome == "done":
            self.done.add(job.key)
            self.report.finished.append(title(job))
        elif outcome == "busy":
            self.later[job.key] = time.monotonic() + RETRY_SECONDS
            self.waiting.append(job)
        elif outcome == "failed":
            self._fail(job, sentence or "failed")

    def _drop_hopeless(self) -> None:
        for job in [job for job in self.waiting if any(key in self.failed for key in job.requires)]:
            self.waiting.remove(job)
            cause = next(self.failed[key] for key in job.requires if key in self.failed)
            self.failed[job.key] = cause
            if isinstance(job, TrainJob):
                self.report.failures[title(job)] = f"not tried, because what it starts from failed: {cause}"

    def _fail(self, job: Job, sentence: str) -> None:
        self.failed[job.key] = sentence
        self.report.failures[title(job)] = sentence


def _urgent_first(jobs: Sequence[TrainJob]) -> list[TrainJob]:
    """Runs that others start from come first: the longest chain decides when everything is over."""
    needed = {key for job in jobs for key in job.requires}
    return sorted(jobs, key=lambda job: (job.key not in needed, job.role != "teacher"))


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C and a termination request set; a second Ctrl-C ends at once."""
    event = threading.Event()

    def stop(number: int, frame: Any) -> None:
        if event.is_set():
            os._exit(130)
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_here(schedule: _Schedule, site: Site, display: Display, stopping: threading.Event) -> None:
    while schedule.waiting and not stopping.is_set():
        job = schedule.next()
        if job is None:
            if schedule.waiting:
                time.sleep(RETRY_SECONDS / 4)
            continue
        progress = _Local(job, display, stopping)
        outcome, sentence = run_job(job, site, progress)
        schedule.end(job, outcome, sentence)
        if outcome in ("done", "failed"):
            display.ended(job, sentence)


class _Local(Progress):
    def __init__(self, job: Job, display: Display, stop: threading.Event) -> None:
        self._job, self._display, self._stop = job, display, stop

    def update(self, done: int, total: int, text: str) -> None:
        self._display.update(self._job, done, total, text)

    def line(self, text: str) -> None:
        super().line(text)
        self._display.line(self._job, text)

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()


def run_job(job: Job, site: Site, progress: Progress) -> tuple[str, str | None]:
    """Run one job under its folder's lock.

    Returns:
        "done", "busy", "interrupted" or "failed", and the sentence of a failure.
    """
    from bench import device
    from bench.data import load
    from bench.evaluation import evaluate_job
    from bench.train import train

    folder = site.out / job.folder
    with store.locked(folder, wait=False) as held:
        if not held:
            return "busy", None
        if store.is_done(folder):
            return "done", None
        with log_to(folder / "log.txt"):
            progress.line(f"begin: {title(job)}")
            try:
                device.prepare(job.device, job.threads, job.deterministic)
                parts = load(job.dataset, site.data_dir, download=site.download,
                             train_limit=job.train_limit if isinstance(job, TrainJob) else None)  # fmt: skip
                if isinstance(job, TrainJob):
                    train(job, parts, site.out, site.data_dir, progress, download=site.download)
                else:
                    evaluate_job(job, parts, site.out, progress, data_dir=site.data_dir)
            except Interrupted:
                return "interrupted", None
            except Exception as error:
                return "failed", _failure(folder, error, progress)
    return "done", None


def _failure(folder: Path, error: Exception, progress: Progress) -> str:
    """The sentence of a failed job, kept in its folder; what is no sentence of ours keeps its traceback in the log."""
    import logging

    sentence = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
    logging.getLogger("bench").error("failed: %s", sentence, exc_info=not isinstance(error, BenchError))
    if not isinstance(error, BenchError):
        sentence += f" (details in {folder / 'log.txt'})"
    store.write_text(folder / store.FAILED, sentence + "\n")
    return sentence


# Worker processes


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None


def _run_workers(schedule: _Schedule, site: Site, number: int, display: Display, stopping: threading.Event) -> None:
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
                _hand_out(schedule, workers, number, lambda: _start(context, stop, site))
            for worker in _ready([w for w in workers if w.job]):
                _listen(worker, workers, schedule, site, display)
    finally:
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        for worker in workers:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()


def _hand_out(schedule: _Schedule, workers: list[_Worker], number: int, start: Callable[[], _Worker]) -> None:
    while True:
        idle = next((w for w in workers if w.job is None), None)
        if idle is None and len(workers) >= number:
            return
        job = schedule.next()
        if job is None:
            return
        if idle is None:
            idle = start()
            workers.append(idle)
        idle.job = job
        idle.pipe.send(job)


def _ready(busy: Sequence[_Worker]) -> list[_Worker]:
    if not busy:
        time.sleep(RETRY_SECONDS / 4)
        return []
    by_pipe = {worker.pipe: worker for worker in busy}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout=0.25)]  # type: ignore[index]


def _listen(worker: _Worker, workers: list[_Worker], schedule: _Schedule, site: Site, display: Display) -> None:
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
        store.write_text(site.out / job.folder / store.FAILED, sentence + "\n")
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


def _start(context: Any, stop: Any, site: Site) -> _Worker:
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, stop, site), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


class _Remote(Progress):
    """Progress of a worker, sent to the parent; updates at most ten times a second."""

    def __init__(self, pipe: Connection, stop: Any) -> None:
        self._pipe, self._stop, self._last = pipe, stop, 0.0

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


def _work(pipe: Connection, stop: Any, site: Site) -> None:
    """Main loop of a worker: jobs in, messages out, until told to end or left alone."""
    from bench.plugins import load_plugins

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and tells through the event
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    load_plugins(site.plugins)
    with contextlib.suppress(EOFError, OSError):
        while (job := pipe.recv()) is not None:
            outcome, sentence = run_job(job, site, _Remote(pipe, stop))
            pipe.send(("end", outcome, sentence))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
