"""Several processes that train one model: the real command over gloo against one process, stopped, killed, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from bench.cli.app import main
from bench.config.settings import combined
from bench.core import files
from bench.distributed import control
from bench.distributed.control import ProcessInfo, process_info
from bench.distributed.process_group import ProcessGroup
from bench.errors import BenchError
from bench.launch.scheduler import Workspace
from bench.models.builders import build
from bench.models.checkpoints import load_weights, save_weights
from bench.plan.jobs import Plan, TrainJob
from bench.plan.plan_text import plan_text
from bench.plan.planner import make_plan
from tests.helpers.jobs import description, history, job_of, small, train_all, tree
from tests.helpers.networks import builder
from tests.helpers.processes import free_port, run_processes, without_gloo

HOME = Path(__file__).resolve().parents[3]
COMPARED = ("pgd_at", "trades", "absld", "frl", "ham", "flexmatch_at", "fawa:awp:ham", "ema:fair_weight:absld")
GIVEN: dict[str, Any] = {
    "ham.begin_epoch_index": 1, "absld.recipe.lr": 0.3, "flexmatch_at.tau": 0.2, "fawa:awp:ham.begin_epoch_index": 1,
    "fawa:awp:ham.fawa_start": 0.0, "fawa:awp:ham.fawa_threshold": 0.0, "ema:fair_weight:absld.recipe.lr": 0.3,
}  # fmt: skip
# HAM in every respect, but that the second process has memory for 12 samples at once, and asks to stop, or is killed,
# where the environment says so.
PLUGIN = '''
import os, signal, torch
from methods import register
from methods.ham import HAM

@register("disturbed")
class Disturbed(HAM):
    """Stops, or dies."""
    def perturb(self, model, batch, ctx):
        if os.environ["RANK"] == "1" and len(batch.y) > 12:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(batch.y)} samples")
        here = f"{ctx.epoch}.{ctx.step}.{os.environ['RANK']}"
        if here == os.environ.get("STOP"):
            del os.environ["STOP"]  # a second request would end the process at once
            os.kill(os.getpid(), signal.SIGTERM)
        if here == os.environ.get("DIE"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().perturb(model, batch, ctx)
'''
# 147 samples: the last step of an epoch has three, too few for two processes.
SIZES = ["--epochs", "3", "--train-limit", "147", "--batch-size", "48", "--limit", "40", "--block", "10"]


# Against one process


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, Path, Plan]:
    """Six methods and two compositions by two processes, and by one; a teacher from a file, no BatchNorm, float64."""
    root = tmp_path_factory.mktemp("compared")
    teacher = root / "teacher.safetensors"
    found = small(methods=("natural",), model=builder("roomy"), epochs=6, overrides={"natural.recipe.lr": 0.5})
    train_all(found, root / "teacher")
    save_weights(teacher, load_weights(root / "teacher" / found.train[0].folder / "last.safetensors"))
    arguments = [
        "run", "--methods", ",".join(COMPARED), "--model", builder("roomy"), "--teacher", str(teacher),
        "--teacher-model", builder("roomy"), "--attacks", "fgsm", "--select", "best", *SIZES, "--device", "cpu",
        *(word for name, value in GIVEN.items() for word in ("--set", f"{name}={value}")),
    ]  # fmt: skip
    ends = run_processes([*arguments, "--out", str(root / "two")], root)
    assert [code for code, _ in ends] == [0, 0], ends
    assert ends[1][1] == "", "the first process alone talks"
    assert "Warning" not in ends[0][1]
    run = combined({
        "methods": COMPARED, "model": builder("roomy"), "teacher": str(teacher), "teacher_model": builder("roomy"),
        "attacks": ("fgsm",), "select": "best", "epochs": 3, "train_limit": 147, "batch_size": 48, "limit": 40,
        "block": 10, "overrides": GIVEN,
    })  # fmt: skip
    one = make_plan(run, "cpu")
    train_all(one, root / "one")
    return root / "two", make_plan(run, "cpu", processes=2), root / "one", one


@pytest.mark.parametrize("method", COMPARED)
def test_two_processes_give_what_one_gives(method: str, compared: tuple[Path, Plan, Path, Plan]) -> None:
    """Weights, selection and per-class state up to rounding; passes, skipped steps and counts exactly."""
    out, several, alone, one = compared
    found, expected = out / job_of(several, method).folder, alone / job_of(one, method).folder
    for checkpoint in ("last", "best"):
        weights = load_weights(expected / f"{checkpoint}.safetensors")
        for name, tensor in load_weights(found / f"{checkpoint}.safetensors").items():
            assert torch.allclose(tensor, weights[name], rtol=1e-9, atol=1e-12), (checkpoint, name)
    for row, other in zip(history(found), history(expected), strict=True):
        assert row["train"] == other["train"]
        assert row["validation"] == pytest.approx(other["validation"])
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-9)
        assert row["skipped_steps"] == other["skipped_steps"]
        assert row["state"].keys() == other["state"].keys()
        for name, values in row["state"].items():
            assert values == pytest.approx(other["state"][name], rel=1e-9), name
    first, second = description(found), description(expected)
    assert first["passes"] == second["passes"]
    assert first["processes"] == {"count": 2, "batch_norm": None}
    assert second["processes"] == {"count": 1, "batch_norm": None}


def test_processes_that_run_out_of_memory_go_on_in_parts(
    compared: tuple[Path, Plan, Path, Plan], tmp_path: Path
) -> None:
    """Before anything is added up over processes: a first step is gone through by each alone."""
    _, _, alone, one = compared
    changed = ["--set", "ham.begin_epoch_index=1"]
    arguments = ["run", "--methods", "ham", "--model", builder("tiny"), "--attacks", "fgsm", *SIZES, *changed]
    ends = run_processes([*arguments, "--device", "cpu", "--out", str(tmp_path / "out")], tmp_path)
    assert [code for code, _ in ends] == [0, 0], ends
    (folder,) = [path.parent for path in tmp_path.rglob("run.json")]
    weights = load_weights(alone / job_of(one, "ham").folder / "last.safetensors")
    for name, tensor in load_weights(folder / "last.safetensors").items():
        assert torch.allclose(tensor, weights[name], rtol=1e-9, atol=1e-12), name
    facts = description(folder)["micro_batch"]
    assert facts == {"size": 6, "asked": None, "out_of_memory_at": [0, 0], "exact": True}


def test_evaluations_go_side_by_side_in_parts(compared: tuple[Path, Plan, Path, Plan]) -> None:
    out, several, _, _ = compared
    for job in several.evaluate:
        assert files.is_done(out / job.folder)
        rows = [line for line in (out / job.folder / "timing.jsonl").read_text().splitlines() if "part of" in line]
        assert len(rows) in (0, 2), "whole where there are enough, else half for each process"
    assert any("part of" in path.read_text() for path in out.rglob("timing.jsonl"))


def test_the_number_of_processes_is_part_of_the_key(compared: tuple[Path, Plan, Path, Plan]) -> None:
    _, several, _, one = compared
    pairs = list(zip(several.train, one.train, strict=True))
    assert all(first.key != second.key for first, second in pairs)
    assert all(replace(first, processes=1).key == second.key for first, second in pairs if not first.requires)
    job: TrainJob = one.train[0]
    assert replace(job, processes=2, sync_bn=True).key != replace(job, processes=2).key


def test_torchrun_starts_the_command_and_one_process_answers(tmp_path: Path) -> None:
    runner = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*runner, "-m", "bench", "run", "--methods", "natural", "--device", "cpu", "--dry-run"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"},
        text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, without_gloo(done.stderr)) == (0, "")
    expected = plan_text(make_plan(combined({"methods": ("natural",)}), "cpu", processes=2), Path("results"))
    assert without_gloo(done.stdout) == expected + "\n"


# Disturbed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run with BatchNorm and rows left out, and the command that made it."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "plugin.py").write_text(PLUGIN)
    arguments = [
        "run", "--methods", "disturbed", "--plugin", str(root / "plugin.py"), "--model", builder("normed"),
        "--attacks", "fgsm", *SIZES, "--device", "cpu", "--set", "disturbed.begin_epoch_index=1",
    ]  # fmt: skip
    ends = run_processes([*arguments, "--out", str(root / "out")], root)
    assert [code for code, _ in ends] == [0, 0], ends
    return root / "out", arguments


def test_stopped_by_one_process_and_killed_in_one_a_run_ends_in_the_same_bytes(
    undisturbed: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """The first stop comes within an epoch, where each process has class sums of its own."""
    reference, arguments = undisturbed
    out = tmp_path / "out"
    command = [*arguments, "--out", str(out)]
    ends = run_processes(command, tmp_path, STOP="1.1.1")
    assert ends[0][0] == 130, ends
    assert "saved; run the same command again to go on" in ends[0][1]
    assert ends[1] == (0, "")
    (folder,) = [path.parent for path in out.rglob("state.pt")]
    state = torch.load(folder / "state.pt", weights_only=True)
    assert "@1" in str(sorted(state["tensors"]))
    whole, parts = {"size": None, "since": None}, {"size": 12, "since": [0, 0]}
    assert json.loads(state["position"])["cuts"] == [[whole, whole], [parts, whole]]
    ends = run_processes(command, tmp_path, DIE="2.1.1")
    assert [code for code, _ in ends] == [1, -signal.SIGKILL]
    sentence = "process 2 of 2 has ended before its work was done; what is stored is whole, run the same command again"
    assert sentence in ends[0][1]
    assert sentence in (folder / "log.txt").read_text()
    assert not (folder / "failed").exists()
    assert [code for code, _ in run_processes(command, tmp_path)] == [0, 0]
    assert tree(out) == tree(reference)


def test_the_run_says_whose_statistics_batch_norm_has_used(undisturbed: tuple[Path, list[str]]) -> None:
    (folder,) = [path.parent for path in undisturbed[0].rglob("run.json")]
    assert description(folder)["processes"] == {"count": 2, "batch_norm": "each process"}


def test_the_run_says_what_was_cut_in_any_process(undisturbed: tuple[Path, list[str]]) -> None:
    (folder,) = [path.parent for path in undisturbed[0].rglob("run.json")]
    facts = {"size": 12, "asked": None, "out_of_memory_at": [0, 0], "exact": False}
    assert description(folder)["micro_batch"] == facts
    assert [row["micro_batch"] for row in history(folder)] == [12, 12, 12]


# Ranks and shares


class OneOf(ProcessGroup):
    """One of several processes that never meet."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_cover_a_step_and_none_is_a_single_sample(size: int) -> None:
    for n in range(2, 60):
        edges = [OneOf(rank, size).share(n) for rank in range(size)]
        assert edges[0][0] == 0 and edges[-1][1] == n
        assert all(first[1] == second[0] for first, second in zip(edges[:-1], edges[1:], strict=True))
        assert all(last - first != 1 for first, last in edges)
        if n >= 2 * size:
            lengths = [last - first for first, last in edges]
            assert max(lengths) - min(lengths) <= 1


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    yield


