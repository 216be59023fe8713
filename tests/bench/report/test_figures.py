"""Figures: their files, their content, and matplotlib settings restored after drawing."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bench.report import figures
from bench.report.plots.figures import class_figure, fairness_figure
from bench.report.plots.history import class_states, state_figure, training_figure
from bench.report.tables.build import build_tables
from tests.helpers.trees import Spec, demo, write_run


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo(tmp_path_factory.mktemp("plan"), attacks={"pgd": 0.6})


def test_every_figure_is_there_as_png_and_pdf(tmp_path: Path) -> None:
    write_run(tmp_path / "results", Spec(method="absld", state={"temperature_adv": 1.0}, attacks={"pgd": 0.6}))
    before = dict(mpl.rcParams)
    files = figures(tmp_path / "results", tmp_path / "out" / "figures")
    stem = "digits_small_cnn_Linf_eps_0.15"
    names = [f"{stem}_{name}" for name in ("classes_pgd_last", "fairness", "training", "state_absld")]
    assert [file.name for file in files] == [f"{name}.{kind}" for name in names for kind in ("png", "pdf")]
    assert all(file.read_bytes()[:4] in (b"\x89PNG", b"%PDF") for file in files)
    assert dict(mpl.rcParams) == before
    again = figures(tmp_path / "results", tmp_path / "again")
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]


def test_the_heat_map_shows_class_accuracies(plan: Path) -> None:
    (table,) = build_tables(plan)
    column = table.columns[1]
    axes = class_figure(table, column, table.rows).axes[0]
    shown = np.asarray(axes.images[0].get_array())
    expected = 100 * np.stack([row.cells[column].class_accuracy[0] for row in table.rows])
    np.testing.assert_allclose(shown, expected)
    assert [text.get_text() for text in axes.texts][:10] == [f"{value:.0f}" for value in expected[0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(k) for k in range(10)]


def test_a_hundred_classes_are_spread_over_strips_that_fit_a_page(tmp_path: Path) -> None:
    for method in ("absld", "ham", "frl"):
        write_run(tmp_path, Spec(method=method, classes=100, per_class=4, attacks={"pgd": 0.5}))
    (table,) = build_tables(tmp_path)
    figure = class_figure(table, table.columns[1], table.rows)
    named = [label.get_text() for axes in figure.axes[:4] for label in axes.get_xticklabels()]
    assert named == [f"{k} class {k}" for k in range(100)]
    assert figure.get_size_inches()[1] < 9.6


def test_the_scatter_has_a_point_per_row_and_the_noise_line(plan: Path) -> None:
    (table,) = build_tables(plan)
    clean, pgd, legend = fairness_figure(table).axes[:3]
    assert pgd.get_title(loc="left") or pgd.get_title() == "PGD, n = 400"
    points = {line.get_label(): line.get_xydata()[0] for line in pgd.lines if line.get_marker() not in ("None", None)}
    for row in table.rows:
        cell = row.cells[table.columns[1]]
        label = next(text for text in points if text.replace("\n", " ") == row.name)
        np.testing.assert_allclose(points[label], [100 * cell.mean("average"), cell.mean("nsd")])
    assert clean.get_ylim()[0] == 0
    texts = [text.get_text() for text in legend.get_legend().get_texts()]
    assert texts[-1] == "sampling noise at equal classes"
    assert len(texts) == len(table.rows) + 1


def test_state_is_drawn_class_by_class(plan: Path) -> None:
    (table,) = build_tables(plan)
    row = next(row for row in table.rows if row.name == "absld")
    figure = state_figure(table, row)
    assert figure is not None
    accuracy, adversarial, clean = figure.axes
    history = row.run.history
    for k, line in enumerate(adversarial.lines):
        np.testing.assert_allclose(line.get_ydata(), [epoch["state"]["temperature_adv"][k] for epoch in history])
    assert len(adversarial.lines) == len(clean.lines) == 10
    assert len(accuracy.lines) == 2
    natural = next(row for row in table.rows if row.name == "natural")
    assert state_figure(table, natural) is None


def test_state_of_many_classes_becomes_an_image(tmp_path: Path) -> None:
    write_run(tmp_path, Spec(classes=100, per_class=2, state={"weight": 1.0}, attacks={"pgd": 0.5}))
    (table,) = build_tables(tmp_path)
    figure = state_figure(table, table.rows[0])
    assert figure is not None
    image = next(axes.images[0] for axes in figure.axes if axes.images)
    expected = class_states(table.rows[0].run.history)["weight"].T
    np.testing.assert_allclose(np.asarray(image.get_array()), expected)


def test_training_curves_are_means_over_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, Spec(seed=seed, attacks={"pgd": 0.5}))
    (table,) = build_tables(tmp_path)
    axes = training_figure(table, table.rows).axes[0]
    histories = [run.history for run in table.rows[0].runs]
    expected = [np.mean([100 * h[epoch]["train"]["adv"]["accuracy"] for h in histories]) for epoch in range(30)]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected)


@pytest.mark.filterwarnings("error")
def test_many_rows_are_named_below_and_leave_the_panels_their_room(tmp_path: Path) -> None:
    for place in range(30):
        accuracy = 0.1 if place == 0 else 0.5 + place / 100
        write_run(tmp_path, Spec(method="natural", label=f"row {place} of many", attacks={"pgd": accuracy, "cw": 0.5}))
    files = figures(tmp_path, tmp_path / "out")
    assert len(files) == 8
    (table,) = build_tables(tmp_path)
    for figure in (fairness_figure(table), training_figure(table, table.rows)):
        (legend,) = figure.legends
        assert {f"row {place} of many" for place in range(30)} <= {
            text.get_text().removesuffix(" (clean)") for text in legend.get_texts()
        }
        FigureCanvasAgg(figure).draw()
        panels = [axes.get_window_extent() for axes in figure.axes if axes.has_data()]
        assert min(panel.height for panel in panels) > 100 and min(panel.width for panel in panels) > 100
        assert legend.get_window_extent().y1 < min(panel.y0 for panel in panels)


def test_a_curve_on_clean_inputs_says_so(tmp_path: Path) -> None:
    for method in ("natural", "pgd_at"):
        write_run(tmp_path, Spec(method=method, attacks={"pgd": 0.5}))
    (table,) = build_tables(tmp_path)
    lines = training_figure(table, table.rows).axes[0].lines
    assert [line.get_label() for line in lines] == ["natural (clean)", "pgd_at"]


def test_state_that_is_one_number_or_changes_length() -> None:
    history = [{"state": {"kept": 0.5, "odd": [1.0]}}, {"state": {"kept": 0.4, "odd": [1.0, 2.0]}}, {}]
    found = class_states(history)
    assert list(found) == ["kept"]
    assert found["kept"].shape == (2, 1)
