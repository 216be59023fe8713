"""End to end, by the real command: every method and attack, the table, its reports and their verification."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.report import REPORTERS
from methods.registry import METHODS
from tests.helpers.jobs import COMMAND, history

pytestmark = pytest.mark.slow

ARGUMENTS = [
    "run", "--epochs", "2", "--train-limit", "300", "--limit", "40", "--autoattack-limit", "20", "--seeds", "0",
    "--set", "autoattack.steps=3", "--set", "autoattack.targets=2", "--set", "autoattack.queries=10",
    "--set", "pgd_at.recipe.epochs=7",
]  # fmt: skip


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """All methods on digits, small; PGD-AT alone is trained for long enough to learn."""
    out = tmp_path_factory.mktemp("end") / "results"
    return out, command(*ARGUMENTS, "--workers", "1", "--out", out)


Results = tuple[Path, "subprocess.CompletedProcess[str]"]


def test_one_command_ends_with_the_table_of_all_methods_and_attacks(results: Results) -> None:
    out, done = results
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "### digits, small_cnn, Linf, eps 0.15"
    header = next(line for line in lines if line.startswith("| Method"))
    for column in ("Clean", "FGSM", "PGD", "CW", "AutoAttack"):
        assert all(f"{column} {statistic}" in header for statistic in ("Average", "Worst", "NSD"))
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    names = [row.partition(" ")[0] for row in rows if not row.startswith("-")]
    assert sorted(names) == sorted([*METHODS.names(), "trades", "natural"]), "teachers have rows of their own"
    assert sum("teacher" in row for row in rows) == 2
    assert "n = 40" in done.stdout
    assert "n = 20" in done.stdout, "AutoAttack's smaller part is stated"


def test_every_mechanism_ran(results: Results) -> None:
    out, _ = results
    for method, names in (
        ("absld", ("temperature_adv", "temperature_clean")), ("frl", ("weight_clean",)), ("ham", ("kept_share",)),
        ("frl_remargin", ("weight_clean", "radius_scale")), ("cfa", ("accuracy", "radius_scale")),
        ("wat", ("class_weight",)), ("dafa", ("class_weight",)),
    ):  # fmt: skip
        (folder,) = out.glob(f"*/*/{method}/*")
        last = history(folder)[-1]["state"]
        for name in names:
            assert len(set(last[name])) > 1, f"{method}: the {name} of all classes are equal"


def test_figures_are_sound_from_python_too(results: Results) -> None:
    frame: Any = bench.load_results(results[0])
    assert len(frame) == (len(METHODS.names()) + 2) * 5
    wide = frame.pivot_table(index=["label", "role"], columns="attack", values="average")
    assert (wide.drop(columns="autoattack").le(wide["clean"] + 1e-12, axis=0)).all(axis=None)
    for row in frame.itertuples():
        assert 0 <= row.worst <= row.average <= 1
        assert math.isnan(row.nsd) == (row.average == 0)
    learned = frame[frame.method.eq("pgd_at") & frame.attack.eq("pgd")]
    (average,) = learned.average
    assert average > 0.3, "three times chance, under attack"


def test_the_results_verify_and_report_in_every_format(results: Results) -> None:
    from click.testing import CliRunner

    from bench.cli.app import main

    out, done = results
    runner = CliRunner()
    checked = runner.invoke(main, ["verify", str(out)])
    assert checked.exit_code == 0, checked.output
    shown = {form: runner.invoke(main, ["report", str(out), "--format", form]) for form in REPORTERS.names()}
    assert {form: result.exit_code for form, result in shown.items()} == dict.fromkeys(shown, 0)
    assert shown["markdown"].stdout.strip() == done.stdout.strip(), "the report is the table that the run printed"
    assert shown["latex"].stdout.count(r"\midrule") >= 1
    tables = {(row["method"], row["attack"]) for row in csv.DictReader(io.StringIO(shown["csv"].stdout))}
    attacks = ("clean", "fgsm", "pgd", "cw", "autoattack")
    assert tables == {(method, attack) for method in METHODS.names() for attack in attacks}
    assert json.loads(shown["json"].stdout)
    status = runner.invoke(main, ["status", str(out)]).stdout
    assert "failed" not in status
    assert status.count(": done") == len(list(out.rglob("done")))
    compared = runner.invoke(main, ["report", str(out), "--compare", "absld", "rslad"])
    assert compared.exit_code == 0
    assert "McNemar" in compared.stdout
