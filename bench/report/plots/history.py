"""Figures of training: accuracies over the epochs, and the per-class state that a method moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.metrics import Floats
from bench.report.plots import style
from bench.report.tables.model import Row, Table
from bench.report.views.by_class import class_titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Up to this many classes a line each can be told apart; beyond, classes become rows of an image.
MAX_LINES = 12
MEASURES = {"average": "training accuracy under attack (%)", "worst": "its worst class (%)"}


def training_figure(table: Table, rows: Sequence[Row]) -> Figure:
    """Average and worst-class training accuracy under the training attack, one line per method, mean over seeds.

    A method that trains on clean inputs alone shows its accuracy on those, and its name says so.
    """
    figure = style.new_figure(style.PAGE[0], 2.9)
    panels = figure.subplots(1, len(MEASURES), sharex=True)
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for place, row in enumerate(rows):
            curve = _mean_curve([_training_curve(run.history, measure) for run in row.runs])
            attacked = any("adv" in (line.get("train") or {}) for run in row.runs for line in run.history)
            name = style.wrap(row.name if attacked else f"{row.name} (clean)", 24)
            axes.plot(np.arange(1, len(curve) + 1), 100 * curve, label=name, **style.line(place))
        axes.set(xlabel="epoch", title=title, ylim=(0, None))
        style.add_grid(axes)
    named = panels[0].get_legend_handles_labels()
    if len(rows) > style.MAX_NAMES_BESIDE:
        style.add_legend_below(figure, *named)
    else:
        figure.legend(*named, loc="outside right center")
    figure.suptitle(table.title, x=0.01, ha="left", fontsize=8)
    return figure


def _training_curve(history: Sequence[dict[str, Any]], measure: str) -> Floats:
    """A measure of every epoch (E,), NaN where it was not recorded."""
    parts = [(line.get("train") or {}).get("adv") or (line.get("train") or {}).get("clean") or {} for line in history]
    if measure == "average":
        return np.asarray([part.get("accuracy", np.nan) for part in parts], dtype=np.float64)
    # A class of which no sample was trained on in an epoch has no accuracy there.
    known = [[a for a in part.get("class_accuracy") or () if a is not None] for part in parts]
    return np.asarray([min(accuracies, default=np.nan) for accuracies in known], dtype=np.float64)


def _mean_curve(curves: Sequence[Floats]) -> Floats:
    """Mean over seeds (E,), cut to the shortest."""
    shortest = min(map(len, curves))
    return np.asarray(np.mean([curve[:shortest] for curve in curves], axis=0))


def class_states(history: Sequence[dict[str, Any]]) -> dict[str, Floats]:
    """Per-class state by name, (E, K) each; state whose length changed is left out."""
    found: dict[str, list[Any]] = {}
    for line in history:
        for name, values in (line.get("state") or {}).items():
            found.setdefault(name, []).append(np.atleast_1d(np.asarray(values, dtype=np.float64)))
    return {name: np.stack(values) for name, values in found.items() if len({v.shape for v in values}) == 1}


def state_figure(table: Table, row: Row) -> Figure | None:
    """Training accuracy and every per-class state of one method over the epochs; None if it has no state."""
    run = next(run for run in row.runs if run.history)
    found = class_states(run.history)
    if not found:
        return None
    title = f"{row.name}, seed {run.seed}; {table.title}"
    names = class_titles(table.class_names)
    draw = _draw_lines if len(names) <= MAX_LINES else _draw_images
    figure = draw(run.history, found, names)
    figure.suptitle(title, x=0.01, ha="left", fontsize=8)
    return figure


def _draw_lines(history: Sequence[dict[str, Any]], found: dict[str, Floats], names: Sequence[str]) -> Figure:
    figure = style.new_figure(style.PAGE[0] * 0.75, 1.6 + 1.9 * len(found))
    panels = figure.subplots(1 + len(found), 1, sharex=True)
    _draw_accuracies(panels[0], history)
    for axes, (name, values) in zip(panels[1:], found.items(), strict=True):
        epochs = np.arange(1, len(values) + 1)
        for k in range(values.shape[1]):
            label = names[k] if values.shape[1] == len(names) else None
            axes.plot(epochs, values[:, k], label=label, **style.line(k))
        axes.set_title(name.replace("_", " ") + (", by class" if values.shape[1] > 1 else ""))
        style.add_grid(axes)
        if values.shape[1] == len(names):
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="class", title_fontsize=7)
    panels[-1].set_xlabel("epoch")
    return figure


def _draw_images(history: Sequence[dict[str, Any]], found: dict[str, Floats], names: Sequence[str]) -> Figure:
    # Six points of height a class keep its name legible; beyond a page, only every second, third, ... is named.
    height = min(style.PAGE[1], 2.6 + 6.5 / 72 * len(names))
    figure = style.new_figure(style.PAGE[0], height)
    step = max(1, int(np.ceil(len(names) * 6 / 72 / (height - 2.3))))
    top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.6, height - 1.6])[:, 0]
    _draw_accuracies(top.subplots(), history)
    panels = below.subplots(1, len(found), squeeze=False)[0]
    for place, (axes, (name, values)) in enumerate(zip(panels, found.items(), strict=True)):
        reach = (0.5, len(values) + 0.5, values.shape[1] - 0.5, -0.5)
        image = axes.imshow(values.T, aspect="auto", cmap=style.COLOURMAP, extent=reach, interpolation="nearest")
        axes.set_title(name.replace("_", " ") + (", by class" if values.shape[1] > 1 else ""))
        axes.set_xlabel("epoch")
        named = place == 0 and values.shape[1] == len(names)
        axes.set_yticks(range(0, len(names), step) if named else [], names[::step] if named else [], fontsize=5.5)
        axes.tick_params(axis="y", length=0)
        below.colorbar(image, ax=axes, location="bottom", aspect=30, pad=0.01).outline.set_visible(False)
    return figure


def _draw_accuracies(axes: Axes, history: Sequence[dict[str, Any]]) -> None:
    epochs = np.asarray([line.get("epoch", place) + 1 for place, line in enumerate(history)])
    for place, (measure, name) in enumerate((("average", "training"), ("worst", "training, worst class"))):
        axes.plot(
            epochs, 100 * _training_curve(history, measure), label=name, color="0.2", linestyle=style.DASHES[place]
        )
    chosen = [line for line in history if line.get("validation")]
    for place, (key, name) in enumerate((("pgd", "held out"), ("worst", "held out, worst class"))):
        values = [100 * line["validation"].get(key, np.nan) for line in chosen]
        if values:
            at = [line["epoch"] + 1 for line in chosen]
            axes.plot(at, values, label=name, color="#bd1f01", linestyle=style.DASHES[place])
    axes.set(title="accuracy under attack (%)", ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    style.add_grid(axes)
