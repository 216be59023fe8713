"""Pages of markdown tables, on the screen and in a file, and how figures are written in them."""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from attacks.plugins.registry import UnknownName
from bench.core import device as devices
from bench.core.files import write_text
from bench.errors import BenchError, UsageError


class Page:
    """A page that grows line by line.

    Args:
        title: its heading.
        folder: where it is kept as `NAME.md`, whole after every line; None keeps it on the screen alone.
        name: of the file.
    """

    def __init__(self, title: str, folder: Path | None, name: str) -> None:
        self.file = None if folder is None else folder / f"{name}.md"
        self.text = ""
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        self.line(f"# {title}\n")

    def line(self, text: str = "") -> None:
        """Add a line, or a paragraph."""
        print(text, flush=True)
        self.text += text + "\n"
        if self.file is not None:
            write_text(self.file, self.text)

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table under a sentence that says what it shows.

        Raises:
            ValueError: if a row has not as many cells as the head.
        """
        uneven = next((row for row in rows if len(row) != len(head)), None)
        if uneven is not None:
            raise ValueError(f"table {title!r}: expected rows of {len(head)} cells, got {len(uneven)}: {uneven}")
        body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        self.line(f"{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}\n{body}\n")

    def surroundings(self, device: str, threads: int) -> None:
        """Say what the figures were measured with."""
        versions = ", ".join(f"{name} {version}" for name, version in devices.versions().items())
        hardware = devices.hardware(device, threads)
        where = processor() if device == "cpu" else hardware["name"]
        self.line(f"- `{command()}`")
        self.line(f"- {where}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}, {device}")
        self.line(f"- {versions}\n")


def command() -> str:
    """What was typed."""
    stem = Path(sys.argv[0]).stem
    module = "benchmarks" if stem == "__main__" else f"benchmarks.{stem}"
    return " ".join(["python -m", module, *sys.argv[1:]])


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def yes(met: bool) -> str:
    """How a bar that is met, or not, is written."""
    return "yes" if met else "**no**"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range: `1.20 (1.10 to 1.31)`."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def number(value: float, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def guarded(main: Callable[[], None]) -> None:
    """Run a benchmark; what the suite refuses becomes one line and an exit code."""
    try:
        main()
    except (BenchError, UnknownName) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", UsageError.exit_code)) from None
