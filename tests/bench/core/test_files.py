"""Files that appear whole or not at all, and locks that die with their process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.core import files
from bench.errors import BenchError

# A process that takes a folder's lock, says so, and holds it until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from bench.core.files import locked
with locked(Path(sys.argv[1]), wait=True) as held:
    print(held, flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder by the time this returns."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.communicate()


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    files.write_json(file, {"epochs": 1})

    def crash(source: Path, target: Path) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        files.write_json(file, {"epochs": 2})
    assert files.read_json(file) == {"epochs": 1}


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.pt"
    files.write_bytes(file, b"old")

    def crash(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        files.write_bytes(file, b"new, and half of it")
    assert file.read_bytes() == b"old"


def test_the_bytes_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        calls.append("fsync")
        sync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    files.write_text(tmp_path / "done", "")
    assert calls == ["fsync", "replace"]
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_what_a_crash_left_behind_is_removed_with_the_next_lock(tmp_path: Path) -> None:
    (tmp_path / ".state.pt.tmp").write_bytes(b"half")
    (tmp_path / "state.pt").write_bytes(b"whole")
    with files.locked(tmp_path, wait=False) as held:
        assert held
        assert {path.name for path in tmp_path.iterdir()} - {files.LOCK} == {"state.pt"}


def test_a_held_folder_is_left_alone_and_its_half_written_files_too(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        (tmp_path / ".state.pt.tmp").write_bytes(b"being written by the holder")
        with files.locked(tmp_path, wait=False) as held:
            assert not held
        assert (tmp_path / ".state.pt.tmp").is_file()
    finally:
        end(process)


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    end(holder(tmp_path), signal.SIGKILL)
    with files.locked(tmp_path, wait=False) as held:
        assert held


def test_a_lock_is_released_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.locked(tmp_path, wait=False):
        raise RuntimeError
    with files.locked(tmp_path, wait=False) as held:
        assert held


def test_a_folder_counts_only_with_its_marker_and_success_clears_a_failure(tmp_path: Path) -> None:
    files.write_text(tmp_path / files.FAILED, "it broke\n")
    assert not files.is_done(tmp_path)
    assert files.failure(tmp_path) == "it broke"
    files.mark_done(tmp_path)
    assert files.is_done(tmp_path)
    assert files.failure(tmp_path) is None


def test_keys_are_sixteen_digits_of_the_content_whatever_its_order() -> None:
    key = files.key_of({"a": 1, "b": [0.1, None]})
    assert key == files.key_of({"b": [0.1, None], "a": 1})
    assert key == "e4a9ad4b96810689"
    assert key != files.key_of({"a": 1, "b": [0.2, None]})


def test_floats_survive_the_way_to_disk_bit_for_bit(tmp_path: Path) -> None:
    numbers = [0.1 + 0.2, 1 / 3, 5e-324, 1e308, -0.0]
    files.write_lines(tmp_path / "history.jsonl", [{"x": x} for x in numbers])
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["x"].hex() for line in lines] == [x.hex() for x in numbers]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, r"cannot be read \(No such file"), ("{", "expected JSON"), ("[1]", "expected a JSON object, got list")],
)
def test_a_file_that_is_no_object_is_named(tmp_path: Path, content: str | None, sentence: str) -> None:
    file = tmp_path / "run.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BenchError, match=f"^{file}: {sentence}"):
        files.read_json(file)
