"""The one training loop: same seed, same bytes, however often it was interrupted and whatever ran beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacks.passes import Passes
from bench.core import files
from bench.data.splits import Part, Parts
from bench.errors import BenchError, Interrupted
from bench.models.checkpoints import load_weights
from bench.plan.jobs import Plan, TrainJob
from bench.training.trainer import Trainer, is_selection_epoch, train
from methods.registry import METHODS
from tests.helpers.jobs import (
    StopAt,
    description,
    history,
    job_of,
    parts_of,
    run_with_interruptions,
    small,
    train_all,
    tree,
)

METHODS_TO_STOP = ("pgd_at", "frl", "absld", "ham")
EPOCHS = 3


@pytest.fixture(scope="module")
def whole() -> Plan:
    """Four methods and what they start from; HAM mines from its second epoch on."""
    found = small(methods=METHODS_TO_STOP)
    assert job_of(found, "ham").settings["begin_epoch_index"] == 1
    return found


@pytest.fixture(scope="module")
def undisturbed(whole: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run of the plan, trained without interruption."""
    out = tmp_path_factory.mktemp("undisturbed")
    train_all(whole, out)
    return out


def alone(job: TrainJob, plan: Plan, trained: Path, out: Path) -> None:
    """Put what a job starts from into another results folder."""
    for needed in plan.train:
        if needed.key in job.requires:
            (out / needed.folder).parent.mkdir(parents=True, exist_ok=True)
            (out / needed.folder).symlink_to(trained / needed.folder)


# Same bytes


