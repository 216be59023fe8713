"""SHA-256 of stored files, compared by whoever reads them.

A record, run.json or eval.json, states the hashes of the files beside it under `files`; `done` holds that of the
record itself. Results that were stored before there were checksums have none, and are read unchecked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.core import files
from bench.errors import BenchError

SEAL, STATE = "sha256", "state.pt"


def read_record(file: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Read run.json or eval.json; of a finished folder, as it was when that was finished.

    Args:
        file: what to read.
        needed: entries that it must have.

    Raises:
        BenchError: if it is missing, broken or changed, or lacks one of these entries.
    """
    record = files.read_json(file)
    if (problem := record_problem(file)) is not None:
        raise BenchError(problem)
    if absent := [name for name in needed if name not in record]:
        raise BenchError(f"{file}: expected the entries {', '.join(needed)}; missing: {', '.join(absent)}")
    return record


def record_problem(file: Path) -> str | None:
    """The sentence about a record that was changed after its folder was finished; None if it was not, or is unknown."""
    expected = sealed_hash(file.parent)
    return _difference(file, expected, files.DONE) if expected else None


def sealed_hash(folder: Path) -> str:
    """The hash of the record that `done` holds; empty where it holds none."""
    try:
        return (folder / files.DONE).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def require(file: Path, record: Mapping[str, Any]) -> None:
    """Refuse a file of which the record beside it states another hash.

    Raises:
        BenchError: if it differs, or is missing although a hash is stated.
    """
    expected = stated_hashes(record).get(file.name)
    if expected is not None and (problem := _difference(file, expected, "the record beside it")) is not None:
        raise BenchError(problem)


def stated_hashes(record: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SHA-256, as a record states them; nothing in older ones."""
    stated = record.get("files")
    return {str(name): str(value) for name, value in stated.items()} if isinstance(stated, dict) else {}


def file_problems(folder: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each file beside a record that differs from what it states, or is missing.

    A copy of a run may leave out its state, and its weights, all of them.
    """
    without_weights = not any(folder.glob("*.safetensors")) and not (folder / STATE).is_file()
    for name, expected in stated_hashes(record).items():
        if (name.endswith(".safetensors") and without_weights) or (name == STATE and not (folder / name).is_file()):
            continue
        if (problem := _difference(folder / name, expected, "the record beside it")) is not None:
            yield problem


def sealed(file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a file of block results, with the SHA-256 of itself, the file's name and the evaluation's key."""
    text = json.dumps([file.parent.parent.name, file.name, content], sort_keys=True)
    return {**content, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def read_sealed(file: Path) -> dict[str, Any]:
    """A file of block results; one that was stored before there were checksums is read unchecked.

    Raises:
        BenchError: if it was changed, or belongs to another block or evaluation.
    """
    content = files.read_json(file)
    expected = content.pop(SEAL, None)
    if expected is not None and (found := sealed(file, content)[SEAL]) != expected:
        raise BenchError(
            f"{file}: expected the SHA-256 {expected!s:.16}... that is stored in it, got {found:.16}... of its content "
            "and place; delete it to attack that block anew"
        )
    return content


def _difference(file: Path, expected: str, where: str) -> str | None:
    try:
        found = files.file_hash(file)
    except FileNotFoundError:
        return f"{file}: missing, although {where} states its SHA-256; {_remedy(file)}"
    except OSError as error:
        return f"{file}: cannot be read ({error.strerror or error})"
    if found == expected:
        return None
    return f"{file}: expected the SHA-256 {expected:.16}... that {where} states, got {found:.16}...; {_remedy(file)}"


def _remedy(file: Path) -> str:
    return f"put the right file back, or delete {file.parent} and run again"
