"""Results that are older than checksums: what cannot be checked of them, and storing that (`bench verify --stamp`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench.core import checksums
from bench.core.files import file_hash, mark_done, write_json
from bench.report.integrity import stored_records
from bench.results.changes import EXTERNAL, RUN, Alternatives, Record, finding_on
from bench.results.keys import ONLY_FOR_EVALUATION_KEY, ONLY_FOR_TRAINING_KEY
from bench.results.tree import ResultsFolders, run_folders

HASHED = ("last.safetensors", "best.safetensors", "history.jsonl", "state.pt", "outcomes.parquet")


def unchecked(results: ResultsFolders) -> list[str]:
    """How many files of finished folders have no SHA-256, and how many keys cannot be computed again; a line each."""
    others = Alternatives(stored_records(run_folders(results)))
    counts = Counter(file.name for record in others.records for file in files_without_hash(record))
    names = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    keys = sum(not finding_on(record, others).recomputed for record in others.records)
    lines = [f"not checked, since they are older than checksums: {names}; --stamp stores theirs"] if names else []
    return lines + ([f"not computed again, since older files lack settings: {keys:,} keys"] if keys else [])


def stamp(results: ResultsFolders) -> int:
    """Store the SHA-256 of the files that have none, to be called when `verify` has found no problem.

    Settings that a key needs and the record does not state are stored with them, where they can be told from the key.

    Returns:
        The number of those files.

    Raises:
        UsageError: if a folder does not exist.
    """
    count = 0
    for record in list(stored_records(run_folders(results))):
        lacking = files_without_hash(record)
        count += len(lacking)
        content = {**_key_fields(record), "files": _hashes(record, lacking)}
        if lacking or not content.items() <= record.facts.items():
            rest = {name: value for name, value in record.facts.items() if name not in content}
            write_json(record.file, {**rest, **content})
            mark_done(record.file.parent)
    return count


def _hashes(record: Record, lacking: list[Path]) -> dict[str, str]:
    hashes = {file.name: file_hash(file) for file in lacking if file != record.file}
    return {**checksums.stated_hashes(record.facts), **hashes}


def _key_fields(record: Record) -> dict[str, dict[str, object]]:
    """The entry `key_fields` of a record, unless its key cannot be computed again or is a hash of weights."""
    fields = record.matching_fields()
    if fields is None or record.facts.get("method") == EXTERNAL:
        return {}
    names = ONLY_FOR_TRAINING_KEY if record.file.name == RUN else ONLY_FOR_EVALUATION_KEY
    values = {name: fields[name] for name in names}
    return {"key_fields": {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}}


def files_without_hash(record: Record) -> list[Path]:
    """Files of a finished folder, its record among them, of which no SHA-256 is stored."""
    folder, stated = record.file.parent, checksums.stated_hashes(record.facts)
    lacking = [folder / name for name in HASHED if name not in stated and (folder / name).is_file()]
    return lacking if checksums.sealed_hash(folder) else [*lacking, record.file]
