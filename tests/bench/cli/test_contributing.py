"""The example of CONTRIBUTING.md, as written: the file is saved, the commands are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report import load_results

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.S)
    assert found is not None
    return found[1]


def bench(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from bench.cli.app import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_example_works_as_written(tmp_path: Path) -> None:
    (tmp_path / "my_method.py").write_text(block("python"), encoding="utf-8")
    commands = [shlex.split(line) for line in block("bash").splitlines()]
    assert [command[:2] for command in commands] == [["bench", "check"], ["bench", "run"]]
    for _, *arguments in commands:
        result = bench(arguments, tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
    frame = load_results(tmp_path / "results").query("attack == 'pgd'").set_index("method")
    assert set(frame.index) == {"pgd_at", "error_weighted"}
    assert (frame["average"] > 0.4).all(), "five epochs must beat the chance of 0.1 by far"


def test_it_fits_the_ten_minutes_it_promises() -> None:
    assert len(block("python").splitlines()) <= 70
