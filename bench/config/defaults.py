"""What a run takes where it says nothing: radius, architectures, teachers. Free of torch."""

from __future__ import annotations

from pathlib import Path

from bench.config.settings import RunSettings
from bench.core.files import file_and_entry, file_hash
from bench.data.registry import DATASETS
from bench.errors import UsageError
from bench.models.registry import source as model_source

# Role -> the method that trains a teacher for it, and the name under which a run gives or changes that teacher.
TEACHERS = {"robust": ("trades", "teacher"), "natural": ("natural", "natural_teacher")}


def usual_eps(run: RunSettings) -> float:
    """The radius of a run: the one asked for, or the data set's.

    Raises:
        UsageError: if neither says one.
    """
    found = radius(run) if run.eps is None else run.eps
    if found is None:
        raise UsageError(
            f"--eps: the data set {run.dataset} names no usual radius for {run.norm}; give one, e.g. 8/255"
        )
    return float(found)


def radius(run: RunSettings) -> float | None:
    """What the data set says of the norm; None if it says nothing."""
    usual: float | None = DATASETS.sketch(run.dataset).fact("eps", {}).get(run.norm)
    return usual


def usual_model(run: RunSettings) -> str:
    """The architecture of a run: the one asked for, or the data set's.

    Raises:
        UsageError: if neither says one.
    """
    usual = DATASETS.sketch(run.dataset).fact("model")
    if run.model is None and usual is None:
        raise UsageError(f"--model: the data set {run.dataset} names no usual model; give one of `bench list models`")
    return run.model or str(usual)


def teacher_model(run: RunSettings, role: str = "robust") -> str:
    """The architecture of a run's teacher in a role: the one asked for, or the data set's.

    Raises:
        UsageError: if neither says one.
    """
    own: str | None = getattr(run, f"{teacher_name(role)}_model")
    usual: str | None = DATASETS.sketch(run.dataset).fact("teacher_model")
    return own or run.teacher_model or usual or usual_model(run)


def given_teacher(given: str, model: str, *, where: str) -> dict[str, str]:
    """Where a teacher that was given comes from, see `TrainJob.teachers`.

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
    found = {"file": given, "model": model, "sha256": file_hash(file), "label": Path(given).name}
    optional = {"entry": entry, "model_source": model_source(model)}
    return {**found, **{name: value for name, value in optional.items() if value}}


def teacher_name(role: str) -> str:
    """Under what name a run gives or changes the teacher of a role."""
    return TEACHERS.get(role, TEACHERS["robust"])[1]


def teacher_flag(role: str) -> str:
    """The flag that gives the teacher of a role; the one with `-model` behind it gives its architecture."""
    return f"--{teacher_name(role)}".replace("_", "-")
