"""Intermediate results of an evaluation on disk: one file per stage and block, until the evaluation is finished.

They lie in `partial/` below the evaluation's folder, with a manifest that says which evaluation they belong to: whoever
finds the folder can tell what is missing, and finish it. Clean predictions are stored by block as well, so that the
samples under attack do not depend on the machine that goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.core import checksums, files
from bench.core.environment import Environment, differing
from bench.errors import BenchError
from bench.plan.jobs import PARTIAL, EvalJob, blocks_of

CLEAN = "clean"
MANIFEST = "job.json"


def read(folder: Path | None, stage: str, block: int) -> dict[str, Any] | None:
    """The stored predictions of a block after a stage and the passes it took, or None.

    Raises:
        BenchError: if they were changed, or are those of another block or evaluation.
    """
    if folder is None or not (path := folder / file_name(stage, block)).is_file():
        return None
    return checksums.read_sealed(path)


def write(folder: Path | None, stage: str, block: int, done: Mapping[str, Any]) -> None:
    """Store the result of a block; without a folder nothing is stored."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file_name(stage, block)
        files.write_text(path, json.dumps(checksums.sealed(path, done)))


def clear(evaluation: Path) -> None:
    """Remove the block results of an evaluation, given its folder; where there are none it does nothing."""
    shutil.rmtree(evaluation / PARTIAL, ignore_errors=True)


def file_name(stage: str, block: int) -> str:
    """File name of the result of a block."""
    return f"{stage}-{block}.json"


@dataclass(frozen=True)
class Manifest:
    """The evaluation to which the block results in a folder belong.

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
        """Files of all block results."""
        return tuple(file_name(stage, b) for b in range(self.blocks) for stage in (CLEAN, *self.stages))

    def missing(self, folder: Path) -> list[int]:
        """Blocks, from 0, of which a result is missing."""
        return [
            b
            for b in range(self.blocks)
            if not all((folder / file_name(stage, b)).is_file() for stage in (CLEAN, *self.stages))
        ]

    def shards_with(self, blocks: Iterable[int], count: int) -> list[str]:
        """Those shards, of `count`, that attack some of the blocks, as `number/count`."""
        numbers = (i for i in range(1, count + 1) if set(blocks_of((i, count), self.blocks)).intersection(blocks))
        return [f"{i}/{count}" for i in numbers]

    def write(self, folder: Path) -> None:
        """Write the manifest beside the block results.

        Raises:
            BenchError: if the results there are those of other weights.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).is_file():
            if read_manifest(folder).weights != self.weights:
                raise BenchError(
                    f"{folder}: the stored blocks are those of other weights than {self.job.checkpoint}.safetensors "
                    "holds now; delete that folder to attack them anew"
                )
            return
        job = asdict(self.job.whole) | {"run": self.job.run.as_posix()}
        facts = {"job": job, "weights": self.weights, "stages": list(self.stages), "blocks": self.blocks}
        files.write_json(folder / MANIFEST, checksums.sealed(folder / MANIFEST, facts))


def read_manifest(folder: Path) -> Manifest:
    """The manifest beside the block results in a folder.

    Raises:
        BenchError: if it is missing or broken, or the folder is not the one that it describes.
    """
    facts = checksums.read_sealed(folder / MANIFEST)
    try:
        fields = dict(facts["job"])
        settings = {name: tuple(v) if isinstance(v, list) else v for name, v in fields["settings"].items()}
        job = EvalJob(
            **fields | {"run": Path(fields["run"]), "settings": settings, "prepare": tuple(fields["prepare"])}
        )
        manifest = Manifest(job, facts["weights"], tuple(facts["stages"]), facts["blocks"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{folder / MANIFEST}: expected the description of an evaluation ({error}); delete it"
        ) from None
    if job.folder.parts[-2:] + (PARTIAL,) != folder.absolute().parts[-3:]:
        raise BenchError(f"{folder / MANIFEST}: describes the evaluation {job.key}, not the one it lies in; delete it")
    return manifest


def environments(folder: Path) -> list[Environment]:
    """The environments that block results come from, as the manifest beside them lists them; older ones list none."""
    listed = checksums.read_sealed(folder / MANIFEST).get("environments")
    return listed if isinstance(listed, list) else []


def add_environments(folder: Path, new: Iterable[Environment]) -> list[Environment]:
    """List environments in a manifest that differ from those in it.

    Returns:
        All that it lists now.
    """
    known = environments(folder)
    added = [environment for environment in new if all(differing([environment, other]) for other in known)]
    if added:
        facts = checksums.read_sealed(folder / MANIFEST) | {"environments": [*known, *added]}
        files.write_json(folder / MANIFEST, checksums.sealed(folder / MANIFEST, facts))
    return [*known, *added]


def parts_begun(folder: Path) -> list[tuple[int, int]]:
    """Parts (number, count) that have a folder of their own among the block results, in order."""
    found = []
    for home in folder.glob("part-*-of-*"):
        _, number, _, count = home.name.split("-")
        if number.isdecimal() and count.isdecimal():
            found.append((int(number), int(count)))
    return sorted(found)
