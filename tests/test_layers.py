"""The three storeys: imports only go down, importing is light and silent, and nothing shadows the packages."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import attacks
import bench
import bench.data
import bench.models
import bench.report
import methods
from attacks.registry import ATTACKS
from methods.registry import COMPOSITIONS, METHODS
from tests.helpers import structure

HOME = Path(__file__).resolve().parents[1]
BELOW = {"attacks": {"attacks"}, "methods": {"attacks", "methods"}, "bench": {"attacks", "methods", "bench"}}
FILES = [path for package in BELOW for path in sorted((HOME / package).rglob("*.py"))]
HEAVY = ("torch", "torchvision", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "pyarrow", "robustbench")
FRAME = {"__init__", "averaging", "base", "composition_facts", "features", "losses", "recipes", "registry", "wrapper"}


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(HOME), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the storey"
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOME)))
def test_imports_only_go_down(path: Path) -> None:
    storey = path.relative_to(HOME).parts[0]
    above = imported(path) & set(BELOW) - BELOW[storey]
    assert not above, f"{storey} must not know {above}"
    assert "tests" not in imported(path)


def test_rooms_know_only_the_floors_below() -> None:
    files = structure.modules()
    assert {structure.room(name, files) for name in files} == set(structure.FLOORS)
    assert structure.upward(structure.arrows(files), files) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert structure.circles(structure.arrows(structure.modules())) == []


def test_rooms_are_small_and_say_what_they_are_for() -> None:
    files = structure.modules()
    rooms = Counter(structure.room(name, files) for name in files)
    assert {name for name, count in rooms.items() if count > 12} == {"methods"}, "a list, which may be longer"
    assert rooms["bench"] <= 8
    for path in files.values():
        if path.name == "__init__.py":
            title = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
            assert len(title.split()) > 2 and title.endswith("."), path


def test_the_structure_sees_circles_and_arrows_that_go_up(tmp_path: Path) -> None:
    for name, text in {
        "bench/core/__init__.py": "",
        "bench/core/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bench.cli import b\n",
        "bench/cli/__init__.py": "",
        "bench/cli/b.py": "def f():\n    import bench.core.a\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    files = structure.modules(tmp_path)
    graph = structure.arrows(files)
    assert structure.circles(graph) == [["bench.cli.b", "bench.core.a"]]
    assert structure.upward(graph, files) == ["bench.core.a -> bench.cli.b"]


@pytest.mark.parametrize("package", BELOW)
def test_every_storey_has_files(package: str) -> None:
    assert sum(path.relative_to(HOME).parts[0] == package for path in FILES) > 5
    assert (HOME / package / "py.typed").is_file()


def test_attacks_know_torch_only() -> None:
    outside = {name for path in FILES if path.parent.name == "attacks" for name in imported(path)}
    outside -= {"attacks", *sys.stdlib_module_names}
    assert outside == {"torch"}, "the reference package is imported by name, in one adapter"


def test_importing_the_packages_is_light(tmp_path: Path) -> None:
    code = f"import sys, bench, attacks, methods, bench.cli.app\nprint(sorted(set(sys.modules) & set({HEAVY!r})))"
    result = run(code, tmp_path)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_importing_every_module_prints_nothing_and_writes_no_file(tmp_path: Path) -> None:
    names = [m.name for p in (attacks, methods, bench) for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    assert "bench.conformance.methods" in names and "attacks.autoattack.reference" in names
    before = {path: path.stat().st_mtime_ns for path in FILES}
    quiet = [name for name in names if not name.endswith("__main__")]
    code = f"import importlib\nfor name in {quiet!r}:\n    importlib.import_module(name)\n"
    result = run(code, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("name", ["attacks", "methods"])
@pytest.mark.parametrize("folder", [False, True], ids=["file", "package"])
def test_a_file_that_shadows_a_storey_is_named(tmp_path: Path, name: str, folder: bool) -> None:
    if folder:
        (tmp_path / name).mkdir()
        shadow = tmp_path / name / "__init__.py"
    else:
        shadow = tmp_path / f"{name}.py"
    shadow.write_text("raise RuntimeError('a stranger was imported')\n")
    result = run("import bench", tmp_path)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: bench: expected the package {name!r} beside {HOME / 'bench'}, got {shadow}; ")
    assert "rename that file or folder, or run from another directory" in last


def test_every_method_file_is_registered() -> None:
    files = {path.stem for path in (HOME / "methods").glob("*.py")} - FRAME
    homes = {*METHODS.builtin.values(), *COMPOSITIONS.builtin.values()}
    assert files == {m.removeprefix("methods.") for m in homes if ".compositions." not in m}


def test_every_registered_module_registers_its_names() -> None:
    for registry in (METHODS, COMPOSITIONS, ATTACKS):
        for name, module in registry.builtin.items():
            assert registry[name].__module__ == module


def test_the_public_names_are_there() -> None:
    modules = structure.modules()
    for package in (attacks, methods, bench, bench.data, bench.models, bench.report):
        for name in package.__all__:
            assert getattr(package, name) is not None and name in dir(package)
            is_module = f"{package.__name__}.{name}" in modules
            assert is_module == (name in ("losses", "metrics", "objectives")), "importing it would hide the function"
        with pytest.raises(AttributeError, match=f"module {package.__name__!r} has no attribute 'nothing'"):
            package.nothing  # noqa: B018
