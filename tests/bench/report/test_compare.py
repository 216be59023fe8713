"""Two rows side by side: figures against direct computation, names, and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from bench.errors import UsageError
from bench.report import compare, load_results
from bench.results.outcomes import Outcomes
from tests.helpers.trees import Spec, demo, write_run


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo(tmp_path_factory.mktemp("plan"))


def records(results: Path, a: str, b: str, **options: Any) -> list[dict[str, Any]]:
    sheets = json.loads(compare(results, a, b, format="json", **options))
    return [record for sheet in sheets for record in sheet["records"]]


def test_figures_are_those_of_the_outcomes(plan: Path) -> None:
    paths = {(row.label, row.attack): row.path for row in load_results(plan).itertuples()}
    a, b = (Outcomes.read(paths[name, "pgd"]) for name in ("absld", "ham"))
    first, second = (table.correct("pgd")[0] for table in (a, b))
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    found = [record for record in records(plan, "ABSLD", "ham") if record["column"] == "PGD"]
    assert [record["statistic"] for record in found] == ["average", "worst", "nsd"]
    assert (found[0]["only_a"], found[0]["only_b"]) == (only_a, only_b)
    assert found[0]["mcnemar_p"] == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    assert found[0]["difference"] == pytest.approx((only_a - only_b) / 400)
    assert found[1]["difference"] == pytest.approx(a.worst("pgd") - b.worst("pgd"))
    assert found[2]["difference"] == pytest.approx(a.nsd("pgd") - b.nsd("pgd"))


def test_swapping_turns_the_signs(plan: Path) -> None:
    for forth, back in zip(records(plan, "absld", "frl"), records(plan, "frl", "absld"), strict=True):
        assert forth["difference"] == pytest.approx(-back["difference"], abs=1e-12)
        assert (forth["low"], forth["high"]) == pytest.approx((-back["high"], -back["low"]), abs=1e-9)
        assert forth["mcnemar_p"] == back["mcnemar_p"]


def test_seeds_are_tested_one_by_one_and_resampled_together(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for method, level in {"absld": 0.7, "natural": 0.2}.items():
            write_run(tmp_path, Spec(method=method, seed=seed, attacks={"pgd": level}))
    found = [r for r in records(tmp_path, "absld", "natural") if r["column"] == "PGD" and r["statistic"] == "average"]
    assert [record["what"] for record in found] == ["seed 0", "seed 1", "seed 2", "all seeds"]
    assert [record["mcnemar_p"] is None for record in found] == [False, False, False, True]
    assert found[-1]["difference"] == pytest.approx(math.fsum(r["difference"] for r in found[:3]) / 3)
    assert all(record["settled"] for record in found)
    text = compare(tmp_path, "absld", "natural")
    assert "< 0.001" in text and "and over seeds" in text


def test_checkpoints_can_be_named(tmp_path: Path) -> None:
    for method in ("absld", "ham"):
        write_run(tmp_path, Spec(method=method, checkpoints=("best", "last"), attacks={"pgd": 0.6}))
    both = compare(tmp_path, "absld", "ham")
    assert both.count("###") == 2
    one = compare(tmp_path, "absld@last", "ham@best")
    assert "absld (last) against ham (best)" in one and one.count("###") == 1
    assert "absld (best) against absld (last)" in compare(tmp_path, "absld@best", "absld@last")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("absld", "abld", "no row 'abld'; there are: natural@last"),
        ("absld@best", "ham", "no row 'absld@best'"),
        ("absld", "absld", "share no table"),
    ],
)
def test_refusals(plan: Path, a: str, b: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(plan, a, b)


def test_an_ambiguous_name_lists_its_rows(tmp_path: Path) -> None:
    for seed, recipe in enumerate(("digits", "paper")):
        write_run(tmp_path, Spec(seed=seed, facts={"recipe": recipe}))
    write_run(tmp_path, Spec(method="ham"))
    with pytest.raises(UsageError, match=r"'pgd_at' means several rows; name one of 'pgd_at \[recipe=digits\]'"):
        compare(tmp_path, "pgd_at", "ham")
    assert "pgd_at [recipe=paper] (last) against ham" in compare(tmp_path, "pgd_at [recipe=paper]", "ham")


def test_other_samples_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, Spec(method="absld", attacks={"pgd": 0.6, "cw": 0.6}))
    write_run(tmp_path, Spec(method="ham", attacks={"pgd": 0.6, "cw": 0.6}, subset={"cw": 20}))
    text = compare(tmp_path, "absld", "ham")
    assert "Not measured alike on both: CW (1), CW (2)." in text
