"""Plans: order of jobs, teachers and warm starts, adapted recipes, refused settings, estimated cost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.config.settings import TABLE_ATTACKS
from bench.core.files import file_hash
from bench.errors import UsageError
from bench.plan.cost import totals
from bench.plan.jobs import EvalJob, Plan
from methods.registry import METHODS
from tests.helpers.jobs import job_of, key, plan


def evaluations(plan: Plan) -> dict[tuple[str, str], EvalJob]:
    return {(job.title, job.attack): job for job in plan.evaluate}


# Order


def test_every_job_comes_after_what_it_needs_and_what_others_need_comes_along() -> None:
    found = plan(methods=("absld", "frl"), seeds=(0, 1))
    assert sorted((job.method, job.seed, job.role) for job in found.train) == [
        ("absld", 0, "student"), ("absld", 1, "student"), ("frl", 0, "student"), ("frl", 1, "student"),
        ("pgd_at", 0, "student"), ("pgd_at", 1, "student"), ("trades", 0, "teacher"),
    ]  # fmt: skip
    before: set[str] = set()
    for job in found.train:
        assert set(job.requires) <= before
        before.add(job.key)
    assert {job.run_key for job in found.evaluate} <= before


def test_one_teacher_serves_all_students_and_seeds_and_has_a_row_of_its_own() -> None:
    found = plan(methods=("ard", "rslad", "absld"), seeds=(0, 1, 2))
    teacher = job_of(found, "trades", "teacher")
    assert (teacher.model, teacher.seed) == ("small_cnn_wide", 0)
    students = [job for job in found.train if job.role == "student"]
    assert len(students) == 9
    assert {job.teachers["robust"]["key"] for job in students} == {teacher.key}
    assert [job.attack for job in found.evaluate if job.run_key == teacher.key] == list(TABLE_ATTACKS)


def test_frl_starts_from_the_pgd_at_run_of_its_seed_which_is_not_trained_twice() -> None:
    alone, both = plan(methods=("frl",), seeds=(5,)), plan(methods=("pgd_at", "frl"), seeds=(5,))
    assert {job.key for job in alone.train} == {job.key for job in both.train}
    start = job_of(alone, "frl").warm_start
    assert start is not None
    assert start["key"] == job_of(both, "pgd_at").key
    assert {job.run_key for job in alone.evaluate} == {job_of(alone, "frl").key}, "a row only for what was asked for"


def test_a_student_that_equals_the_teacher_is_the_teacher() -> None:
    shared = plan(methods=("trades", "absld"), teacher_model="resnet18", dataset="cifar10")
    assert [job.method for job in shared.train] == ["trades", "absld"]
    assert job_of(shared, "absld").teachers["robust"]["key"] == job_of(shared, "trades").key


def test_a_given_teacher_is_known_by_its_bytes_and_trains_nothing(tmp_path: Path) -> None:
    file, copy = tmp_path / "a.pt", tmp_path / "b.pt"
    file.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    found = plan(methods=("absld",), teacher=str(file))
    assert [job.method for job in found.train] == ["absld"]
    assert job_of(found, "absld").teachers["robust"] == {
        "file": str(file), "model": "small_cnn_wide", "sha256": file_hash(file), "label": "a.pt",
    }  # fmt: skip
    assert key(teacher=str(copy)) == key(teacher=str(file))
    copy.write_bytes(b"other weights")
    assert key(teacher=str(copy)) != key(teacher=str(file))
    assert key(teacher="robustbench:Some2024Model") != key(teacher="RobustBench:Other2024Model")


def test_a_missing_teacher_is_refused() -> None:
    sentence = "--teacher none.pt: expected a checkpoint file or robustbench:ID, found neither"
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        plan(methods=("absld",), teacher="none.pt")


def test_two_teachers_are_trained_each_in_its_role_and_shared() -> None:
    found = plan(methods=("mtard", "rslad"), seeds=(0, 1))
    teachers = {job.method: job for job in found.train if job.role == "teacher"}
    assert {name: (job.model, job.recipe_name) for name, job in teachers.items()} == {
        "trades": ("small_cnn_wide", "digits_teacher"), "natural": ("small_cnn_wide", "digits"),
    }  # fmt: skip
    for job in found.train:
        keys = {role: source["key"] for role, source in job.teachers.items()}
        if job.method == "mtard":
            assert keys == {"robust": teachers["trades"].key, "natural": teachers["natural"].key}
            assert set(job.requires) == set(keys.values())
        elif job.method == "rslad":
            assert keys == {"robust": teachers["trades"].key}
    assert len(found.train) == 6


def test_a_natural_teacher_can_be_given_and_changed_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "natural.pt"
    file.write_bytes(b"weights")
    found = plan(methods=("mtard",), natural_teacher=str(file), teacher_model="resnet18")
    assert [(job.method, job.model) for job in found.train] == [("trades", "resnet18"), ("mtard", "small_cnn")]
    assert job_of(found, "mtard").teachers["natural"] == {
        "file": str(file), "model": "resnet18", "sha256": file_hash(file), "label": "natural.pt",
    }  # fmt: skip
    own = plan(methods=("mtard",), natural_teacher_model="small_cnn", overrides={"natural_teacher.recipe.lr": 0.05})
    job = job_of(own, "natural", "teacher")
    assert (job.model, job.recipe.lr) == ("small_cnn", 0.05)
    trades = job_of(own, "trades", "teacher")
    assert (trades.model, trades.recipe.lr) == ("small_cnn_wide", 0.1)
    keys = {
        key("mtard", **change)
        for change in (
            {}, {"natural_teacher": str(file)}, {"natural_teacher_model": "small_cnn"},
            {"overrides": {"natural_teacher.recipe.lr": 0.05}}, {"overrides": {"teacher.recipe.lr": 0.05}},
        )
    }  # fmt: skip
    assert len(keys) == 5
    assert key(natural_teacher=str(file)) == key(), "who has one teacher does not know the other"
    sentence = "--natural-teacher none.pt: expected a checkpoint file or robustbench:ID, found neither"
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        plan(methods=("mtard",), natural_teacher="none.pt")


def test_a_selected_checkpoint_is_evaluated_beside_the_last() -> None:
    assert [job.checkpoint for job in plan(methods=("pgd_at",), attacks=("pgd",), select="best").evaluate] == [
        "best",
        "last",
    ]
    assert [job.checkpoint for job in plan(methods=("pgd_at",), attacks=("pgd",)).evaluate] == ["last"]


def test_autoattack_alone_may_run_on_a_part() -> None:
    found = evaluations(plan(methods=("natural",), limit=100, autoattack_limit=40))
    limits = {attack: job.limit for (_, attack), job in found.items()}
    assert limits == {"fgsm": 100, "pgd": 100, "cw": 100, "autoattack": 40}


# What is adapted


def test_fewer_epochs_move_everything_that_is_counted_in_epochs_and_say_so() -> None:
    found = plan(methods=("absld", "ham", "frl"), epochs=6)
    assert {job.recipe.epochs for job in found.train} == {6}
    absld, ham, frl = (job_of(found, name) for name in ("absld", "ham", "frl"))
    assert absld.recipe.milestones == (4, 5)  # 22 and 27 of 30
    assert absld.settings["rate_milestones"] == (4, 5, 6)  # 214, 259 and 284 of 300
    assert ham.settings["begin_epoch_index"] == 2  # 49 of 120
    assert frl.settings["halve_every"] == 6  # 40 of 40
    for method, before in (("absld", 30), ("ham", 30), ("frl", 10), ("pgd_at", 30)):
        assert f"{method}: {before} epochs become 6; epoch-valued settings follow in proportion" in found.notes


def test_on_the_papers_own_schedule_nothing_is_adapted() -> None:
    found = plan(methods=("absld", "ham"), dataset="cifar10", teacher_model="resnet18", eps=8 / 255)
    absld, ham = job_of(found, "absld"), job_of(found, "ham")
    assert (absld.recipe.epochs, absld.recipe.milestones) == (300, (215, 260, 285))
    assert absld.settings["rate_milestones"] == (214, 259, 284)
    assert (absld.settings["eps"], absld.settings["step_size"]) == (8 / 255, 2 / 255)
    assert (ham.recipe.epochs, ham.settings["begin_epoch_index"]) == (120, 49)
    assert (ham.settings["eps"], ham.settings["step_size"]) == (0.031, 0.007), "the released radius stands"
    assert found.notes == ()


def test_epochs_of_one_method_alone() -> None:
    found = plan(methods=("ham", "natural"), overrides={"ham.recipe.epochs": 15})
    assert (job_of(found, "ham").recipe.epochs, job_of(found, "natural").recipe.epochs) == (15, 30)
    assert job_of(found, "ham").settings["begin_epoch_index"] == 6
    assert job_of(found, "ham").recipe.milestones == (11, 14)


def test_a_setting_that_is_given_is_not_rescaled() -> None:
    given = {"ham.begin_epoch_index": 1, "ham.recipe.milestones": (2,)}
    ham = job_of(plan(methods=("ham",), epochs=6, overrides=given), "ham")
    assert (ham.settings["begin_epoch_index"], ham.recipe.milestones) == (1, (2,))


def test_another_radius_scales_the_training_attack_and_says_so() -> None:
    found = plan(methods=("pgd_at", "ham"), eps=0.3)
    for job in found.train:
        assert job.settings["eps"] == pytest.approx(0.3)
        assert job.settings["step_size"] == pytest.approx(0.075)
        assert f"{job.method}: training radius and step are scaled by 2, to eps 0.3" in found.notes
    assert {job.eps for job in found.evaluate} == {0.3}
    on_cifar = job_of(plan(methods=("ham",), dataset="cifar10", eps=16 / 255), "ham")
    assert on_cifar.settings["eps"] == pytest.approx(0.062)
    assert on_cifar.settings["step_size"] == pytest.approx(0.014)


def test_l2_takes_the_data_sets_l2_radius() -> None:
    found = plan(methods=("pgd_at",), attacks=("pgd",), norm="l2")
    (job,) = found.train
    assert (job.norm, job.eps, job.settings["norm"]) == ("l2", 0.5, "l2")
    assert job.settings["eps"] == pytest.approx(0.5)
    assert (found.evaluate[0].norm, found.evaluate[0].eps) == ("l2", 0.5)


def test_a_list_of_a_file_is_a_tuple_of_a_setting() -> None:
    given = {"absld.rate_milestones": [3, 5], "absld.recipe.milestones": [2, 4]}
    job = job_of(plan(methods=("absld",), overrides=given), "absld")
    assert (job.settings["rate_milestones"], job.recipe.milestones) == ((3, 5), (2, 4))


def test_labels_name_what_was_changed() -> None:
    given = {"ABSLD.temperature-rate": 0.05, "absld.recipe.lr": 1, "teacher.beta": 3}
    found = plan(methods=("absld", "natural"), overrides=given)
    assert job_of(found, "absld").label == "absld (temperature_rate=0.05, recipe.lr=1)"
    assert job_of(found, "absld").recipe.lr == 1.0
    assert job_of(found, "natural").label == "natural"
    assert job_of(found, "trades", "teacher").label == "trades (beta=3)"


# What is refused


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"absld.rate": 1}, "--set absld.rate: absld has no setting 'rate'; it has adv_weight, eps, norm, "),
        ({"absld.recipe.rate": 1}, "--set absld.recipe.rate: absld has no setting 'rate'; it has augment, "),
        ({"pgd.queries": 1}, "--set pgd.queries: pgd has no setting 'queries'; it has restarts, start, "),
        (
            {"absdl.eps": 1},
            "--set absdl.eps: expected METHOD.FIELD, METHOD.recipe.FIELD, ATTACK.FIELD, teacher.FIELD or "
            "natural_teacher.FIELD",
        ),
        ({"eps": 1}, "--set eps: expected METHOD.FIELD, "),
        ({"absld.steps": 2.5}, "--set absld.steps: expected a whole number of at least 1, got 2.5"),
        ({"absld.steps": True}, "--set absld.steps: expected a whole number of at least 1, got True"),
        ({"absld.temperature_rate": "x"}, "--set absld.temperature_rate: expected a number of at least 0, got 'x'"),
        ({"ham.nonsense": 1}, "--set ham.nonsense: ham has no setting 'nonsense'"),
        ({"pgd.steps": -1}, "--set pgd.steps: expected a whole number of at least 1, got -1"),
        ({"teacher.beta": -6}, "--set teacher.beta: expected a number of at least 0, got -6"),
        ({"absld.eps": float("inf")}, "--set absld.eps: expected a number above 0, got inf"),
        ({"absld.recipe.epochs": 10**22}, "--set absld.recipe.epochs: expected a whole number from 1 to 100000, got"),
        ({"absld.recipe.holdout": 1}, "--set absld.recipe.holdout: expected true or false, got 1"),
        (
            {"absld.num_classes": 7},
            "--set absld.num_classes: comes from the data set and --norm; leave it out",
        ),
        ({"absld.norm": "l2"}, "--set absld.norm: comes from the data set and --norm; leave it out"),
    ],
)  # fmt: skip
def test_an_override_that_fits_nothing_is_refused(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}"):
        plan(methods=("absld",), attacks=("pgd",), overrides=overrides)


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"^--recipe papr: ard has the recipes digits, paper, paper_"):
        plan(methods=("ard",), recipe="papr")
    released = job_of(plan(methods=("ard",), recipe="Released", teacher="robustbench:Any"), "ard")
    assert (released.recipe.milestones, released.settings["clean_pass"]) == ((100,), True)


# What it will cost


def test_the_estimate_counts_the_declared_passes_over_the_whole_training(tmp_path: Path) -> None:
    found = plan(methods=("absld",), attacks=("pgd",), epochs=4, train_limit=300, limit=40)
    train, evaluate = totals(found, tmp_path)
    costs = {job.method: cost for job, cost in train}
    assert costs["absld"].passes.as_dict() == {
        "forward": 12 * 1200, "input_grad": 10 * 1200, "backward": 2 * 1200, "teacher": 1200, "teacher_grad": 0,
    }  # fmt: skip
    assert [cost.passes.forward for _, cost in evaluate] == [800, 800]
    assert all(cost.seconds > 0 and cost.bytes > 0 and not cost.done for _, cost in [*train, *evaluate])


def test_every_method_and_attack_can_be_planned_on_every_data_set() -> None:
    for dataset in ("digits", "cifar10", "cifar100", "svhn"):
        found = plan(dataset=dataset)
        assert {job.method for job in found.train} == set(METHODS.names())
        assert {job.settings["num_classes"] for job in found.train} == {100 if dataset == "cifar100" else 10}


def test_a_teacher_that_was_not_asked_for_trains_as_usual_where_the_recipe_is_not_its_own() -> None:
    (teacher,) = (job for job in plan(methods=("ard",), recipe="released").train if job.role == "teacher")
    assert teacher.recipe_name == "digits_teacher"


@pytest.mark.parametrize("owner", ["absld", "teacher"])
@pytest.mark.parametrize("asked", [{"select": "best"}, {"recipe": "paper"}])
def test_samples_that_are_trained_on_choose_no_checkpoint(owner: str, asked: dict[str, str]) -> None:
    """Selection is "best" where it is asked for, and in the published recipes."""
    whole = {f"{owner}.recipe.holdout": False}
    sentence = f"--set {owner}.recipe.holdout=false: trains on the samples by which selection 'best' judges checkpoints"
    with pytest.raises(
        UsageError, match=f"^{re.escape(sentence)}; take --select test or last, or leave recipe.holdout=false out$"
    ):
        plan(methods=("absld",), overrides=whole, **asked)
    for select in ("last", "test"):
        (job,) = [job for job in plan(methods=("absld",), overrides=whole, **{**asked, "select": select}).train
                  if not job.recipe.holdout]  # fmt: skip
        assert job.select == select


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("absld.recipe.selection", "foo", "expected best or last, got 'foo'"),
        ("absld.recipe.settings", 5, "absld has no setting 'settings'"),
        ("pdg.steps", 5, "expected METHOD.FIELD"),
    ],
)
def test_what_no_run_could_use_is_refused_before_it(setting: str, value: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        plan(methods=("absld",), overrides={setting: value})
