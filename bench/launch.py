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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from bench import store
from bench.errors import BenchError, Interrupted
from bench.jobs import PARTIAL, EvalJob, Job, Plan, TrainJob, title
from bench.progress import Progress, log_to
from bench.schedule import RETRY_SECONDS, Report, Schedule, Site

HANDOVER_SECONDS = 0.5  # what a part waits for a lock that others only look at


class Display:
    """Shows what jobs do; this one shows nothing."""

    def update(self, job: Job, done: int, total: int, text: str) -> None:
        """Progress of one job."""

    def line(self, job: Job, text: str) -> None:
        """A line worth keeping."""

    def began(self, job: Job, gpu: str) -> None:
        """A job began on one of several GPUs."""

    def ended(self, job: Job, sentence: str | None) -> None:
        """A job ended; the sentence says why it failed."""


def launch(
    plan: Plan,
    site: Site,
    *,
    workers: int,
    gpus: Sequence[str] = (),
    display: Display | None = None,
    done: Iterable[str] = (),
) -> Report:
    """Run what is missing of a plan.

    Args:
        plan: the jobs.
        site: folders and plug-ins.
        workers: processes side by side; 1 runs in this process, unless there are `gpus`.
        gpus: what CUDA_VISIBLE_DEVICES calls the GPUs that workers are bound to, in turn; () binds none.
        display: shows progress.
        done: keys of runs outside the plan that its jobs start from.

    Returns:
        What was done and what failed; a failed job does not stop the others.
    """
    schedule = Schedule(plan, site, done, workers, own_devices=bool(gpus))
    with _stop_requests() as stopping:
        if workers == 1 and not gpus:
            _run_here(schedule, site, display or Display(), stopping)
        else:
            slots = [gpus[i % len(gpus)] if gpus else None for i in range(workers)]
            _run_workers(schedule, site, slots, display or Display(), stopping)
    schedule.report.interrupted = stopping.is_set()
    return schedule.report


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


def _run_here(schedule: Schedule, site: Site, display: Display, stopping: threading.Event) -> None:
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
    """Run one job under the lock of its folder.

    Returns:
        "done", "busy", "interrupted" or "failed", and the sentence of a failure.
    """
    folder = site.out / job.folder
    if store.is_done(folder):
        return "done", None
    with _held(job, site) as held:
        if store.is_done(folder):
            return "done", None
        if not held:
            return "busy", None
        with log_to(folder / "log.txt"):
            progress.line(f"begin: {title(job)}{_on(progress.gpu)}")
            try:
                _run(job, site, progress)
            except Interrupted:
                return "interrupted", None
            except Exception as error:
                return "failed", _failure(job, site, error, progress)
        (site.out / job.home / store.FAILED).unlink(missing_ok=True)
    return "done", None


def _on(gpu: str | None) -> str:
    return "" if gpu is None else f" on GPU {gpu}"


def _run(job: Job, site: Site, progress: Progress) -> None:
    from bench import device
    from bench.data import load
    from bench.evaluation import evaluate_job
    from bench.train import train

    device.prepare(job.device, job.threads, job.deterministic)
    train_limit = job.train_limit if isinstance(job, TrainJob) else None
    parts = load(job.dataset, site.data_dir, download=site.download, train_limit=train_limit)
    if isinstance(job, TrainJob):
        train(job, parts, site.out, site.data_dir, progress, download=site.download)
    else:
        evaluate_job(job, parts, site.out, progress, data_dir=site.data_dir)


@contextmanager
def _held(job: Job, site: Site) -> Iterator[bool]:
    """Hold what a job needs; False if another process has it.

    A part holds its own folder, so that parts go side by side; a whole evaluation holds its folder and all parts that
    are there, because it takes them away in the end. Each looks at the other's lock after it has its own.
    """
    with ExitStack() as locks:
        held = locks.enter_context(store.locked(site.out / job.home, wait=False))
        if held and isinstance(job, EvalJob) and job.part is None:
            homes = sorted((site.out / job.folder / PARTIAL).glob("part-*-of-*"))
            held = all(locks.enter_context(store.locked(home, wait=False)) for home in homes)
        elif held and isinstance(job, EvalJob):
            with store.locked(site.out / job.folder, wait=False, patience=HANDOVER_SECONDS) as free:
                held = free
        yield held


def _failure(job: Job, site: Site, error: Exception, progress: Progress) -> str:
    """The sentence of a failed job, kept in its folder; what is no sentence of ours keeps its traceback in the log."""
    import logging

    sentence = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
    logging.getLogger("bench").error("failed: %s", sentence, exc_info=not isinstance(error, BenchError))
    if not isinstance(error, BenchError):
        sentence += f" (details in {site.out / job.folder / 'log.txt'})"
    store.write_text(site.out / job.home / store.FAILED, sentence + "\n")
    return sentence


# Worker processes


Slot = str | None  # the GPU that a worker is bound to


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    slot: Slot
    job: Job | None = None


def _run_workers(
    schedule: Schedule, site: Site, slots: Sequence[Slot], display: Display, stopping: threading.Event
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
                _hand_out(schedule, workers, slots, display, lambda slot: _start(context, stop, site, slot))
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
            display.began(job, idle.slot)
        idle.pipe.send(job)


def _ready(busy: Sequence[_Worker]) -> list[_Worker]:
    if not busy:
        time.sleep(RETRY_SECONDS / 4)
        return []
    by_pipe = {worker.pipe: worker for worker in busy}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout=0.25)]  # type: ignore[index]


def _listen(worker: _Worker, workers: list[_Worker], schedule: Schedule, site: Site, display: Display) -> None:
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
        (site.out / job.home).mkdir(parents=True, exist_ok=True)
        store.write_text(site.out / job.home / store.FAILED, sentence + "\n")
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


def _start(context: Any, stop: Any, site: Site, slot: Slot) -> _Worker:
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, stop, site, slot), daemon=True)
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


def _work(pipe: Connection, stop: Any, site: Site, slot: Slot) -> None:
    """Main loop of a worker: jobs in, messages out, until told to end or left alone."""
    if slot is not None:  # before anything asks for a GPU: the worker sees this one alone, whatever a job calls it
        os.environ["CUDA_VISIBLE_DEVICES"] = slot
    from bench.plugins import load_plugins

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and tells through the event
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    load_plugins(site.plugins)
    with contextlib.suppress(EOFError, OSError):
        while (job := pipe.recv()) is not None:
            outcome, sentence = run_job(job, site, _Remote(pipe, stop, slot))
            pipe.send(("end", outcome, sentence))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
