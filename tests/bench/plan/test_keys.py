"""Keys of runs and evaluations: on which settings they depend."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.plan.jobs import EvalJob, TrainJob
from bench.plan.planner import make_plan
from bench.results.keys import LEFT_OUT_AT, NEVER_IN_KEY
from methods import METHODS
from tests.helpers.jobs import job_of, jobs_of_edited_plugin, key, plan, settings

PLUGIN = '''
"""A method of a user's own."""
from methods import register
from methods.pgd_at import PGDAT

@register("own")
class Own(PGDAT):
    """PGD-AT under another name."""
'''


def test_keys_say_the_same_twice() -> None:
    assert key() == key()
    assert re.fullmatch("[0-9a-f]{16}", key())


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": (1,)},
        {"epochs": 12},
        {"batch_size": 64},
        {"eps": 0.1},
        {"norm": "l2"},
        {"select": "best"},
        {"select": "test"},
        {"train_limit": 500},
        {"threads": 2},
        {"deterministic": True},
        {"model": "small_cnn_wide"},
        {"dataset": "cifar10"},
        {"teacher_model": "small_cnn"},
        {"recipe": "paper"},
        {"overrides": {"absld.temperature_rate": 0.05}},
        {"overrides": {"absld.recipe.lr": 0.05}},
        {"overrides": {"absld.recipe.weight_decay": 1e-3}},
        {"overrides": {"absld.recipe.augment": "crop"}},
        {"overrides": {"teacher.beta": 3}},
        {"overrides": {"teacher.recipe.lr": 0.05}},
    ],
    ids=str,
)
def test_a_key_changes_with_what_the_weights_depend_on(change: dict[str, Any]) -> None:
    assert key(**change) != key()


@pytest.mark.parametrize(
    "change",
    [
        {"methods": ("absld", "natural", "ham")},
        {"seeds": (0, 1)},
        {"workers": 7},
        {"out": "elsewhere"},
        {"data_dir": "elsewhere"},
        {"download": True},
        {"attacks": ("pgd",)},
        {"limit": 40},
        {"autoattack_limit": 40},
        {"block": 17},
        {"overrides": {"pgd.steps": 50}},
        {"overrides": {"absld.temperature_rate": 0.1}},  # what it is anyway
        {"overrides": {"ham.mining_step": 2}},
    ],
    ids=str,
)
def test_a_key_does_not_change_with_anything_else(change: dict[str, Any]) -> None:
    found = plan(**{"methods": ("absld",), **change})
    assert min(job.key for job in found.train if job.method == "absld" and job.seed == 0) == key()


def test_a_key_knows_the_warm_start() -> None:
    assert key("frl", overrides={"pgd_at.recipe.lr": 0.05}) != key("frl")
    assert key("frl", overrides={"trades.beta": 3}) == key("frl")


def test_a_key_knows_the_kind_of_device_but_not_its_number() -> None:
    run = settings(methods=("natural",))
    on = {device: make_plan(run, device).train[0].key for device in ("cpu", "cuda", "cuda:1", "mps")}
    assert on["cuda"] == on["cuda:1"]
    assert len(set(on.values())) == 3


def test_a_key_knows_the_revision_and_neither_label_nor_role() -> None:
    job = job_of(plan(methods=("absld",)), "absld")
    assert replace(job, revision=job.revision + 1).key != job.key
    assert replace(job, source="abc").key != job.key
    assert replace(job, label="other", role="teacher", recipe_name="other").key == job.key


@pytest.mark.parametrize(
    ("method", "options", "moved"),
    [
        ("dafa", {"host": "at", "doubled_step": True}, 1),
        ("dafa", {"host": "at"}, 0),
        ("cfa", {"host": "fat"}, 1),
        ("cfa", {"host": "trades"}, 0),
        ("fawa:cfa", {"host": "fat"}, 1),
        ("fair_mtard", {"natural_from": "robust"}, 1),
        ("fair_mtard", {}, 0),
    ],
    ids=str,
)
def test_an_option_whose_numbers_moved_alone_has_a_revision_of_its_own(
    method: str, options: dict[str, Any], moved: int
) -> None:
    overrides = {f"{method}.{name}": value for name, value in options.items()}
    job = job_of(plan(methods=(method,), overrides=overrides), method)
    assert job.revision == METHODS.sketch(method).fact("revision") + moved


def test_a_key_knows_the_source_of_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, edited, again = (job.key for job in jobs_of_edited_plugin("own", PLUGIN, tmp_path, monkeypatch))
    assert first == again != edited


def test_runs_of_one_plan_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(seeds=(0, 1))
    assert len({job.folder for job in found.train}) == len(found.train)
    assert len({job.folder for job in found.evaluate}) == len(found.evaluate)
    monkeypatch.chdir(tmp_path)
    Path("my").mkdir()
    Path("my/file.py").write_text("def build(num_classes, in_channels, image_size): ...\n")
    job = job_of(plan(methods=("natural",), model="my/file.py:build"), "natural")
    assert job.folder == Path("digits", "my_file.py_build", "natural", job.key)
    Path("my/file.py").write_text("def build(num_classes, in_channels, image_size): return None\n")
    assert job_of(plan(methods=("natural",), model="my/file.py:build"), "natural").key != job.key
    with pytest.raises(UsageError, match=r"model 'no\.py:build': there is no file no\.py"):
        plan(methods=("natural",), model="no.py:build")


@pytest.mark.parametrize(
    "change",
    [{"block": 50}, {"limit": 100}, {"eps": 0.1}, {"overrides": {"pgd.steps": 10}}, {"threads": 2}, {"norm": "l2"}],
    ids=str,
)
def test_an_evaluations_key_changes_with_what_the_outcomes_depend_on(change: dict[str, Any]) -> None:
    (job,) = plan(methods=("natural",), attacks=("pgd",)).evaluate
    (changed,) = plan(methods=("natural",), attacks=("pgd",), **change).evaluate
    assert changed.key != job.key
    assert replace(job, revision=job.revision + 1).key != job.key
    assert replace(job, title="other", run=Path("elsewhere")).key == job.key


def test_an_attack_more_is_an_evaluation_more_and_nothing_else() -> None:
    before = plan(methods=("absld",), attacks=("fgsm", "pgd"))
    after = plan(methods=("absld",), attacks=("fgsm", "cw", "pgd"))
    assert after.train == before.train
    new = {job.folder for job in after.evaluate} - {job.folder for job in before.evaluate}
    assert {job.attack for job in after.evaluate if job.folder in new} == {"cw"}
    assert len(new) == 2, "student and teacher"


def test_what_is_left_out_of_keys_is_left_out_at_its_default() -> None:
    known = {f.name: f.default for job in (TrainJob, EvalJob) for f in fields(job)}
    assert {name: known[name] for name in LEFT_OUT_AT} == LEFT_OUT_AT
    assert set(NEVER_IN_KEY) <= set(known)
