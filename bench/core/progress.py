"""Progress of a job: running figures, log lines, and requests to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import Interrupted

log = logging.getLogger("bench")


class Progress:
    """Receives a job's progress; this one is silent. Launchers override it.

    Attributes:
        gpu: which of several GPUs the job is bound to; None where there is no choice.
    """

    gpu: str | None = None

    def update(self, done: int, total: int, text: str) -> None:
        """Show that `done` of `total` units are done; `text` is the running figure."""

    def line(self, text: str) -> None:
        """Write a line to the run's log."""
        log.info("%s", text)

    @property
    def stopping(self) -> bool:
        """Whether the job should save and stop."""
        return False

    def check(self, any_rank: Callable[[bool], bool] = bool) -> None:
        """Raise if the job should stop; for places where nothing needs saving.

        Args:
            any_rank: whether a flag is set in any of several processes.

        Raises:
            Interrupted: if the job should stop.
        """
        if any_rank(self.stopping):
            raise Interrupted("stopped on request; run the same command again to go on")


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append to a file what is logged within this context."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # The reference implementation of AutoAttack logs its warnings about a model under its own name.
    loggers = [logging.getLogger(name) for name in ("bench", "auto-attack")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
