"""Rows and columns of a report: which runs and evaluations share one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.report import by_class, compare, gains, render
from bench.report.tables.build import build_tables
from tests.helpers.printed import markdown_tables
from tests.helpers.trees import Spec, draw, write_evaluation, write_run


@pytest.mark.parametrize(
    ("change", "named_by"),
    [
        ({"recipe": "paper"}, 'recipe=digits"|recipe=paper'),
        ({"settings": {"beta": 5}}, "beta=5"),
        ({"training": {"lr": 0.05, "batch_size": 128}}, "lr=0.05"),
        ({"epochs": 29}, "epochs=29"),
        ({"hardware": {"device": "cuda", "threads": 1}}, "device=cuda"),
        ({"arithmetic": {"switches": ["bf16", "fold"], "precision": "bfloat16"}}, "train_with=bf16 fold"),
        ({"teachers": {"robust": {"key": "t", "label": "ham on wide"}}}, "teacher=ham on wide"),
        ({"revision": 3}, "revision=3"),
        ({"source": "0f3a92bd" * 8}, r"source=0f3a92bd\]"),
        ({"deterministic": True}, "deterministic=true"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(
    tmp_path: Path, change: dict[str, Any], named_by: str
) -> None:
    write_run(tmp_path, Spec(seed=0))
    write_run(tmp_path, Spec(seed=1, facts=change))
    (table,) = build_tables(tmp_path)
    assert [row.seeds for row in table.rows] in ([(0,), (1,)], [(1,), (0,)])
    assert len({row.name for row in table.rows}) == 2
    assert any(re.search(named_by, row.name) for row in table.rows)


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
        ({"revision": 3}, {"1", "2"}),
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
    match = re.search(r"Fewer seeds in pgd_at \(last\), PGD \((.*?)\): ", render(tmp_path))
    assert match is not None and match[1] in named
    assert len(row) == len(heads)


@pytest.mark.parametrize(
    ("older", "newer", "named"),
    [
        ({"revision": 2}, {"revision": 3}, ("revision 2", "revision 3")),
        (
            {"revision": 1, "source": "aa" * 32},
            {"revision": 1, "source": "bb" * 32},
            ("revision 1, source aaaaaaaa", "revision 1, source bbbbbbbb"),
        ),
    ],
)
def test_columns_of_one_attack_are_named_by_its_revision(
    tmp_path: Path, older: dict[str, Any], newer: dict[str, Any], named: tuple[str, str]
) -> None:
    for seed, facts in enumerate((older, newer)):
        write_run(tmp_path, Spec(seed=seed, attacks={"autoattack": 0.7}, eval_facts=facts))
    text = render(tmp_path)
    heads = markdown_tables(text)[0][0]
    for name in named:
        assert f"AutoAttack ({name}) Average" in heads
        assert f"- AutoAttack ({name}): pyautoattack 0.2.0, version standard, stages apgd-ce" in text
        assert re.search(rf"^- AutoAttack \({name}\): .*, {name}\.$", text, flags=re.MULTILINE)


def twice_evaluated(root: Path, method: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """A run under PGD, once with about 70 % and once, under the other facts, with about 20 %."""
    spec = Spec(method=method, attacks={"pgd": 0.7}, eval_facts=old)
    again = replace(spec, eval_facts=new)
    folder = write_run(root, spec)
    write_evaluation(folder, again, "last", "pgd", draw(again, "pgd", 0.2, "last"), "")


def test_of_several_revisions_of_an_attack_the_newest_is_shown(tmp_path: Path) -> None:
    """Whatever the order of the folders, which is that of hashes: one is new here, and the other there."""
    twice_evaluated(tmp_path, "pgd_at", {"revision": 9}, {"revision": 10})
    twice_evaluated(tmp_path, "trades", {"revision": 9}, {"revision": 10})
    twice_evaluated(tmp_path, "ham", {"revision": 10}, {"revision": 9})
    write_run(tmp_path, Spec(method="mart", attacks={"pgd": 0.7}, eval_facts={"revision": 10}))
    (table,) = build_tables(tmp_path)
    clean, pgd = table.columns
    assert pgd.revision == 10
    high = {row.name: row.cells[pgd].mean("average") > 0.5 for row in table.rows}
    assert high == {"pgd_at": False, "trades": False, "ham": True, "mart": True}
    note = "- Evaluated under several revisions of an attack, of which the newest is shown: "
    note += "PGD, revision 10 instead of 9, for pgd_at (last), "
    assert f"{note}trades (last), ham (last)." in render(tmp_path)
    assert f"{note}trades (last), ham (last)." in by_class(tmp_path)
    assert f"{note}trades (last), ham (last)." in gains(tmp_path, "pgd_at")
    assert f"{note}ham (last)." in compare(tmp_path, "pgd_at", "ham")
    assert "several revisions" not in render(tmp_path, methods=["mart"])


def test_an_older_revision_stays_where_the_newest_does_not_stand_for_it(tmp_path: Path) -> None:
    twice_evaluated(tmp_path, "pgd_at", {"revision": 2}, {"revision": 3})
    write_run(tmp_path, Spec(method="trades", attacks={"pgd": 0.6}, eval_facts={"revision": 2}))
    (table,) = build_tables(tmp_path)
    shown = {row.name: sorted(column.revision for column in row.cells if column.attack == "pgd") for row in table.rows}
    assert shown == {"pgd_at": [2, 3], "trades": [2]}
    assert "PGD (revision 2)" in compare(tmp_path, "pgd_at", "trades")
    write_run(tmp_path, Spec(method="pgd_at", seed=1, attacks={"pgd": 0.6}, eval_facts={"revision": 2}))
    (table,) = build_tables(tmp_path, methods=["pgd_at"])
    seeds = {column.revision: cell.seeds for column, cell in table.rows[0].cells.items() if column.attack == "pgd"}
    assert seeds == {2: (0, 1), 3: (0,)}


def test_a_source_that_was_not_stored_is_the_one_that_others_state(tmp_path: Path) -> None:
    new = {"revision": 1, "source": "ab" * 32}
    write_run(tmp_path, Spec(seed=0, attacks={"pgd": 0.7}, eval_facts={"revision": 1}))
    write_run(tmp_path, Spec(seed=1, attacks={"pgd": 0.7}, eval_facts=new, facts={"model_source": "cd" * 32}))
    (table,) = build_tables(tmp_path)
    (row,) = table.rows
    assert row.seeds == (0, 1) and [c.source for c in row.cells if c.attack == "pgd"] == [new["source"]]
    other = {**new, "source": "ef" * 32}
    write_run(tmp_path, Spec(seed=2, attacks={"pgd": 0.7}, eval_facts=other, facts={"model_source": "01" * 32}))
    (table,) = build_tables(tmp_path)
    assert len({column.source for row in table.rows for column in row.cells if column.attack == "pgd"}) == 3
    assert sorted(re.findall(r"model_source=([a-z0-9 ]+)", " ".join(row.name for row in table.rows))) == [
        "01010101", "cdcdcdcd", "not stated",
    ]  # fmt: skip


def test_of_several_files_of_one_plug_in_none_is_the_newest(tmp_path: Path) -> None:
    twice_evaluated(tmp_path, "pgd_at", {"revision": 1, "source": "aa" * 32}, {"revision": 1, "source": "bb" * 32})
    (table,) = build_tables(tmp_path)
    high = {column.source[:2]: cell.mean("average") > 0.5 for column, cell in table.rows[0].cells.items()}
    assert high == {"": True, "aa": True, "bb": False}


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
