"""Defaults of a run that depend on its data set: radius, architectures, teachers. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from bench.config.settings import RunSettings
from bench.core.files import file_and_entry, file_hash
from bench.data.registry import DATASETS
from bench.errors import UsageError
from bench.models.registry import source as model_source

# Role -> the method that trains its teacher, and the run setting (and owner of `--set`) that gives or changes it.
TEACHER_ROLES = {"robust": ("trades", "teacher"), "natural": ("natural", "natural_teacher")}


def default_eps(run: RunSettings) -> float:
    """The radius of a run: `--eps`, or the data set's.

    Raises:
        UsageError: if there is neither.
    """
    eps = dataset_eps(run) if run.eps is None else run.eps
    if eps is None:
        raise UsageError(
            f"--eps: the data set {run.dataset} names no usual radius for {run.norm}; give one, e.g. 8/255"
        )
    return float(eps)


def dataset_eps(run: RunSettings) -> float | None:
    """The radius that the data set declares for the norm of the run; None if it declares none."""
    eps: float | None = DATASETS.sketch(run.dataset).fact("eps", {}).get(run.norm)
    return eps


def default_model(run: RunSettings) -> str:
    """The architecture of a run's students: `--model`, or the data set's.

    Raises:
        UsageError: if there is neither.
    """
    model = DATASETS.sketch(run.dataset).fact("model")
    if run.model is None and model is None:
        raise UsageError(f"--model: the data set {run.dataset} names no usual model; give one of `bench list models`")
    return run.model or str(model)


def teacher_model(run: RunSettings, role: str = "robust") -> str:
    """The architecture of a run's teacher in a role: the one given, or the data set's.

    Raises:
        UsageError: if there is neither.
    """
    given: str | None = getattr(run, f"{teacher_setting(role)}_model")
    default: str | None = DATASETS.sketch(run.dataset).fact("teacher_model")
    return given or run.teacher_model or default or default_model(run)


def teacher_source(given: str, model: str, *, where: str) -> dict[str, str]:
    """The source of a teacher that was given, see `TrainJob.teachers`.

    Args:
        given: a checkpoint, `FILE` or `FILE#ENTRY`, or `robustbench:ID`.
        model: the architecture of a checkpoint.
        where: where it was given, for messages, such as the flag.

    Raises:
        UsageError: if there is no such file.
    """
    if ":" in given and given.partition(":")[0].lower() == "robustbench":
        return {"zoo": given.partition(":")[2], "label": given}
    file, entry = file_and_entry(given)
    if not file.is_file():
        raise UsageError(f"{where} {given}: expected a checkpoint file or robustbench:ID, found neither")
    required = {"file": given, "model": model, "sha256": file_hash(file), "label": Path(given).name}
    optional = {"entry": entry, "model_source": model_source(model)}
    return {**required, **{name: value for name, value in optional.items() if value}}


def teacher_setting(role: str) -> str:
    """The run setting that gives the teacher of a role."""
    return TEACHER_ROLES.get(role, TEACHER_ROLES["robust"])[1]


def teacher_flag(role: str) -> str:
    """The flag that gives the teacher of a role; the one with `-model` behind it gives its architecture."""
    return f"--{teacher_setting(role)}".replace("_", "-")
