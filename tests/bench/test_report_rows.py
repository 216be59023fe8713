"""What shares a row, a column and a table of a report, and what stands in its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.report import render
from bench.report.table import build_tables
from tests.bench.printed import markdown_tables
from tests.bench.trees import Spec, write_run


@pytest.mark.parametrize(
    ("change", "told_apart_by"),
    [
        ({"recipe": "paper"}, 'recipe=digits"|recipe=paper'),
        ({"settings": {"beta": 5}}, "beta=5"),
        ({"training": {"lr": 0.05, "batch_size": 128}}, "lr=0.05"),
        ({"epochs": 29}, "epochs=29"),
        ({"hardware": {"device": "cuda", "threads": 1}}, "device=cuda"),
        ({"arithmetic": {"switches": ["bf16", "fold"], "precision": "bfloat16"}}, "train_with=bf16 fold"),
        ({"teachers": {"robust": {"key": "t", "label": "ham on wide"}}}, "teacher=ham on wide"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(
    tmp_path: Path, change: dict[str, Any], told_apart_by: str
) -> None:
    write_run(tmp_path, Spec(seed=0))
    write_run(tmp_path, Spec(seed=1, facts=change))
    (table,) = build_tables(tmp_path)
    assert [row.seeds for row in table.rows] in ([(0,), (1,)], [(1,), (0,)])
    assert len({row.name for row in table.rows}) == 2
    assert any(re.search(told_apart_by, row.name) for row in table.rows)


def test_a_training_in_lower_precision_is_noted(tmp_path: Path) -> None:
    arithmetic = {"switches": ["bf16"], "precision": "bfloat16 under autocast"}
    write_run(tmp_path, Spec(facts={"arithmetic": arithmetic}))
    assert "30 epochs, bfloat16 under autocast." in render(tmp_path)


def test_runs_of_one_seed_that_look_alike_are_named_by_key(tmp_path: Path) -> None:
    for noise in (0, 1):
        write_run(tmp_path, Spec(noise=noise))
    (table,) = build_tables(tmp_path)
    assert {row.name for row in table.rows} == {f"pgd_at [run {Spec(noise=n).key[:8]}]" for n in (0, 1)}


def test_a_warm_start_of_the_same_kind_does_not_split_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        before = Spec(method="pgd_at", seed=seed)
        write_run(tmp_path, before)
        start = {"key": before.key, "label": "pgd_at"}
        write_run(tmp_path, Spec(method="frl", seed=seed, facts={"warm_start": start}))
    (table,) = build_tables(tmp_path)
    assert {row.name: row.seeds for row in table.rows} == {"pgd_at": (0, 1), "frl": (0, 1)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"implementation": "other 1.0"}, {"1", "2"}),
        ({"attack_settings": {"steps": 10}}, {"absld, rslad", "cfa"}),
        ({"block": 50}, {"1", "2"}),
    ],
)
def test_protocols_never_share_a_column(tmp_path: Path, change: dict[str, Any], named: set[str]) -> None:
    write_run(tmp_path, Spec(seed=0, attacks={"pgd": 0.7}))
    write_run(tmp_path, Spec(seed=1, attacks={"pgd": 0.7}, eval_facts=change))
    (table,) = build_tables(tmp_path)
    assert [column.attack for column in table.columns] == ["clean", "pgd", "pgd"]
    assert sorted(cell.seeds for cell in table.rows[0].cells.values()) == [(0,), (0, 1), (1,)]
    (heads, row) = markdown_tables(render(tmp_path))[0]
    assert {f"PGD ({name}) Average" for name in named} <= set(heads)
    told = re.search(r"Fewer seeds in pgd_at \(last\), PGD \((.*?)\): ", render(tmp_path))
    assert told is not None and told[1] in named
    assert len(row) == len(heads)


def test_other_models_data_sets_and_radii_get_their_own_tables(tmp_path: Path) -> None:
    for change in ({}, {"model": "resnet18"}, {"dataset": "svhn"}, {"eps": 8 / 255}):
        write_run(tmp_path, Spec(**change, noise=len(change)))
    text = render(tmp_path)
    assert re.findall("^### (.*)$", text, flags=re.MULTILINE) == [
        "digits, small_cnn, Linf, eps 8/255",
        "digits, resnet18, Linf, eps 0.15",
        "digits, small_cnn, Linf, eps 0.15",
        "svhn, small_cnn, Linf, eps 0.15",
    ]
    assert len(markdown_tables(text)) == 4
    assert len(markdown_tables(render(tmp_path, dataset="SVHN"))) == 1


def test_a_label_of_its_own_is_a_row_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path, Spec(method="absld"))
    write_run(tmp_path, Spec(method="absld", label="absld (temperature_rate=0.05)"))
    names = [row[0] for row in markdown_tables(render(tmp_path))[0][1:]]
    assert names == ["absld", "absld (temperature_rate=0.05)"]
    chosen = markdown_tables(render(tmp_path, methods=["absld (temperature-rate=0.05)"]))[0]
    assert [row[0] for row in chosen[1:]] == names[1:]


def test_best_and_last_are_one_row_where_they_are_the_same(tmp_path: Path) -> None:
    same, other = Spec(facts={"epoch_best": 29}), Spec(method="ham", checkpoints=("best", "last"))
    write_run(tmp_path, same)
    write_run(tmp_path, other)
    rows = markdown_tables(render(tmp_path))[0][1:]
    assert [row[:2] for row in rows] == [["pgd_at", "best = last"], ["ham", "best"], ["ham", "last"]]
    assert [row[:2] for row in markdown_tables(render(tmp_path, checkpoint="best"))[0][1:]] == [
        ["pgd_at", "best = last"],
        ["ham", "best"],
    ]


def test_selection_on_the_test_set_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, Spec(checkpoints=("best",), facts={"selection": "test"}))
    text = render(tmp_path)
    assert markdown_tables(text)[0][1][1] == "best (test)"
    assert "ON THE TEST SET, for replication only" in text


def test_foreign_checkpoints_without_seed_or_recipe(tmp_path: Path) -> None:
    facts = {"seed": None, "recipe": None, "epochs": None, "training": None, "settings": None, "data": {"classes": 10}}
    write_run(tmp_path, Spec(method="external", label="theirs.pt", facts=facts))
    write_run(tmp_path, Spec(method="absld"))
    text = render(tmp_path)
    assert [row[0] for row in markdown_tables(text)[0][1:]] == ["absld", "theirs.pt"]
    assert "unknown for theirs.pt" in text
