"""One job: under the lock of its folder, with a log, and with a sentence if it fails."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bench.core import files
from bench.core.progress import Progress, log_to
from bench.distributed.process_group import ProcessGroup
from bench.errors import BenchError, Interrupted
from bench.launch.scheduler import Workspace
from bench.plan.jobs import PARTIAL, EvalJob, Job, TrainJob, title

HANDOVER_SECONDS = 0.5  # how long a part waits for a lock that other parts hold briefly to test it


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
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


def run_job(
    job: Job, workspace: Workspace, progress: Progress, group: ProcessGroup | None = None
) -> tuple[str, str | None]:
    """Run one job under the lock of its folder.

    Args:
        job: what to run.
        workspace: folders and plug-ins.
        progress: receives progress and says when to stop.
        group: the processes that train together, of which this is the first; an evaluation is for one alone.

    Returns:
        "done", "busy", "interrupted" or "failed", and the sentence of a failure.
    """
    folder = workspace.out / job.folder
    if files.is_done(folder):
        return "done", None
    with _held(job, workspace) as held:
        if files.is_done(folder):
            return "done", None
        if not held:
            return "busy", None
        with log_to(folder / "log.txt"):
            progress.line(f"begin: {title(job)}{_on(progress.gpu)}")
            try:
                work(job, workspace, progress, group or ProcessGroup())
            except Interrupted:
                return "interrupted", None
            except Exception as error:
                return "failed", _failure(job, workspace, error)
        (workspace.out / job.lock_folder / files.FAILED).unlink(missing_ok=True)
    return "done", None


def _on(gpu: str | None) -> str:
    return "" if gpu is None else f" on GPU {gpu}"


def work(job: Job, workspace: Workspace, progress: Progress, group: ProcessGroup) -> None:
    """Run one job, whose folder is held; in every process of the group if it is a training."""
    from bench.core import device
    from bench.data.splits import load
    from bench.evaluation.evaluate import evaluate_job
    from bench.training.trainer import train
    from methods.registry import METHODS

    fixed_sizes = isinstance(job, TrainJob) and not METHODS.sketch(job.method).fact("drops_rows")
    device.configure(job.device, job.threads, job.deterministic, fixed_sizes=fixed_sizes)
    if isinstance(job, TrainJob):
        with group.run_on_all(job):
            parts = load(job.dataset, workspace.data_dir, download=workspace.download, train_limit=job.train_limit)
            train(job, parts, workspace.out, workspace.data_dir, progress, download=workspace.download, group=group)
    else:
        parts = load(job.dataset, workspace.data_dir, download=workspace.download)
        evaluate_job(job, parts, workspace.out, progress)


@contextmanager
def _held(job: Job, workspace: Workspace) -> Iterator[bool]:
    """Hold what a job needs; False if another process has it.

    A part holds its own folder, so that parts go side by side; a whole evaluation holds its folder and all parts that
    are there, because it takes them away in the end. Each looks at the other's lock after it has its own.
    """
    with ExitStack() as locks:
        held = locks.enter_context(files.locked(workspace.out / job.lock_folder, wait=False))
        if held and isinstance(job, EvalJob) and job.part is None:
            homes = sorted((workspace.out / job.folder / PARTIAL).glob("part-*-of-*"))
            held = all(locks.enter_context(files.locked(home, wait=False)) for home in homes)
        elif held and isinstance(job, EvalJob):
            with files.locked(workspace.out / job.folder, wait=False, patience=HANDOVER_SECONDS) as free:
                held = free
        yield held


def _failure(job: Job, workspace: Workspace, error: Exception) -> str:
    """The sentence of a failed job, kept in its folder; what is no sentence of ours keeps its traceback in the log."""
    import logging

    sentence = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
    logging.getLogger("bench").error("failed: %s", sentence, exc_info=not isinstance(error, BenchError))
    if not isinstance(error, BenchError):
        sentence += f" (details in {workspace.out / job.folder / 'log.txt'})"
    files.write_text(workspace.out / job.lock_folder / files.FAILED, sentence + "\n")
    return sentence
