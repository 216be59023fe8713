"""Where jobs run: worker processes give what one process gives, and one failure is one failure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.config.settings import combined
from bench.core import files
from bench.core.plugins import load_plugins
from bench.launch.display import Display
from bench.launch.launcher import launch
from bench.launch.scheduler import Report, Schedule, Workspace
from bench.plan.jobs import Job, Plan, title
from bench.plan.planner import make_plan
from tests.helpers.jobs import isolated_registries, job_of, plan, small, tree

# Natural training; one that kills its own process in the second epoch; one that raises what is no sentence of ours.
PLUGIN = '''
import os
from methods import register
from methods.natural import Natural

@register("dies")
class Dies(Natural):
    """Ends its process."""
    def begin_epoch(self, model, ctx):
        if ctx.epoch == 1:
            os._exit(7)

@register("raises")
class Raises(Natural):
    """Fails with an error of its own."""
    def begin_epoch(self, model, ctx):
        raise RuntimeError("no such thing")
'''
QUICK: dict[str, Any] = {"epochs": 2, "train_limit": 150, "limit": 20, "attacks": ("fgsm",)}


class Recorded(Display):
    """Remembers what it was shown."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str | None]] = []
        self.last: dict[str, tuple[int, int]] = {}
        self.lines: list[str] = []

    def update(self, job: Job, done: int, total: int, text: str) -> None:
        self.last[title(job)] = (done, total)

    def line(self, job: Job, text: str) -> None:
        self.lines.append(text)

    def ended(self, job: Job, sentence: str | None) -> None:
        self.ends.append((title(job), sentence))


def workspace(out: Path, plugins: Sequence[str] = ()) -> Workspace:
    return Workspace(out, Path("data"), plugins=tuple(plugins))


@pytest.fixture(scope="module")
def mixed() -> Plan:
    """Two methods that need nobody, and two that start from other runs."""
    return small(methods=("natural", "ard", "frl"), **QUICK)


@pytest.fixture(scope="module")
def here(mixed: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report, Recorded]:
    """That plan, run in this process."""
    out, display = tmp_path_factory.mktemp("here"), Recorded()
    report = launch(mixed, workspace(out), workers=1, display=display)
    return out, report, display


def test_every_job_of_a_plan_is_done_and_shown(mixed: Plan, here: tuple[Path, Report, Recorded]) -> None:
    out, report, display = here
    jobs: list[Job] = [*mixed.train, *mixed.evaluate]
    assert sorted(report.finished) == sorted(map(title, jobs))
    assert (report.skipped, report.failures, report.interrupted) == (0, {}, False)
    assert all(files.is_done(out / job.folder) for job in jobs)
    assert sorted(display.ends) == sorted((title(job), None) for job in jobs)
    assert all(done == total for done, total in display.last.values())
    assert set(display.last) == {title(job) for job in jobs}
    assert any(line.startswith("robust accuracy after FGSM: ") for line in display.lines)
    for job in jobs:
        assert f"begin: {title(job)}" in (out / job.folder / "log.txt").read_text()


