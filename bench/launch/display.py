"""Display of running jobs on a terminal: progress bars, or a line for every job that ends."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import click
from tqdm import tqdm

from bench.core.progress import Progress
from bench.plan.jobs import Job, title


class Display:
    """Shows the progress of jobs; this base class shows nothing."""

    def update(self, job: Job, done: int, total: int, text: str) -> None:
        """Progress of one job."""

    def line(self, job: Job, text: str) -> None:
        """A line for the log."""

    def started(self, job: Job, gpu: str) -> None:
        """A job started on one of several GPUs."""

    def ended(self, job: Job, sentence: str | None) -> None:
        """A job ended; the sentence says why it failed."""


class DisplayedProgress(Progress):
    """Progress of a job in this process, on a display."""

    def __init__(self, job: Job, display: Display, stop: threading.Event) -> None:
        self._job, self._display, self._stop = job, display, stop

    def update(self, done: int, total: int, text: str) -> None:
        """Show it."""
        self._display.update(self._job, done, total, text)

    def line(self, text: str) -> None:
        """Log it, and show it."""
        super().line(text)
        self._display.line(self._job, text)

    @property
    def stopping(self) -> bool:
        """Whether Ctrl-C or a termination request has come."""
        return self._stop.is_set()


class LineDisplay(Display):
    """One line for every job that ends; for logs and pipes."""

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def started(self, job: Job, gpu: str) -> None:
        """Say where a job runs."""
        self.write(f"GPU {gpu}: {title(job)}")

    def ended(self, job: Job, sentence: str | None) -> None:
        """Say that a job ended."""
        self.write(f"{'failed' if sentence else 'done'}: {title(job)}" + (f": {sentence}" if sentence else ""))

    def write(self, text: str) -> None:
        """Print a line to the error stream: the table alone goes to the output."""
        click.echo(text, err=True)


class BarDisplay(LineDisplay):
    """A bar for every running job, with its running accuracy."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in self._bars.values():
            bar.close()

    def update(self, job: Job, done: int, total: int, text: str) -> None:
        """Move a job's bar."""
        if job.id not in self._bars:
            self._bars[job.id] = tqdm(total=total, desc=title(job), leave=False, dynamic_ncols=True)
        bar = self._bars[job.id]
        bar.set_postfix_str(text, refresh=False)
        bar.update(done - bar.n)

    def line(self, job: Job, text: str) -> None:
        """Print lines with robust accuracies."""
        if "robust accuracy after" in text:
            self.write(f"{title(job)}: {text}")

    def ended(self, job: Job, sentence: str | None) -> None:
        """Take the bar away and say that the job ended."""
        if job.id in self._bars:
            self._bars.pop(job.id).close()
        super().ended(job, sentence)

    def write(self, text: str) -> None:
        """Print a line above the bars."""
        tqdm.write(text)
