"""Style of figures: small sans-serif type, thin lines, colours safe for colour-blind readers."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Petroff (2021), "Accessible color sequences for data visualization", ten colours; markers differ as well.
COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d")
DASHES = ("-", "--", ":", "-.")
COLOURMAP = "viridis"
# Up to this many names stand beside the panels, more below them.
MAX_NAMES_BESIDE = 14
# Inches: a page inside its margins.
PAGE = (7.2, 9.6)

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 4.5,
    "grid.linewidth": 0.4,
    "grid.color": "0.88",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


@contextmanager
def applied() -> Iterator[None]:
    """Use the style while figures are drawn and saved, then restore the caller's settings."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, size in inches, independent of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG (200 dpi) and PDF, without dates, so that equal figures are equal files."""
    stem = re.sub(r"[^\w.-]+", "_", name).strip("_")
    files = [folder / f"{stem}.png", folder / f"{stem}.pdf"]
    figure.savefig(files[0], bbox_inches="tight", pad_inches=0.04, metadata={"Software": None})
    figure.savefig(
        files[1],
        bbox_inches="tight",
        pad_inches=0.04,
        metadata={"CreationDate": None, "Creator": None, "Producer": None},
    )
    return files


def add_legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str | None = None) -> None:
    """Add a legend in columns at the bottom and enlarge the figure by its height."""
    names = [label.replace("\n", " ") for label in labels]
    width, height = figure.get_size_inches()
    across = max(1, int(22 * width) // (max(map(len, names)) + 8))  # characters of this size on an inch, and the marker
    figure.set_size_inches(width, height + 0.12 * (-(-len(names) // across)) + 0.15)
    figure.legend(
        handles, names, loc="outside lower left", ncols=across, fontsize=5.5, title=title, title_fontsize=5.5,
        alignment="left",
    )  # fmt: skip


def marker(place: int) -> dict[str, Any]:
    """Colour and marker of the n-th method."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def line(place: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}


def wrap(text: str, width: int = 22) -> str:
    """Wrap a label to lines of limited width."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=False)) or text


def add_grid(axes: Axes) -> None:
    """Faint grid lines behind the data."""
    axes.grid(True)
    axes.set_axisbelow(True)