def test_the_rank_is_read_from_the_environment(second_of_two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_info() == ProcessInfo(1, 2, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert process_info() is None, "one process alone is no group"
    monkeypatch.delenv("WORLD_SIZE")
    assert process_info() is None


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--gpus", "2"], "--gpus, --workers: torchrun's processes take their place; leave them out"),
        (["--workers", "2"], "--gpus, --workers: torchrun's processes take their place; leave them out"),
        (["--sync-bn"], "--sync-bn: torch shares BatchNorm's statistics on GPUs alone; leave it out on a CPU"),
    ],
)
def test_settings_that_torchrun_excludes_are_refused(more: list[str], sentence: str, second_of_two: None) -> None:
    result = CliRunner().invoke(main, ["run", "--methods", "natural", "--device", "cpu", *more])
    assert (result.exit_code, result.output) == (2, f"bench: {sentence}\n")


def test_sync_bn_needs_several_processes() -> None:
    result = CliRunner().invoke(main, ["run", "--methods", "natural", "--device", "cpu", "--sync-bn"])
    sentence = "bench: --sync-bn: is for several processes that train one model; start them with torchrun\n"
    assert (result.exit_code, result.output) == (2, sentence)


def test_each_process_takes_a_gpu_of_its_own(second_of_two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.distributed import ddp

    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ddp.claim_gpu(ProcessInfo(3, 4, 1))
    assert taken == [1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BenchError, match=r"more processes on this machine than there are GPUs \(1\)"):
        ddp.claim_gpu(ProcessInfo(1, 2, 1))


def test_on_a_cpu_more_processes_than_gpus_are_no_fault(second_of_two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.distributed import ddp
    from bench.launch.torchrun import torchrun_group

    met: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(ddp, "join", lambda process, name, **more: met.append(name) or (OneOf(0, 2), None))
    monkeypatch.setattr(ddp, "leave", lambda group: None)
    workspace = Workspace(Path("results"), Path("data"))
    with torchrun_group(combined({"methods": ("natural",), "device": "cpu"}), workspace) as (name, group):
        assert (name, met, group is not None and group.size) == ("cpu", ["cpu"], 2)
    with (
        pytest.raises(BenchError, match="or train on the CPU with --device cpu"),
        torchrun_group(combined({}), workspace),
    ):
        raise AssertionError("nobody else was there")


def test_sync_bn_keeps_the_names_of_the_weights() -> None:
    from bench.distributed.ddp import TorchProcessGroup

    plain = build(builder("normed"), 10, 1, 8, seed=0)
    names = list(plain.state_dict())
    common = TorchProcessGroup(ProcessInfo(0, 2, 0), torch.device("cuda"), sync_bn=True).convert_batchnorm(plain)
    assert list(common.state_dict()) == names
    assert [type(m) for m in common.modules() if "Norm" in type(m).__name__] == [torch.nn.SyncBatchNorm]
    assert control.GRACE_SECONDS > 10
