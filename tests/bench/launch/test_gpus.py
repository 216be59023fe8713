"""Jobs side by side on several GPUs: the real workers, bound to GPUs that only their environment knows of."""

from __future__ import annotations

import threading
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.cli.app import main
from bench.config.config_file import from_file
from bench.config.settings import combined
from bench.core import device
from bench.core.plugins import load_plugins
from bench.errors import UsageError
from bench.launch.display import Display
from bench.launch.launcher import launch, submit_ready
from bench.launch.scheduler import Schedule, Workspace
from bench.launch.worker_pool import Worker, WorkerPool
from bench.plan.jobs import EvalJob, Job, Plan, title
from bench.plan.planner import make_plan
from tests.helpers.jobs import isolated_registries, job_of, small, tree

# Natural training that notes which GPU it sees. One method ends its process; another goes on only when the worker in
# place of that one, the third process, has work.
PLUGIN = '''
import os
import time
from pathlib import Path
from methods import register
from methods.natural import Natural

class _Seen(Natural):
    def begin_epoch(self, model, ctx):
        if ctx.epoch == 0:
            Path(NOTES, f"{type(self).__name__}-{os.environ.get('CUDA_VISIBLE_DEVICES')}-{os.getpid()}").touch()

@register("one")
class One(_Seen):
    """Waits for a third process."""
    def begin_epoch(self, model, ctx):
        super().begin_epoch(model, ctx)
        end = time.monotonic() + 60
        while len({note.name.rsplit("-", 1)[1] for note in Path(NOTES).iterdir()}) < 3 and time.monotonic() < end:
            time.sleep(0.05)

@register("two")
class Two(_Seen):
    """Notes its GPU."""

@register("three")
class Three(_Seen):
    """Notes its GPU."""

@register("dies")
class Dies(_Seen):
    """Ends its process."""
    def begin_epoch(self, model, ctx):
        super().begin_epoch(model, ctx)
        os._exit(7)
'''
QUICK: dict[str, Any] = {"epochs": 1, "train_limit": 100, "limit": 20, "block": 5, "attacks": ("fgsm",)}


