"""Run one job under the lock of its folder, with a log, and a sentence if it fails."""

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

LOCK_PATIENCE_SECONDS = 0.5  # how long a part waits for a lock that other parts hold briefly to test it


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
    with _locked(job, workspace) as is_locked:
        if files.is_done(folder):
            return "done", None
        if not is_locked:
            return "busy", None
        with log_to(folder / "log.txt"):
            on_gpu = "" if progress.gpu is None else f" on GPU {progress.gpu}"
            progress.line(f"begin: {title(job)}{on_gpu}")
            try:
                execute(job, workspace, progress, group or ProcessGroup())
            except Interrupted:
                return "interrupted", None
            except Exception as error:
                return "failed", _log_failure(job, workspace, error)
        (workspace.out / job.lock_folder / files.FAILED).unlink(missing_ok=True)
    return "done", None


def execute(job: Job, workspace: Workspace, progress: Progress, group: ProcessGroup) -> None:
    """Run one job, whose folder is locked; in every process of the group if it is a training."""
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
def _locked(job: Job, workspace: Workspace) -> Iterator[bool]:
    """Lock the folders of a job; False if another process has one of them.

    A part locks its own folder, so that parts run side by side; a whole evaluation locks its folder and those of all
    parts, because it removes them in the end. Each looks at the other's lock after it has its own.
    """
    with ExitStack() as locks:
        is_locked = locks.enter_context(files.locked(workspace.out / job.lock_folder, wait=False))
        if is_locked and isinstance(job, EvalJob) and job.part is None:
            homes = sorted((workspace.out / job.folder / PARTIAL).glob("part-*-of-*"))
            is_locked = all(locks.enter_context(files.locked(home, wait=False)) for home in homes)
        elif is_locked and isinstance(job, EvalJob):
            with files.locked(workspace.out / job.folder, wait=False, patience=LOCK_PATIENCE_SECONDS) as is_free:
                is_locked = is_free
        yield is_locked


def _log_failure(job: Job, workspace: Workspace, error: Exception) -> str:
    """Log and store why a job failed, an unexpected error with its traceback; the sentence."""
    import logging

    sentence = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
    logging.getLogger("bench").error("failed: %s", sentence, exc_info=not isinstance(error, BenchError))
    if not isinstance(error, BenchError):
        sentence += f" (details in {workspace.out / job.folder / 'log.txt'})"
    store_failure(job, workspace, sentence)
    return sentence


def store_failure(job: Job, workspace: Workspace, sentence: str) -> None:
    """Write why a job failed into its folder."""
    (workspace.out / job.lock_folder).mkdir(parents=True, exist_ok=True)
    files.write_text(workspace.out / job.lock_folder / files.FAILED, sentence + "\n")
