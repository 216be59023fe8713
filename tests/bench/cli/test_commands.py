"""The command line: what it prints, what it refuses, and with which exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import Result

from bench.plan.jobs import Job
from bench.report import REPORTERS
from methods.registry import METHODS
from tests.helpers.jobs import COMMAND, bench, output_of, tree

QUICK = ("--epochs", "2", "--train-limit", "150", "--limit", "20", "--attacks", "fgsm", "--workers", "1")


def planned_jobs(*arguments: str | Path) -> list[str]:
    """The titles of the trainings and evaluations that a dry run prints."""
    lines = output_of("run", "--dry-run", *arguments).partition("\n\n")[0].splitlines()[1:]
    return [line.split("  ")[0] for line in lines]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A results folder that the command itself has written: one run that went well, one that could not."""
    out = tmp_path_factory.mktemp("results")
    result = bench(
        "run", "--methods", "natural,trades", "--set", "trades.recipe.lr=1e30", *QUICK, "--out", out,
    )  # fmt: skip
    return out, result


# Runs


def test_a_failed_job_is_said_and_the_others_stand_in_the_table(results: tuple[Path, Result]) -> None:
    out, result = results
    assert result.exit_code == 1
    assert "| natural" in result.stdout
    assert "trades" not in result.stdout
    assert re.search(
        r"^failed: train trades \(recipe.lr=1e\+30\) seed 0: trades .*: the loss is not finite in epoch 0, by step 2; ",
        result.stderr,
        re.MULTILINE,
    )
    assert result.stderr.endswith("bench: 1 of the jobs failed; the others are stored, run again to retry\n")
    assert [path.parent.parent.name for path in out.glob("*/*/*/*/failed")] == ["trades"]
    assert [path.parent.parent.name for path in out.glob("*/*/*/*/done")] == ["natural"]


def test_the_same_command_again_repeats_nothing_that_is_done(results: tuple[Path, Result]) -> None:
    out, first = results
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/*/natural/**/*")}
    again = bench("run", "--methods", "natural,trades", "--set", "trades.recipe.lr=1e30", *QUICK, "--out", out)
    assert (again.exit_code, again.stdout) == (1, first.stdout)
    assert "done: " not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/natural/**/*")} == times


def test_nothing_but_the_table_goes_to_the_output(results: tuple[Path, Result]) -> None:
    _, result = results
    assert result.stdout.startswith("### digits, small_cnn, Linf, eps 0.15")
    assert "note: natural: 30 epochs become 2" in result.stderr
    assert "done: train natural seed 0" in result.stderr


def test_ctrl_c_saves_and_exits_with_130_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: tuple[Path, Result]
) -> None:
    from bench.launch import display

    def press(self: display.LineDisplay, job: Job, done: int, total: int, text: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    arguments = ("run", "--methods", "natural", *QUICK, "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(display.LineDisplay, "update", press)
        stopped = bench(*arguments)
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith("bench: saved; run the same command again to go on\n")
    assert stopped.stdout == ""
    assert "done: " not in stopped.stderr, "an interrupted job is not done"
    resumed = bench(*arguments)
    assert resumed.exit_code == 0
    natural = Path("digits", "small_cnn", "natural")
    assert tree(tmp_path / natural) == tree(results[0] / natural)


def test_a_keyboard_interrupt_anywhere_else_is_130_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.plan import planner as plan

    def press(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "make_plan", press)
    result = bench("run", "--dry-run")
    assert (result.exit_code, result.stderr) == (130, "bench: interrupted\n")


# Options


def test_a_dry_run_prints_jobs_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = bench("run", "--dry-run", "--methods", "absld", "--attacks", "pgd")
    assert result.exit_code == 0
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[1:5]] == [
        "train trades (teacher)", "train absld seed 0", "pgd on trades (teacher), last", "pgd on absld seed 0, last",
    ]  # fmt: skip
    assert "2 trainings and 2 evaluations, 0 of them done already." in result.stdout
    assert re.search(r"Missing: about \S+ \w+ of computing .*, \d+\.\d MB of disk", result.stdout)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_knows_what_is_done(results: tuple[Path, Result]) -> None:
    result = bench("run", "--dry-run", "--methods", "natural", *QUICK, "--out", results[0])
    assert "1 trainings and 1 evaluations, 2 of them done already." in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--methods", "natural,ham", "--seeds", "3,5"],
        ["--methods", "natural", "--methods", "ham", "--seeds", "3", "--seeds", "5"],
        ["--method", "Natural, HAM", "--seed", "3,5"],
        ["--methods", "natural,ham,natural", "--seeds", "3,5,3"],
    ],
)
def test_comma_lists_and_repeated_flags_say_the_same(arguments: list[str]) -> None:
    assert planned_jobs(*arguments, "--attacks", "fgsm") == [
        "train natural seed 3", "train natural seed 5", "train ham seed 3", "train ham seed 5",
        "fgsm on natural seed 3, last", "fgsm on natural seed 5, last",
        "fgsm on ham seed 3, last", "fgsm on ham seed 5, last",
    ]  # fmt: skip


