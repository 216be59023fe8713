"""Run settings: four layers, two file formats, names in any spelling, and a message for every bad value."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bench.cli.app import main
from bench.config.config_file import from_file
from bench.config.settings import SETTINGS, RunSettings, combined
from bench.core.values import parse_number, parse_value
from bench.errors import UsageError
from methods.registry import METHODS
from tests.helpers.jobs import bench, job_of, plan

TOML = """
methods = ["ABSLD", "rslad"]
dataset = "Digits"
seeds = [3, 1]
eps = "8/255"
batch-size = 64
select = "best"
download = true

[absld]
temperature_rate = "1/20"
recipe = {lr = 0.05}

[set]
"pgd.steps" = 50
"""
YAML = """
methods: [ABSLD, rslad]
dataset: Digits
seeds: [3, 1]
eps: 8/255
batch_size: 64
select: best
download: true
absld:
  temperature_rate: 1/20
  recipe:
    lr: 0.05
set:
  pgd.steps: 50
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refused(path: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        from_file(write(path, text))
    return str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("run.toml", TOML), ("run.yaml", YAML), ("run.yml", YAML)])
def test_a_file_says_the_same_in_toml_and_in_yaml(tmp_path: Path, name: str, text: str) -> None:
    assert from_file(write(tmp_path / name, text)) == {
        "methods": ("ABSLD", "rslad"),
        "dataset": "Digits",
        "seeds": (3, 1),
        "eps": 8 / 255,
        "batch_size": 64,
        "select": "best",
        "download": True,
        "overrides": {"absld.temperature_rate": 0.05, "absld.recipe.lr": 0.05, "pgd.steps": 50},
    }


def test_a_file_may_hold_one_value_or_a_comma_list_where_several_are_meant(tmp_path: Path) -> None:
    found = from_file(write(tmp_path / "run.yaml", "methods: absld,rslad\nseeds: 7\nattacks: pgd\n"))
    assert found == {"methods": ("absld", "rslad"), "seeds": (7,), "attacks": ("pgd",)}


def test_an_empty_file_asks_for_nothing(tmp_path: Path) -> None:
    assert combined(from_file(write(tmp_path / "run.yaml", ""))) == combined({})


def test_later_layers_outrank_earlier_ones_value_by_value() -> None:
    file = {"epochs": 7, "seeds": (1, 2), "overrides": {"absld.temperature_rate": 0.2, "absld.recipe.lr": 0.5}}
    flags = {"epochs": 9, "overrides": {"absld.recipe.lr": 0.7}}
    both = combined(file, flags)
    assert (both.epochs, both.seeds, both.block) == (9, (1, 2), RunSettings().block)
    assert both.overrides == {"absld.temperature_rate": 0.2, "absld.recipe.lr": 0.7}


@pytest.mark.parametrize(
    ("layers", "lr", "batch_size"),
    [
        ([{"recipe": "paper"}], 0.001, 128),  # the recipe of FRL
        ([{"recipe": "paper"}, {"overrides": {"frl.recipe.lr": 0.02}}], 0.02, 128),
        ([{"overrides": {"frl.recipe.lr": 0.02}}, {"overrides": {"frl.recipe.lr": 0.03}}], 0.03, 128),
        ([{"batch_size": 32}, {"overrides": {"frl.recipe.batch_size": 16}}], 0.01, 16),
    ],
)
def test_defaults_recipe_file_flags_in_this_order(layers: list[dict[str, Any]], lr: float, batch_size: int) -> None:
    from bench.plan.planner import make_plan

    recipe = job_of(make_plan(combined({"methods": ("frl",)}, *layers), "cpu"), "frl").recipe
    assert (recipe.lr, recipe.batch_size) == (lr, batch_size)


def test_a_methods_default_stands_until_something_outranks_it() -> None:
    assert job_of(plan(methods=("absld",)), "absld").settings["temperature_rate"] == 0.1
    changed = plan(methods=("absld",), overrides={"absld.temperature_rate": 0.05})
    assert job_of(changed, "absld").settings["temperature_rate"] == 0.05


def test_names_in_any_spelling_become_the_registered_one() -> None:
    found = combined(
        {
            "methods": ("PGD-AT", "pgd_at", "Frl_Remargin"), "attacks": ("PGD_trades", "AutoAttack"),
            "dataset": "CIFAR10", "model": "Small-CNN", "teacher_model": "small-cnn-WIDE",
        }
    )  # fmt: skip
    assert found.methods == ("pgd_at", "frl_remargin")
    assert found.attacks == ("pgd-trades", "autoattack")
    assert (found.dataset, found.model, found.teacher_model) == ("cifar10", "small_cnn", "small_cnn_wide")


