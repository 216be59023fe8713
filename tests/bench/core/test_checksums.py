"""Checksums: whoever reads a stored file that was changed, swapped or removed refuses it in a sentence, exit code 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.core import checksums, files
from bench.report import load_results
from tests.helpers.jobs import bench, output_of, tiny, train_all

RUN = [
    "run", "--epochs", "2", "--train-limit", "100", "--batch-size", "60", "--limit", "30", "--select", "best",
    "--workers", "1", "--quiet",
]  # fmt: skip
PGD_AT = ["--methods", "pgd_at", "--attacks", "fgsm,pgd"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a run with two evaluations of two checkpoints each, and a distilled run with its teacher."""
    out = tmp_path_factory.mktemp("made") / "results"
    output_of(*RUN, *PGD_AT, "--seeds", "0,1", "--out", out)
    output_of(*RUN, "--methods", "ard", "--attacks", "fgsm", "--out", out)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "results"))


def run_of(out: Path, method: str = "pgd_at", seed: int = 0) -> Path:
    found = [file.parent for file in sorted(out.glob(f"digits/*/{method}/*/run.json"))]
    return next(folder for folder in found if files.read_json(folder / "run.json")["seed"] == seed)


def evaluation(out: Path, seed: int = 0, attack: str = "pgd", checkpoint: str = "last") -> Path:
    found = [(file.parent, json.loads(file.read_text())) for file in run_of(out, seed=seed).glob("eval/*/eval.json")]
    return next(f for f, facts in found if (facts["attack"], facts["checkpoint"]) == (attack, checkpoint))


def flip(file: Path, place: float = 0.9) -> None:
    """Change one bit."""
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 1
    file.write_bytes(bytes(data))


def edit(file: Path, **facts: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}, indent=1) + "\n")


def swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def refusal(*arguments: str | Path) -> str:
    """What a command says that ends with exit code 1 and no traceback."""
    result = bench(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), (result.output, result.exception)
    assert result.stderr.splitlines()[-1].startswith("bench: ")
    return result.output


