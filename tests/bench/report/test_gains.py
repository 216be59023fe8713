"""Rows over a baseline: figures against direct computation, closed forms of levelling down, cost, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bench.cli.app import main
from bench.errors import UsageError
from bench.report import compare, gains, load_results
from bench.report.views.gains import levelling_down
from bench.results.outcomes import Outcomes
from tests.helpers.trees import Spec, demo, write_run


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo(tmp_path_factory.mktemp("plan"))


def records(results: Path, over: str, **options: Any) -> list[dict[str, Any]]:
    sheets = json.loads(gains(results, over, format="json", **options))
    return [record for sheet in sheets for record in sheet["records"]]


def test_differences_are_those_of_the_outcomes(plan: Path) -> None:
    paths = load_results(plan).set_index(["role", "label", "attack"]).path
    absld, trades = (Outcomes.read(paths["student", name, "cw"]) for name in ("absld", "trades"))
    found = {r["statistic"]: r for r in records(plan, "TRADES") if (r["row"], r["column"]) == ("absld", "CW")}
    assert found["average"]["difference"] == pytest.approx(absld.average("cw") - trades.average("cw"))
    assert found["worst"]["difference"] == pytest.approx(absld.worst("cw") - trades.worst("cw"))
    assert found["nsd"]["difference"] == pytest.approx(absld.nsd("cw") - trades.nsd("cw"))


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_they_agree_with_the_comparison_of_two_rows(seeds: tuple[int, ...], tmp_path: Path) -> None:
    demo(tmp_path, seeds, attacks={"pgd": np.linspace(0.5, 0.9, 10)})
    found = [r for sheet in json.loads(compare(tmp_path, "absld", "trades", format="json")) for r in sheet["records"]]
    pair = [record for record in found if record["what"] in ("one seed", "all seeds")]
    over = [r for r in records(tmp_path, "trades") if r["row"] == "absld"]
    for one, other in zip(pair, over, strict=True):
        assert [one[name] for name in ("column", "statistic", "settled")] == [
            other[name] for name in ("column", "statistic", "settled")
        ]
        assert [one[name] for name in ("difference", "low", "high")] == pytest.approx(
            [other[name] for name in ("difference", "low", "high")]
        )


def test_every_other_student_stands_in_every_table(plan: Path) -> None:
    sheets = json.loads(gains(plan, "trades", format="json"))
    assert [sheet["title"].rpartition(", ")[2] for sheet in sheets] == ["Clean", "FGSM", "PGD", "CW", "AutoAttack"]
    for sheet in sheets:
        assert {r["row"] for r in sheet["records"]} == {"natural", "pgd_at", "frl", "ard", "rslad", "absld", "ham"}
    assert list(dict.fromkeys(r["row"] for r in records(plan, "trades", methods=["ham", "ard"]))) == ["ham", "ard"]


def test_levelling_down_in_closed_form() -> None:
    base = np.array([0.2, 0.4, 0.6, 0.8])
    assert levelling_down(base, np.array([0.2, 0.4, 0.5, 0.5])) == pytest.approx(1)
    assert levelling_down(base, np.array([0.5, 0.5, 0.6, 0.8])) == pytest.approx(0)
    assert np.isnan(levelling_down(base, base)) and np.isnan(levelling_down(base, base * [0.5, 1, 1, 1]))
    # The worst class falling as well makes the spread larger, which the others' losses have to make up for.
    assert levelling_down(base, np.array([0.1, 0.15, 0.2, 0.2])) > 1


def test_shares_of_losses_and_of_all_else_add_up() -> None:
    rng = np.random.default_rng(0)
    for base, new in rng.uniform(0.2, 0.9, size=(50, 2, 10)):
        lost = (base > base.mean()) & (new < base)
        # Exchanging the parts turns levelling down into its complement: losses as `others` of the same two ends.
        nsd = [np.std(a) / a.mean() for a in (base, np.where(lost, new, base), np.where(lost, base, new), new)]
        rest = ((nsd[0] - nsd[2]) + (nsd[1] - nsd[3])) / 2
        if nsd[0] > nsd[3]:
            assert levelling_down(base, new) + rest / (nsd[0] - nsd[3]) == pytest.approx(1)


def test_a_settled_gain_is_bold_and_shows_its_share(tmp_path: Path) -> None:
    uneven = np.linspace(0.3, 0.95, 10)
    write_run(tmp_path, Spec(method="trades", clean=1.0, attacks={"pgd": uneven}, per_class=400))
    write_run(tmp_path, Spec(method="ham", clean=1.0, attacks={"pgd": np.minimum(uneven, 0.6)}, per_class=400))
    found = {r["statistic"]: r for r in records(tmp_path, "trades") if r["column"] == "PGD"}
    assert found["nsd"]["better"] and found["nsd"]["levelling_down"] > 0.8
    assert found["average"]["settled"] and not found["average"]["better"]
    line = next(text for text in gains(tmp_path, "trades").split("PGD\n")[1].splitlines() if text.startswith("| ham"))
    average, _, nsd, share, *costs = (cell.strip() for cell in line.split("|")[2:-1])
    assert average.startswith("<ins>-") and nsd.startswith("**-") and share.endswith(" %") and costs == ["–", "–"]


def test_cost_counts_the_training_that_it_starts_from(tmp_path: Path) -> None:
    def passes(forward: int, input_grad: int, backward: int, **others: dict[str, int]) -> dict[str, Any]:
        return {"passes": {"student": {"forward": forward, "input_grad": input_grad, "backward": backward}, **others}}

    start = Spec(method="pgd_at", facts=passes(11, 10, 1))
    warm = {"warm_start": {"key": start.key, "label": "pgd_at"}}
    steered = {"validation": {"forward": 3, "input_grad": 2, "backward": 0}}
    taught = {"teacher": {"forward": 11, "input_grad": 10, "backward": 0}}
    tuned = Spec(method="faal", facts=passes(4, 4, 1, **steered) | warm)
    base = Spec(method="trades", facts=passes(12, 10, 2))
    for spec in (start, tuned, base, Spec(method="adaad", facts=passes(11, 10, 1, **taught))):
        write_run(tmp_path, spec)
    found = {record["row"]: (record["cost"], record["teacher_cost"]) for record in records(tmp_path, "trades")}
    assert found["pgd_at"] == pytest.approx((23 / 26, 0))
    assert found["faal"] == pytest.approx(((23 + 10 + 5) / 26, 0))
    assert found["adaad"] == pytest.approx((23 / 26, 21 / 26))


def test_checkpoints_meet_their_like(tmp_path: Path) -> None:
    for method in ("absld", "trades"):
        write_run(tmp_path, Spec(method=method, checkpoints=("best", "last"), attacks={"pgd": 0.6}))
    for record in records(tmp_path, "trades"):
        assert record["row"] == "absld"
    assert gains(tmp_path, "trades").count("### ") == 4 and gains(tmp_path, "trades@last").count("### ") == 2


def test_refusals(plan: Path) -> None:
    with pytest.raises(UsageError, match=r"--over: no row 'tradse' .* there are: natural, "):
        gains(plan, "tradse")
    result = CliRunner().invoke(main, ["report", str(plan), "--over", "trades", "--compare", "absld", "ham"])
    assert result.exit_code == 2
    assert result.stderr == "bench: --over and --compare: each is a report of its own; give one at a time\n"


def test_the_command_prints_it_in_every_format(plan: Path) -> None:
    for form in ("markdown", "latex", "csv", "json"):
        result = CliRunner().invoke(main, ["report", str(plan), "--over", "trades", "--format", form])
        assert (result.exit_code, result.stdout) == (0, gains(plan, "trades", format=form) + "\n")
