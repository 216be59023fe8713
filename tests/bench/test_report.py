"""From a results tree to tables: the tidy frame, grouping, marks, notes, and what each reporter prints."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import metrics
from bench.errors import BenchError, UsageError
from bench.outcomes import Outcomes
from bench.report import REPORTERS, by_class, load_results, render
from bench.report.latex import escape as latex_escape
from bench.report.marks import marks
from bench.report.table import build_tables
from tests.bench.trees import Spec, demo, write_run


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed of every method, and a teacher."""
    return demo(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, best and last, AutoAttack on a part."""
    folder = tmp_path_factory.mktemp("seeds")
    return demo(folder, seeds=(0, 1), checkpoints=("best", "last"), subset={"autoattack": 10})


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Every table of a Markdown text: rows of cells, the heading first; markup taken off."""
    tables: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        rows = [[re.sub(r"\*\*|</?ins>", "", cell).replace("\\", "").strip() for cell in line] for line in lines]
        tables.append([rows[0], *rows[2:]])
    return tables


def latex_tables(text: str) -> list[list[list[str]]]:
    """Every table of a LaTeX text: rows of cells, the head of columns first; markup taken off."""
    tables = []
    for body in re.findall(r"\\toprule(.*?)\\bottomrule", text, flags=re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        cells = [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines]
        tables.append([[latex_plain(cell) for cell in row] for row in cells])
    return tables


def latex_plain(cell: str) -> str:
    cell = re.sub(r"\\begin\{tabular\}\[c\]\{@\{\}r@\{\}\}|\\end\{tabular\}", "", cell)
    cell = re.sub(r"\\(textbf|underline|tiny)\b", "", cell).replace(r"\\", " ")
    for sign, printed in (("{[}", "["), ("{]}", "]"), (r"$\pm$", "±"), ("--", "–"), (r"\%", "%"), (r"\_", "_")):
        cell = cell.replace(sign, printed)
    return " ".join(cell.replace("{", "").replace("}", "").split())


def test_frame_holds_what_the_outcomes_say(plan: Path) -> None:
    frame = load_results(plan)
    assert len(frame) == 9 * 5
    assert not frame.duplicated(["key", "checkpoint", "attack"]).any()
    for row in frame[frame.label.isin(["absld", "ham"])].itertuples():
        outcomes = Outcomes.read(row.path)
        correct = (outcomes.clean == outcomes.label) & (outcomes.verdict(row.attack).prediction == outcomes.label)
        shares = [correct[outcomes.label == k].mean() for k in range(10)]
        assert (row.average, row.worst) == (correct.mean(), min(shares))
        assert row.nsd == pytest.approx(np.std(shares) / np.mean(shares))
        assert row.gap == pytest.approx(max(shares) - min(shares))
        assert (row.n, row.train_size, row.recipe) == (400, 1197, "digits")
    clean = frame[frame.attack == "clean"]
    assert clean.eps.isna().all() and clean.implementation.isna().all()
    assert set(frame[frame.attack == "autoattack"].implementation) == {"pyautoattack 0.2.0"}


def test_frame_has_stages_on_request(plan: Path) -> None:
    staged = load_results(plan, stages=True)
    assert len(staged) == 9 * (5 + 4)
    assert "autoattack/fab-t" in set(staged.attack)


def test_frame_counts_only_what_is_done(tmp_path: Path) -> None:
    whole, half = write_run(tmp_path, Spec()), write_run(tmp_path, Spec(method="absld"))
    (half / "done").unlink()
    next(whole.glob("eval/*/done")).unlink()
    frame = load_results(tmp_path)
    assert set(frame.method) == {"pgd_at"}
    assert len(frame) == 4


def test_clean_comes_from_the_largest_evaluation(tmp_path: Path) -> None:
    write_run(tmp_path, Spec(subset={"autoattack": 10, "fgsm": 20}))
    frame = load_results(tmp_path).set_index("attack")
    assert frame.n.to_dict() == {"clean": 400, "fgsm": 200, "pgd": 400, "cw": 400, "autoattack": 100}


def test_no_folder_and_no_result_say_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder .*nowhere; run `bench run` first"):
        render(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no finished evaluation in"):
        render(tmp_path)
    assert load_results(tmp_path).empty


def test_unknown_names_are_listed(plan: Path) -> None:
    with pytest.raises(UsageError, match="unknown reporter 'latx'; did you mean 'latex'"):
        render(plan, format="latx")
    with pytest.raises(UsageError, match="no results for the method 'fgsm'; there are: absld, ard"):
        render(plan, methods=["fgsm"])
    with pytest.raises(UsageError, match="no results for the data set 'svhn'; there are: digits"):
        render(plan, dataset="svhn")
    with pytest.raises(UsageError, match="no evaluation of the checkpoint 'best'"):
        render(plan, checkpoint="best")


def test_markdown_prints_the_frame(plan: Path) -> None:
    (table,) = markdown_tables(render(plan))
    heads = table[0]
    assert {len(row) for row in table} == {2 + 5 * 3}
    frame = load_results(plan).set_index(["label", "model", "attack"])
    titles = {"clean": "Clean", "fgsm": "FGSM", "pgd": "PGD", "cw": "CW", "autoattack": "AutoAttack"}
    assert heads[:5] == ["Method", "Checkpoint", "Clean Average", "Clean Worst", "Clean NSD"]
    assert [row[0] for row in table[1:3]] == ["natural", "pgd_at"]
    assert table[-1][0] == "trades (teacher, small_cnn_wide)"
    for row in table[1:]:
        model = "small_cnn_wide" if "teacher" in row[0] else "small_cnn"
        for attack, title in titles.items():
            figures = frame.loc[(row[0].split(" ")[0], model, attack)]
            assert row[heads.index(f"{title} Average")] == f"{100 * figures.average:.2f}"
            assert row[heads.index(f"{title} Worst")] == f"{100 * figures.worst:.2f}"
            assert row[heads.index(f"{title} NSD")] == f"{figures.nsd:.3f}"


@pytest.mark.parametrize("intervals", [False, True])
def test_latex_prints_what_markdown_prints(seeds: Path, intervals: bool) -> None:
    text = render(seeds, format="latex", intervals=intervals)
    plain = re.sub(r"\\[\\{}]", "", text)
    plain = re.sub(r"%.*$", "", plain.replace(r"\%", ""), flags=re.MULTILINE)
    assert plain.count("{") == plain.count("}")
    assert all(text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") for name in ("tabular", "table"))
    assert text.startswith(r"\documentclass") and text.endswith("\\end{document}\n")
    (printed,) = latex_tables(text)
    (expected,) = markdown_tables(render(seeds, intervals=intervals))
    assert printed[1:] == expected[1:]
    assert {len(row) for row in printed} == {len(expected[0])}
    alignment = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert alignment and len(alignment[1]) == len(expected[0])


def test_marks_agree_in_markdown_and_latex(plan: Path) -> None:
    text, tex = render(plan), render(plan, format="latex")
    assert text.count("**") // 2 == tex.count(r"\textbf{") > 15
    assert text.count("<ins>") == tex.count(r"\underline{") >= 15


@pytest.mark.parametrize("text", ["a_b & 50 % of $x^2$ {#1} \\ ~ <1> |", "é ü ß", "中文", "[0.1, 0.2]", 'say "x"'])
def test_latex_escapes_everything(text: str) -> None:
    printed = latex_escape(text)
    rest = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]|\{\[\}|\{\]\}", "", printed)
    assert not re.search(r"[&%$#_{}\\~^<>|\[\]\"]", rest)
    assert all(ord(character) < 256 for character in printed)


def test_csv_and_json_hold_fractions_in_full(seeds: Path) -> None:
    records = list(csv.DictReader(io.StringIO(render(seeds, format="csv"))))
    (table,) = json.loads(render(seeds, format="json"))
    assert len(records) == len(table["records"]) == 9 * 2 * 5 * 3
    frame = load_results(seeds)
    for record, other in zip(records, table["records"], strict=True):
        assert float(record["mean"]) == other["mean"]
    one = next(r for r in table["records"] if (r["row"], r["checkpoint"], r["attack"]) == ("absld", "best", "pgd"))
    chosen = frame[(frame.label == "absld") & (frame.checkpoint == "best") & (frame.attack == "pgd")]
    assert one["statistic"] == "average"
    assert one["mean"] == pytest.approx(chosen.average.mean(), rel=1e-15)
    assert one["sd"] == pytest.approx(chosen.average.std(ddof=1), rel=1e-12)
    teacher = next(r for r in table["records"] if r["teacher"])
    assert teacher["sd"] is None and teacher["model"] == "small_cnn_wide"


def test_spread_over_seeds_and_none_for_one(seeds: Path, plan: Path) -> None:
    (table,) = markdown_tables(render(seeds))
    students = [row for row in table[1:] if "teacher" not in row[0]]
    assert all("±" in cell for row in students for cell in row[2:])
    assert not any("±" in cell for row in table[1:] if "teacher" in row[0] for cell in row)
    assert "±" not in "".join(cell for row in markdown_tables(render(plan))[0] for cell in row)


def test_best_is_bold_second_underlined_teachers_aside(tmp_path: Path) -> None:
    levels = {"natural": 0.3, "trades": 0.9, "absld": 0.6, "ham": 0.59}
    for method, level in levels.items():
        write_run(tmp_path, Spec(method=method, attacks={"pgd": level}, per_class=200))
    write_run(tmp_path, Spec(method="trades", role="teacher", model="wide", attacks={"pgd": 0.95}, per_class=200))
    (table,) = build_tables(tmp_path)
    pgd = table.columns[1]
    found = marks(table)
    shown = {row.name: found[i, pgd, "average"] for i, row in enumerate(table.rows)}
    assert shown["trades"].best and not shown["trades"].second
    assert shown["absld"].second and not shown["absld"].tied
    assert not (shown["ham"].tied or shown["natural"].tied)
    assert not (shown["trades (teacher, wide)"].best or shown["trades (teacher, wide)"].tied)


def test_what_the_samples_cannot_tell_from_the_best_is_bold(tmp_path: Path) -> None:
    for method, level in {"absld": 0.62, "ham": 0.6, "frl": 0.2}.items():
        write_run(tmp_path, Spec(method=method, attacks={"pgd": level}))
    (table,) = build_tables(tmp_path)
    found = marks(table)
    tied = {row.name: found[i, table.columns[1], "average"].tied for i, row in enumerate(table.rows)}
    assert tied == {"absld": True, "ham": True, "frl": False}


def test_equal_figures_are_not_marked(tmp_path: Path) -> None:
    for method in ("absld", "ham"):
        write_run(tmp_path, Spec(method=method, clean=1.0, attacks={"pgd": 0.0}))
    text = render(tmp_path)
    assert "**" not in text and "<ins>" not in text
    (table,) = markdown_tables(text)
    assert table[1][-3:] == ["0.00", "0.00", "–"]


def test_the_order_of_files_does_not_matter(tmp_path: Path, seeds: Path) -> None:
    copy = tmp_path / "copy"
    for run in sorted(seeds.glob("*/*/*/*"), reverse=True):
        shutil.copytree(run, copy / run.relative_to(seeds))
    assert render(copy) == render(seeds)
    parts = [*sorted(copy.glob("*/*/*"), reverse=True), copy]
    assert render(parts, intervals=True) == render(seeds, intervals=True)


def test_a_missing_cell_is_a_dash(tmp_path: Path) -> None:
    write_run(tmp_path, Spec(method="absld"))
    write_run(tmp_path, Spec(method="ham", attacks={"pgd": 0.6}))
    (table,) = markdown_tables(render(tmp_path, intervals=True))
    ham = dict(zip(table[0], table[-1], strict=True))
    assert ham["AutoAttack NSD"] == ham["FGSM Average"] == "–"
    assert ham["PGD Average"] != "–"


def test_intervals_hold_the_average(plan: Path) -> None:
    (table,) = json.loads(render(plan, format="json", intervals=True))
    for record in table["records"]:
        if record["statistic"] == "average":
            assert record["low"] < record["mean"] < record["high"]
    assert "from a bootstrap of the test samples within classes" in " ".join(table["notes"])
    assert all(record["low"] is None for record in json.loads(render(plan, format="json"))[0]["records"])


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


def test_teachers_stay_with_their_students(plan: Path) -> None:
    rows = markdown_tables(render(plan, methods=["rslad", "absld"]))[0][1:]
    assert [row[0] for row in rows] == ["rslad", "absld", "trades (teacher, small_cnn_wide)"]
    assert [row[0] for row in markdown_tables(render(plan, methods=["ham"]))[0][1:]] == ["ham"]


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


def test_notes_say_how_the_figures_came_about(seeds: Path) -> None:
    notes = render(seeds)
    for said in (
        "ddof 0, lower is fairer",
        "n = 400, 10 classes; AutoAttack on a stratified part, n = 100; attacked in blocks of 100",
        "PGD: native, restarts 1, step_size 0.0375, steps 20",
        "AutoAttack: pyautoattack 0.2.0, version standard, stages apgd-ce, apgd-t, fab-t, square",
        "Training: 1,197 samples, recipe digits, 30 epochs",
        "Seeds: 0, 1; 0 for trades (teacher, small_cnn_wide); mean ± standard deviation over seeds (ddof 1)",
        "best: the epoch with the highest average plus worst class on held-out training samples; last: the weights",
        "Noise floor, the NSD from sampling alone",
        "paired bootstrap of 2,000 draws over the same test samples within classes and over seeds",
        "Teachers take no part in this",
    ):
        assert said in notes


def test_the_noise_floor_is_that_of_the_column(tmp_path: Path) -> None:
    write_run(tmp_path, Spec(attacks={"pgd": 0.6}))
    average = load_results(tmp_path).set_index("attack").average["pgd"]
    floor = metrics.noise_floor(average, np.full(10, 40))
    assert f"PGD {floor:.3f}." in render(tmp_path)


def test_stages_left_out_and_parts_of_the_test_set_are_stated(tmp_path: Path) -> None:
    left_out = {"left_out": {"apgd-t": "needs at least 4 classes, the model has 3"}}
    data = {"classes": 3, "train_size": 500, "test_size": 400}
    write_run(tmp_path, Spec(classes=3, attacks={"autoattack": 0.5}, eval_facts=left_out, facts={"data": data}))
    text = render(tmp_path)
    assert "AutoAttack without apgd-t: needs at least 4 classes, the model has 3." in text
    assert "n = 120, a stratified part of 400, 3 classes" in text


def test_many_classes_bring_the_lowest_tenth(tmp_path: Path) -> None:
    write_run(tmp_path, Spec(classes=20, attacks={"pgd": np.linspace(0.1, 0.9, 20).tolist()}))
    text = render(tmp_path)
    heads = markdown_tables(text)[0][0]
    assert heads[2:6] == ["Clean Average", "Clean Worst", "Clean Worst 10 %", "Clean NSD"]
    assert "Worst 10 %: mean of the lowest tenth of the classes." in text


def test_by_class_names_classes_and_matches_the_frame(plan: Path) -> None:
    tables = markdown_tables(by_class(plan, methods=["absld", "ham"]))
    assert len(tables) == 5
    assert tables[0][0] == ["Class", "n", "absld", "ham", "trades (teacher, small_cnn_wide)"]
    assert [row[0] for row in tables[0][1:]] == [*map(str, range(10)), "Average", "Worst", "NSD"]
    path = load_results(plan).query("label == 'absld' and attack == 'pgd'")["path"].item()
    expected = [f"{100 * value:.2f}" for value in Outcomes.read(path).by_class("pgd")]
    assert [row[2] for row in tables[2][1:11]] == expected
    records = list(csv.DictReader(io.StringIO(by_class(plan, methods=["ham"], format="csv"))))
    assert len(records) == 5 * 10
    assert records[0]["class_name"] == "0"


def test_by_class_continues_long_latex_tables(tmp_path: Path) -> None:
    write_run(tmp_path, Spec(classes=100, per_class=5, attacks={"pgd": 0.5}))
    tables = latex_tables(by_class(tmp_path, format="latex"))
    names = [row[0] for table in tables for row in table[1:]]
    assert len(names) == 2 * (100 + 4)
    assert names[99] == "99 class 99"


def test_a_reporter_of_ones_own(plan: Path) -> None:
    REPORTERS.register("titles-only")(lambda sheets: "; ".join(sheet.title for sheet in sheets))
    assert render(plan, format="Titles_Only") == "digits, small_cnn, Linf, eps 0.15"


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Spec())
    (folder / "run.json").write_text("{")
    with pytest.raises(BenchError, match=r"run\.json: expected JSON"):
        render(tmp_path)


def test_foreign_checkpoints_without_seed_or_recipe(tmp_path: Path) -> None:
    facts = {"seed": None, "recipe": None, "epochs": None, "training": None, "settings": None, "data": {"classes": 10}}
    write_run(tmp_path, Spec(method="external", label="theirs.pt", facts=facts))
    write_run(tmp_path, Spec(method="absld"))
    text = render(tmp_path)
    assert [row[0] for row in markdown_tables(text)[0][1:]] == ["absld", "theirs.pt"]
    assert "unknown for theirs.pt" in text


def test_a_class_without_samples_is_named(tmp_path: Path) -> None:
    more = {"classes": 4, "class_names": ["ant", "bee", "cat", "dog"]}
    write_run(tmp_path, Spec(classes=3, attacks={"pgd": 0.5}, eval_facts=more))
    for read in (render, load_results, by_class):
        with pytest.raises(BenchError, match=r"eval.*: class 3 \(dog\) has no sample in 120; use a stratified part"):
            read(tmp_path)


def test_importing_the_report_is_light() -> None:
    code = (
        "import sys, bench.report.main, bench.report.plots, bench.report.checks, bench.report.comparison;"
        "print([name for name in ('torch', 'pandas', 'pyarrow', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
