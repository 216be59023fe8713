"""Results that are older than checksums: which files have none, and storing them (`bench verify --stamp`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench.core import checksums
from bench.core.files import RECORDS, file_hash, is_done, mark_done, read_json, write_json
from bench.results.tree import ResultsFolders, run_folders

HASHED = ("last.safetensors", "best.safetensors", "history.jsonl", "state.pt", "outcomes.parquet")


def unchecked(results: ResultsFolders) -> str:
    """How many files of finished folders have no SHA-256 to be compared with; empty if all have one."""
    counts = Counter(file.name for folder in finished_folders(results) for file in files_without_hash(folder))
    names = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    return f"not checked, since they are older than checksums: {names}; --stamp stores theirs" if names else ""


def stamp(results: ResultsFolders) -> int:
    """Store the SHA-256 of the files that have none, to be called when `verify` has found no problem.

    Returns:
        The number of those files.

    Raises:
        UsageError: if a folder does not exist.
    """
    count = 0
    for folder in finished_folders(results):
        if lacking := files_without_hash(folder):
            count += len(lacking)
            record = record_of(folder)
            content = read_json(record)
            hashes = {file.name: file_hash(file) for file in lacking if file != record}
            write_json(record, {**content, "files": {**checksums.stated_hashes(content), **hashes}})
            mark_done(folder)
    return count


def finished_folders(results: ResultsFolders) -> list[Path]:
    """Folders of finished runs and evaluations."""
    runs = run_folders(results)
    return [folder for run in runs for folder in (run, *sorted(run.glob("eval/*"))) if is_done(folder)]


def record_of(folder: Path) -> Path:
    """The record of a run or an evaluation."""
    return next((folder / name for name in RECORDS if (folder / name).is_file()), folder / RECORDS[-1])


def files_without_hash(folder: Path) -> list[Path]:
    """Files of a finished folder, its record among them, of which no SHA-256 is stored."""
    record = record_of(folder)
    stated = checksums.stated_hashes(read_json(record))
    lacking = [folder / name for name in HASHED if name not in stated and (folder / name).is_file()]
    return lacking if checksums.sealed_hash(folder) else [*lacking, record]
