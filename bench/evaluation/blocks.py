"""Finished (stage, block) pairs of an evaluation on disk, until the evaluation itself is finished.

They lie in `partial/` below the evaluation's folder, a file each, with a note that says what they are pairs of: whoever
finds the folder can tell what is missing, and finish it. The clean predictions of a block are a pair as well, so
that what is attacked does not depend on the machine that goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.core import files
from bench.errors import BenchError
from bench.plan.jobs import PARTIAL, EvalJob

CLEAN = "clean"
NOTE = "job.json"


def read(folder: Path | None, stage: str, block: int) -> dict[str, Any] | None:
    """A stored pair, or None: its predictions and the passes it took."""
    if folder is None or not (path := folder / file_name(stage, block)).is_file():
        return None
    return files.read_json(path)


def write(folder: Path | None, stage: str, block: int, done: Mapping[str, Any]) -> None:
    """Store a pair; without a folder nothing is stored."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / file_name(stage, block), json.dumps(done))


def clear(evaluation: Path) -> None:
    """Remove the pairs of an evaluation, given its folder; where there are none it does nothing."""
    shutil.rmtree(evaluation / PARTIAL, ignore_errors=True)


def file_name(stage: str, block: int) -> str:
    """Name of the file of a pair."""
    return f"{stage}-{block}.json"


@dataclass(frozen=True)
class Note:
    """What the pairs in a folder are pairs of.

    Attributes:
        job: the whole evaluation.
        weights: hash of the file that is attacked.
        stages: labels of the stages that run, in order.
        blocks: number of blocks.
    """

    job: EvalJob
    weights: str
    stages: tuple[str, ...]
    blocks: int

    @property
    def names(self) -> tuple[str, ...]:
        """Files of all pairs."""
        return tuple(file_name(stage, b) for b in range(self.blocks) for stage in (CLEAN, *self.stages))

    def missing(self, folder: Path) -> list[int]:
        """Blocks, from 0, of which a pair is not there."""
        return [
            b
            for b in range(self.blocks)
            if not all((folder / file_name(stage, b)).is_file() for stage in (CLEAN, *self.stages))
        ]

    def keep(self, folder: Path) -> None:
        """Write the note beside the pairs.

        Raises:
            BenchError: if the pairs there are those of other weights.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / NOTE).is_file():
            if read_note(folder).weights != self.weights:
                raise BenchError(
                    f"{folder}: the stored blocks are those of other weights than {self.job.checkpoint}.safetensors "
                    "holds now; delete that folder to attack them anew"
                )
            return
        job = asdict(self.job.whole) | {"run": self.job.run.as_posix()}
        facts = {"job": job, "weights": self.weights, "stages": list(self.stages), "blocks": self.blocks}
        files.write_json(folder / NOTE, facts)


def read_note(folder: Path) -> Note:
    """The note beside the pairs in a folder.

    Raises:
        BenchError: if it is missing or broken, or the folder is not the one that it describes.
    """
    facts = files.read_json(folder / NOTE)
    try:
        fields = dict(facts["job"])
        settings = {name: tuple(v) if isinstance(v, list) else v for name, v in fields["settings"].items()}
        job = EvalJob(
            **fields | {"run": Path(fields["run"]), "settings": settings, "prepare": tuple(fields["prepare"])}
        )
        note = Note(job, facts["weights"], tuple(facts["stages"]), facts["blocks"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{folder / NOTE}: expected the description of an evaluation ({error}); delete it") from None
    if job.folder.parts[-2:] + (PARTIAL,) != folder.absolute().parts[-3:]:
        raise BenchError(f"{folder / NOTE}: describes the evaluation {job.key}, not the one it lies in; delete it")
    return note


def parts_begun(folder: Path) -> list[tuple[int, int]]:
    """Parts (number, count) that have a folder of their own among the pairs, in order."""
    found = []
    for home in folder.glob("part-*-of-*"):
        _, number, _, count = home.name.split("-")
        if number.isdecimal() and count.isdecimal():
            found.append((int(number), int(count)))
    return sorted(found)
