"""The per-sample table: figures, names, files, and every way in which a table can contradict itself."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.errors import BenchError, UsageError
from bench.results.outcomes import Outcomes

LABEL = [0, 0, 1, 1]
CLEAN = [0, 1, 1, 1]


def table(**changes: Any) -> Outcomes:
    facts: dict[str, Any] = {
        "index": [0, 3, 5, 8],
        "label": LABEL,
        "clean": CLEAN,
        "attacks": {"pgd": [0, 0, 0, 1], "pgd-trades": [1, 1, 1, 1]},
        "robust": {"pgd": [True, False, False, True], "pgd-trades": [False, False, True, True]},
        "num_classes": 2,
        "class_names": ["cat", "dog"],
    }
    facts |= changes
    return Outcomes(facts.pop("index"), facts.pop("label"), facts.pop("clean"), **facts)


def test_figures_by_hand() -> None:
    outcomes = table()
    assert outcomes.attacks == ["clean", "pgd", "pgd-trades"]
    assert outcomes.average() == 0.75
    assert outcomes.by_class("pgd").tolist() == [0.5, 0.5]
    assert outcomes.nsd("pgd") == 0
    assert outcomes.worst("pgd-trades") == 0
    assert outcomes.nsd("pgd-trades") == 1.0
    assert outcomes.nsd("pgd-trades", ddof=1) == pytest.approx(math.sqrt(2))
    assert outcomes.gap("pgd-trades") == 1.0
    assert outcomes.worst10("pgd-trades") == 0
    assert outcomes.intervals("pgd-trades")["worst"] == (0, 0)


@pytest.mark.parametrize("name", ["pgd-trades", "PGD_Trades", " pgd_trades "])
def test_names_are_found_loosely(name: str) -> None:
    assert table().resolve(name) == "pgd-trades"


def test_an_unknown_attack_gets_a_suggestion() -> None:
    with pytest.raises(
        UsageError, match=r"no attack 'pdg' here; did you mean 'pgd'\? available: clean, pgd, pgd-trades"
    ):
        table().average("pdg")


def test_union_is_robust_under_each() -> None:
    outcomes = table().union(["pgd", "PGD_trades"])
    assert outcomes.verdict("pgd+pgd-trades").robust.tolist() == [False, False, False, True]
    assert outcomes.verdict("pgd+pgd-trades").prediction.tolist() == [1, 0, 0, 1]
    assert outcomes.average("pgd+pgd-trades") <= min(outcomes.average("pgd"), outcomes.average("pgd-trades"))
    assert table().union(["clean"], "same").average("same") == table().average()
    with pytest.raises(UsageError, match="at least one attack"):
        table().union([])


def test_frame_has_a_row_per_sample() -> None:
    frame = table().frame()
    assert list(frame.columns) == ["index", "label", "clean", "pgd", "pgd_robust", "pgd-trades", "pgd-trades_robust"]
    assert frame["pgd_robust"].dtype == bool
    assert frame["index"].tolist() == [0, 3, 5, 8]


def test_writing_twice_gives_equal_bytes_and_reads_back(tmp_path: Path) -> None:
    for name in ("a", "b"):
        table().write(tmp_path / f"{name}.parquet")
    digests = {hashlib.sha256((tmp_path / f"{name}.parquet").read_bytes()).hexdigest() for name in ("a", "b")}
    assert len(digests) == 1
    back = Outcomes.from_parquet(tmp_path / "a.parquet", num_classes=2, class_names=["cat", "dog"])
    assert back.frame().equals(table().frame())


def test_stages_are_cumulative_and_named() -> None:
    first, last = [True, False, True, True], [True, False, False, True]
    outcomes = staged(first, last)
    assert outcomes.attacks == ["clean", "autoattack"]
    assert outcomes.stages("AutoAttack") == ["autoattack/apgd-ce", "autoattack/square"]
    assert outcomes.average("autoattack/APGD_CE") == 0.75
    with pytest.raises(BenchError, match="autoattack/square: expected no sample to be robust that fell in"):
        staged(last, first)
    with pytest.raises(BenchError, match="autoattack: expected the verdicts of its last stage"):
        staged(first, first, last)


def staged(*verdicts: list[bool]) -> Outcomes:
    first, second, own = [*verdicts, verdicts[-1]][:3]
    named = {"autoattack/apgd-ce": first, "autoattack/square": second, "autoattack": own}
    predictions = {name: [y if good else 1 - y for y, good in zip(LABEL, named[name], strict=True)] for name in named}
    return table(attacks=predictions, robust=named)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "order": ({"index": [3, 0, 5, 8]}, "index: expected positions in ascending order"),
    "twice": ({"index": [0, 0, 5, 8]}, "index: expected positions in ascending order"),
    "length": ({"label": [0, 1]}, "label: expected 4 values, one per sample, got 2"),
    "range": ({"clean": [0, 1, 1, 2]}, r"clean: expected classes in -1\.\.1, got 0 to 2"),
    "names": ({"class_names": ["cat"]}, "expected 2 names, got 1"),
    "dtype": ({"clean": [0.0, 1.0, 1.0, 1.0]}, "clean: expected whole numbers"),
    "verdict dtype": ({"robust": {"pgd": [1, 0, 0, 1], "pgd-trades": [0, 0, 1, 1]}}, "pgd_robust: expected booleans"),
    "no verdict": ({"robust": {"pgd": [True, False, False, True]}}, "one is missing for pgd-trades"),
    "clean wrong": (
        {"attacks": {"pgd": [0, 0, 0, 1]}, "robust": {"pgd": [True, True, False, True]}},
        "pgd_robust: expected true exactly where .* at index 3",
    ),
    "attack wrong": (
        {"attacks": {"pgd": [0, 0, 0, 1]}, "robust": {"pgd": [True, False, True, True]}},
        "pgd_robust: expected true exactly where .* at index 5",
    ),
    "both right": (
        {"attacks": {"pgd": [0, 0, 0, 1]}, "robust": {"pgd": [False, False, False, True]}},
        "pgd_robust: expected true exactly where .* at index 0",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_contradictions_are_refused(fault: str) -> None:
    changes, message = WRONG[fault]
    with pytest.raises(BenchError, match=message):
        table(**changes)


def test_an_empty_class_is_named() -> None:
    lonely = Outcomes([0], [0], [0], attacks={}, robust={}, num_classes=2, class_names=["cat", "dog"])
    with pytest.raises(ValueError, match=r"class 1 \(dog\) has no sample"):
        lonely.worst()


def folder(root: Path, outcomes: Outcomes, **facts: Any) -> Path:
    root.mkdir()
    outcomes.write(root / "outcomes.parquet")
    (root / "eval.json").write_text(json.dumps({"classes": 2, "class_names": ["cat", "dog"], **facts}))
    return root


def single(name: str, prediction: list[int], rows: slice = slice(None), **changes: Any) -> Outcomes:
    clean = changes.pop("clean", CLEAN)
    good = [c == y == p for c, y, p in zip(clean[rows], LABEL[rows], prediction, strict=True)]
    facts = {"index": [0, 3, 5, 8][rows], "label": LABEL[rows], "clean": clean[rows]}
    return table(**facts, attacks={name: prediction}, robust={name: good})


def test_reading_several_folders_keeps_parts_apart(tmp_path: Path) -> None:
    whole = folder(tmp_path / "a", single("pgd", [0, 0, 0, 1]))
    part = folder(tmp_path / "b", single("autoattack", [0, 0], slice(0, 4, 2)))
    outcomes = Outcomes.read(part, whole)
    assert len(outcomes) == 4
    assert outcomes.by_class("autoattack").tolist() == [1.0, 0.0]
    assert outcomes.average() == 0.75
    frame = outcomes.frame()
    assert frame["autoattack_robust"].isna().tolist() == [False, True, False, True]
    assert outcomes.union(["pgd", "autoattack"]).average("pgd+autoattack") == 0.5
    with pytest.raises(ValueError, match="autoattack covers a part"):
        outcomes.write(tmp_path / "whole.parquet")


def test_folders_that_disagree_are_refused(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", single("pgd", [0, 0, 0, 1]))
    other = folder(tmp_path / "b", single("cw", [0, 0, 0, 1], clean=[0, 0, 1, 1]))
    again = folder(tmp_path / "c", single("pgd", [0, 0, 0, 1]))
    with pytest.raises(BenchError, match="differ in labels or clean predictions"):
        Outcomes.read(first, other)
    with pytest.raises(BenchError, match="two of the evaluations hold pgd"):
        Outcomes.read(first, again)
    with pytest.raises(UsageError, match="at least one evaluation folder"):
        Outcomes.read()


def damage(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        pq.write_table(change(pq.read_table(file)), file)

    return apply


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (Path.unlink, "cannot be read"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:100]) and None, "cannot be read"),
    "no labels": (damage(lambda t: t.drop_columns(["label"])), "columns index, label, clean, label is missing"),
    "no verdict": (damage(lambda t: t.drop_columns(["pgd_robust"])), "one is missing for pgd"),
    "gap": (
        damage(lambda t: t.set_column(2, "clean", pa.array([0, None, 1, 1], pa.int64()))),
        "column clean has gaps",
    ),
    "text": (damage(lambda t: t.set_column(2, "clean", pa.array(list("abcd")))), "clean: expected whole numbers"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_are_named(tmp_path: Path, fault: str) -> None:
    break_it, message = BROKEN[fault]
    where = folder(tmp_path / "a", single("pgd", [0, 0, 0, 1]))
    break_it(where / "outcomes.parquet")
    with pytest.raises(BenchError, match=message) as caught:
        Outcomes.read(where)
    assert "outcomes.parquet" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "expected JSON"), ("[1]", "expected a JSON object, got list"), ("{}", "number of classes under 'classes'")],
)
def test_broken_descriptions_are_named(tmp_path: Path, text: str, message: str) -> None:
    where = folder(tmp_path / "a", single("pgd", [0, 0, 0, 1]))
    (where / "eval.json").write_text(text)
    with pytest.raises(BenchError, match=message):
        Outcomes.read(where)


def test_a_large_table_is_checked_quickly() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(100, size=10_000)
    outcomes = Outcomes(
        np.arange(10_000),
        label,
        label,
        attacks={"pgd": label},
        robust={"pgd": np.ones(10_000, dtype=bool)},
        num_classes=100,
    )
    assert outcomes.class_names[99] == "99"
    assert outcomes.worst("pgd") == 1.0
