"""Worker processes that run jobs side by side, each on a GPU of its own where there are several.

Workers hold a folder's lock while they work in it and die with their parent, so a killed command leaves nothing that
the same command does not repair.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from bench.core.progress import Progress
from bench.launch.display import Display
from bench.launch.executors import Executor, Result
from bench.launch.scheduler import Workspace
from bench.launch.worker import run_job, store_failure
from bench.plan.jobs import Job

Slot = str | None  # the GPU that a worker is bound to


@dataclass
class Worker:
    """A worker process, as its parent sees it."""

    process: Any
    pipe: Connection
    slot: Slot
    job: Job | None = None


class WorkerPool(Executor):
    """Jobs side by side in worker processes, which start when there is work for them.

    Args:
        workspace, display, stopping: see `Executor`.
        slots: for each worker the GPU that it is bound to, or None.
    """

    def __init__(
        self, workspace: Workspace, display: Display, stopping: threading.Event, slots: Sequence[Slot]
    ) -> None:
        super().__init__(workspace, display, stopping)
        self.slots = slots
        self.workers: list[Worker] = []
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.RawValue("b", 0)  # no lock: a worker that dies must not hold one

    def has_room(self) -> bool:
        """Whether a worker is idle, or can be started."""
        return len(self.running) < len(self.slots)

    def submit(self, job: Job) -> None:
        """Give a job to an idle worker, or to a new one in a free slot."""
        super().submit(job)
        worker = next((worker for worker in self.workers if worker.job is None), None)
        if worker is None:
            free = Counter(self.slots) - Counter(worker.slot for worker in self.workers)
            worker = self.start(next(slot for slot in self.slots if free[slot]))
            self.workers.append(worker)
        worker.job = job
        if worker.slot is not None:
            self.display.started(job, worker.slot)
        worker.pipe.send(job)

    def collect(self) -> list[Result]:
        """Handle what the workers send within a quarter of a second."""
        self._stop.value = self.stopping.is_set()
        busy = {worker.pipe: worker for worker in self.workers if worker.job}
        results = []
        for pipe in wait(list(busy), timeout=0.25):
            results += self._receive(busy[pipe])  # type: ignore[index]
        return results

    def close(self) -> None:
        """Dismiss the workers; those that do not end within ten seconds are killed."""
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        for worker in self.workers:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()

    def start(self, slot: Slot) -> Worker:
        """A new worker process, bound to a GPU if the slot names one."""
        here, there = self._context.Pipe()
        process = self._context.Process(target=_main, args=(there, self._stop, self.workspace, slot), daemon=True)
        process.start()
        there.close()
        return Worker(process, here, slot)

    def _receive(self, worker: Worker) -> list[Result]:
        """Handle one message of a busy worker; a worker that died fails its job."""
        job = worker.job
        assert job is not None
        try:
            kind, *rest = worker.pipe.recv()
        except (EOFError, OSError):
            self.workers.remove(worker)
            worker.process.join()
            sentence = f"its process ended unexpectedly (exit code {worker.process.exitcode}); out of memory?"
            store_failure(job, self.workspace, sentence)
            kind, rest = "end", ["failed", sentence]
        if kind == "update":
            self.display.update(job, *rest)
        elif kind == "line":
            self.display.line(job, *rest)
        else:
            worker.job = None
            self.running.remove(job)
            return [(job, rest[0], rest[1])]
        return []


# In the worker process


class _PipeProgress(Progress):
    """Progress of a job, sent to the parent; updates at most ten times a second."""

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


def _main(pipe: Connection, stop: Any, workspace: Workspace, slot: Slot) -> None:
    """Run the jobs that the parent sends, until it dismisses this process or ends."""
    if slot is not None:  # before anything asks for a GPU: the worker sees this one alone, whatever a job calls it
        os.environ["CUDA_VISIBLE_DEVICES"] = slot
    from bench.core.plugins import load_plugins

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and tells through the shared value
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    load_plugins(workspace.plugins)
    with contextlib.suppress(EOFError, OSError):
        while (job := pipe.recv()) is not None:
            outcome, sentence = run_job(job, workspace, _PipeProgress(pipe, stop, slot))
            pipe.send(("end", outcome, sentence))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
