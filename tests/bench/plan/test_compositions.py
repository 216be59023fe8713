"""Compositions: their plans, pages and keys, and small trainings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.catalog.listing import list_text
from bench.catalog.pages import page
from bench.conformance.loop import Loop
from bench.core.files import file_hash
from bench.errors import BenchError, UsageError
from bench.models.checkpoints import load_weights
from bench.plan.cost import totals
from bench.plan.jobs import Plan
from bench.training.trainer import Trainer, train
from methods.registry import COMPOSITIONS, METHODS
from tests.helpers.jobs import (
    bench,
    description,
    folder_of,
    history,
    isolated_registries,
    job_of,
    jobs_of_edited_plugin,
    output_of,
    parts_of,
    plan,
    run_with_interruptions,
    settings,
    tiny,
    train_all,
    tree,
)

PLUGIN = '''
"""A composition of a user's own."""
from methods import COMPOSITIONS, Terms, Wrapper

@COMPOSITIONS.register("doubled")
class Doubled(Wrapper):
    """Twice the host's loss."""

    def __init__(self, *, factor: float = 2.0, **host):
        super().__init__(**host)
        self.factor = factor

    def loss(self, model, batch, adv, ctx):
        terms = super().loss(model, batch, adv, ctx)
        return Terms(self.factor * terms.loss, terms.logits, terms.extras)
