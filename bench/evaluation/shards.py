"""Merge shards: copy the runs, evaluations and block results of several results folders into one.

Nothing is attacked here. Evaluations of which every block is there can then be finished like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.core import checksums, files
from bench.errors import BenchError, UsageError
from bench.evaluation import block_store
from bench.plan.jobs import PARTIAL, EvalJob, title

RUNS = "*/*/*/*"
OUTCOMES = "outcomes.parquet"
TRAIN_ONCE = "train once, and copy that run to the other machines"
GROWING = ("timing.jsonl", "log.txt")


@dataclass
class MergeResult:
    """Which evaluations a merge found complete.

    Attributes:
        complete: evaluations of which every block is there.
        incomplete: for each that lacks blocks which ones, and how to come by them.
        finished: number of evaluations that are finished already.
    """

    complete: list[EvalJob] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    finished: int = 0


def merge_shards(results: Sequence[Path], out: Path) -> MergeResult:
    """Merge several results folders into one, or check what is complete in one.

    Args:
        results: folders that shards wrote to.
        out: where everything is put; it may be one of them, and what it holds takes part.

    Raises:
        UsageError: if a folder does not exist.
        BenchError: if two folders hold different weights, block results or outcomes of one name, or files that were
            changed; nothing is written.
    """
    for root in results:
        if not root.is_dir():
            raise UsageError(f"merge: no folder {root}; name the folders that the shards wrote to")
    places = list({root.resolve(): root for root in (out, *results) if root.is_dir()}.values())
    runs = _folders_by_name(places, f"{RUNS}/{files.DONE}")
    evaluations = _folders_by_name(places, f"{RUNS}/eval/*/*")
    for source in (folder for sources in (*runs.values(), *evaluations.values()) for folder in sources):
        _require_intact(source)
    for sources in runs.values():
        for checkpoint in sorted({file.name for source in sources for file in source.glob("*.safetensors")}):
            _require_equal([source / checkpoint for source in sources], TRAIN_ONCE)
    for sources in evaluations.values():
        _require_equal([source / OUTCOMES for source in sources if files.is_done(source)], "one of them is damaged")
        _require_equal_weights(sources)
        for name in sorted({file.name for source in sources for file in _stored(source)} - {block_store.MANIFEST}):
            paths = [source / PARTIAL / name for source in sources]
            _require_equal(
                paths, "the machines round differently: leave out the folder of one and run its shard on the other"
            )
    for run, sources in runs.items():
        _copy(sources[0], out / run)
    result = MergeResult()
    for evaluation, sources in evaluations.items():
        _merge_evaluation(sources, out / evaluation, result)
    return result


def _folders_by_name(places: Sequence[Path], pattern: str) -> Mapping[Path, list[Path]]:
    """Folders that hold what a pattern names, by their path below a results folder; in order."""
    found: dict[Path, list[Path]] = {}
    for place in places:
        for folder in sorted({file.parent for file in place.glob(pattern)}):
            found.setdefault(folder.relative_to(place), []).append(folder)
    return found


def _require_intact(folder: Path) -> None:
    """Refuse a finished folder whose files are not those that its record states, and block results that were changed.

    Raises:
        BenchError: naming the file.
    """
    record = next((folder / name for name in files.RECORDS if (folder / name).is_file()), None)
    if files.is_done(folder) and record is None:
        raise BenchError(f"{folder}: expected a run.json or eval.json, got neither; delete it and run again")
    if files.is_done(folder) and record is not None:
        problem = next(checksums.file_problems(folder, checksums.read_record(record)), None)
        if problem is not None:
            raise BenchError(f"merge: {problem}")
    for file in _stored(folder):
        checksums.read_sealed(file)


def _require_equal(paths: Sequence[Path], remedy: str) -> None:
    there = [file for file in paths if file.is_file()]
    for file in there[1:]:
        if files.file_hash(file) != files.file_hash(there[0]):
            raise BenchError(f"merge: expected equal files, got others in {there[0]} and {file}; {remedy}")


def _require_equal_weights(sources: Sequence[Path]) -> None:
    """Refuse block results of one evaluation from different weights, whether those lie there or not."""
    manifests = {source: block_store.read_manifest(source / PARTIAL) for source in _unfinished(sources)}
    for source, manifest in manifests.items():
        first = next(iter(manifests))
        if manifest.weights != manifests[first].weights:
            raise BenchError(f"merge: {first} and {source} attacked different weights; {TRAIN_ONCE}")


def _unfinished(sources: Sequence[Path]) -> list[Path]:
    return [source for source in sources if (source / PARTIAL / block_store.MANIFEST).is_file()]


def _copy(source: Path, target: Path) -> None:
    """Copy a finished folder, without what lies in folders below, unless it is finished there."""
    if files.is_done(target):
        return
    with files.locked(target, wait=True):
        paths = [file for file in sorted(source.iterdir()) if file.is_file() and not file.name.startswith(".")]
        for file in sorted(paths, key=lambda file: file.name == files.DONE):
            files.write_bytes(target / file.name, file.read_bytes())


def _merge_evaluation(sources: Sequence[Path], target: Path, result: MergeResult) -> None:
    """Copy one evaluation to its place, finished or in block results."""
    finished = next((source for source in sources if files.is_done(source)), None)
    if finished is not None:
        _copy(finished, target)
        block_store.clear(target)
        result.finished += 1
        return
    unfinished = _unfinished(sources)
    if not unfinished:
        return
    for source in unfinished:
        _copy_blocks(source, target)
    manifest = block_store.read_manifest(target / PARTIAL)
    missing = manifest.missing(target / PARTIAL)
    if missing:
        result.incomplete.append(_missing_blocks(manifest, missing, unfinished))
    else:
        result.complete.append(manifest.job)


def _copy_blocks(source: Path, target: Path) -> None:
    new = [file for file in _stored(source) if not (target / PARTIAL / file.name).is_file()]
    if not new:
        return
    (target / PARTIAL).mkdir(parents=True, exist_ok=True)
    for file in new:
        files.write_bytes(target / PARTIAL / file.name, file.read_bytes())
    block_store.add_environments(target / PARTIAL, block_store.environments(source / PARTIAL))
    for name in GROWING:
        if (source / name).is_file():
            with open(target / name, "ab") as grown:
                grown.write((source / name).read_bytes())


def _stored(source: Path) -> Iterator[Path]:
    """The block results of an evaluation, their manifest last."""
    paths = sorted((source / PARTIAL).glob("*.json"))
    yield from sorted(paths, key=lambda file: file.name == block_store.MANIFEST)


def _missing_blocks(manifest: block_store.Manifest, missing: Sequence[int], sources: Sequence[Path]) -> str:
    begun = {part for source in sources for part in block_store.parts_begun(source / PARTIAL)}
    counts = sorted({count for _, count in begun})
    shards = [f"--shard {shard}" for count in counts for shard in manifest.shards_with(missing, count)]
    blocks = ", ".join(str(b + 1) for b in missing)
    how = f" with {', '.join(shards)}" if shards else ""
    return (
        f"{title(manifest.job)}: block{'s' if len(missing) > 1 else ''} {blocks} of {manifest.blocks}; "
        f"run the same command{how}, then merge again"
    )
