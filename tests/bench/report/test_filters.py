"""Reports restricted to some attacks, in every view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench.cli.app import main
from bench.errors import UsageError
from bench.report import render
from tests.helpers.trees import Spec, demo, write_run


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo(tmp_path_factory.mktemp("plan"))


def report(results: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["report", str(results), *more])


def columns(result: Result) -> set[str]:
    assert result.exit_code == 0, result.stderr
    records: list[dict[str, Any]] = [r for sheet in json.loads(result.stdout) for r in sheet["records"]]
    return {record["column"] for record in records}


@pytest.mark.parametrize("view", [[], ["--by-class"], ["--over", "trades"], ["--compare", "absld", "ham"]])
def test_clean_and_the_named_attacks_are_left(plan: Path, view: list[str]) -> None:
    assert columns(report(plan, *view, "--format", "json")) == {"Clean", "FGSM", "PGD", "CW", "AutoAttack"}
    chosen = report(plan, *view, "--format", "json", "--attacks", "autoattack,PGD")
    assert columns(chosen) == {"Clean", "PGD", "AutoAttack"}


def test_what_is_left_is_as_it_was_and_notes_follow(plan: Path) -> None:
    whole, part = render(plan), render(plan, attacks=["cw"])
    first = [[cell.strip() for cell in text.splitlines()[4].split("|")] for text in (whole, part)]
    assert first[0][3:6] == first[1][3:6] and first[0][12:15] == first[1][6:9]
    assert "- CW: native" in part and "- PGD: native" in whole and "- PGD: native" not in part


def test_an_attack_that_nobody_ran_is_named(plan: Path) -> None:
    with pytest.raises(UsageError, match="no results under the attack 'pgdd'; there are: autoattack, cw, fgsm, pgd"):
        render(plan, attacks=["pgdd"])


def test_tables_and_rows_without_the_attack_go(tmp_path: Path) -> None:
    write_run(tmp_path, Spec(method="ham", attacks={"pgd": 0.6}))
    write_run(tmp_path, Spec(method="absld", attacks={"pgd": 0.6, "cw": 0.5}))
    write_run(tmp_path, Spec(method="absld", attacks={"pgd": 0.6}, model="small_mlp"))
    text = render(tmp_path, attacks=["cw"])
    assert text.count("###") == 1 and "small_mlp" not in text and "| absld" in text


def test_figures_are_drawn_of_the_part(plan: Path, tmp_path: Path) -> None:
    listed = report(plan, "--figures", str(tmp_path), "--attacks", "cw", "--methods", "absld,trades").stdout
    assert "classes_cw" in listed and "classes_pgd" not in listed and "absld" in listed and "frl" not in listed
