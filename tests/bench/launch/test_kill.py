"""The real command is killed at many moments, and started again: the files equal those of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.core import files
from bench.core.files import locked
from tests.helpers.jobs import COMMAND, tree

pytestmark = pytest.mark.slow

ARGUMENTS = [
    "run", "--methods", "absld,frl", "--attacks", "pgd,autoattack", "--epochs", "3", "--train-limit", "300",
    "--limit", "40", "--block", "10", "--set", "autoattack.steps=5", "--set", "autoattack.targets=3",
    "--set", "autoattack.queries=30", "--set", "absld.recipe.lr=0.1",
]  # fmt: skip
# (what is going on, how far it must have come): epochs of the teacher and of the students that are stored, and stage
# blocks of one evaluation. Then follows a random delay of up to DELAY seconds.
MOMENTS = [
    ("teacher", 0), ("teacher", 1), ("training", 0), ("training", 2), ("training", 3), ("training", 5),
    ("autoattack", 1), ("autoattack", 3), ("autoattack", 5), ("autoattack", 8),
]  # fmt: skip
DELAY = 0.08
PATIENCE = 90.0


def start(out: Path, workers: int = 1, *more: str) -> subprocess.Popen[str]:
    """The command, in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [*COMMAND, *ARGUMENTS, *more, "--workers", str(workers), "--out", str(out)]
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the command to end well; its output."""
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return output


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """See that a process does not outlive a failing test."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def unfinished(out: Path, pattern: str) -> list[Path]:
    return [folder for folder in out.glob(pattern) if folder.is_dir() and not files.is_done(folder)]


def epochs(folder: Path) -> int:
    file = folder / "history.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def doing(out: Path) -> str:
    """What a process with one worker is at: the jobs come one after the other."""
    if unfinished(out, "digits/small_cnn_wide/trades/*"):
        return "teacher"
    if unfinished(out, "digits/small_cnn/*/*"):
        return "training"
    # Evaluations that have stored something: AutoAttack's come first, in stage blocks.
    return "autoattack" if any(out.glob("digits/*/*/*/eval/*/partial/apgd-ce-*.json")) else "between"


def progress(out: Path, phase: str) -> int:
    """How far it has come."""
    if phase == "teacher":
        return sum(epochs(folder) for folder in out.glob("digits/small_cnn_wide/trades/*"))
    if phase == "training":
        return sum(epochs(folder) for folder in out.glob("digits/small_cnn/*/*"))
    folders = out.glob("digits/*/*/*/eval/*/partial")
    attacked = [[file for file in folder.glob("*-*.json") if file.name[:6] != "clean-"] for folder in folders]
    return max(map(len, attacked), default=0)


def reached(out: Path, phase: str, least: int) -> bool:
    return doing(out) == phase and progress(out, phase) >= least


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Poll until something holds; the process must live so long."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "it ended before the moment to kill it"
        assert time.monotonic() < end, "the moment to kill it never came"
        time.sleep(0.003)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The results folder of an undisturbed run, and what it printed."""
    out = tmp_path_factory.mktemp("undisturbed") / "results"
    with ended(start(out)) as process:
        printed = finish(process)
    names = {Path(name).name for name in tree(out)}
    assert {"run.json", "state.pt", "last.safetensors", "history.jsonl", "outcomes.parquet", "eval.json"} <= names
    return out, printed


def test_killed_at_ten_moments_it_ends_in_the_same_files(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    """With one worker: in the teacher, in the training of students, and inside AutoAttack."""
    out, dice, killed = tmp_path / "results", random.Random(0), Counter[str]()
    for phase, least in MOMENTS:
        with ended(start(out)) as process:
            wait_for(lambda phase=phase, least=least: reached(out, phase, least), process)  # type: ignore[misc]
            time.sleep(dice.uniform(0, DELAY))
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        killed[doing(out)] += 1
    assert killed.total() >= 10
    for phase, least in (("teacher", 1), ("training", 3), ("autoattack", 3)):
        assert killed[phase] >= least, killed
    with ended(start(out)) as process:
        printed = finish(process)
    assert tree(out) == tree(undisturbed[0])
    assert printed == undisturbed[1]


def test_a_killed_shard_goes_on_and_shards_merge_to_the_same_files(
    undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    """Two shards side by side in one folder; one of them is killed in the training, then inside AutoAttack."""
    out = tmp_path / "results"
    with ended(start(out, 1, "--shard", "1/2")) as one:
        wait_for(lambda: progress(out, "training") >= 1, one)
        os.kill(one.pid, signal.SIGKILL)
        one.wait()
    with ended(start(out, 1, "--shard", "1/2")) as one, ended(start(out, 1, "--shard", "2/2")) as other:
        wait_for(lambda: any(out.glob("digits/*/*/*/eval/*/partial/apgd-ce-0.json")), one)
        os.kill(one.pid, signal.SIGKILL)
        assert one.wait() == -signal.SIGKILL
        finish(other)
    assert not list(out.rglob("eval.json"))
    merge = [*COMMAND, "merge", str(out)]
    early = subprocess.run(merge, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert early.returncode == 1
    assert "run the same command with --shard 1/2, then merge again" in early.stderr
    with ended(start(out, 1, "--shard", "1/2")) as one:
        finish(one)
    late = subprocess.run(merge, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert late.returncode == 0, late.stderr
    assert late.stdout == undisturbed[1]
    mine, theirs = ({n: d for n, d in tree(o).items() if ".plans" not in n} for o in (out, undisturbed[0]))
    assert mine == theirs


def free(out: Path) -> bool:
    """Whether nobody holds a folder below."""
    for lock in out.rglob(files.LOCK):
        with locked(lock.parent, wait=False) as held:
            if not held:
                return False
    return True


def stamps(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != files.LOCK}


def test_workers_end_with_their_parent_and_two_commands_share_what_is_left(
    undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    """With two workers at work the parent alone is killed, and later asked to stop; two commands do the rest."""
    out = tmp_path / "results"
    for number, least in ((signal.SIGKILL, 0), (signal.SIGINT, 1)):
        least += progress(out, "training")  # an epoch stored since shows that the command, not its imports, is asked
        with ended(start(out, workers=2)) as process:
            wait_for(lambda least=least: busy(out, least), process)  # type: ignore[misc]
            os.kill(process.pid, number)
            _, errors = process.communicate(timeout=PATIENCE)
        deadline = time.monotonic() + 20
        while not free(out):
            assert time.monotonic() < deadline, "an orphan holds a folder"
            time.sleep(0.05)
        before = stamps(out)
        time.sleep(0.5)
        assert stamps(out) == before, "nobody writes any more"
        assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), errors
    assert errors.endswith("bench: saved; run the same command again to go on\n")
    with ended(start(out)) as one, ended(start(out)) as other:
        printed = {finish(one), finish(other)}
    assert tree(out) == tree(undisturbed[0])
    assert printed == {undisturbed[1]}
    times = [line for path in out.rglob("timing.jsonl") for line in path.read_text().splitlines()]
    assert sum('"evaluation"' in line for line in times) == len(list(out.rglob("eval.json"))), "one was made twice"


def busy(out: Path, least: int) -> bool:
    """Whether two workers have each begun a training, and so many epochs of the students' are stored."""
    running = [folder for folder in unfinished(out, "digits/*/*/*") if (folder / "run.json").is_file()]
    return len(running) >= 2 and progress(out, "training") >= least
