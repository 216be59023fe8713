"""Small plans on digits, the command in this process, and readers of a results folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attacks.plugins.registry import Registry
from attacks.registry import ATTACKS
from bench.cli.app import main
from bench.config.settings import RunSettings, combined
from bench.core import files
from bench.core.plugins import load_plugins
from bench.core.progress import Progress
from bench.data.registry import DATASETS
from bench.data.splits import Parts, load
from bench.errors import Interrupted
from bench.models.registry import MODELS
from bench.plan.jobs import Plan, TrainJob
from bench.plan.planner import make_plan
from bench.training.trainer import train
from methods.registry import COMPOSITIONS, METHODS

# The real command, as an installed `bench` runs it.
COMMAND = [sys.executable, "-c", "from bench.cli.app import main; main()"]
# Files that may differ between two equal runs.
VOLATILE = ("timing.jsonl", "log.txt")


def bench(*arguments: str | Path) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(main, [*map(str, arguments)])


def output_of(*arguments: str | Path) -> str:
    """What a command that has to succeed prints."""
    result = bench(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def settings(**changes: Any) -> RunSettings:
    """Validated settings of a run on digits; everything not named stays at its default."""
    return combined(changes)


def plan(**changes: Any) -> Plan:
    """The plan of a run on the CPU."""
    return make_plan(settings(**changes), "cpu")


def small(**changes: Any) -> Plan:
    """A plan that trains in a second or two: three epochs of three steps, one attack."""
    return plan(**{"epochs": 3, "train_limit": 300, "limit": 40, "attacks": ("fgsm",), **changes})


def tiny(*methods: str, **changes: Any) -> Plan:
    """A plan of two epochs of two steps."""
    return small(**{"methods": methods, "epochs": 2, "train_limit": 100, "batch_size": 60, **changes})


def folder_of(out: Path, method: str) -> Path:
    """Where the one run of a method on digits is."""
    (folder,) = out.glob(f"digits/small_cnn/{method.replace(':', '+')}/*")
    return folder


def job_of(plan: Plan, method: str, role: str = "student") -> TrainJob:
    """The one training job of a method in a plan."""
    (job,) = [job for job in plan.train if job.method == method and job.role == role]
    return job


def key(method: str = "absld", **changes: Any) -> str:
    """The key of a method's run in a plan."""
    return job_of(plan(**{"methods": (method,), **changes}), method).key


def train_all(plan: Plan, out: Path, progress: Progress | None = None) -> None:
    """Train every job of a plan in this process, in the plan's order."""
    for job in plan.train:
        train(job, parts_of(job), out, Path("data"), progress)


def parts_of(job: TrainJob) -> Parts:
    """The data of a job."""
    return load(job.dataset, train_limit=job.train_limit)


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder by its relative path, but of times and logs."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in VOLATILE)
    return {str(path.relative_to(folder)): files.file_hash(path) for path in paths}


def history(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def description(folder: Path) -> dict[str, Any]:
    """The content of run.json."""
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def restate(folder: Path) -> None:
    """Make the record of a finished folder state its files as they are now, as if they had been written so."""
    (record,) = [folder / name for name in files.RECORDS if (folder / name).is_file()]
    facts = files.read_json(record)
    files.write_json(record, facts | {"files": {name: files.file_hash(folder / name) for name in facts["files"]}})
    files.mark_done(folder)


class StopAt(Progress):
    """Asks a job to stop at the n-th time it looks; remembers the lines it was given."""

    def __init__(self, n: int) -> None:
        self.n, self.asked = n, 0
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    @property
    def stopping(self) -> bool:
        self.asked += 1
        return self.asked == self.n


def run_with_interruptions(start: Any, n: int = 2) -> int:
    """Call `start(progress)` until it ends by itself, stopping it each time at its n-th look; the number of stops."""
    for stops in range(200):
        try:
            start(StopAt(n))
        except Interrupted:
            continue
        return stops
    raise AssertionError("200 sessions made no end of it")


def jobs_of_edited_plugin(method: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainJob]:
    """The job of a plug-in's method for the text of its file, for an edited text, and for the first text again."""
    jobs = []
    for name, content in (("a", text), ("b", text + "# a change\n"), ("c", text)):
        (folder / name).mkdir()
        file = folder / name / "plugin.py"
        file.write_text(content)
        with monkeypatch.context() as patch, isolated_registries(patch):
            load_plugins([str(file)])
            jobs.append(job_of(plan(methods=(method,)), method))
    return jobs


@contextmanager
def isolated_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let plug-ins register in copies of the tables, so that other tests do not meet them."""
    tables: list[Registry[Any]] = [METHODS, COMPOSITIONS, ATTACKS, DATASETS, MODELS]
    loaded = set(sys.modules)
    for table in tables:
        for name in table.builtin:
            table[name]  # what is imported meanwhile would be forgotten with the copy
        monkeypatch.setattr(table, "_objects", dict(table._objects))
        monkeypatch.setattr(table, "_facts", dict(table._facts))
    yield
    for name in [name for name in sys.modules if name.startswith("bench_plugin_") and name not in loaded]:
        del sys.modules[name]
