"""Records that were changed: run.json and eval.json whose settings do not give their key, or that `done` denies."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from attacks.registry import ATTACKS
from bench.core import checksums
from bench.core.files import RECORDS
from bench.results.keys import (
    ONLY_FOR_EVALUATION_KEY,
    ONLY_FOR_TRAINING_KEY,
    Fields,
    evaluation_fields,
    evaluation_key,
    training_fields,
    training_key,
)

RUN, EVALUATION = RECORDS
# Fields of a job that have another name in its record.
NAMES = {
    RUN: {"recipe": "training", "select": "selection", "processes": "processes.count"},
    EVALUATION: {"settings": "attack_settings", "limit": "test_subset"},
}
EXTERNAL = "external"  # the method of checkpoints trained elsewhere, whose key is a hash of their weights


@dataclass(frozen=True)
class Record:
    """The content of a run.json or eval.json.

    Attributes:
        file: where it was read.
        facts: its content.
        run: the content of the run's run.json.
    """

    file: Path
    facts: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The key that it states."""
        return str(self.facts.get("key") or self.file.parent.name)

    @property
    def compute(self) -> Callable[[Mapping[str, Any]], str]:
        """The function from fields to a key."""
        return training_key if self.file.name == RUN else evaluation_key

    def fields(self) -> list[Fields]:
        """Candidates for the fields of its job; none where entries are missing or something else."""
        try:
            if self.file.name == RUN:
                return [] if self.facts.get("method") == EXTERNAL else list(training_fields(self.facts))
            return list(evaluation_fields(self.run, self.facts))
        except (KeyError, TypeError, AttributeError):
            return []

    def matching_fields(self) -> Fields | None:
        """The fields that give its key; None if none of the candidates does."""
        return next((fields for fields in self.fields() if self.compute(fields) == self.key), None)


def is_key(name: str) -> bool:
    """Whether the name of a folder is a key."""
    return re.fullmatch("[0-9a-f]{16}", name) is not None


class Finding(NamedTuple):
    """What was found about a record: a sentence if it was changed, and whether its key could be computed again."""

    problem: str | None
    recomputed: bool


def finding_on(record: Record, others: Alternatives) -> Finding:
    """Compute the key of a record again, and compare it with what `done` states of it.

    Args:
        record: what is looked at.
        others: what is tried to name the field that was changed.
    """
    folder = record.file.parent
    if is_key(folder.name) and folder.name != record.key:
        return Finding(f"{record.file}: expected the key {folder.name}, the name of its folder, got {record.key}", True)
    fields = record.matching_fields()
    if fields is not None or (record.file.name == RUN and record.facts.get("method") == EXTERNAL):
        problem = _contradiction(record, fields or {}) or _attacked_other_weights(record)
        return Finding(problem or checksums.record_problem(record.file), True)
    return _key_differs(record, others)


def _contradiction(record: Record, fields: Mapping[str, Any]) -> str | None:
    """A sentence on an entry that is no part of the key, but follows from fields that are."""
    expected: dict[str, Any] = {}
    size = (record.run.get("data") or {}).get("test_size")
    if record.file.name == EVALUATION and size is not None:
        n = min(fields["limit"] or size, size)
        expected = {"n": n, "test_subset": n if n < size else None}
    elif record.file.name == RUN and fields:
        expected = {"epochs": fields["recipe"]["epochs"]}
    for name, value in expected.items():
        if (got := record.facts.get(name)) != value:
            stated = f"expected {name} {value!r}, which follows from the settings of its key"
            return f"{record.file}: {stated}, got {got!r}; put it back, or delete {record.file.parent} and run again"
    return None


def _attacked_other_weights(record: Record) -> str | None:
    """A sentence on an evaluation of other weights than those that its run states."""
    name = f"{record.facts.get('checkpoint')}.safetensors"
    expected, found = checksums.stated_hashes(record.run).get(name), record.facts.get("weights")
    if record.file.name == RUN or expected in (None, found):
        return None
    return (
        f"{record.file}: expected weights of the SHA-256 {expected:.16}..., as run.json states them, got {found!s:.16}"
        f"...; delete {record.file.parent} and run again"
    )


def _key_differs(record: Record, others: Alternatives) -> Finding:
    remedy = f"put it back, or delete {record.file.parent} and run again"
    candidates = record.fields()
    for name, value in others.of(record) if candidates else ():
        for fields in candidates:
            if record.compute(_replaced(fields, name, value)) == record.key:
                got = _value(fields, name)
                where = ".".join([NAMES[record.file.name].get(name[0], name[0]), *name[1:]])
                expected = f"expected {where} {value!r}, of which its key {record.key} was made"
                return Finding(f"{record.file}: {expected}, got {got!r}; {remedy}", True)
    if candidates and "key_fields" in record.facts:
        key = record.compute(candidates[0])
        return Finding(f"{record.file}: expected settings of the key {record.key}, got those of {key}; {remedy}", True)
    return Finding(checksums.record_problem(record.file), False)


class Alternatives:
    """Values that a changed field of a record may have had: those in all records of a folder, and defaults.

    Args:
        records: every record of the folder.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)

    def of(self, record: Record) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Names of fields, those inside a mapping as a path, each with a value to try."""
        unstated = _unstated(record)
        for name, value in chain(_near(record), self._stored[record.file.name]):
            if name[0] not in unstated:
                yield name, value

    @cached_property
    def _stored(self) -> dict[str, list[tuple[tuple[str, ...], Any]]]:
        """Distinct values in the records, by the records' name."""
        found: dict[str, dict[str, tuple[tuple[str, ...], Any]]] = {name: {} for name in RECORDS}
        for record in self.records:
            for fields in record.fields()[:1]:
                for name, value in _flat(fields):
                    text = json.dumps([name, value], sort_keys=True)
                    found[record.file.name].setdefault(text, (name, value))
        return {name: list(values.values()) for name, values in found.items()}


def _unstated(record: Record) -> set[str]:
    """Fields that an older record does not state, so that another value of them is no change."""
    unstated = set() if "source" in record.facts else {"source"}
    if "key_fields" in record.facts:
        return unstated
    if record.file.name == RUN:
        return unstated | set(ONLY_FOR_TRAINING_KEY)
    stated = () if record.facts.get("test_subset") is None else ("limit",)
    return unstated | set(ONLY_FOR_EVALUATION_KEY).difference(stated)


def _near(record: Record) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Values from the folders above a record, from its run, and from the declarations of its attack."""
    yield from ((("norm",), "linf"), (("norm",), "l2"))
    if record.file.name == RUN:
        folders = [path.name for path in record.file.parent.parents][:3]
        for name, folder in zip(("method", "model", "dataset"), folders, strict=False):
            yield (name,), folder.replace("+", ":")
        return
    yield from (((name,), record.run.get(name)) for name in ("eps", "norm"))
    attack = str(record.facts.get("attack"))
    if attack in ATTACKS.builtin:
        yield from ((("settings", name), value) for name, value in ATTACKS.sketch(attack).settings.items())


def _flat(fields: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from (((name, inner), inside) for inner, inside in value.items())
        yield (name,), value


def _value(fields: Mapping[str, Any], name: Sequence[str]) -> Any:
    value = fields.get(name[0])
    return value.get(name[1]) if len(name) > 1 and isinstance(value, Mapping) else value


def _replaced(fields: Fields, name: Sequence[str], value: Any) -> Fields:
    if len(name) == 1:
        return {**fields, name[0]: value}
    return {**fields, name[0]: {**fields[name[0]], name[1]: value}}
