"""Published figures below measured ones: matching of rows, differences, notes."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench.cli.app import main
from bench.errors import UsageError
from bench.report import against, render
from tests.helpers.printed import latex_tables, markdown_tables
from tests.helpers.trees import Spec, write_run

CIFAR: dict[str, Any] = {"dataset": "cifar10", "model": "resnet18", "eps": 8 / 255}
STEPS = {"steps": 20, "step_size": 2 / 255, "start": "uniform", "restarts": 1}


def printed_rows(text: str) -> list[dict[str, str]]:
    """Rows of the first Markdown table, by head."""
    heads, *rows = markdown_tables(text)[0]
    return [dict(zip(heads, row, strict=True)) for row in rows]


def published(text: str) -> list[tuple[str, str, str]]:
    """(measured row, published row, its checkpoint) of every published line of a table."""
    found, above = [], ""
    for row in printed_rows(text):
        if row["Figures"] == "measured":
            above = f"{row['Method']} {row['Checkpoint']}"
        elif row["Method"]:
            found.append((above, row["Method"], row["Checkpoint"]))
    return found


@pytest.fixture(scope="module")
def text(cifar: Path) -> str:
    """Its table against RSLAD's."""
    return against(cifar, "rslad")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TRADES and RSLAD, best and last, under PGD with known settings; ABSLD, which no source has."""
    folder = tmp_path_factory.mktemp("cifar")
    facts = {"attack_settings": STEPS}
    for method in ("trades", "rslad", "absld"):
        write_run(folder, Spec(method, **CIFAR, attacks={"pgd": 0.5}, checkpoints=("best", "last"), eval_facts=facts))
    return folder


def test_published_rows_stand_below_those_of_their_method_and_checkpoint(text: str) -> None:
    assert published(text) == [
        ("trades best", "TRADES", "best (test)"),
        ("trades last", "TRADES", "last"),
        ("rslad best", "RSLAD", "best (test)"),
        ("rslad last", "RSLAD", "last"),
    ]
    assert [row["Method"] for row in printed_rows(text) if row["Figures"] == "measured"].count("absld") == 2
    assert "- rslad publishes nothing on cifar10 for absld.\n" in text
    assert "- Published there and not measured here: FGSM, PGD-TRADES, CW, AutoAttack.\n" in text


def test_a_source_of_averages_leaves_dashes(text: str) -> None:
    (row,) = [row for row in printed_rows(text) if (row["Method"], row["Checkpoint"]) == ("RSLAD", "last")]
    assert (row["Clean Average"], row["PGD Average"]) == ("83.33", "54.14")
    assert (row["Model"], row["eps"]) == ("resnet18", "8/255")
    assert {row[f"{attack} {what}"] for attack in ("Clean", "PGD") for what in ("Worst", "NSD")} == {"–"}


def test_differences_are_measured_minus_published(text: str) -> None:
    rows = printed_rows(text)
    place = next(i for i, row in enumerate(rows) if (row["Method"], row["Checkpoint"]) == ("RSLAD", "last"))
    measured, quoted, difference = (float(row["PGD Average"]) for row in rows[place - 1 : place + 2])
    assert rows[place + 1]["Figures"] == "measured - published"
    assert difference == pytest.approx(measured - quoted, abs=0.011)
    assert rows[place + 1]["PGD Worst"] == "–"


def test_measured_rows_are_those_of_the_ordinary_table(cifar: Path, text: str) -> None:
    ordinary = printed_rows(render(cifar))
    beside = [row for row in printed_rows(text) if row["Figures"] == "measured"]
    assert [{head: row[head] for head in ordinary[0]} for row in beside] == ordinary


def test_another_network_is_marked_and_not_subtracted(tmp_path: Path) -> None:
    write_run(tmp_path, Spec("rslad", **{**CIFAR, "model": "small_cnn"}, attacks={"autoattack": 0.5}))
    text = against(tmp_path, "rslad")
    rows = [row for row in printed_rows(text) if row["Method"] == "RSLAD"]
    assert {row["Model"] for row in rows} == {"resnet18 §", "mobilenet_v2 §"}
    assert "measured - published" not in text
    assert "- § is not what was measured above it" in text


def test_a_radius_of_0_031_is_not_8_255(tmp_path: Path) -> None:
    write_run(tmp_path, Spec("trades", **{**CIFAR, "model": "wrn34_10"}, attacks={"autoattack": 0.5}))
    rows = printed_rows(against(tmp_path, "robustbench"))
    (row,) = [row for row in rows if row["Figures"].startswith("robustbench")]
    assert (row["Model"], row["eps"], row["AutoAttack Average"]) == ("wrn34_10", "0.031 §", "53.08")
    (difference,) = [
        row for row in printed_rows(against(tmp_path, "robustbench")) if row["Figures"] == "measured - published"
    ]
    assert difference["Clean Average"] != "–", "clean accuracy has no radius"
    assert difference["AutoAttack Average"] == "–"


def test_figures_go_to_the_column_with_their_settings(tmp_path: Path) -> None:
    for steps in (20, 30):
        facts = {"attack_settings": {"steps": steps, "step_size": None, "start": "zero", "restarts": 1}, "block": steps}
        write_run(tmp_path / str(steps), Spec("rslad", **CIFAR, attacks={"cw": 0.5}, eval_facts=facts))
    rows = printed_rows(against([tmp_path / "20", tmp_path / "30"], "rslad", checkpoint="last"))
    quoted = next(row for row in rows if row["Method"] == "RSLAD")
    assert (quoted["CW (rslad) Average"], quoted["CW (absld) Average"]) == ("53.22", "–")
    (alone,) = [row for row in printed_rows(against(tmp_path / "30", "rslad")) if row["Method"] == "RSLAD"]
    assert alone["CW Average"] == "53.22 §", "20 steps beside 30"


def test_another_checkpoint_is_marked(tmp_path: Path) -> None:
    write_run(tmp_path, Spec("trades", **CIFAR, attacks={"autoattack": 0.5}, checkpoints=("best",)))
    rows = [row for row in printed_rows(against(tmp_path, "dafa")) if row["Figures"].startswith("dafa")]
    assert [(row["Method"], row["Checkpoint"]) for row in rows] == [("TRADES", "last §")]


def test_a_model_of_the_zoo_is_held_against_its_own_entry(tmp_path: Path) -> None:
    zoo = {"model": "robustbench:Rice2020Overfitting", "label": "Rice2020Overfitting"}
    write_run(tmp_path, Spec("external", **{**CIFAR, **zoo}, attacks={"autoattack": 0.5}))
    rows = printed_rows(against(tmp_path, "robustbench"))
    assert [row["Figures"] for row in rows] == ["measured", "robustbench: CIFAR-10, Linf", "measured - published"]
    assert (rows[1]["Checkpoint"], rows[1]["AutoAttack Average"]) == ("unknown", "53.42")
    measured, quoted, difference = (float(row["AutoAttack Average"]) for row in rows)
    assert difference == pytest.approx(measured - quoted, abs=0.011)


def test_worst_class_and_nsd_where_the_source_has_them(tmp_path: Path) -> None:
    write_run(tmp_path, Spec("frl", **{**CIFAR, "model": "preact_resnet18_plain"}, attacks={"pgd": 0.5}))
    (row,) = [row for row in printed_rows(against(tmp_path, "frl")) if row["Method"] == "FRL reweight"]
    assert (row["Clean Worst"], row["PGD NSD"]) == ("71.10", "0.304 §"), "the tree's PGD has steps of 0.0375"
    assert "NSD and worst class computed by us" in against(tmp_path, "frl")


def test_a_data_set_without_published_figures_gives_the_measured_table(tmp_path: Path) -> None:
    write_run(tmp_path, Spec("trades"))
    text = against(tmp_path, "cfa")
    sentence = "- cfa has no published figures for digits; the table is what was measured.\n"
    assert sentence in text
    assert text.replace(sentence, "") == render(tmp_path)


def test_published_radii_are_linf(tmp_path: Path) -> None:
    write_run(tmp_path, Spec("trades", **CIFAR, eval_facts={"norm": "l2"}))
    assert "has no published figures for cifar10 in L2" in against(tmp_path, "cfa")


def test_notes_name_source_rule_runs_and_doubts(text: str) -> None:
    (note,) = re.findall("^- rslad: white box, CIFAR-10 is (.*)$", text, flags=re.MULTILINE)
    for said in ("https://arxiv.org/abs/2108.07969", "runs not stated", "Checkpoints: best: by robust", "Doubtful: "):
        assert said in note


def test_csv_and_json_carry_both_kinds_of_rows(cifar: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(against(cifar, "rslad", format="csv", methods=["rslad"]))))
    average = {
        row["source"]: row
        for row in rows
        if (row["checkpoint"], row["attack"], row["statistic"]) == ("last", "pgd", "average")
    }
    assert average.keys() == {"measured", "rslad"}
    found = average["rslad"]
    assert (found["row"], found["mean"], found["below"], found["comparable"]) == ("RSLAD", "0.5414", "rslad", "True")
    assert float(found["difference"]) == pytest.approx(float(average["measured"]["mean"]) - 0.5414)
    (table,) = json.loads(against(cifar, "rslad", format="json", methods=["rslad"]))
    assert [str(record["mean"]) for record in table["records"]] == [row["mean"] for row in rows]


def test_latex_holds_the_same_figures(cifar: Path, text: str) -> None:
    (rows,) = latex_tables(against(cifar, "rslad", format="latex"))
    printed = [[cell.replace("$-$", "-") for cell in row] for row in rows[1:]]
    assert [[*row[:2], *row[5:]] for row in printed] == [
        [*list(row.values())[:2], *list(row.values())[5:]] for row in printed_rows(text)
    ]


def test_an_unknown_source_is_a_usage_error(cifar: Path) -> None:
    with pytest.raises(UsageError, match="--against hearsay: .* available: rslad, "):
        against(cifar, "hearsay")


def test_the_command_prints_it_and_refuses_other_tables(cifar: Path, text: str) -> None:
    def bench(*more: str) -> Result:
        return CliRunner().invoke(main, ["report", str(cifar), "--against", *more])

    assert bench("rslad").stdout == text + "\n"
    assert (bench("hearsay").exit_code, bench("rslad", "--by-class").exit_code) == (2, 2)
    assert bench("rslad", "--by-class").stderr == (
        "bench: --against and --by-class: each is a report of its own; give one at a time\n"
    )