def test_names_and_flags_in_any_spelling() -> None:
    expected = planned_jobs("--methods", "pgd_at", "--attacks", "pgd-trades", "--train-limit", "200")
    assert planned_jobs("--methods", "PGD-AT", "--attacks", "PGD_TRADES", "--train_limit", "200") == expected


def test_all_methods_run_where_none_is_named() -> None:
    trained = {line.split()[1] for line in planned_jobs("--attacks", "fgsm") if line.startswith("train ")}
    assert trained == set(METHODS.names())


def test_a_radius_may_be_a_fraction(tmp_path: Path) -> None:
    result = bench("run", "--methods", "natural", *QUICK, "--eps", "8/255", "--out", tmp_path)
    assert "Linf, eps 8/255" in result.stdout or "eps 0.0314" in result.stdout
    (facts,) = (json.loads(path.read_text()) for path in tmp_path.rglob("eval.json"))
    assert facts["eps"] == 8 / 255


def test_flags_outrank_the_file_which_outranks_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'methods = ["natural"]\nattacks = "fgsm"\nepochs = 7\nseeds = [4]\n[natural.recipe]\nlr = 0.5\nbatch_size = 32'
    )
    by_file = planned_jobs("--config", file)
    assert by_file == [
        "train natural (recipe.lr=0.5, recipe.batch_size=32) seed 4",
        "fgsm on natural (recipe.lr=0.5, recipe.batch_size=32) seed 4, last",
    ]
    by_flags = planned_jobs("--config", file, "--seeds", "9", "--set", "natural.recipe.lr=0.25", "--attacks", "pgd")
    assert by_flags == [
        "train natural (recipe.lr=0.25, recipe.batch_size=32) seed 9",
        "pgd on natural (recipe.lr=0.25, recipe.batch_size=32) seed 9, last",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--methods", "absdl"], "bench: unknown method 'absdl'; did you mean 'absld'? available: natural, "),
        (["run", "--attacks", "pdg"], "bench: unknown attack 'pdg'; did you mean 'pgd'? available: fgsm, "),
        (["run", "--dataset", "digit"], "bench: unknown dataset 'digit'; did you mean 'digits'?"),
        (["run", "--set", "absld.rate=1"], "bench: --set absld.rate: absld has no setting 'rate'; it has "),
        (["run", "--set", "absld.steps"], "bench: --set absld.steps: expected NAME.FIELD=VALUE"),
        (["run", "--methods", "trades", "--set", "absld.x=1"], "bench: --set absld.x: absld has no setting 'x'"),
        (["run", "--methods", "trades", "--set", "absld.steps=5"], "bench: --set absld.steps: absld is not among the"),
        (["run", "--attacks", "fgsm", "--set", "pgd.steps=5"], "bench: --set pgd.steps: pgd is not among the methods"),
        (
            ["run", "--set", "natural_teacher.lr=5"],
            "bench: --set natural_teacher.lr: natural_teacher has no setting 'lr'",
        ),
        (["run", "--set", "absld.steps=x"], "bench: --set absld.steps: expected a whole number of at least 1, got 'x'"),
        (["run", "--epochs", "0"], "bench: --epochs: expected a whole number from 1 to 100000, got 0"),
        (["run", "--eps", "eight"], "expected a number or a fraction such as 8/255, got 'eight'"),
        (["run", "--eps", "8/0"], "expected a number or a fraction such as 8/255, got '8/0'"),
        (["run", "--seeds", "one"], "invalid literal for int()"),
        (["run", "--select", "first"], "'first' is not one of 'last', 'best', 'test'"),
        (["run", "--device", "abacus"], "bench: --device abacus: not available here ("),
        (["run", "--recipe", "no"], "bench: --recipe no: natural has the recipes "),
        (["run", "--config", "no.toml"], "bench: --config no.toml: cannot be read: "),
        (["run", "--teacher", "no.pt", "--methods", "absld"], "bench: --teacher no.pt: expected a checkpoint file or "),
        (["run", "--colour", "red"], "No such option"),
        (["paint"], "No such command"),
        (["list", "colours"], "'colours' is not one of"),
        (["show", "absdl"], "bench: unknown name 'absdl'; did you mean 'absld'? available: natural, "),
        (["report", "no such folder"], "bench: no folder no such folder; run `bench run` first, "),
        (["verify", "no such folder"], "no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_a_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = bench(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_itself_exits_as_it_says(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "run", "--methods", "absdl"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bench: unknown method 'absdl'; did you mean 'absld'?")


# What was stored


def test_status_says_what_is_there_what_is_missing_and_what_failed(results: tuple[Path, Result]) -> None:
    lines = bench("status", results[0]).stdout.splitlines()
    assert lines[0] == f"{results[0]}: 2 runs, 1 failed, 1 planned jobs not begun"
    assert re.fullmatch(r"digits small_cnn natural seed 0 \([0-9a-f]{16}\): done", lines[1])
    assert lines[2] == "  fgsm on last, eps 0.15, n 20: done"
    assert re.fullmatch(
        r"digits small_cnn trades \(recipe\.lr=1e\+30\) seed 0 \([0-9a-f]{16}\): failed: .* loss is not finite .*",
        lines[3],
    )
    assert lines[4:] == ["missing: fgsm on trades (recipe.lr=1e+30) seed 0, last"]


def test_status_of_an_unfinished_run_counts_its_epochs(results: tuple[Path, Result], tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(results[0], tmp_path / "copy")
    (natural,) = copy.glob("*/*/natural/*")
    (natural / "done").unlink()
    (evaluation,) = natural.glob("eval/*")
    (evaluation / "done").unlink()
    (evaluation / "partial").mkdir()
    (evaluation / "partial" / "fgsm-0.json").write_text("{}")
    text = bench("status", copy).stdout
    assert re.search(r"natural seed 0 \(\w+\): 2 of 2 epochs", text)
    assert re.search(r"\w{16}: unfinished, 1 stage blocks stored", text)


def test_verify_is_content_with_sound_files_and_names_what_is_not(results: tuple[Path, Result], tmp_path: Path) -> None:
    import shutil

    (natural,) = results[0].glob("*/*/natural/*")
    copy = shutil.copytree(natural, tmp_path / "digits" / "small_cnn" / "natural" / natural.name)
    result = bench("verify", tmp_path)
    assert (result.exit_code, result.stdout) == (0, "every file is sound, and every figure follows from its outcomes\n")
    with open(copy / "last.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    result = bench("verify", tmp_path)
    assert result.exit_code == 1
    assert f"{copy / 'last.safetensors'}: its SHA-256 is not that of the weights in" in result.stdout
    assert f"{copy / 'last.safetensors'}: expected the SHA-256" in result.stdout
    assert result.stderr == "bench: verify: 2 problems found\n"
    assert bench("verify", results[0]).exit_code == 1, "a failed run is a problem"


def test_reports_in_every_format_say_the_same(results: tuple[Path, Result], tmp_path: Path) -> None:
    shown = {form: bench("report", results[0], "--format", form) for form in REPORTERS.names()}
    assert all(result.exit_code == 0 for result in shown.values())
    assert shown["markdown"].stdout.strip() == results[1].stdout.strip()
    assert r"\toprule" in shown["latex"].stdout
    rows = list(csv.DictReader(io.StringIO(shown["csv"].stdout)))
    assert {(row["row"], row["attack"]) for row in rows} == {("natural", "clean"), ("natural", "fgsm")}
    assert "natural" in json.dumps(json.loads(shown["json"].stdout))
    written = bench("report", results[0], "--format", "csv", "--out", tmp_path / "table.csv")
    assert (written.exit_code, written.stdout) == (0, "")
    assert (tmp_path / "table.csv").read_text().strip() == shown["csv"].stdout.strip()
    refused = bench("report", results[0], "--format", "word")
    assert refused.exit_code == 2
    assert "word" in refused.stderr


def test_reports_by_class_and_on_a_selection(results: tuple[Path, Result]) -> None:
    by_class = bench("report", results[0], "--by-class", "--methods", "Natural")
    assert by_class.exit_code == 0
    assert "natural" in by_class.stdout
    assert bench("report", results[0], "--methods", "ham").exit_code == 2
    assert bench("report", results[0], "--dataset", "svhn").exit_code == 2


def test_settings_are_tried_out_before_anything_is_trained(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = bench("run", "--methods", "absld", "--set", "absld.temperature_mode=sum", *QUICK, "--out", out)
    assert result.exit_code == 2
    assert "--set absld.temperature_mode: expected separate or product, got 'sum'" in result.stderr
    assert not out.exists()


def test_status_names_a_failure_that_left_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "small_cnn" / "ham" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "failed").write_text("ham: mining begins too late\n")
    result = bench("status", tmp_path)
    assert "1 failed" in result.stdout
    assert "digits/small_cnn/ham/0123456789abcdef: failed: ham: mining begins too late" in result.stdout


def test_a_missing_folder_is_a_sentence() -> None:
    result = bench("status", "nowhere")
    assert result.exit_code == 2
    assert "no folder nowhere" in result.stderr


def test_a_checkpoint_takes_one_seed(tmp_path: Path) -> None:
    result = bench("evaluate", "--checkpoint", tmp_path / "x.pt", "--model", "small_cnn", "--seeds", "0,1")
    assert result.exit_code == 2
    assert "--seeds: expected one seed for a checkpoint, got 2" in result.stderr
