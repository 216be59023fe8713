"""Files and folders of results: atomic writes, hashes, settings keys, `done` markers and locks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.errors import BenchError

DONE, FAILED, LOCK = "done", "failed", ".lock"
RECORDS = ("run.json", "eval.json")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: to a temporary file beside it, flushed to disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may write the same file
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, keys in the order given, floats in full."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a file with one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BenchError: if the file is missing or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise BenchError(f"{path}: expected JSON, got something else ({error})") from None
    if not isinstance(content, dict):
        raise BenchError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def file_and_entry(name: str | Path) -> tuple[Path, str | None]:
    """File and entry that a checkpoint's name `FILE#ENTRY` stands for; no entry for `FILE`."""
    text = str(name)
    if "#" not in text or Path(text).is_file():
        return Path(text), None
    file, _, entry = text.rpartition("#")
    return Path(file), entry


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object to a file of times, which no result depends on."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def key_of(settings: Mapping[str, Any]) -> str:
    """A hash of canonical settings: 16 hexadecimal digits."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_done(folder: Path) -> bool:
    """Whether everything in the folder is complete."""
    return (folder / DONE).is_file()


def failure(folder: Path) -> str | None:
    """The sentence of a failed job; None if it did not fail."""
    path = folder / FAILED
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def mark_done(folder: Path) -> None:
    """Mark a folder as complete, with the SHA-256 of its record; to be called after all its files are written."""
    with contextlib.suppress(FileNotFoundError):
        (folder / FAILED).unlink()
    record = next((folder / name for name in RECORDS if (folder / name).is_file()), None)
    write_text(folder / DONE, "" if record is None else file_hash(record) + "\n")


@contextmanager
def locked(folder: Path, *, wait: bool, patience: float = 0.0) -> Iterator[bool]:
    """Lock a folder; yields False if another process holds it for longer than `patience` seconds and `wait` is off.

    The lock is the kernel's and is released when its process dies, whose temporary files are then removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=-1 if wait else patience, poll_interval=0.2 if wait else 0.01)
    except Timeout:
        yield False
        return
    try:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        yield True
    finally:
        lock.release()


class Timer:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed, rounded to milliseconds."""
        return round(time.perf_counter() - self._start, 3)
