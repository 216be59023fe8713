"""The text of `bench status`: runs and evaluations of a results folder, missing jobs and failures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.core import checksums, files
from bench.errors import UsageError
from bench.evaluation import block_store
from bench.plan.jobs import PARTIAL, Plan, title
from bench.results.tree import PLANS, missing_jobs


def store_plan(plan: Plan, out: Path) -> None:
    """Store the titles and folders of a plan's jobs, so that `bench status` can say what is missing."""
    jobs = [{"title": title(job), "folder": job.folder.as_posix()} for job in plan.jobs]
    folder = out / PLANS
    with files.locked(folder, wait=True):
        files.write_json(folder / f"{files.key_of({'jobs': jobs})}.json", {"jobs": jobs})


def status_text(results: Path) -> str:
    """One line for each run, evaluation, failure and missing job of a results folder.

    Raises:
        UsageError: if there is no such folder.
    """
    if not results.is_dir():
        raise UsageError(f"status: no folder {results}; run `bench run` first, or name the folder it wrote to")
    runs = sorted({path.parent for name in ("run.json", files.DONE) for path in results.glob(f"*/*/*/*/{name}")})
    lines = []
    for folder in runs:
        run = checksums.read_record(folder / "run.json", ("dataset", "model", "label", "seed", "epochs"))
        state = _state(folder, run)
        name = f"{run['dataset']} {run['model']} {run['label']} seed {run['seed']} ({folder.name})"
        lines.append(f"{name}: {state}")
        for evaluation in sorted((folder / "eval").glob("*")):
            line = _evaluation_line(evaluation)
            if line:
                lines.append(f"  {line}")
    for failure in sorted(results.glob(f"*/*/*/*/{files.FAILED}")):
        if not (failure.parent / "run.json").is_file():
            lines.append(f"{failure.parent.relative_to(results).as_posix()}: failed: {files.failure(failure.parent)}")
    failed = sum("failed" in line for line in lines)
    missing = list(missing_jobs(results).values())
    lines += [f"missing: {name}" for name in missing]
    counts = [f"{len(runs)} runs", *([f"{failed} failed"] if failed else [])]
    counts += [f"{len(missing)} planned jobs not begun"] if missing else []
    return "\n".join([f"{results}: {', '.join(counts)}", *lines])


def _state(folder: Path, run: Mapping[str, Any]) -> str:
    if files.is_done(folder):
        return "done"
    sentence = files.failure(folder)
    if sentence is not None:
        return f"failed: {sentence}"
    history = folder / "history.jsonl"
    epochs = len(history.read_text().splitlines()) if history.is_file() else 0
    return f"{epochs} of {run['epochs']} epochs"


def _evaluation_line(folder: Path) -> str | None:
    if files.is_done(folder):
        facts = checksums.read_record(folder / "eval.json", ("attack", "checkpoint", "eps", "n"))
        return f"{facts['attack']} on {facts['checkpoint']}, eps {facts['eps']:.4g}, n {facts['n']}: done"
    sentence = files.failure(folder)
    if sentence is not None:
        return f"{folder.name}: failed: {sentence}"
    partial = folder / PARTIAL
    stored = len([file for file in partial.glob("*-*.json") if not file.name.startswith(block_store.CLEAN)])
    failed = _failed_parts(partial)
    if not (partial / block_store.MANIFEST).is_file():
        text = f"{folder.name}: unfinished, {stored} stage blocks stored"
        return "; ".join([text, *failed]) if stored or failed else None
    manifest = block_store.read_manifest(partial)
    blocks = f"{stored} of {manifest.blocks * len(manifest.stages)} stage blocks stored"
    line = f"{title(manifest.job)} ({folder.name}): unfinished, {blocks}"
    return "; ".join([line, *_shard_lines(manifest, partial), *failed])


def _shard_lines(manifest: block_store.Manifest, partial: Path) -> list[str]:
    """Which shards are missing of an evaluation; nothing if none was ever begun."""
    missing, lines = manifest.missing(partial), []
    for count in sorted({count for _, count in block_store.parts_begun(partial)}):
        shards = manifest.shards_with(missing, count)
        lines.append(f"missing: --shard {', '.join(shards)}" if shards else "every shard is there: bench merge")
    return lines


def _failed_parts(partial: Path) -> list[str]:
    homes = {f"{i}/{count}": partial / f"part-{i}-of-{count}" for i, count in block_store.parts_begun(partial)}
    return [f"{name} failed: {sentence}" for name, home in homes.items() if (sentence := files.failure(home))]
