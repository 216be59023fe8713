"""Published figures: units, known names, provenance, and single values against what their sources state."""

from __future__ import annotations

import re
from configparser import ConfigParser

import pytest

from attacks.plugins.registry import canonical
from attacks.registry import ATTACKS
from bench.data.registry import DATASETS
from bench.errors import UsageError
from bench.models.registry import MODELS
from bench.results.outcomes import CLEAN
from bench.results.published import FOLDER, Figure, figures, resolve, sources, tables
from methods.registry import METHODS

EVERY = [figure for source in sources() for figure in figures(source)]


def one(source: str, **wanted: str) -> Figure:
    """The only figure with these fields."""
    (found,) = (f for f in figures(source) if all(getattr(f, name) == value for name, value in wanted.items()))
    return found


def test_the_asked_for_sources_are_there() -> None:
    assert {"rslad", "cfa", "dafa", "trades", "robustbench"} <= set(sources())
    assert {path.stem for path in FOLDER.glob("*.csv")} == {*sources(), "tables"}
    assert all(figures(source) for source in sources())


@pytest.mark.parametrize("source", sources())
def test_figures_are_fractions_under_known_names(source: str) -> None:
    for figure in figures(source):
        stated = (figure.average, figure.average_sd, figure.worst, figure.worst_sd)
        assert all(value is None or 0 <= value <= 1 for value in stated), figure
        assert figure.average is not None, f"{figure}: a row without a figure"
        assert figure.worst is None or figure.worst <= figure.average
        assert figure.average_sd is None or figure.average_sd < 0.05
        assert (figure.nsd is None) == (figure.about.source not in ("faal", "frl")), "computed where classes are listed"
        assert figure.nsd is None or 0 < figure.nsd < 1
        assert figure.dataset in DATASETS.names()
        assert not figure.method or figure.method in METHODS
        assert figure.name and figure.model and figure.checkpoint in ("best", "last", "unknown")
        assert figure.attack == CLEAN or figure.attack in ATTACKS.names()


def test_networks_of_the_suite_stand_under_their_registered_name() -> None:
    theirs = {figure.model for figure in EVERY} - set(MODELS.names())
    aliases = {"ResNet-18", "MobileNet-V2", "PreActResNet-18", "WideResNet-34-10", "WideResNet-28-10"}
    assert theirs and not theirs & aliases


def test_a_method_of_the_suite_is_never_left_under_its_published_name() -> None:
    known = {canonical(name) for name in METHODS.builtin}
    assert not [f for f in EVERY if not f.method and canonical(f.name) in known]


@pytest.mark.parametrize("source", sources())
def test_radii_and_steps_are_in_units_of_x(source: str) -> None:
    for figure in figures(source):
        assert figure.eps in ((None, 4 / 255) if figure.dataset == "imagenet" else (None, 8 / 255, 0.031))
        assert figure.attack != CLEAN or (figure.eps, figure.steps, figure.step_size) == (None, None, None)
        assert figure.step_size in (None, 2 / 255, 0.003)


def test_every_row_says_where_it_is_from_and_how_its_checkpoint_was_chosen() -> None:
    for about in tables().values():
        assert about.paper and about.read_from and about.selection
        assert about.url.startswith("https://")
        assert about.chosen_on in ("test", "none", "unknown")
        assert about.runs is None or about.runs >= 1
    assert {(figure.about.source, figure.about.table) for figure in EVERY} == set(tables())


def test_no_figure_stands_twice() -> None:
    seen = [(f.about, f.dataset, f.model, f.name, f.checkpoint, f.attack, f.steps) for f in EVERY]
    assert len(seen) == len(set(seen))


def test_no_accuracy_under_attack_beats_the_clean_one() -> None:
    rows: dict[tuple[object, ...], list[Figure]] = {}
    for figure in EVERY:
        rows.setdefault((figure.about, figure.dataset, figure.model, figure.name, figure.checkpoint), []).append(figure)
    for row in rows.values():
        clean = [figure.average for figure in row if figure.attack == CLEAN]
        assert len(clean) <= 1
        assert all((figure.average or 0) <= (clean[0] or 0) for figure in row if clean)


@pytest.mark.parametrize(
    ("source", "wanted", "average", "worst"),
    [
        ("rslad", {"dataset": "cifar10", "model": "resnet18", "method": "rslad", "checkpoint": "best"}, 0.5149, None),
        ("cfa", {"method": "pgd_at", "checkpoint": "best"}, 0.467, 0.201),
        ("cfa", {"name": "TRADES+CFA", "checkpoint": "best"}, 0.501, 0.265),
        ("dafa", {"dataset": "cifar10", "name": "TRADES+DAFA"}, 0.4905, 0.3053),
        ("dafa", {"dataset": "cifar100", "method": "trades"}, 0.256, 0.0133),
        ("faal", {"model": "preact_resnet18", "name": "FAAL-AT from PGD"}, 0.4551, 0.311),
        ("robustbench", {"dataset": "cifar10", "method": "trades"}, 0.5308, None),
        ("robustbench", {"dataset": "cifar100", "name": "Rice2020Overfitting"}, 0.1895, None),
        ("robustbench", {"dataset": "imagenet", "name": "Engstrom2019Robustness"}, 0.2922, None),
        ("trades", {"name": "model_cifar_wrn"}, 0.5308, None),
    ],
)
def test_values_under_autoattack_are_those_of_the_source(
    source: str, wanted: dict[str, str], average: float, worst: float | None
) -> None:
    found = one(source, attack="autoattack", **wanted)
    assert (found.average, found.worst) == (average, worst)


def test_spread_over_runs_goes_with_its_figure() -> None:
    found = one("cfa", method="pgd_at", checkpoint="best", attack="autoattack")
    assert (found.average_sd, found.worst_sd, found.about.runs) == (0.005, 0.013, 5)


def test_nsd_of_listed_classes_has_ddof_0() -> None:
    found = one("faal", name="FAAL-AT from PGD", model="preact_resnet18", attack="autoattack")
    assert found.nsd == pytest.approx(0.273, abs=5e-4)
    assert "computed by us" in found.about.doubts


def test_errors_become_accuracies() -> None:
    """The rerun lists clean and boundary error: 0.1579 and 0.3739 leave 0.4682 under PGD."""
    assert one("frl", method="frl", attack="clean").average == 0.8421
    assert one("frl", method="frl", attack="pgd").average == 0.4682


def test_cw_of_20_steps_as_its_published_tables_note() -> None:
    assert {figure.steps for figure in figures("rslad") if figure.attack == "cw"} == {20}


def test_an_unknown_source_is_answered_with_the_list() -> None:
    assert resolve(" RSLAD ") == "rslad"
    with pytest.raises(UsageError, match=r"^--against rsald: .*; did you mean 'rslad'\? available: rslad, cfa, dafa"):
        figures("rsald")


def test_texts_fit_on_a_line_of_a_note() -> None:
    for about in tables().values():
        assert not re.search(r"[\n\r]|\s$", about.selection + about.doubts)


def test_the_files_are_installed_with_the_package() -> None:
    setup = ConfigParser()
    setup.read(FOLDER.parents[2] / "setup.cfg", encoding="utf-8")
    assert setup["options.package_data"]["bench.results.published"] == "*.csv"
