"""What a job tells the person in front of it, and when it is asked to stop."""

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
        """So many units of so many are done; `text` is the running figure."""

    def line(self, text: str) -> None:
        """A line worth keeping: it goes to the run's log."""
        log.info("%s", text)

    @property
    def stopping(self) -> bool:
        """Whether the job should save and stop."""
        return False

    def check(self, agree: Callable[[bool], bool] = bool) -> None:
        """Stop here if asked to; for places where nothing needs saving.

        Args:
            agree: asks whether any of several processes should stop.

        Raises:
            Interrupted: if the job should stop.
        """
        if agree(self.stopping):
            raise Interrupted("stopped on request; run the same command again to go on")


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append what is logged meanwhile to a file."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # The reference implementation of AutoAttack says under its own name what it finds odd about a model.
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
