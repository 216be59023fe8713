"""Recipes: published ones by data set, short forms, and how they train."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from bench.catalog.pages import page
from bench.core.files import file_hash
from bench.errors import UsageError
from bench.models.checkpoints import load_weights
from bench.plan.jobs import TrainJob
from bench.results.keys import LEFT_OUT_OF_RECIPE_AT
from bench.training.trainer import Trainer, build_method
from methods.base import Context
from methods.recipes import Recipe, all_recipes, short
from methods.registry import COMPOSITIONS, METHODS
from tests.helpers.jobs import (
    description,
    folder_of,
    history,
    job_of,
    parts_of,
    plan,
    tiny,
    train_all,
)


@pytest.mark.parametrize("name", METHODS.builtin)
def test_every_method_has_a_short_recipe_beside_its_paper_and_digits(name: str) -> None:
    recipes = all_recipes(METHODS.sketch(name).fact("recipes", {}))
    assert list(recipes)[:2] == ["paper", "short"] and "digits" in recipes
    paper, recipe = recipes["paper"], recipes["short"]
    assert (paper.schedule, paper.ema) == ("steps", 0.0), "published schedules stay"
    assert (recipe.schedule, recipe.ema, recipe.milestones) == ("one_cycle", 0.999, ())
    assert recipe.epochs == min(30, paper.epochs)
    same = [f.name for f in fields(Recipe) if f.name in ("momentum", "nesterov", "batch_size", "augment", "threat_eps")]
    assert all(getattr(recipe, key) == getattr(paper, key) for key in same)
    scale = 0.1 / max(0.1, recipes["digits"].lr)  # on digits the rate makes up for a factor on the loss as well
    assert recipe.lr == pytest.approx(2 * paper.lr / scale)
    assert recipe.lr * recipe.weight_decay == pytest.approx(2 * paper.lr * paper.weight_decay)
    assert "| `paper` | `short` |" in page("methods", name)


@pytest.mark.parametrize("name", METHODS.builtin)
def test_what_a_recipe_sets_in_epochs_lies_within_them(name: str) -> None:
    sketch = METHODS.sketch(name)
    for recipe in all_recipes(sketch.fact("recipes", {})).values():
        counted = [recipe.settings[key] for key in sketch.fact("epoch_settings", ()) if key in recipe.settings]
        for value in (*counted, recipe.milestones):
            assert all(epoch < recipe.epochs for epoch in (value if isinstance(value, tuple) else (value,)))


@pytest.mark.parametrize(
    ("method", "dataset", "changed"),
    [
        ("ham", "svhn", {"lr": 0.01, "mining_step": 5}),
        ("ham", "cifar100", {"lr": 0.1, "mining_step": 3, "begin_epoch_index": 59}),
        ("dafa", "stl10", {"strength": 1.5}),
        ("ard", "cifar100", {"batch_size": 256}),
        ("pgd_at", "svhn", {"lr": 0.01}),
        ("trades", "svhn", {"lr": 0.1}),
        ("ham", "cifar10", {"lr": 0.1, "mining_step": 3, "begin_epoch_index": 49}),
    ],
)
def test_the_papers_recipe_is_that_for_the_data_set(method: str, dataset: str, changed: dict[str, float]) -> None:
    found = plan(methods=(method,), dataset=dataset, recipe="paper")
    job = job_of(found, method)
    assert {name: {**job.settings, **vars(job.recipe)}[name] for name in changed} == changed
    general = dataset != "cifar10" and any(each.recipe_name == "paper" for each in found.train)
    assert any("the papers' recipes are those for CIFAR-10" in note for note in found.notes) is general


def test_one_cycle_rises_to_its_peak_and_falls_to_nothing() -> None:
    recipe = short(Recipe(epochs=200, lr=0.1, milestones=(100,)))
    assert recipe.lr_at(0) == 0 and recipe.lr_at(9) == pytest.approx(0.2)
    assert recipe.lr_at(4, 0.5) == pytest.approx(0.1)
    assert recipe.lr_at(29, 0.5) == pytest.approx(0.2 * 0.5 / 21)
    rates = [recipe.lr_at(epoch, done / 10) for epoch in range(30) for done in range(10)]
    assert max(rates) == pytest.approx(0.2) and rates[91:] == sorted(rates[91:], reverse=True)
    steps = Recipe(epochs=9, lr=1.0, milestones=(3,))
    assert [steps.lr_at(epoch, 0.9) for epoch in (2, 3)] == pytest.approx([1.0, 0.1]), "of the epoch alone"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schedule": "cosine"}, "expected steps or one_cycle, got 'cosine'"),
        ({"ema": 1.0}, "expected a number from 0 to below 1, got 1.0"),
    ],
)
def test_a_schedule_that_is_none_is_refused(change: dict[str, Any], sentence: str) -> None:
    overrides = {f"natural.recipe.{key}": value for key, value in change.items()}
    with pytest.raises(UsageError) as caught:
        plan(methods=("natural",), overrides=overrides)
    assert sentence in str(caught.value)


def test_epoch_valued_settings_fit_thirty_epochs() -> None:
    found = plan(methods=("absld", "ham", "frl"), recipe="short", dataset="cifar10", teacher_model="resnet18")
    absld, ham, frl = (job_of(found, name) for name in ("absld", "ham", "frl"))
    assert {job.recipe_name for job in found.train} == {"short"}, "teacher and start included"
    assert absld.settings["rate_milestones"] == (21, 26, 28)
    assert ham.settings["begin_epoch_index"] == 12
    assert frl.settings["halve_every"] == 30


def test_a_short_run_steps_its_rate_and_evaluates_the_average(tmp_path: Path) -> None:
    seen: list[float] = []
    found = tiny("natural", recipe="short")
    (job,) = found.train
    trainer = Trainer(job, parts_of(job), tmp_path, teachers={})
    observe = trainer.method.observe

    def noting(batch: Any, adv: Any, terms: Any, ctx: Context) -> None:
        assert [group["lr"] for group in trainer.optimiser.param_groups] == [ctx.lr]
        seen.append(ctx.lr)
        observe(batch, adv, terms, ctx)

    trainer.method.observe = noting  # type: ignore[method-assign]
    trainer.run()
    assert seen == pytest.approx([0.2 * share for share in (0.125 / 0.3, 0.625 / 0.7, 0.375 / 0.7, 0.125 / 0.7)])
    assert [row["lr"] for row in history(tmp_path)] == [seen[1], seen[3]]
    facts = description(tmp_path)
    assert (facts["recipe"], facts["training"]["schedule"], facts["training"]["ema"]) == ("short", "one_cycle", 0.999)
    stored, raw = load_weights(tmp_path / "last.safetensors"), trainer.model.state_dict()
    assert any(not tensor.equal(raw[key]) for key, tensor in stored.items())


def test_the_recipes_average_is_that_of_the_composition(tmp_path: Path) -> None:
    overrides = {"trades.recipe.ema": 0.9, "ema:trades.ema_decay": 0.9}
    train_all(tiny("trades", "ema:trades", overrides=overrides), tmp_path)
    first, second = (folder_of(tmp_path, name) / "last.safetensors" for name in ("trades", "ema:trades"))
    assert file_hash(first) == file_hash(second)


def test_a_composition_that_averages_takes_the_place_of_the_recipes_average() -> None:
    found = plan(methods=("swa:trades", "awp:trades"), recipe="short")
    assert [job.recipe.ema for job in found.train] == [0.0, 0.999]
    assert "swa:trades: averages weights itself, so the recipe's moving average is left out" in found.notes
    assert isinstance(build_method(found.train[1], 10), COMPOSITIONS["ema"])


def test_fields_that_recipes_got_later_leave_the_keys_of_earlier_runs() -> None:
    first = {
        *("epochs", "lr", "milestones", "factors", "weight_decay", "momentum", "nesterov", "batch_size", "augment"),
        *("holdout", "selection", "threat_eps", "settings", "source"),
    }
    assert {f.name for f in fields(Recipe)} == first | set(LEFT_OUT_OF_RECIPE_AT)
    (job,) = plan(methods=("natural",)).train
    usual = {f.name: f.default for f in fields(Recipe) if f.name in LEFT_OUT_OF_RECIPE_AT}
    assert usual == LEFT_OUT_OF_RECIPE_AT
    for change in ({"schedule": "one_cycle"}, {"ema": 0.5}):
        assert replace(job, recipe=replace(job.recipe, **change)).key != job.key  # type: ignore[arg-type]
    ema: TrainJob = plan(methods=("natural",), overrides={"natural.recipe.ema": 0.5}).train[0]
    assert ema.revision == job.revision + COMPOSITIONS["ema"].revision, "the key knows what averages"
