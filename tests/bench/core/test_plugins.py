"""Methods, attacks and models of a user's own, from a file or a module, all the way to the table."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from attacks.registry import ATTACKS
from bench.cli.app import main
from bench.core import files
from bench.core.plugins import load_plugins
from bench.errors import UsageError
from methods.registry import METHODS
from tests.helpers.jobs import description, history, isolated_registries

PLUGIN = '''
"""Label smoothing at the adversarial point, and noise as an attack."""
from dataclasses import dataclass

import torch

from attacks import ATTACKS, ThreatModel
from attacks.passes import Passes
from bench.models.registry import MODELS
from methods import register
from methods.pgd_at import PGDAT


@register("smooth-at")
class SmoothAT(PGDAT):
    """PGD-AT whose loss also pulls towards uniform predictions.

    Args:
        smoothing: how much.
    """

    reported = ("seen",)

    def __init__(self, *, smoothing: float = 0.1, **inner):
        super().__init__(**inner)
        self.smoothing = smoothing
        self.register_buffer("seen", torch.zeros(self.num_classes, dtype=torch.float64))

    def observe(self, batch, adv, terms, ctx):
        self.seen += torch.bincount(batch.y, minlength=self.num_classes)


@ATTACKS.register("noise")
@dataclass(frozen=True)
class Noise:
    """One draw from the ball."""

    threat: ThreatModel = ThreatModel()
    stages = ()
    revision = 1

    def passes(self, num_classes):
        return Passes()

    def __call__(self, model, x, y, *, generator):
        return self.threat.project(self.threat.start(x, "uniform", generator), x)


@MODELS.register("tiny", image=(1, 8, 8), parameters=650, mmacs=0.001)
def tiny(num_classes, in_channels, image_size):
    """A linear classifier."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_channels * image_size**2, num_classes))
'''


@pytest.fixture(autouse=True)
def _own_tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with isolated_registries(monkeypatch):
        yield


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "smooth.py"
    file.write_text(PLUGIN)
    return file


def refused(plugin: str | Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_plugins([str(plugin)])
    return str(caught.value)


def test_a_file_registers_what_it_holds_and_is_read_once(plugin: Path) -> None:
    assert "smooth_at" not in METHODS
    load_plugins([str(plugin), str(plugin)])
    load_plugins([str(plugin)])
    assert METHODS.sketch("Smooth_AT").settings["smoothing"] == 0.1
    assert METHODS.sketch("smooth-at").source == plugin
    assert METHODS["smooth_at"](steps=3).settings()["steps"] == 3
    assert "noise" in ATTACKS


def test_a_module_registers_likewise(plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package").mkdir()
    plugin.rename(tmp_path / "their_package" / "__init__.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    load_plugins(["their_package"])
    assert "smooth-at" in METHODS
    del sys.modules["their_package"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import no_such_thing", "does not import: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def f(:", "does not import: SyntaxError: "),
        ("1 / 0", "does not import: ZeroDivisionError: division by zero"),
        (
            'from methods import register, Method\n@register("ABSLD")\nclass Mine(Method): pass',
            "does not import: ValueError: method 'ABSLD' is already registered by methods.absld; choose another name",
        ),
        (
            'from methods import register, Method\n@register("my method!")\nclass Mine(Method): pass',
            "does not import: ValueError: method name 'my method!': expected letters, digits, '-' and '_'",
        ),
    ],
)
def test_a_file_that_does_not_import_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    assert refused(file).startswith(f"--plugin {file}: {sentence}")


def test_a_plugin_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    absent = tmp_path / "absent.py"
    assert refused(absent) == f"--plugin {absent}: expected a Python file, found none; give its path or a module name"
    assert refused("no_such_module") == (
        "--plugin no_such_module: does not import: ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_two_plugins_may_not_share_a_name(plugin: Path, tmp_path: Path) -> None:
    load_plugins([str(plugin)])
    other = tmp_path / "other.py"
    other.write_text('from methods import register, Method\n@register("smooth_at")\nclass Mine(Method): pass')
    assert re.search(
        "method 'smooth_at' is already registered by bench_plugin_smooth_[0-9a-f]{8}; choose", refused(other)
    )


def test_a_plugin_is_listed_shown_and_refused_through_the_command(plugin: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(main, ["list", "methods", "--plugin", str(plugin)])
    assert re.search(r"^smooth-at +\S", listed.stdout, re.MULTILINE)
    shown = runner.invoke(main, ["show", "smooth_at", "--plugin", str(plugin)])
    assert "| `smoothing` | `0.1` " in shown.stdout
    assert f"Source: {plugin}" in shown.stdout
    refused = runner.invoke(main, ["run", "--plugin", str(tmp_path / "none.py"), "--dry-run"])
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_a_plugin_trains_in_worker_processes_and_stands_in_the_table(plugin: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    arguments = [
        "run", "--plugin", str(plugin), "--methods", "smooth-at", "--model", "tiny", "--attacks", "noise",
        "--set", "smooth_at.smoothing=0.2", "--epochs", "2", "--train-limit", "200", "--limit", "40",
        "--workers", "2", "--out", str(out),
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "smooth-at (smoothing=0.2)" in result.stdout
    (folder,) = (path.parent for path in out.glob("*/*/*/*/run.json"))
    assert folder.parts[-4:-1] == ("digits", "tiny", "smooth-at")
    assert description(folder)["source"] == files.file_hash(plugin)
    assert [sum(row["state"]["seen"]) for row in history(folder)] == [200, 400]
    (evaluation,) = (path.parent for path in folder.glob("eval/*/done"))
    assert files.read_json(evaluation / "eval.json")["attack"] == "noise"
