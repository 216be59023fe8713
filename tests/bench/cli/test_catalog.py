"""The commands list and show, help and version, and that they do not import torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attacks.plugins.registry import Registry
from attacks.registry import ATTACKS
from bench.data.registry import DATASETS
from bench.models.registry import MODELS
from bench.report import REPORTERS
from methods.registry import METHODS
from tests.helpers.jobs import bench

KINDS: dict[str, Registry[Any]] = {
    "methods": METHODS,
    "attacks": ATTACKS,
    "datasets": DATASETS,
    "models": MODELS,
    "reporters": REPORTERS,
}

COMMANDS = ["run", "evaluate", "report", "verify", "merge", "status", "list", "show", "check"]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = bench(*command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert bench(*command, "-h").stdout == result.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_names_everything_with_a_line_each(kind: str) -> None:
    result = bench("list", kind)
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert list(lines) == [*KINDS[kind].names(), *KINDS[kind].forms]
    assert all(len(line) > 10 for line in lines.values())


@pytest.mark.parametrize("name", [*METHODS.names(), *ATTACKS.names(), *DATASETS.names(), *MODELS.names()])
def test_everything_can_be_shown(name: str) -> None:
    result = bench("show", name.upper().replace("_", "-"))
    assert result.exit_code == 0
    assert result.stdout.startswith(f"# {name} (")
    assert "Source: " in result.stdout


def test_a_method_is_shown_with_its_paper_defaults_and_departures() -> None:
    text = bench("show", "absld").stdout
    for part in (
        "arXiv:2312.05508", "## Departures", "| `temperature_rate` | `0.1` ", "| `rate_milestones`  | `214, 259, 284` ",
        "| epochs       | 300             | 30 ", "Teachers: robust.", "| at default settings                      | 1",
        "--set absld.recipe.holdout=false",
    ):  # fmt: skip
        assert part in text
    assert "Starts from the weights of a run of `pgd_at`." in bench("show", "frl").stdout


@pytest.mark.parametrize(
    ("name", "size", "others"),
    [("imagenette", 160, "imagenette"), ("imagenette_320", 320, "imagenette"), ("imagenet@64", 64, "imagenet")],
)
def test_a_data_set_is_shown_with_its_size_and_how_to_name_another(name: str, size: int, others: str) -> None:
    text = bench("show", name).stdout
    assert f"\n- size: {size}; another by name: {others}_SIZE\n" in text
    assert f"\n- image: 3, {size}, {size}\n" in text
    assert text.count("- size:") == 1
    assert "--set" not in text  # data sets have no settings


@pytest.mark.parametrize(
    ("name", "meant"),
    [("wrn_34_10", "wrn34_10"), ("PreActResNet18", "preact_resnet18"), ("svnh", "svhn"), ("robustbnch", "robustbench")],
)
def test_what_is_not_there_to_be_shown_gets_the_closest_name(name: str, meant: str) -> None:
    result = bench("show", name)
    assert result.exit_code == 2
    assert f"unknown name {name!r}; did you mean {meant!r}? available: natural, " in result.stderr
    assert "unknown name 'zzzzzz'; available: natural, " in bench("show", "zzzzzz").stderr


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert version("robust-fairness-bench") in bench("--version").stdout


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["list", "methods"], ["show", "absld"], ["run", "--dry-run", "--device", "cpu"]],
    ids=" ".join,
)
def test_planning_and_listing_do_not_import_torch(arguments: list[str], tmp_path: Path) -> None:
    """In a process of its own, since this one has torch already."""
    code = (
        "import sys\nfrom bench.cli.app import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = sorted({'torch', 'pandas', 'pyarrow', 'sklearn', 'matplotlib'} & set(sys.modules))\n"
        "    print('heavy:', heavy, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "heavy: []"