MUTATIONS: dict[str, tuple[Callable[[Path], object], str, tuple[str, ...]]] = {
    "last weights": (lambda out: flip(run_of(out) / "last.safetensors"), "last.safetensors: expected", ("merge",)),
    "best weights": (lambda out: flip(run_of(out) / "best.safetensors"), "best.safetensors: expected", ("merge",)),
    "weights of another run": (
        lambda out: swap(run_of(out) / "last.safetensors", run_of(out, seed=1) / "last.safetensors"),
        "last.safetensors: expected", ("merge",),
    ),
    "weights removed": (lambda out: (run_of(out) / "best.safetensors").unlink(), "best.safetensors: missing", ()),
    "history": (lambda out: flip(run_of(out) / "history.jsonl"), "history.jsonl: expected", ("merge",)),
    "history removed": (lambda out: (run_of(out) / "history.jsonl").unlink(), "history.jsonl: missing", ("merge",)),
    "state": (lambda out: flip(run_of(out) / "state.pt"), "state.pt: expected", ("merge",)),
    "outcomes": (
        lambda out: flip(evaluation(out) / "outcomes.parquet", 0.2), "outcomes.parquet: expected", ("report", "merge"),
    ),
    "outcomes of another run": (
        lambda out: swap(*(evaluation(out, seed) / "outcomes.parquet" for seed in (0, 1))),
        "outcomes.parquet: expected", ("report", "merge"),
    ),
    "outcomes removed": (
        lambda out: (evaluation(out) / "outcomes.parquet").unlink(), "outcomes.parquet: missing", ("report", "merge"),
    ),
    "eval.json, mark": (
        lambda out: edit(evaluation(out) / "eval.json", sanity=None), "eval.json: expected",
        ("report", "merge", "status"),
    ),
    "eval.json, byte": (
        lambda out: flip(evaluation(out) / "eval.json"), "eval.json: expected", ("report", "merge", "status")
    ),
    "eval.json removed": (
        lambda out: (evaluation(out) / "eval.json").unlink(), "eval.json", ("report", "merge", "status"),
    ),
    "run.json removed": (lambda out: (run_of(out) / "run.json").unlink(), "run.json", ("report", "merge", "status")),
    "run.json, label": (
        lambda out: edit(run_of(out) / "run.json", label="ours"), "run.json: expected", ("report", "merge", "status"),
    ),
    "run.json of another run": (
        lambda out: swap(run_of(out) / "run.json", run_of(out, seed=1) / "run.json"), "run.json: expected",
        ("report", "merge", "status"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_file_is_named_by_whoever_reads_it(out: Path, name: str) -> None:
    spoil, message, readers = MUTATIONS[name]
    spoil(out)
    for command in ("verify", *readers):
        more = ["--out", out.parent / "merged", "--quiet"] if command == "merge" else []
        assert message in refusal(command, out, *more), command


def test_untouched_results_pass_every_reader(out: Path) -> None:
    text = output_of("verify", out)
    assert text == "every file is sound, and every figure follows from its outcomes\n"
    output_of("report", out)
    output_of("status", out)
    output_of("merge", out, "--out", out.parent / "merged", "--quiet")
    assert output_of("verify", out.parent / "merged") == text


def test_every_bit_of_the_outcomes_counts(out: Path) -> None:
    file = evaluation(out) / "outcomes.parquet"
    data = file.read_bytes()
    for place in range(0, len(data), len(data) // 40):
        file.write_bytes(data)
        flip(file, place / len(data))
        with pytest.raises(Exception, match=r"outcomes\.parquet: expected the SHA-256"):
            load_results(out)


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_an_evaluation_of_changed_weights_is_refused(out: Path, checkpoint: str) -> None:
    flip(run_of(out) / f"{checkpoint}.safetensors")
    text = refusal(*RUN, "--methods", "pgd_at", "--attacks", "cw", "--out", out)
    assert f"failed: cw on pgd_at seed 0, {checkpoint}" in text
    assert f"{checkpoint}.safetensors: expected the SHA-256" in text and "run again" in text


def test_a_warm_start_from_changed_weights_is_refused(out: Path) -> None:
    flip(run_of(out) / "last.safetensors")
    text = refusal(*RUN, "--methods", "frl", "--attacks", "fgsm", "--out", out)
    assert "failed: train frl seed 0" in text and "last.safetensors: expected the SHA-256" in text


def test_a_changed_teacher_is_refused(out: Path) -> None:
    shutil.rmtree(run_of(out, "ard"))
    flip(run_of(out, "trades") / "last.safetensors")
    text = refusal(*RUN, "--methods", "ard", "--attacks", "fgsm", "--out", out)
    assert "failed: train ard seed 0" in text and "last.safetensors: expected the SHA-256" in text


def test_a_changed_state_is_not_resumed_from(tmp_path: Path) -> None:
    plans = [tiny("pgd_at", seeds=(seed,)) for seed in (0, 1)]
    for plan in plans:
        train_all(plan, tmp_path)
    one, other = (tmp_path / plan.train[0].folder for plan in plans)
    intact = (one / "state.pt").read_bytes()
    for place in (0.3, 0.5, 0.6, 0.7):
        flip(one / "state.pt", place)
        with pytest.raises(Exception, match=r"state\.pt: .*delete the folder and run again"):
            train_all(plans[0], tmp_path)
        (one / "state.pt").write_bytes(intact)
    shutil.copy(other / "state.pt", one / "state.pt")
    with pytest.raises(Exception, match=f"expected the state of run {one.name}, got that of {other.name}; delete it"):
        train_all(plans[0], tmp_path)


def test_block_results_belong_to_their_block_and_their_evaluation(tmp_path: Path) -> None:
    file, other = tmp_path / "aa" / "partial" / "pgd-0.json", tmp_path / "aa" / "partial" / "pgd-1.json"
    elsewhere = tmp_path / "bb" / "partial" / "pgd-0.json"
    content = {"prediction": [1, 2], "passes": {"forward": 2, "input_grad": 2}}
    for path in (file, other, elsewhere):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, checksums.sealed(path, content))
        assert checksums.read_sealed(path) == content
    for theirs in (other, elsewhere):
        shutil.copy(theirs, file)
        with pytest.raises(Exception, match=r"pgd-0\.json: expected the SHA-256 .* delete it to attack that block"):
            checksums.read_sealed(file)
    files.write_json(file, checksums.sealed(file, content) | {"prediction": [2, 2]})
    with pytest.raises(Exception, match=r"pgd-0\.json: expected the SHA-256"):
        checksums.read_sealed(file)


ADDED = ("files", "key_fields")


def unstamp(out: Path) -> None:
    """Results as they were before there were checksums."""
    for done in out.rglob("done"):
        (record,) = [done.parent / name for name in files.RECORDS if (done.parent / name).is_file()]
        files.write_json(record, {name: v for name, v in files.read_json(record).items() if name not in ADDED})
        done.write_text("")


def test_older_results_are_read_and_counted_and_can_be_stamped(out: Path) -> None:
    table = output_of("report", out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    unstamp(out)
    assert output_of("report", out) == table
    text = output_of("verify", out)
    assert "not checked, since they are older than checksums: 4 best.safetensors, 12 eval.json" in text
    output_of("verify", out, "--stamp")
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert "not checked" not in output_of("verify", out)


def test_older_records_without_needed_entries_are_named(out: Path) -> None:
    unstamp(out)
    eval_json = evaluation(out, attack="pgd") / "eval.json"
    edit(eval_json, sanity=files.read_json(eval_json)["sanity"] | {"mark": "rEliable"})
    assert f"{eval_json}: expected marks of sanity checks" in refusal("report", out)
    eval_json.write_text("{}")
    assert f"{eval_json}: expected the entries attack, checkpoint, eps, n" in refusal("status", out)
    (run_of(out) / "run.json").write_text("{}")
    assert "run.json: expected the entries dataset, model" in refusal("status", out)
    assert "run.json: expected the entries role" in refusal("merge", out, "--out", out, "--quiet")


def test_nothing_unsound_is_stamped(out: Path) -> None:
    unstamp(out)
    (run_of(out) / "history.jsonl").write_text("{}\n")
    refusal("verify", out, "--stamp")
    assert not [file for file in out.rglob("done") if file.read_text()]