def test_a_builder_of_the_users_own_keeps_its_name() -> None:
    assert combined({"model": "My.Module:Build"}).model == "My.Module:Build"


def test_no_methods_means_all_of_them_and_seeds_come_once() -> None:
    found = combined({"seeds": (4, 2, 4)})
    assert found.methods == tuple(METHODS.names())
    assert found.seeds == (4, 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.5", 0.5), ("1e-2", 0.01), (0.25, 0.25), (1, 1.0)],
)
def test_a_radius_is_a_number_or_a_fraction(text: str | float, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("0.1", 0.1), ("5/6", 5 / 6), ("true", True), ("False", False), ("none", None), ("1,2", (1, 2)),
        ("(0.1, 0.5)", (0.1, 0.5)), ("3,", (3,)), ("product", "product"), ("1/0", "1/0"), (" 7 ", 7),
    ],
)  # fmt: skip
def test_a_value_of_the_command_line_finds_its_type(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 0}, "--epochs: expected a whole number from 1 to 100000, got 0"),
        ({"batch_size": 1}, "--batch-size: expected a whole number of at least 2, got 1"),
        ({"limit": 0}, "--limit: expected a whole number of at least 1, got 0"),
        ({"train_limit": 1}, "--train-limit: expected a whole number of at least 2, got 1"),
        ({"autoattack_limit": -5}, "--autoattack-limit: expected a whole number of at least 1, got -5"),
        ({"block": 0}, "--block: expected a whole number of at least 1, got 0"),
        ({"threads": 0}, "--threads: expected a whole number of at least 1, got 0"),
        ({"workers": 0}, "--workers: expected a whole number of at least 1, got 0"),
        ({"eps": 0.0}, "--eps: expected a radius above 0 in the units of x in [0, 1], got 0.0; try 8/255"),
        ({"eps": -0.1}, "--eps: expected a radius above 0 in the units of x in [0, 1], got -0.1; try 8/255"),
        ({"eps": float("nan")}, "--eps: expected a number, got nan"),
        ({"eps": "8/255"}, "--eps: expected a number, got '8/255'"),
        ({"epochs": 10**22}, f"--epochs: expected a whole number from 1 to 100000, got {10**22}"),
        ({"epochs": "3"}, "--epochs: expected a whole number from 1 to 100000, got '3'"),
        ({"limit": 2.5}, "--limit: expected a whole number of at least 1, got 2.5"),
        ({"threads": True}, "--threads: expected a whole number of at least 1, got True"),
        ({"norm": "l1"}, "--norm: expected linf or l2, got 'l1'"),
        ({"seeds": (0, "1")}, "--seeds: expected a list, each a whole number, got (0, '1')"),
        ({"download": "yes"}, "--download: expected true or false, got 'yes'"),
        ({"seeds": ()}, "--seeds: expected at least one seed, got none"),
        ({"attacks": ()}, "--attacks: expected at least one attack, got none"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused_by_its_flag(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        combined(change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"methods": ("absdl",)}, "unknown method 'absdl'; did you mean 'absld'?"),
        ({"attacks": ("pdg",)}, "unknown attack 'pdg'; did you mean 'pgd'?"),
        ({"dataset": "cifar"}, "unknown dataset 'cifar'; did you mean 'cifar10'?"),
        ({"model": "resnet81"}, "unknown model 'resnet81'; did you mean 'resnet18'?"),
        ({"teacher_model": "smallcnn"}, "unknown model 'smallcnn'; did you mean 'small_cnn'?"),
    ],
)
def test_an_unknown_name_gets_the_closest_and_the_list(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)} available: .*,") as caught:
        combined(change)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch: 3\n", "unknown setting 'epoch'; did you mean 'epochs'?"),
        ("colour: red\n", "unknown setting 'colour'"),
        ("epochs: 3.5\n", "epochs: expected a whole number, got 3.5"),
        ("epochs: true\n", "epochs: expected a whole number, got True"),
        ("dataset: 5\n", "dataset: expected a text, got 5"),
        ("download: 1\n", "download: expected true or false, got 1"),
        ("seeds: [a]\n", "seeds: invalid literal for int() with base 10: 'a', got ['a']"),
        ("eps: big\n", "eps: could not convert string to float: 'big', got 'big'"),
        ("select: sometimes\n", "select: expected one of last, best, test, got 'sometimes'"),
        ("norm: l1\n", "norm: expected one of linf, l2, got 'l1'"),
    ],
)
def test_a_bad_line_of_a_file_is_named_with_the_file(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "run.yaml"
    assert refused(file, text) == f"{file}: {sentence}"


def test_a_division_by_zero_in_a_file_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    assert refused(file, "eps: 8/0\n") == f"{file}: eps: float division by zero, got '8/0'"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("run.toml", "methods = [", "not valid TOML: "),
        ("run.yaml", "methods: [", "not valid YAML: "),
        ("run.yaml", "- absld\n", "not valid YAML: expected a mapping, got list"),
        ("run.json", "{}", "expected a .toml, .yaml or .yml file"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_refused(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    assert refused(tmp_path / name, text).startswith(f"--config {tmp_path / name}: {sentence}")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--config .*absent\.toml: cannot be read: .*No such file"):
        from_file(tmp_path / "absent.toml")


def test_every_setting_but_plug_ins_and_overrides_is_an_option_of_run() -> None:
    options = {parameter.name: parameter for parameter in main.commands["run"].params if parameter.name in SETTINGS}
    assert {field.name for field in fields(RunSettings)} == {*options, "overrides"}
    for name, option in options.items():
        assert option.help == SETTINGS[name].help or name == "plugins"
        assert SETTINGS[name].flag in option.opts or name == "plugins"


def test_defaults_are_in_the_types_of_their_settings() -> None:
    for name, value in vars(RunSettings()).items():
        if name in SETTINGS and value not in (None, ()) and SETTINGS[name].kind is not float:
            assert SETTINGS[name].read(list(value) if isinstance(value, tuple) else value) == value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"eps": 8}, "--eps: expected a radius of at most 1, beyond which linf holds every image in [0, 1], got 8"),
        ({"eps": 8}, "; did you mean 8/255?"),
        ({"eps": 1.01}, "did you mean 1.01/255?"),
        ({"eps": 8.1, "norm": "l2"}, "--eps: expected a radius of at most 8, beyond which l2 holds every image"),
        ({"eps": 300}, "got 300"),
    ],
)
def test_a_radius_beyond_the_box_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        combined(change)