@pytest.mark.parametrize("method", METHODS_TO_STOP)
def test_stopped_after_every_single_step_a_run_ends_in_the_same_bytes(
    method: str, whole: Plan, undisturbed: Path, tmp_path: Path
) -> None:
    job = job_of(whole, method)
    alone(job, whole, undisturbed, tmp_path)
    stops = run_with_interruptions(lambda progress: train(job, parts_of(job), tmp_path, Path("data"), progress))
    assert stops == EPOCHS * 3 - 1, "one session for each of the nine steps"
    stored = tree(undisturbed / job.folder)
    assert {"run.json", "history.jsonl", "last.safetensors", "state.pt", "done"} <= set(stored)
    assert tree(tmp_path / job.folder) == stored


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is judged after every epoch."""
    out = tmp_path_factory.mktemp("selected")
    train_all(small(methods=("pgd_at",), select="best"), out)
    return out


@pytest.mark.parametrize("look", [1, 2, 4, 6, 9])
def test_stopped_once_anywhere_a_run_ends_in_the_same_bytes(look: int, selected: Path, tmp_path: Path) -> None:
    """Before the first step, within an epoch, between two; the best weights are the same ones too."""
    found = small(methods=("pgd_at",), select="best")
    with pytest.raises(Interrupted, match="run the same command"):
        train_all(found, tmp_path, StopAt(look))
    assert not files.is_done(tmp_path / found.train[0].folder)
    train_all(found, tmp_path)
    assert "best.safetensors" in tree(selected / found.train[0].folder)
    assert tree(tmp_path) == tree(selected)


def test_an_interrupted_job_says_where_it_was_saved_and_where_it_went_on(tmp_path: Path) -> None:
    found = small(methods=("natural",))
    sentence = r"^natural seed 0: saved in epoch 1, step 2; run the same command to go on$"
    with pytest.raises(Interrupted, match=sentence) as caught:
        train_all(found, tmp_path, StopAt(6))
    assert caught.value.exit_code == 130
    progress = StopAt(0)
    train_all(found, tmp_path, progress)
    assert progress.lines == ["resumed at epoch 1, step 2"]


def test_a_finished_run_that_lost_its_marker_is_not_trained_again(whole: Plan, undisturbed: Path) -> None:
    job = job_of(whole, "pgd_at")
    before = tree(undisturbed / job.folder)
    epochs = (undisturbed / job.folder / "timing.jsonl").read_text().count('"epoch"')
    (undisturbed / job.folder / "done").unlink()
    train(job, parts_of(job), undisturbed, Path("data"))
    assert tree(undisturbed / job.folder) == before
    assert (undisturbed / job.folder / "timing.jsonl").read_text().count('"epoch"') == epochs


def test_the_seed_and_nothing_else_decides(whole: Plan, undisturbed: Path, tmp_path: Path) -> None:
    """Neither what was drawn before nor what was trained beside it; another seed gives another network."""
    torch.manual_seed(123)
    torch.rand(17)
    (same,) = small(methods=("ham",)).train
    (other,) = small(methods=("ham",), seeds=(1,)).train
    train_all(small(methods=("ham",), seeds=(1, 0)), tmp_path)
    assert tree(tmp_path / same.folder) == tree(undisturbed / job_of(whole, "ham").folder)
    first, second = (load_weights(tmp_path / job.folder / "last.safetensors") for job in (same, other))
    assert all(not torch.equal(first[name], second[name]) for name in first if name.endswith("conv1.weight"))
    assert not torch.equal(first["linear.weight"], second["linear.weight"])
    assert history(tmp_path / same.folder)[0]["loss"] != history(tmp_path / other.folder)[0]["loss"]


def test_the_global_stream_is_left_as_it_was(whole: Plan, undisturbed: Path, tmp_path: Path) -> None:
    job = job_of(whole, "absld")
    alone(job, whole, undisturbed, tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(job, parts_of(job), tmp_path, Path("data"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (job,) = small(methods=("natural",)).train
    (tmp_path / job.folder).mkdir(parents=True)
    (tmp_path / job.folder / "state.pt").write_bytes(b"half a file")
    with pytest.raises(BenchError, match=r"state\.pt: cannot be resumed from \(.*\); delete the folder and run again"):
        train_all(small(methods=("natural",)), tmp_path)


# What is recorded


def test_the_history_shows_that_every_mechanism_ran(whole: Plan, undisturbed: Path) -> None:
    initial = {"temperature_adv": 1.0, "temperature_clean": 1.0, "weight_clean": 0.1, "weight_boundary": 0.1}
    for method, names in (
        ("absld", ("temperature_adv", "temperature_clean")),
        ("frl", ("weight_clean", "weight_boundary")),
        ("ham", ("kept_share",)),
    ):
        rows = history(undisturbed / job_of(whole, method).folder)
        assert [row["epoch"] for row in rows] == [0, 1, 2]
        for name in names:
            values = [row["state"][name] for row in rows]
            assert all(len(state) == 10 for state in values)
            assert any(value != initial.get(name, 1.0) for value in values[-1])
            assert values[-1] != values[0]
    shares = [row["state"]["kept_share"] for row in history(undisturbed / job_of(whole, "ham").folder)]
    assert shares[0] == [1.0] * 10, "all samples before mining begins"
    assert all(0 <= share < 1 for share in shares[1])


def test_the_history_holds_losses_rates_and_class_accuracies(whole: Plan, undisturbed: Path) -> None:
    rows = history(undisturbed / job_of(whole, "absld").folder)
    assert [row["lr"] for row in rows] == [job_of(whole, "absld").recipe.lr_at(epoch) for epoch in range(EPOCHS)]
    assert rows[-1]["lr"] < rows[0]["lr"]
    for row in rows:
        assert math.isfinite(row["loss"])
        assert row["skipped_steps"] == 0
        assert set(row["train"]) == {"adv", "clean"}
        for view in row["train"].values():
            assert len(view["class_accuracy"]) == 10
            assert min(view["class_accuracy"]) <= view["accuracy"] <= max(view["class_accuracy"])


@pytest.mark.parametrize("method", ["pgd_at", "trades", "frl", "absld", "ham"])
def test_the_recorded_passes_are_the_declared_ones(method: str, whole: Plan, undisturbed: Path) -> None:
    """Samples times declared passes; HAM makes fewer once it mines, and never more."""
    (job,) = [job for job in whole.train if job.method == method]
    counted = description(undisturbed / job.folder)["passes"]
    declared: Passes = METHODS.sketch(method).call("passes", job.settings) * (300 * EPOCHS)
    student = (declared.forward, declared.input_grad, declared.backward)
    recorded = tuple(counted["student"][kind] for kind in ("forward", "input_grad", "backward"))
    if method == "ham":
        assert all(made < at_most for made, at_most in zip(recorded, student, strict=True))
        assert recorded[0] > student[0] / EPOCHS, "the warm-up epoch is made in full"
    else:
        assert recorded == student
    assert counted.get("teacher", {}).get("forward", 0) == declared.teacher
    assert ("validation" in counted) == (method == "frl"), "what steers a method is counted apart"


def test_run_json_says_what_was_trained(whole: Plan, undisturbed: Path) -> None:
    job = job_of(whole, "absld")
    facts = description(undisturbed / job.folder)
    assert (facts["key"], facts["method"], facts["seed"], facts["role"]) == (job.key, "absld", 0, "student")
    assert (facts["epochs"], facts["selection"], facts["epoch_best"]) == (EPOCHS, "last", None)
    assert facts["settings"]["temperature_rate"] == 0.1
    assert facts["training"]["batch_size"] == 128
    sizes = {name: facts["data"][name] for name in ("classes", "train_size", "select_size", "steer_size", "test_size")}
    assert sizes == {"classes": 10, "train_size": 300, "select_size": 100, "steer_size": 100, "test_size": 400}
    assert facts["data"]["hash"] == parts_of(job).hash
    assert facts["hardware"]["threads"] == 1
    assert {"python", "torch", "numpy"} <= set(facts["versions"])
    assert facts["warm_start"] is None
    assert job_of(whole, "trades", "teacher").key in facts["teachers"]["robust"].values()
    assert job_of(whole, "pgd_at").key in description(undisturbed / job_of(whole, "frl").folder)["warm_start"].values()


def test_frl_starts_from_the_weights_of_pgd_at(whole: Plan, undisturbed: Path) -> None:
    job, start = job_of(whole, "frl"), job_of(whole, "pgd_at")
    weights = load_weights(undisturbed / start.folder / "last.safetensors")
    trainer = Trainer(job, parts_of(job), undisturbed, teachers={}, start=weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.model.state_dict().items())


# Selection


def test_the_best_checkpoint_is_the_one_with_the_highest_recorded_score(selected: Path) -> None:
    folder = selected / small(methods=("pgd_at",), select="best").train[0].folder
    rows = history(folder)
    scores = [row["validation"]["score"] for row in rows]
    assert description(folder)["epoch_best"] == scores.index(max(scores))
    for row in rows:
        judged = row["validation"]
        assert judged["score"] == pytest.approx(judged["pgd"] + judged["worst"])
        assert judged["worst"] <= judged["pgd"] <= judged["clean"]
    best, last = (files.file_hash(folder / f"{name}.safetensors") for name in ("best", "last"))
    assert (best == last) == (scores.index(max(scores)) == EPOCHS - 1)


def test_last_judges_nothing_and_keeps_no_best(whole: Plan, undisturbed: Path) -> None:
    folder = undisturbed / job_of(whole, "pgd_at").folder
    assert not (folder / "best.safetensors").exists()
    assert all("validation" not in row for row in history(folder))


@pytest.mark.parametrize(("select", "part"), [("best", "select"), ("test", "test")])
def test_a_rule_judges_on_its_own_part_and_training_never_sees_it(select: str, part: str, tmp_path: Path) -> None:
    """Rotating the labels of the part a rule judges on changes the scores; those of the other parts change nothing."""
    (job,) = small(methods=("natural",), select=select, epochs=1).train
    parts = parts_of(job)

    def scores(changed: str) -> dict[str, float]:
        wrong = replace(getattr(parts, changed), y=(getattr(parts, changed).y + 1) % 10)
        train(job, replace(parts, **{changed: wrong}), tmp_path / changed, Path("data"))
        validation: dict[str, float] = history(tmp_path / changed / job.folder)[0]["validation"]
        return validation

    train(job, parts, tmp_path, Path("data"))
    right = history(tmp_path / job.folder)[0]["validation"]
    for other in ("select", "steer", "test"):
        assert (scores(other) != right) == (other == part)


def test_what_steers_frl_is_disjoint_from_what_selects(whole: Plan, undisturbed: Path, tmp_path: Path) -> None:
    job = job_of(whole, "frl")
    alone(job, whole, undisturbed, tmp_path)
    parts = parts_of(job)
    assert not _images(parts.select) & _images(parts.steer)
    assert not (_images(parts.select) | _images(parts.steer)) & _images(parts.train)
    wrong = replace(parts.steer, y=(parts.steer.y + 1) % 10)
    trained = history(undisturbed / job.folder)
    train(job, replace(parts, steer=wrong), tmp_path, Path("data"))
    steered = history(tmp_path / job.folder)
    assert steered[0]["state"]["weight_clean"] != trained[0]["state"]["weight_clean"]


def _images(part: Part) -> set[bytes]:
    return {image.numpy().tobytes() for image in part.x}


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(3, [0, 1, 2]), (40, list(range(40))), (60, [4, 9, 14, 19, 24, 29, 34, 39, 44, *range(45, 60)])],
)
def test_when_checkpoints_are_validated(epochs: int, expected: list[int]) -> None:
    assert [epoch for epoch in range(epochs) if is_selection_epoch(epoch, epochs)] == expected


def test_without_holdout_the_held_out_parts_are_trained_on(tmp_path: Path) -> None:
    found = small(methods=("natural",), epochs=1, overrides={"natural.recipe.holdout": False})
    train_all(found, tmp_path)
    assert description(tmp_path / found.train[0].folder)["data"]["train_size"] == 500


# Teachers


def test_a_teacher_is_frozen_and_in_eval_mode(whole: Plan, undisturbed: Path) -> None:
    from bench.models.teachers import load_teacher

    job = job_of(whole, "absld")
    parts: Parts = parts_of(job)
    source: Mapping[str, str] = job.teachers["robust"]
    teacher = load_teacher(source, job, parts, undisturbed, Path("data"))
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    stored = load_weights(undisturbed / source["folder"] / "last.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in teacher.state_dict().items())