class RecordingDisplay(Display):
    """What a launch says, job by job."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.ends: dict[str, str | None] = {}

    def started(self, job: Job, gpu: str) -> None:
        self.begun.append((title(job), gpu))

    def ended(self, job: Job, sentence: str | None) -> None:
        self.ends[title(job)] = sentence


def test_every_worker_sees_one_gpu_and_a_dead_one_is_replaced_on_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, file = tmp_path / "notes", tmp_path / "seen.py"
    notes.mkdir()
    file.write_text(PLUGIN.replace("NOTES", repr(str(notes))))
    shown, workspace = RecordingDisplay(), Workspace(tmp_path / "out", Path("data"), plugins=(str(file),))
    with isolated_registries(monkeypatch):
        load_plugins([str(file)])
        found = small(methods=("dies", "one", "two", "three"), **QUICK)
        report = launch(found, workspace, workers=2, gpus=("4", "GPU-b7"), display=shown)
        seen = [path.name.split("-", 1) for path in notes.iterdir()]
        launch(small(methods=("one",), **QUICK), replace(workspace, out=tmp_path / "unbound"), workers=1)
    assert report.failures == {"train dies seed 0": "its process ended unexpectedly (exit code 7); out of memory?"}
    assert sorted(name for name, _ in seen) == ["Dies", "One", "Three", "Two"]
    gpus = [place.rsplit("-", 1) for _, place in seen]
    assert {gpu for gpu, _ in gpus} == {"4", "GPU-b7"}
    assert len({process for _, process in gpus}) == 3, "the dead worker and two that live"
    assert all(len({gpu for gpu, process in gpus if process == one}) == 1 for _, one in gpus)
    assert shown.begun[:2] == [("train dies seed 0", "4"), ("train one seed 0", "GPU-b7")]
    assert {name for name, _ in shown.begun if "part" not in name} == set(shown.ends) - {
        name for name in shown.ends if "part" in name
    }
    where = dict(shown.begun)
    for job in (job_of(found, "one"), job_of(found, "two")):
        log = (tmp_path / "out" / job.folder / "log.txt").read_text()
        assert f"begin: {title(job)} on GPU {where[title(job)]}" in log
    unbound, files = tree(tmp_path / "unbound"), tree(tmp_path / "out")
    assert {name: files[name] for name in unbound} == unbound, "where a job ran moves nothing"


def test_the_number_of_a_gpu_is_not_part_of_a_key() -> None:
    first, second = (make_plan(combined({"methods": ("natural",)}), name) for name in ("cuda", "cuda:1"))
    assert [job.key for job in first.jobs] == [job.key for job in second.jobs]


def test_more_workers_than_gpus_take_them_in_turn_and_a_free_one_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = small(methods=("natural",), seeds=(0, 1, 2, 3), **QUICK)
    schedule, shown = Schedule(Plan(found.train, ()), Workspace(tmp_path, Path("data")), ()), RecordingDisplay()
    pipes = [Pipe() for _ in range(4)]
    ends = list(pipes)
    pool = WorkerPool(Workspace(tmp_path, Path("data")), shown, threading.Event(), ("0", "1", "0"))
    monkeypatch.setattr(pool, "start", lambda slot: Worker(None, pipes.pop()[0], slot))
    submit_ready(schedule, pool)
    assert [gpu for _, gpu in shown.begun] == ["0", "0", "1"]
    del pool.workers[2], pool.running[2]
    submit_ready(schedule, pool)
    assert [gpu for _, gpu in shown.begun] == ["0", "0", "1", "1"]
    assert all(there.poll() for _, there in ends), "each has been given its job"


def test_an_evaluation_is_cut_for_workers_with_gpus_of_their_own(tmp_path: Path) -> None:
    found = make_plan(combined({"methods": ("natural",), **QUICK}), "cuda")
    workspace, keys = Workspace(tmp_path, Path("data")), [job.key for job in found.train]
    (evaluation,) = found.evaluate
    alone = Plan((), (evaluation,))
    assert Schedule(alone, workspace, keys, workers=2).next() == evaluation, "two workers on one GPU gain nothing"
    part = Schedule(alone, workspace, keys, workers=2, own_devices=True).next()
    assert isinstance(part, EvalJob)
    assert part.part == (1, 2)


# How many


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"gpus": "2"}, (2, ("0", "1"))),
        ({"gpus": "all"}, (3, ("0", "1", "2"))),
        ({"gpus": "2", "workers": 5}, (5, ("0", "1"))),
        ({"gpus": None}, (1, ())),
        ({"gpus": None, "workers": 4}, (4, ())),
    ],
)
def test_how_many_jobs_run_where(
    wanted: dict[str, Any], expected: tuple[int, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "visible_gpus", lambda: ("0", "1", "2"))
    assert device.workers_and_gpus("cuda", threads=1, **{"workers": None, **wanted}) == expected


@pytest.mark.parametrize(
    ("wanted", "name", "sentence"),
    [
        ({"gpus": "4"}, "cuda", "--gpus 4: there are 3 here (0, 1, 2); ask for fewer, or all"),
        ({"gpus": "3", "workers": 2}, "cuda", "--workers 2: leaves some of 3 GPUs idle; ask for fewer with --gpus"),
        ({"gpus": "2"}, "cuda:1", "--gpus 2: expected the device cuda, got cuda:1; leave --gpus or --device out"),
    ],
)
def test_what_cannot_be_is_refused(
    wanted: dict[str, Any], name: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "visible_gpus", lambda: ("0", "1", "2"))
    with pytest.raises(UsageError) as caught:
        device.workers_and_gpus(name, threads=1, **{"workers": None, **wanted})
    assert str(caught.value) == sentence


def test_gpus_are_called_as_the_environment_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device.visible_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-b7")
    assert device.visible_gpus() == ("5", "GPU-b7")


def test_the_command_line_refuses_gpus_that_are_not_there(tmp_path: Path) -> None:
    arguments = ["run", "--methods", "natural", "--device", "cpu", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, [*arguments, "--gpus", "2"])
    assert (result.exit_code, result.output) == (
        2, "bench: --gpus 2: expected the device cuda, got cpu; leave --gpus or --device out\n",
    )  # fmt: skip
    result = CliRunner().invoke(main, [*arguments, "--gpus", "some"])
    assert (result.exit_code, result.output) == (2, "bench: --gpus: expected a number of GPUs or all, got some\n")


@pytest.mark.parametrize("text", ["gpus = 2", 'gpus = "2"'])
def test_a_file_may_say_the_number(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert combined(from_file(tmp_path / "run.toml")).gpus == "2"