def test_a_radius_as_wide_as_the_box_is_not() -> None:
    assert combined({"eps": 1.0}).eps == 1
    assert combined({"eps": 8.0, "norm": "l2"}).eps == 8, "the diagonal of images of 8x8"


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_an_empty_value_of_a_flag_is_refused(name: str) -> None:
    if SETTINGS[name].kind is not bool:
        result = bench("run", "--dry-run", SETTINGS[name].flag.replace("plugins", "plugin"), "")
        assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr


def test_one_value_stands_for_a_list_of_one() -> None:
    run = combined({"methods": "trades", "attacks": "pgd", "seeds": 3})
    assert (run.methods, run.attacks, run.seeds) == (("trades",), ("pgd",), (3,))


def test_an_empty_file_name_is_refused() -> None:
    assert bench("run", "--dry-run", "--config", "").exit_code == 2
    assert bench("run", "--dry-run", "--seeds", ",").exit_code == 2


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.toml", "methods = {}", "methods: expected a value, not a table"),
        ("a.toml", "methods = []", "methods: expected at least one value"),
        ("a.toml", "seeds = ''", "seeds: expected at least one value"),
        ("a.toml", "eps = true", "eps: expected a number, got True"),
        ("a.yaml", "eps: 0.1\neps: 0.2\n", "eps stands there twice; keep one"),
        ("a.yaml", "absld:\n  recipe:\n    lr: 0.1\n    lr: 0.2\n", "lr stands there twice; keep one"),
        ("a.yaml", "methods: [absld]\nabsld: {beta: 1, beta: 1}\n", "beta stands there twice; keep one"),
    ],
)
def test_what_a_file_leaves_open_is_refused(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=re.escape(sentence)):
        from_file(tmp_path / name)


@pytest.mark.parametrize(("text", "value"), [("[]", ()), ("()", ()), ("[3]", (3,)), ("[3, 4]", (3, 4))])
def test_brackets_make_a_list(text: str, value: tuple[int, ...]) -> None:
    assert parse_value(text) == value
