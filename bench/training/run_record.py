"""The content of run.json: settings, data, versions, hardware and passes of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.core import device as devices
from bench.core import files
from bench.core.environment import Environment, differing, environment_of, environment_text
from bench.core.out_of_memory import BatchLimit
from bench.data.splits import Part, Parts
from bench.plan.jobs import FORMAT, TrainJob
from bench.results.keys import ONLY_FOR_TRAINING_KEY
from methods.base import HIDDEN


def run_record(
    job: TrainJob, parts: Parts, train: Part, *, epoch_best: int | None, passes: Mapping[str, Mapping[str, int]],
    processes: Mapping[str, Any], arithmetic: Mapping[str, Any], limit: BatchLimit, exact: bool,
    hashes: Mapping[str, str], environments: Sequence[Environment] = (),
) -> dict[str, Any]:  # fmt: skip
    """The content of run.json.

    Args:
        job: the run.
        parts: its data set.
        train: the training samples, as the method sees them.
        epoch_best: epoch of the best weights so far, None if none are kept.
        passes: made so far, of all processes together.
        processes: how many trained it, and whose statistics BatchNorm has used, see `ProcessGroup.describe`.
        arithmetic: switches and precision of the networks, see `FastNetworks.facts`.
        limit: the smallest micro-batches of any process.
        exact: whether micro-batches give what whole batches give.
        hashes: SHA-256 of the files beside it, none while it trains.
        environments: those that a run was trained in one after the other, if there were several.
    """
    training = {name: value for name, value in asdict(job.recipe).items() if name != "settings"}
    names = ("model", "method", "label", "seed", "role")
    return {
        "format": FORMAT, "key": job.key, "dataset": parts.name, **{name: getattr(job, name) for name in names},
        "recipe": job.recipe_name, "epochs": job.recipe.epochs, "selection": job.select, "epoch_best": epoch_best,
        "norm": job.norm, "eps": job.eps, "settings": dict(job.settings), "training": training,
        "data": {
            "classes": parts.num_classes, "class_names": list(parts.class_names), "train_size": len(train),
            "select_size": len(parts.select), "steer_size": len(parts.steer), "test_size": len(parts.test),
            "class_counts": parts.counts, "hash": parts.hash, "test_hash": parts.test_hash, **_labelled_size(train),
        },
        "teachers": {role: dict(source) for role, source in job.teachers.items()},
        "warm_start": None if job.warm_start is None else dict(job.warm_start),
        "passes": passes, "versions": devices.versions(), "processes": processes,
        "micro_batch": limit.describe(asked=job.micro_batch, exact=exact),
        "hardware": devices.hardware(job.device, job.threads), "arithmetic": arithmetic,
        "deterministic": job.deterministic, "revision": job.revision, "source": job.source,
        "model_source": job.model_source, **({"environments": list(environments)} if environments else {}),
        "key_fields": {name: getattr(job, name) for name in ONLY_FOR_TRAINING_KEY}, "files": dict(hashes),
    }  # fmt: skip


def resumed_environments(folder: Path, job: TrainJob, parts: Parts, tell: Callable[[str], None]) -> list[Environment]:
    """Every environment of a run that is resumed, the present one last, if it is not the first one; else none.

    Args:
        folder: of the run, with the run.json of its last start.
        job: the run.
        parts: its data set.
        tell: receives a line where this environment differs from the last one.

    Raises:
        BenchError: if the data are not those that the run was begun on.
    """
    if not (folder / "run.json").is_file():
        return []
    before = files.read_json(folder / "run.json")
    parts.require_same(before["data"], "hash", job.title)
    known: list[Environment] = before.get("environments") or [environment_of(before)]
    now = environment_of({"hardware": devices.hardware(job.device, job.threads), "versions": devices.versions()})
    if names := differing([known[-1], now]):
        was, here = (environment_text([environment], names) for environment in (known[-1], now))
        tell(f"resumed in another environment, so numbers can differ by rounding: {here}; before: {was}")
        known = [*known, now]
    return known if len(known) > 1 else []


def _labelled_size(train: Part) -> dict[str, int]:
    """How many labels the method asked to see, where it did not ask for all."""
    labelled = int((train.y != HIDDEN).sum())
    return {} if labelled == len(train) else {"labelled_size": labelled}
