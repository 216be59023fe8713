"""Figures of a results folder, as PNG and PDF."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bench import metrics
from bench.report.plots import style
from bench.report.plots.history import state_figure, training_figure
from bench.report.tables.build import Filters, build_tables
from bench.report.tables.columns import Column, column_titles, threat_text
from bench.report.tables.model import Row, Table
from bench.report.tables.rows import BEST, LAST
from bench.report.views.by_class import class_titles
from bench.results.outcomes import CLEAN
from bench.results.tree import ResultsFolders

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from typing_extensions import Unpack

# Classes in one panel of the heat map, and in one where there are more than MANY_CLASSES.
PANEL_CLASSES, LONG_PANEL_CLASSES, MANY_CLASSES = 25, 50, 100
NOISE_LABEL = "sampling noise at equal classes"


def figures(results: ResultsFolders, out_dir: Path | str, **filters: Unpack[Filters]) -> list[Path]:
    """Draw every figure of one or several results folders.

    For each table: a heat map of class accuracies per attack, average against NSD, the course of training, and
    the per-class state of each method that has one.

    Args:
        results: a results folder, or several.
        out_dir: where the files go; made if it is not there.
        filters: what to restrict it to, see `bench.report.tables.build.build_tables`.

    Returns:
        The files, PNG and PDF of each figure.
    """
    tables = build_tables(results, **filters)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with style.applied():
        for table in tables:
            stem = "_".join([table.dataset, table.model, threat_text(table.norm, table.eps)])
            for name, figure in _table_figures(table):
                files += style.save(figure, folder, f"{stem}_{name}")
    return files


def _table_figures(table: Table) -> Iterator[tuple[str, Figure]]:
    names = column_titles(table.columns)
    kinds = [kind for kind in (BEST, LAST) if any(kind in row.checkpoint for row in table.rows)]
    for column, kind in itertools.product(table.columns, kinds):
        rows = [row for row in table.rows if column in row.cells and kind in row.checkpoint]
        if rows and (column.attack != CLEAN or len(table.columns) == 1):
            yield f"classes_{names[column].lower()}_{kind}", class_figure(table, column, rows)
    yield "fairness", fairness_figure(table)
    lasting = {row.name: row for row in table.rows if any(run.history for run in row.runs)}
    if lasting:
        yield "training", training_figure(table, list(lasting.values()))
    for row in lasting.values():
        figure = state_figure(table, row)
        if figure is not None:
            yield f"state_{row.name}", figure


def class_figure(table: Table, column: Column, rows: Sequence[Row]) -> Figure:
    """Heat map of class accuracies, methods by classes, in percent."""
    accuracy = 100 * np.stack([row.cells[column].class_accuracy.mean(axis=0) for row in rows])
    classes = class_titles(table.class_names)
    per_panel = min(len(classes), PANEL_CLASSES if len(classes) <= MANY_CLASSES else LONG_PANEL_CLASSES)
    starts = range(0, len(classes), per_panel)
    labels = [style.wrap(row.name, 26) for row in rows]
    tall = sum(0.17 * (1 + label.count("\n")) for label in labels)
    names = 0.25 + 0.055 * max(map(len, classes))
    width = style.PAGE[0] if per_panel > 12 else 2.6 + 0.4 * per_panel
    figure = style.new_figure(width, 0.35 + len(starts) * (tall + names))
    panels = figure.subplots(len(starts), 1, squeeze=False)[:, 0]
    for axes, start in zip(panels, starts, strict=True):
        part = slice(start, start + per_panel)
        image = _heat_map(axes, accuracy[:, part], classes[part], labels, per_panel)
    title = column_titles(table.columns)[column]
    panels[0].set_title(f"{table.title}: {title}, accuracy in percent, n = {column.n:,}")
    bar = figure.colorbar(image, ax=list(panels), fraction=0.02, pad=0.01, aspect=30)
    bar.outline.set_visible(False)
    return figure


def _heat_map(
    axes: Axes, accuracy: metrics.Floats, classes: Sequence[str], labels: Sequence[str], per_panel: int
) -> AxesImage:
    padded = np.full((len(accuracy), per_panel), np.nan)
    padded[:, : accuracy.shape[1]] = accuracy
    image = axes.imshow(padded, vmin=0, vmax=100, cmap=style.COLOURMAP, aspect="auto")
    upright = per_panel <= 12 and max(map(len, classes)) <= 4
    size = 7 if per_panel <= PANEL_CLASSES else 4.5
    axes.set_xticks(range(len(classes)), classes, rotation=0 if upright else 90, fontsize=size)
    axes.set_yticks(range(len(labels)), labels)
    for tick in axes.get_yticklabels():
        tick.set_fontsize(5.5 if "\n" in tick.get_text() else 7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if per_panel <= PANEL_CLASSES:
        for (i, k), value in np.ndenumerate(accuracy):
            colour = "white" if value < 60 else "black"
            axes.text(k, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=6)
    return image


def fairness_figure(table: Table) -> Figure:
    """Average accuracy against NSD under every attack, with the NSD that sampling alone would give."""
    columns = list(table.columns)
    beside = len(table.rows) <= style.MAX_NAMES_BESIDE
    across = min(3, len(columns) + beside)
    down = -(-(len(columns) + beside) // across)
    figure = style.new_figure(style.PAGE[0] if across == 3 or not beside else 2.5 * across, 2.3 * down)
    panels = list(figure.subplots(down, across, squeeze=False).ravel())
    for axes, column in zip(panels, columns, strict=False):
        _scatter(axes, table, column)
    for axes in panels[len(columns) :]:
        axes.axis("off")
    several = len({row.checkpoint for row in table.rows}) > 1
    _legend(panels[len(columns)] if beside else None, panels[: len(columns)], several=several)
    figure.suptitle(table.title, x=0.01, ha="left", fontsize=8)
    return figure


def _scatter(axes: Axes, table: Table, column: Column) -> None:
    names = list(dict.fromkeys(row.name for row in table.rows))
    several = len({row.checkpoint for row in table.rows}) > 1
    rows = [row for row in table.rows if column in row.cells]
    threshold = max(row.cells[column].mean("average") for row in rows) / 2
    for row in rows:
        if row.cells[column].mean("average") >= threshold:
            _draw_point(axes, row, column, names.index(row.name), hollow=several and row.checkpoint == LAST)
    _list_outliers(axes, [row for row in rows if row.cells[column].mean("average") < threshold], column)
    left, right = axes.get_xlim()
    top = axes.get_ylim()[1]
    counts = next(row.cells[column].counts for row in table.rows if column in row.cells)
    accuracies = np.linspace(max(left, 0.5), min(right, 100), 100)
    floor = [metrics.noise_floor(accuracy / 100, counts) for accuracy in accuracies]
    axes.plot(accuracies, floor, color="0.5", linestyle=":", linewidth=0.9, label=NOISE_LABEL, zorder=1)
    title = f"{column_titles(table.columns)[column]}, n = {column.n:,}"
    axes.set(xlim=(left, right), ylim=(0, top * 1.05 or 1), title=title)
    axes.set(xlabel="average accuracy (%)", ylabel="NSD (lower is fairer)")
    style.add_grid(axes)


def _list_outliers(axes: Axes, rows: Sequence[Row], column: Column) -> None:
    """List rows below half of the best average by name: to scale, they would squeeze the others into a corner."""
    figures = [(row.name, 100 * row.cells[column].mean("average"), row.cells[column].mean("nsd")) for row in rows]
    text = "\n".join(style.wrap(f"outside: {name} ({average:.0f} %, {nsd:.2f})", 36) for name, average, nsd in figures)
    axes.text(0.03, 0.04, text, transform=axes.transAxes, fontsize=6, color="0.35").set_in_layout(False)


def _draw_point(axes: Axes, row: Row, column: Column, place: int, *, hollow: bool) -> None:
    cell, shape = row.cells[column], style.marker(place)
    x, y = 100 * cell.mean("average"), cell.mean("nsd")
    spread = (100 * (cell.sd("average") or 0), cell.sd("nsd") or 0)
    face = "none" if hollow else shape["color"]
    bars = {"color": shape["color"], "elinewidth": 0.6, "linestyle": "none", "alpha": 0.35, "zorder": 1}
    axes.errorbar(x, y, xerr=spread[0], yerr=spread[1], **bars)
    axes.plot(
        x, y, markerfacecolor=face, markeredgewidth=0.9, linestyle="none", label=style.wrap(row.name, 34), **shape
    )


def _legend(legend_axes: Axes | None, panels: Sequence[Axes], *, several: bool) -> None:
    """Draw one legend for all panels, in its own axes or below them; the noise line comes last."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    ordered = sorted(handles.items(), key=lambda item: item[0] == NOISE_LABEL)
    labels, known = [label for label, _ in ordered], [handle for _, handle in ordered]
    title = "hollow: last, filled: best" if several else None
    if legend_axes is None:
        style.add_legend_below(cast("Figure", panels[0].figure), known, labels, title)
    else:
        legend_axes.legend(known, labels, loc="center left", title=title, title_fontsize=7, alignment="left")
