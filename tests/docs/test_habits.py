"""Workflow and hooks run what `.ci/run` runs, with versions that setup.cfg admits."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def workflow() -> Any:
    return yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]["tests"]


def hooks() -> dict[str, Any]:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    return {hook["id"]: hook for hook in repository["hooks"]}


def requirement(section: str, option: str, name: str) -> str:
    """What is asked of a package: `>=2.7`."""
    (line,) = re.findall(rf"^{name}([<>=].*)$", SETUP[section][option], re.M)
    return line


def test_the_workflow_calls_the_targets_of_ci() -> None:
    targets = [line for line in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines() if line.startswith("make ")]
    assert targets == [step["run"] for step in workflow()["steps"] if "run" in step]
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[0].split()
    assert {target.removeprefix("make ") for target in targets} <= set(phony)


def test_the_workflow_takes_the_oldest_and_the_newest_that_is_admitted() -> None:
    oldest, newest = workflow()["strategy"]["matrix"]["include"]
    known = re.findall(r"^Programming Language :: Python :: (\d+\.\d+)$", SETUP["metadata"]["classifiers"], re.M)
    assert SETUP["options"]["python_requires"] == f">={oldest['python']}"
    assert (oldest["python"], newest["python"]) == (known[0], known[-1])
    for name in ("torch", "torchvision"):
        asked = requirement("options", "install_requires", name)
        assert re.fullmatch(r">=\d+\.\d+", asked), "a cap on torch has to reach the workflow's newest as well"
        assert f"{name}=={asked.removeprefix('>=')}.0" in oldest["torch"].split()
    assert newest["torch"] == "torch torchvision"


@pytest.mark.parametrize("tool", ["ruff", "ruff-format"])
def test_hooks_take_the_ruff_of_setup_cfg(tool: str) -> None:
    asked = "ruff" + requirement("options.extras_require", "test", "ruff")
    assert hooks()[tool]["additional_dependencies"] == [asked]


def test_hooks_call_what_there_is() -> None:
    assert set(hooks()) == {"ruff", "ruff-format", "mypy", "typos", "large-files"}
    assert hooks()["mypy"]["entry"] == "make types"


def test_no_committed_text_is_too_large_for_the_hook() -> None:
    limit = 1000 * int(hooks()["large-files"]["entry"].rpartition("=")[2])
    folders = ("attacks", "methods", "bench", "benchmarks", "docs", "results/reference", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert [path for path in files if path.stat().st_size > limit and "__pycache__" not in path.parts] == []


@pytest.mark.parametrize("page", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md")), ids=lambda page: page.stem)
def test_issue_templates_have_a_name_and_say_what_they_are_for(page: Path) -> None:
    _, head, body = page.read_text(encoding="utf-8").split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"name", "about", "labels"} and body.strip()
