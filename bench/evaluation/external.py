"""Checkpoints trained elsewhere: stored in the results folder like a run, and evaluated like one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.config.defaults import default_eps
from bench.config.settings import RunSettings
from bench.core import checksums, files
from bench.core import device as devices
from bench.data.splits import Parts, load
from bench.errors import UsageError
from bench.models.builders import network
from bench.models.checkpoints import fit, load_weights, other_entries, save_weights, weights_hash
from bench.models.class_order import ClassOrder, read_class_order
from bench.models.registry import folder_name, source
from bench.models.teachers import check_model
from bench.plan.jobs import FORMAT, EvalJob
from bench.plan.planner import evaluation_jobs

METHOD = "external"


def add_checkpoint(
    run: RunSettings,
    model_name: str,
    checkpoint: Path | str,
    *,
    label: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_order: Path | str | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> tuple[Path, tuple[EvalJob, ...]]:
    """Store a foreign checkpoint's weights under method `external`, keyed by their hash.

    Args:
        run: data set, attacks, threat model, seeds and folders.
        model_name: architecture; with mean and std the network is put behind that normalisation.
        checkpoint: weights, see `bench.models.checkpoints.load_weights`; `FILE#ENTRY` for one of several.
        label: row name in tables; the file's name if not given.
        mean: of the normalisation that its training used.
        std: likewise.
        class_order: file with the order of its outputs, see `bench.models.class_order.read_class_order`.
        note: receives what speaks for another normalisation or order of classes.

    Returns:
        The run's folder below the results folder, and the evaluations to do.

    Raises:
        UsageError: if the weights do not fit the model, or the normalisation does not fit the images.
        BenchError: if the model is not plausible on the data.
    """
    parts = load(run.dataset, Path(run.data_dir), download=run.download)
    for flag, values in (("--mean", mean), ("--std", std)):
        if values is not None and len(values) not in (1, parts.image[0]):
            raise UsageError(
                f"{flag}: expected a number for each channel of {parts.name}, which has {parts.image[0]}, or one for "
                f"all, got {len(values)}"
            )
    made = network(model_name, run.dataset, run.norm, parts.num_classes, *parts.image[:2])
    model = fit(
        made, load_weights(checkpoint), mean=mean, std=std, channels=parts.image[0], where=str(checkpoint), note=note
    )
    model = _in_order(model, class_order, parts)
    return store_model(run, model_name, model, parts, label or Path(checkpoint).name, str(checkpoint), note)


def unused_entries(checkpoint: Path | str) -> tuple[str, ...]:
    """Entries with weights that are not read from a file, unless the user has named one.

    Raises:
        UsageError, BenchError: see `bench.models.checkpoints.load_weights`.
    """
    return () if files.file_and_entry(checkpoint)[1] else other_entries(checkpoint)


def add_zoo_model(
    run: RunSettings,
    zoo_id: str,
    *,
    label: str | None = None,
    class_order: Path | str | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> tuple[Path, tuple[EvalJob, ...]]:
    """Store a model of the RobustBench zoo likewise; its architecture is named `robustbench:ID`."""
    from bench.models.robustbench import zoo_model

    data_dir = Path(run.data_dir)
    parts = load(run.dataset, data_dir, download=run.download)
    model = zoo_model(zoo_id, run.dataset, run.norm, data_dir / "zoo", download=run.download)
    name = f"robustbench:{zoo_id}"
    return store_model(run, name, _in_order(model, class_order, parts), parts, label or zoo_id, name, note)


def _in_order(model: nn.Module, class_order: Path | str | None, parts: Parts) -> nn.Module:
    """The model with its outputs in the order of the data set's classes."""
    if class_order is None:
        return model
    order = read_class_order(class_order, parts.class_names)
    return model if order.tolist() == list(range(parts.num_classes)) else ClassOrder(model, order)


def store_model(
    run: RunSettings,
    model_name: str,
    model: nn.Module,
    parts: Parts,
    label: str,
    origin: str,
    note: Callable[[str], None] | None = None,
) -> tuple[Path, tuple[EvalJob, ...]]:
    """Write weights and run.json of a foreign model, unless they are there already.

    The key is the hash of the weights, and of the file with the builder where that is the user's own.
    """
    check_model(model, parts, label, note=note)
    weights: dict[str, Tensor] = dict(model.state_dict())
    key, model_source = weights_hash(weights)[:16], source(model_name)
    if model_source:
        key = files.key_of({"weights": key, "model_source": model_source})
    folder = Path(parts.name, folder_name(model_name), METHOD, key)
    with files.locked(Path(run.out) / folder, wait=True):
        if not files.is_done(Path(run.out) / folder):
            hashes = {"last.safetensors": save_weights(Path(run.out) / folder / "last.safetensors", weights)}
            content = _run_record(run, model_name, parts, label, key, origin)
            files.write_json(Path(run.out) / folder / "run.json", {**content, "files": hashes})
            files.mark_done(Path(run.out) / folder)
        record = checksums.read_record(Path(run.out) / folder / "run.json")
        parts.require_same(record["data"], "test_hash", label)
    jobs = evaluation_jobs(run, devices.resolve(run.device), folder, key, model_name, label, seed=run.seeds[0])
    return folder, jobs


def _run_record(run: RunSettings, model: str, parts: Parts, label: str, key: str, origin: str) -> dict[str, Any]:
    return {
        "format": FORMAT, "key": key, "dataset": parts.name, "model": model, "method": METHOD, "label": label,
        "seed": 0, "role": "student", "recipe": None, "epochs": None, "selection": "last", "epoch_best": None,
        "norm": run.norm, "eps": default_eps(run), "settings": {}, "training": {}, "checkpoint": origin,
        "data": {
            "classes": parts.num_classes, "class_names": list(parts.class_names), "train_size": None,
            "test_size": len(parts.test), "class_counts": {"test": parts.counts["test"]}, "hash": parts.hash,
            "test_hash": parts.test_hash,
        },
        "teachers": {}, "warm_start": None, "passes": {}, "versions": devices.versions(),
        "hardware": devices.hardware("cpu", run.threads),
    }  # fmt: skip
