"""The parity benchmark on a network of its own: units that are stored, options that pair up, tables that add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.data.splits import load
from bench.errors import UsageError
from bench.models.builders import build
from bench.models.checkpoints import save_weights
from benchmarks import parity, subjects, units
from benchmarks.attacked import Effort
from benchmarks.subjects import Rounded, Subject

TOY = ["--samples", "20", "--steps", "2", "--targets", "2", "--queries", "3", "--norms", "10", "--seeds", "0,1"]


def subject(weights: Path, **changes: object) -> Subject:
    facts = {
        "name": "toy", "dataset": "digits", "data_dir": "data", "model": "small_cnn", "weights": str(weights),
        "norm": "linf", "eps": 0.1, "block": 10, **changes,
    }  # fmt: skip
    return Subject(**facts)  # type: ignore[arg-type]


def test_a_whole_page_and_its_cache(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*TOY, "--checkpoint", str(weights), "--model", "small_cnn", "--dataset", "digits", "--masked", "all"]
    command += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path), "--checkpoint-eps", "1/10"]
    parity.main(command)
    page = (tmp_path / "parity.md").read_text()
    assert page.count("## digits, toy.safetensors") == 2
    assert page.count("| after ") == 8
    assert page.count("| apgd-ce |") == 4
    assert page.count("Minimal norms") == 2
    monkeypatch.setattr(units, "measure", lambda unit: pytest.fail("nothing may run twice"))
    parity.main(command)
    assert (tmp_path / "parity.md").read_text() == page


def test_an_interrupted_page_goes_on(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        units.Unit("right", subject(weights), "apgd-ce", "native", seed, 20, Effort(2, 2, 2)) for seed in range(3)
    ]
    measure = units.measure

    def stumble(unit: units.Unit) -> dict[str, object]:
        if unit.seed == 1:
            raise KeyboardInterrupt
        return measure(unit)

    monkeypatch.setattr(units, "measure", stumble)
    with pytest.raises(KeyboardInterrupt):
        units.measured(wanted, jobs=1, cache=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1
    monkeypatch.setattr(units, "measure", measure)
    found = units.measured(wanted, jobs=1, cache=tmp_path)
    assert [len(outcome["stages"]["apgd-ce"]) for outcome in found] == [found[0]["right"]] * 3


def test_a_unit_is_rerun_when_weights_or_its_sides_code_change(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> list[str]:
        chosen = subject(copy)
        return [units.Unit("all", chosen, "square", side, 0, 20, Effort()).key for side in ("native", "reference")]

    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    before = keys()
    assert keys() == before
    monkeypatch.setattr(units, "code", lambda side: f"another {side}" if side == "native" else units_code(side))
    assert [now == then for now, then in zip(keys(), before, strict=True)] == [False, True]
    tensors = build("small_cnn", 10, 1, 8, seed=1).state_dict()
    save_weights(copy, tensors)
    assert keys()[1] != before[1]


units_code = units.code


def test_positions_of_rows_are_those_among_all_samples(weights: Path) -> None:
    chosen = subject(weights)
    right = units.measure(units.Unit("right", chosen, "square", "native", 0, 20, Effort(2, 2, 2)))
    some = units.measure(
        units.Unit("rows", chosen, "square", "native", 0, 20, Effort(2, 2, 2), tuple(right["rows"][2:4]))
    )
    assert some["rows"] == right["rows"][2:4]
    assert len(some["stages"]["square"]) == 2
    assert json.dumps(some)


def test_masking_passes_no_gradient_and_keeps_digits_predictions(weights: Path) -> None:
    chosen = subject(weights, eps=0.15)
    x, _ = chosen.samples(20)
    model, hidden = chosen.load(), subjects.masked(chosen).load()
    here = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(hidden(here).sum(), here)
    assert not gradient.any()
    assert torch.equal(hidden(x).argmax(1), model(x).argmax(1))
    assert Rounded(model, 2 / 255).levels == 64


def test_samples_beyond_the_test_part_are_held_out_ones() -> None:
    parts = load("digits")
    many = subjects.unseen(parts, 500)
    seen = {image.numpy().tobytes() for image in parts.train.x}
    assert len(many) == 500
    assert sum(image.numpy().tobytes() in seen for image in many.x) == 0
    assert torch.equal(subjects.unseen(parts, 400).y, parts.test.y)


def test_options_of_checkpoints_pair_up() -> None:
    known = ["--checkpoint", "a", "--checkpoint", "b", "--model", "small_cnn"]
    read = parity.parser().parse_args([*known, "--std", "1", "--std", "2", "--mean", "0", "--dataset", "digits"])
    first, second = subjects.subjects(read)
    assert (first.model, first.mean, first.std) == ("small_cnn", (0.0,), (1.0,))
    assert (second.std, second.eps, second.block) == ((2.0,), 0.15, 200)
    read = parity.parser().parse_args([*known, *(["--std", "1"] * 3)])
    with pytest.raises(UsageError, match="one for all or one for each of 2 checkpoints, got 3"):
        subjects.subjects(read)


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="finished run"):
        subjects.subjects(parity.parser().parse_args([str(tmp_path)]))


def test_the_ensemble_alone(weights: Path, tmp_path: Path) -> None:
    command = ["--checkpoint", str(weights), "--model", "small_cnn", "--dataset", "digits", "--cache", str(tmp_path)]
    parity.main([*command, *TOY, "--seeds", "0", "--norms", "0", "--alone", "none", "--out", str(tmp_path)])
    page = (tmp_path / "parity.md").read_text()
    assert page.count("| after ") == 4
    assert "alone" not in page.partition("\n## ")[2]
    assert "Minimal norms" not in page