'''


# Plans and names


def test_a_composition_has_a_run_a_row_and_settings_of_its_own() -> None:
    given = {"awp:trades.gamma": 0.01, "AWP:trades.beta": 5, "trades.beta": 3, "awp:trades.recipe.lr": 0.05}
    found = plan(methods=("awp:trades", "trades"), overrides=given)
    job, bare = job_of(found, "awp:trades"), job_of(found, "trades")
    assert (job.settings["gamma"], job.settings["beta"], job.recipe.lr) == (0.01, 5.0, 0.05)
    assert (bare.settings["beta"], "gamma" in bare.settings) == (3.0, False)
    assert job.label == "awp:trades (gamma=0.01, beta=5, recipe.lr=0.05)"
    assert job.folder == Path("digits", "small_cnn", "awp+trades", job.key)
    assert job.key != bare.key
    with pytest.raises(UsageError, match="--set awp:trades.gama: awp:trades has no setting 'gama'; it has awp_start, "):
        plan(methods=("awp:trades",), overrides={"awp:trades.gama": 1})
    with pytest.raises(UsageError, match="--set awp:tradez.gamma: expected METHOD.FIELD"):
        plan(methods=("awp:trades",), overrides={"awp:tradez.gamma": 1})
    with pytest.raises(UsageError, match="awp stands there twice"):
        settings(methods=("awp:awp:trades",))


def test_a_composition_needs_what_its_host_needs() -> None:
    found = plan(methods=("fair_weight:absld", "awp:frl"))
    assert sorted((job.method, job.role) for job in found.train) == [
        ("awp:frl", "student"), ("fair_weight:absld", "student"), ("pgd_at", "student"), ("trades", "teacher"),
    ]  # fmt: skip
    assert job_of(found, "fair_weight:absld").settings["rate_milestones"] == (21, 26, 28)


def test_a_key_knows_both_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(plan(methods=("awp:trades",)), "awp:trades")
    assert job.revision == METHODS["trades"]().revision + COMPOSITIONS["awp"].revision and job.source == ""
    jobs = jobs_of_edited_plugin("awp:doubled:natural", PLUGIN, tmp_path, monkeypatch)
    assert jobs[0].key == jobs[2].key != jobs[1].key
    assert jobs[0].source == file_hash(tmp_path / "a" / "plugin.py")


def test_the_passes_of_a_composition_are_estimated(tmp_path: Path) -> None:
    train, _ = totals(plan(methods=("awp:trades",), epochs=2, train_limit=300), tmp_path)
    assert [cost.passes.forward for _, cost in train] == [15 * 600]


def test_lists_and_pages_name_compositions() -> None:
    listed = list_text(METHODS)
    assert [line.split()[0] for line in listed.splitlines()][-5:] == [f"{name}:METHOD" for name in COMPOSITIONS.builtin]
    assert output_of("list", "compositions").split()[0] == "awp"
    text = output_of("show", "awp:trades")
    for part in ("AWP, adversarial weight", "## Around trades", "TRADES (Zhang", "| `gamma`     | `0.005` ",
                 "| `beta`      | `6` ", "| 15      | 10             | 4 |", "--set awp:trades.OPTION"):  # fmt: skip
        assert part in text
    own = page("compositions", "awp", terminal=True)
    assert "| `gamma`     | `0.005` " in own and "num_classes" not in own
    assert "it adds, around pgd_at: 1 forward, 1 weight gradient." in own
    assert "around pgd_at: none" in output_of("show", "EMA")
    result = bench("show", "awp:tradez")
    assert result.exit_code == 2 and "did you mean 'trades'" in result.output


def test_the_composition_of_contributing_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (source,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "Wrapper" in block]
    file = tmp_path / "focus.py"
    file.write_text(source)
    with isolated_registries(monkeypatch):
        output = output_of("check", "Focus:natural", "--plugin", str(file))
        bare, focused = (Loop(METHODS[name](num_classes=3, **given), 3).begin(0) for name, given in (
            ("pgd_at", {}), ("focus:pgd_at", {"focus_power": 0.0}),
        ))  # fmt: skip
        assert bare.step(bare.batch()).loss.equal(focused.step(focused.batch()).loss)
    assert all(line.startswith("ok    focus:natural") for line in output.splitlines()) and output


# Trained for real

BARE: list[tuple[str, dict[str, Any]]] = [
    ("awp:trades", {"gamma": 0.0}), ("fair_weight:absld", {"fair_power": 0.0}), ("ema:pgd_at", {"ema_decay": 0.0}),
    ("swa:ham", {"swa_start": 1.0}), ("fawa:frl", {"fawa_decay": 0.0, "fawa_threshold": 0.0, "fawa_start": 0.0}),
    ("awp:ema:pgd_at", {"gamma": 0.0, "ema_decay": 0.0}),
]  # fmt: skip
STRONG = ("awp:ema:trades", "fawa:frl", "swa:fair_weight:absld", "awp:ham")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compositions without strength, and the methods that they wrap."""
    out = tmp_path_factory.mktemp("bare")
    overrides = {f"{name}.{key}": value for name, given in BARE for key, value in given.items()}
    hosts = {name.rpartition(":")[2] for name, _ in BARE}
    train_all(tiny(*sorted(hosts), *(name for name, _ in BARE), overrides=overrides), out)
    return out


@pytest.mark.parametrize("name", [name for name, _ in BARE])
def test_a_training_without_strength_is_that_of_the_host_bit_for_bit(name: str, trained: Path) -> None:
    bare, wrapped = folder_of(trained, name.rpartition(":")[2]), folder_of(trained, name)
    assert file_hash(wrapped / "last.safetensors") == file_hash(bare / "last.safetensors")
    for row, expected in zip(history(wrapped), history(bare), strict=True):
        row["state"] = {key: value for key, value in row["state"].items() if key in expected["state"]}
        assert row == expected
    student, expected = (description(folder)["passes"]["student"] for folder in (wrapped, bare))
    assert student == expected


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """Compositions at their usual strength, averages from the first epoch on."""
    out = tmp_path_factory.mktemp("strong")
    found = tiny(*STRONG, overrides={
        "fawa:frl.fawa_threshold": 0.0, "fawa:frl.fawa_start": 0.0, "swa:fair_weight:absld.swa_start": 0.0,
    })  # fmt: skip
    train_all(found, out)
    return found, out


@pytest.mark.parametrize("name", STRONG)
def test_a_run_in_pieces_equals_the_undisturbed_one(name: str, undisturbed: tuple[Plan, Path], tmp_path: Path) -> None:
    found, whole = undisturbed
    job = job_of(found, name)
    for need in [*job.teachers.values(), *([job.warm_start] if job.warm_start else [])]:
        (tmp_path / need["folder"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / need["folder"]).symlink_to(whole / need["folder"])
    stops = run_with_interruptions(lambda progress: train(job, parts_of(job), tmp_path, Path("data"), progress))
    assert stops >= 2
    assert tree(tmp_path / job.folder) == tree(whole / job.folder)


@pytest.mark.parametrize("name", STRONG)
def test_declared_passes_are_counted_and_averages_are_what_is_stored(name: str, undisturbed: tuple[Plan, Path]) -> None:
    found, whole = undisturbed
    job = job_of(found, name)
    facts = description(whole / job.folder)
    assert (facts["method"], facts["label"].split(" ")[0]) == (name, name)
    declared = METHODS.sketch(name).call("passes", job.settings) * 200
    counted = facts["passes"]["student"]
    pairs = [(counted[kind], getattr(declared, kind)) for kind in ("forward", "input_grad", "backward")]
    assert all(a <= b for a, b in pairs) if name == "awp:ham" else all(a == b for a, b in pairs)
    trainer = Trainer(job, parts_of(job), whole / job.folder, teachers={})
    trainer.method.setup(trainer.model, trainer.ctx)
    trainer._resume()
    stored = load_weights(whole / job.folder / "last.safetensors")
    judged = trainer.method.evaluation_model(trainer.model).state_dict()
    assert all(tensor.equal(judged[key]) for key, tensor in stored.items())
    raw = trainer.model.state_dict()
    assert all(tensor.equal(raw[key]) for key, tensor in stored.items()) == (name == "awp:ham")


def test_the_state_of_the_class_weights_is_in_the_history(undisturbed: tuple[Plan, Path]) -> None:
    found, whole = undisturbed
    rows = history(whole / job_of(found, "swa:fair_weight:absld").folder)
    weights = [row["state"]["fair_weight"] for row in rows]
    assert weights[0] != [1.0] * 10 and weights[1] != weights[0] and "temperature_adv" in rows[0]["state"]
    assert all(5 / 6 <= value <= 5 / 2 for value in weights[1])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fawa:natural", "fawa: expected held-out training samples to judge by"),
        ("wat", "wat: expected held-out training samples to weigh by"),
        ("frl", "frl: expected held-out training samples to weigh by"),
        ("frl_remargin", "frl: expected held-out training samples to weigh by"),
        ("ema:frl", "frl: expected held-out training samples to weigh by"),
    ],
)
def test_without_holdout_what_needs_it_ends_with_a_sentence(name: str, sentence: str, tmp_path: Path) -> None:
    job = job_of(tiny(name, overrides={f"{name}.recipe.holdout": False}), name)
    with pytest.raises(BenchError, match=f"{name} .* seed 0: {sentence}, got none; use "):
        train(replace(job, warm_start=None), parts_of(job), tmp_path, Path("data"))


# The table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    out = tmp_path_factory.mktemp("table")
    arguments = ["--methods", "swa:trades,awp:natural,trades,natural", "--recipe", "short", "--epochs", "1"]
    limits = ["--train-limit", "100", "--limit", "40", "--attacks", "fgsm", "--workers", "1", "--quiet"]
    yield output_of("run", *arguments, *limits, "--out", str(out))
    frame = json.loads(output_of("report", str(out), "--format", "json", "--methods", "awp:natural,trades"))
    assert "awp:natural" in json.dumps(frame)


def test_the_table_has_a_row_for_each_composition_behind_its_method_and_names_the_schedule(table: str) -> None:
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ") and "last" in line]
    assert rows == ["natural", "awp:natural", "trades", "swa:trades"]
    assert "recipe short, 1 epochs, one-cycle rate, weights averaged (EMA 0.999)" in table
    assert "recipe short, 1 epochs, one-cycle rate for swa:trades" in table
