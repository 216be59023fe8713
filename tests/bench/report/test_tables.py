"""Tables of a results tree: the data frame, ranking, notes, and the text of each reporter."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import metrics
from bench.errors import BenchError, UsageError
from bench.report import REPORTERS, by_class, load_results, render
from bench.report.formats.latex import escape as latex_escape
from bench.report.tables.build import build_tables
from bench.report.tables.ranking import rank_table
from bench.results.outcomes import Outcomes
from tests.helpers.printed import latex_tables, markdown_tables
from tests.helpers.trees import Spec, demo, write_run


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed of every method, and a teacher."""
    return demo(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, best and last, AutoAttack on a part."""
    folder = tmp_path_factory.mktemp("seeds")
    return demo(folder, seeds=(0, 1), checkpoints=("best", "last"), subset={"autoattack": 10})


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
    found = rank_table(table)
    shown = {row.name: found[i, pgd, "average"] for i, row in enumerate(table.rows)}
    assert shown["trades"].best and not shown["trades"].second
    assert shown["absld"].second and not shown["absld"].tied
    assert not (shown["ham"].tied or shown["natural"].tied)
    assert not (shown["trades (teacher, wide)"].best or shown["trades (teacher, wide)"].tied)


def test_what_the_samples_cannot_tell_from_the_best_is_bold(tmp_path: Path) -> None:
    for method, level in {"absld": 0.62, "ham": 0.6, "frl": 0.2}.items():
        write_run(tmp_path, Spec(method=method, attacks={"pgd": level}))
    (table,) = build_tables(tmp_path)
    found = rank_table(table)
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


def test_teachers_stay_with_their_students(plan: Path) -> None:
    rows = markdown_tables(render(plan, methods=["rslad", "absld"]))[0][1:]
    assert [row[0] for row in rows] == ["rslad", "absld", "trades (teacher, small_cnn_wide)"]
    assert [row[0] for row in markdown_tables(render(plan, methods=["ham"]))[0][1:]] == ["ham"]


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


def test_a_reporter_of_ones_own(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REPORTERS, "_objects", dict(REPORTERS._objects))
    monkeypatch.setattr(REPORTERS, "_facts", dict(REPORTERS._facts))
    REPORTERS.register("titles-only")(lambda sheets: "; ".join(sheet.title for sheet in sheets))
    assert render(plan, format="Titles_Only") == "digits, small_cnn, Linf, eps 0.15"


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Spec())
    (folder / "run.json").write_text("{")
    with pytest.raises(BenchError, match=r"run\.json: expected JSON"):
        render(tmp_path)


def test_a_class_without_samples_is_named(tmp_path: Path) -> None:
    more = {"classes": 4, "class_names": ["ant", "bee", "cat", "dog"]}
    write_run(tmp_path, Spec(classes=3, attacks={"pgd": 0.5}, eval_facts=more))
    for read in (render, load_results, by_class):
        with pytest.raises(BenchError, match=r"eval.*: class 3 \(dog\) has no sample in 120; use a stratified part"):
            read(tmp_path)


def test_importing_the_report_is_light() -> None:
    code = (
        "import sys, bench.report.views.reports, bench.report.plots.figures;"
        "import bench.report.integrity;"
        "print([name for name in ('torch', 'pandas', 'pyarrow', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
