"""Settings that label a figure follow from its key: whoever changes one of them is found, with the field's name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.core import files
from bench.results.keys import evaluation_fields, evaluation_key, training_fields, training_key
from tests.helpers.jobs import bench, output_of

REFERENCE = Path(__file__).parents[3] / "results" / "reference"
RUN = "digits/small_cnn/trades/{}/"
older = pytest.mark.parametrize("stamped", [True, False], ids=["stamped", "older"])


@pytest.fixture
def out(tmp_path: Path, stamped: bool) -> Path:
    """Two seeds of the reference, as they are or as they were before there were checksums."""
    home = Path("digits", "small_cnn", "trades")
    for folder in sorted((REFERENCE / home).iterdir())[:2]:
        shutil.copytree(folder, tmp_path / home / folder.name)
    for done in tmp_path.rglob("done") if not stamped else ():
        (record,) = [done.parent / name for name in files.RECORDS if (done.parent / name).is_file()]
        facts = files.read_json(record)
        files.write_json(record, {name: v for name, v in facts.items() if name not in ("files", "key_fields")})
        done.write_text("")
    return tmp_path


def run_of(out: Path) -> Path:
    return min(out.glob("digits/small_cnn/trades/*"))


def evaluation(out: Path, attack: str = "pgd") -> Path:
    return next(f.parent for f in run_of(out).glob("eval/*/eval.json") if json.loads(f.read_text())["attack"] == attack)


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts, indent=1) + "\n")


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "eps": ("eval", lambda facts: facts.update(eps=0.031), r"eps 0\.15, of which its key \w+ was made, got 0\.031"),
    "norm": ("eval", lambda facts: facts.update(norm="l2"), "norm 'linf'.*got 'l2'"),
    "block": ("eval", lambda facts: facts.update(block=100), "block 200.*got 100"),
    "n": ("eval", lambda facts: facts.update(n=100), "n 400.*got 100"),
    "all epochs": ("run", lambda facts: facts.update(epochs=99), "epochs 30.*got 99"),
    "subset": ("eval", lambda facts: facts.update(test_subset=100), "test_subset None.*got 100"),
    "seed": ("eval", lambda facts: facts.update(seed=7), "seed .*got 7"),
    "checkpoint": ("eval", lambda facts: facts.update(checkpoint="best"), "checkpoint 'last'.*got 'best'"),
    "attack": ("eval", lambda facts: facts.update(attack="pgd-trades"), "attack 'pgd'.*got 'pgd-trades'"),
    "revision": ("eval", lambda facts: facts.update(revision=2), "revision 3.*got 2"),
    "steps": ("eval", lambda facts: facts["attack_settings"].update(steps=40), r"attack_settings\.steps 20.*got 40"),
    "dataset": ("run", lambda facts: facts.update(dataset="cifar10"), "dataset 'digits'.*got 'cifar10'"),
    "model": ("run", lambda facts: facts.update(model="resnet18"), "model 'small_cnn'.*got 'resnet18'"),
    "method": ("run", lambda facts: facts.update(method="absld"), "method 'trades'.*got 'absld'"),
    "beta": ("run", lambda facts: facts["settings"].update(beta=1.0), r"settings\.beta 6\.0.*got 1\.0"),
    "epochs": ("run", lambda facts: facts["training"].update(epochs=99), r"training\.epochs 30.*got 99"),
    "selection": ("run", lambda facts: facts.update(selection="test"), "selection 'last'.*got 'test'"),
    "key": ("run", lambda facts: facts.update(key="0" * 16), "the name of its folder, got 0"),
}  # fmt: skip


@older
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_named(out: Path, name: str) -> None:
    which, change, message = CHANGES[name]
    file = run_of(out) / "run.json" if which == "run" else evaluation(out) / "eval.json"
    edit(file, change)
    for command in ("report", "verify"):
        result = bench(command, out)
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
        assert re.search(f"{re.escape(str(file))}: expected .*{message}", result.output), result.output


@pytest.mark.parametrize("stamped", [True])
def test_a_change_that_nothing_around_it_tells_is_found_as_well(out: Path, stamped: bool) -> None:
    """Two settings at once, and a file that is sealed again."""
    file = evaluation(out) / "eval.json"
    edit(file, lambda facts: facts.update(eps=0.031, block=7))
    files.mark_done(file.parent)
    result = bench("report", out)
    assert result.exit_code == 1
    assert f"{file}: expected settings of the key {file.parent.name}, got those of" in result.stderr


@older
def test_an_evaluation_of_another_run_is_found(out: Path, stamped: bool) -> None:
    """With the outcomes and `done` that belong to it."""
    one, other = sorted(out.glob("digits/small_cnn/trades/*"))
    theirs = next(path for path in other.glob("eval/*"))
    shutil.copytree(theirs, one / "eval" / theirs.name)
    for command in ("report", "verify"):
        result = bench(command, out)
        assert result.exit_code == 1 and f"expected run_key '{other.name}'" in result.output


@older
def test_what_is_missing_is_named(out: Path, stamped: bool) -> None:
    one, other = sorted(out.glob("digits/small_cnn/trades/*"))
    (one / "run.json").unlink()
    gone = next(other.glob("eval/*"))
    folder = gone.relative_to(out).as_posix()
    jobs = {"jobs": [{"title": "pgd on trades", "folder": folder}]}
    (out / ".plans").mkdir()
    files.write_json(out / ".plans" / f"{files.key_of(jobs)}.json", jobs)
    shutil.rmtree(gone)
    text = bench("verify", out).output
    assert f"{one}: expected a run.json beside weights or evaluations, got none" in text
    assert f"{gone}: missing, although pgd on trades was planned; run the same command again" in text
    files.write_json(out / ".plans" / f"{files.key_of(jobs)}.json", {"jobs": []})
    shutil.rmtree(one)  # which status would name first
    for command in ("verify", "status"):
        result = bench(command, out)
        assert result.exit_code == 1 and ".json: expected the plan of key" in result.output


@pytest.mark.parametrize("stamped", [False])
def test_keys_that_cannot_be_computed_again_are_counted(out: Path, stamped: bool) -> None:
    edit(run_of(out) / "run.json", lambda facts: facts.pop("arithmetic"))
    assert "not computed again, since older files lack settings: 1 keys" in output_of("verify", out)
    output_of("report", out)


def test_every_key_of_the_reference_is_computed_again() -> None:
    runs = sorted(REFERENCE.glob("*/*/*/*/run.json"))
    assert len(runs) == 129
    for file in runs:
        run = files.read_json(file)
        assert [training_key(fields) for fields in training_fields(run)] == [file.parent.name]
        for path in file.parent.glob("eval/*/eval.json"):
            keys = [evaluation_key(fields) for fields in evaluation_fields(run, files.read_json(path))]
            assert keys == [path.parent.name]


def test_new_records_state_every_field_of_their_keys(tmp_path: Path) -> None:
    """With switches that older records leave open: one candidate each, and it gives the key."""
    output_of(
        "run", "--methods", "pgd_at", "--attacks", "fgsm,pgd", "--epochs", "1", "--train-limit", "100",
        "--limit", "9999",
        "--micro-batch", "16", "--train-with", "none", "--prepare", "channels_last", "--stop-when", "worst<90%",
        "--select", "best", "--block", "200", "--workers", "1", "--quiet", "--deterministic", "--out", tmp_path,
    )  # fmt: skip
    (file,) = tmp_path.glob("*/*/*/*/run.json")
    run = files.read_json(file)
    assert [training_key(fields) for fields in training_fields(run)] == [file.parent.name]
    evaluations = list(file.parent.glob("eval/*/eval.json"))
    assert len(evaluations) == 4
    for path in evaluations:
        keys = [evaluation_key(fields) for fields in evaluation_fields(run, files.read_json(path))]
        assert keys == [path.parent.name]