def test_a_second_launch_does_nothing(mixed: Plan, here: tuple[Path, Report, Recorded]) -> None:
    out, _, _ = here
    before, display = tree(out), Recorded()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    report = launch(mixed, workspace(out), workers=1, display=display)
    assert (report.finished, report.skipped) == ([], len(mixed.train) + len(mixed.evaluate))
    assert display.ends == []
    assert tree(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_runs_that_others_start_from_come_first(mixed: Plan, tmp_path: Path) -> None:
    schedule = Schedule(mixed, workspace(tmp_path), ())
    first, second = schedule.next(), schedule.next()
    assert {title(job) for job in (first, second) if job} == {"train trades (teacher)", "train pgd_at seed 0"}
    assert title(schedule.next() or mixed.train[0]) == "train natural seed 0", "what starts from nothing need not wait"
    assert schedule.next() is None, "all else waits"
    assert first is not None
    schedule.end(first, "done", None)
    following = schedule.next()
    assert following is not None
    assert title(following) == "train ard seed 0"


def test_worker_processes_leave_the_same_files_and_outlive_one_anothers_failures(
    mixed: Plan, here: tuple[Path, Report, Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same plan in two workers, with one method beside it that ends its process and one that raises."""
    file = tmp_path / "bad.py"
    file.write_text(PLUGIN)
    out, display = tmp_path / "results", Recorded()
    with isolated_registries(monkeypatch):
        load_plugins([str(file)])
        more = small(methods=("dies", "natural", "raises", "ard", "frl"), **QUICK)
        report = launch(more, workspace(out, [str(file)]), workers=2, display=display)
    assert set(report.failures) == {"train dies seed 0", "train raises seed 0"}
    assert report.failures["train dies seed 0"] == "its process ended unexpectedly (exit code 7); out of memory?"
    log = out / job_of(more, "raises").folder / "log.txt"
    assert report.failures["train raises seed 0"] == f"RuntimeError: no such thing (details in {log})"
    assert "Traceback" in log.read_text()
    assert files.failure(log.parent) == report.failures["train raises seed 0"]
    assert {name: sentence for name, sentence in display.ends if sentence} == report.failures
    reference = tree(here[0])
    assert {name: digest for name, digest in tree(out).items() if name in reference} == reference
    assert all(Path(name).parts[2] in ("dies", "raises") for name in set(tree(out)) - set(reference))
    assert not any(files.is_done(out / job.folder) for job in more.evaluate if job.run_key in _keys(more, "dies"))


def _keys(plan: Plan, method: str) -> set[str]:
    return {job.key for job in plan.train if job.method == method}


def test_what_starts_from_a_failed_run_is_not_tried_and_says_why(tmp_path: Path) -> None:
    found = small(methods=("natural", "rslad", "ard"), **QUICK, overrides={"teacher.recipe.lr": 1e30})
    report = launch(found, workspace(tmp_path), workers=1)
    cause = report.failures.pop("train trades (recipe.lr=1e+30) (teacher)")
    assert "the loss is not finite in epoch 0" in cause
    sentence = f"not tried, because what it starts from failed: {cause}"
    assert report.failures == {"train rslad seed 0": sentence, "train ard seed 0": sentence}
    assert sorted(report.finished) == ["fgsm on natural seed 0, last", "train natural seed 0"]
    assert not (tmp_path / job_of(found, "ard").folder).exists()


def test_a_failed_job_is_tried_again_and_its_failure_forgotten(tmp_path: Path) -> None:
    found = small(methods=("natural",), **QUICK)
    folder = tmp_path / found.train[0].folder
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"broken")
    report = launch(found, workspace(tmp_path), workers=1)
    assert "cannot be resumed from" in report.failures["train natural seed 0"]
    assert (folder / "failed").is_file()
    (folder / "state.pt").unlink()
    assert launch(found, workspace(tmp_path), workers=1).failures == {}
    assert not (folder / "failed").exists()


def test_a_job_that_is_held_elsewhere_is_waited_for(tmp_path: Path) -> None:
    """Another holder finishes the run meanwhile; this launch then finds it done."""
    import threading

    found = small(methods=("natural",), **QUICK)
    launch(Plan(found.train, ()), workspace(tmp_path), workers=1)
    folder = tmp_path / found.train[0].folder
    (folder / "done").unlink()
    taken = threading.Event()

    def hold() -> None:
        with files.locked(folder, wait=True):
            taken.set()
            time.sleep(1.5)
            files.mark_done(folder)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(10)
    epochs = (folder / "timing.jsonl").read_text()
    report = launch(found, workspace(tmp_path), workers=1)
    holder.join()
    assert report.failures == {}
    assert len(report.finished) == 2
    assert (folder / "timing.jsonl").read_text() == epochs, "it was not trained a second time"


class Pressing(Recorded):
    """Presses Ctrl-C when a job moves on."""

    def update(self, job: Job, done: int, total: int, text: str) -> None:
        super().update(job, done, total, text)
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_and_the_next_launch_goes_on(
    mixed: Plan, here: tuple[Path, Report, Recorded], tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    report = launch(mixed, workspace(tmp_path), workers=1, display=Pressing())
    assert report.interrupted
    assert (report.finished, report.failures) == ([], {})
    assert signal.getsignal(signal.SIGINT) is handler, "the caller's own handler is back"
    report = launch(mixed, workspace(tmp_path), workers=1)
    assert not report.interrupted
    assert tree(tmp_path) == tree(here[0])


def test_a_launch_outside_the_main_thread_needs_no_signals(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    found = plan(methods=("natural",), **{**QUICK, "epochs": 1})
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(launch, found, workspace(tmp_path), workers=1).result().failures == {}


def test_an_unreadable_data_set_fails_its_jobs_alone(tmp_path: Path) -> None:
    run = combined({"methods": ("natural",), "dataset": "cifar10", "model": "small_cnn", "attacks": ("fgsm",)})
    found = make_plan(run, "cpu")
    report = launch(found, Workspace(tmp_path / "results", tmp_path / "nothing here"), workers=1)
    (sentence,) = report.failures.values()
    assert "nothing here" in sentence
    assert "--download" in sentence
