"""Loading of teachers from a run, a file or the zoo, and the check that they suit the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from attacks.contexts import mode
from bench.data.splits import Parts, to_float
from bench.errors import BenchError
from bench.models.builders import network
from bench.models.checkpoints import fit, load_run_weights, load_weights

PROBE = 500
CHUNK = 100
NORMALISATION_REMEDY = "put that normalisation inside the model or pass --mean and --std"
BUILDER_REMEDY = (
    "wrap the network in bench.models.Normalized with that normalisation, in a builder of your own, and choose it with "
    "{flag} FILE.py:BUILDER"
)


class Target(Protocol):
    """Data set and norm that a teacher is for: a training job, or the settings of a run."""

    @property
    def dataset(self) -> str:
        """Name of the data set."""

    @property
    def norm(self) -> str:
        """Norm of the threat model."""


def load_teacher(
    source: Mapping[str, str], job: Target, parts: Parts, out: Path, data_dir: Path, download: bool = False,
    device: str = "cpu", flag: str = "--teacher-model",
) -> nn.Module:  # fmt: skip
    """A teacher in eval mode with frozen parameters.

    Args:
        source: its origin, see `TrainJob.teachers`.
        job: of the student.
        parts: the data, to check its accuracy on.
        out: results folder.
        data_dir: where the zoo's weights are cached.
        download: fetch the zoo's weights if they are missing.
        device: of the teacher.
        flag: the option that chooses the architecture of a file, for messages.

    Raises:
        BenchError: if it cannot be loaded or is not plausible for this data.
    """
    if "zoo" in source:
        from bench.models.robustbench import zoo_model

        model = zoo_model(source["zoo"], job.dataset, job.norm, data_dir / "zoo", download=download)
    else:
        file = str(out / source["folder"] / "last.safetensors") if "folder" in source else source["file"]
        made = network(source["model"], job.dataset, job.norm, parts.num_classes, *parts.image[:2])
        weights = load_run_weights(out / source["folder"]) if "folder" in source else load_weights(file)
        model = fit(made, weights, where=file, flag=flag)
    model.eval().requires_grad_(False).to(device)
    check_model(model, parts, f"teacher {source['label']}", BUILDER_REMEDY.format(flag=flag))
    return model


def check_model(model: nn.Module, parts: Parts, label: str, remedy: str = NORMALISATION_REMEDY) -> None:
    """Refuse a model with other classes, another input range, or an accuracy near chance.

    Near chance is below twice chance or a tenth above it, whichever is less.

    Args:
        model: takes images in [0, 1].
        parts: the data.
        label: name of the model in messages.
        remedy: for another input range, in messages.

    Raises:
        BenchError: naming the fault.
    """
    x, y = to_float(parts.select.x[:PROBE]), parts.select.y[:PROBE]
    logits = _logits(model, x)
    if logits.ndim != 2 or logits.shape[1] != parts.num_classes:
        raise BenchError(
            f"{label}: expected logits (N, {parts.num_classes}) for {parts.name}, got {tuple(logits.shape)}; "
            "choose one trained on this data set"
        )
    accuracy = _accuracy(logits, y)
    least = min(2 / parts.num_classes, 1 / parts.num_classes + 0.1)
    if not bool(torch.isfinite(logits).all()) or accuracy < least:
        raise BenchError(
            f"{label}: expected a clean accuracy of at least {100 * least:.3g}% on held-out {parts.name}, got "
            f"{accuracy:.1%}{_range_hint(model, x, y, accuracy, remedy)}"
        )


def _range_hint(model: nn.Module, x: Tensor, y: Tensor, accuracy: float, remedy: str) -> str:
    """For messages: whether the model does better on inputs in another range than [0, 1]."""
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    ranges = {"standardised inputs": (x - mean) / std, "inputs in [0, 255]": x * 255, "inputs in [-1, 1]": 2 * x - 1}
    accuracies = {name: _accuracy(_logits(model, scaled), y) for name, scaled in ranges.items()}
    best = max(accuracies, key=lambda name: accuracies[name])
    if accuracies[best] < accuracy + 0.2:
        return "; check the file, the architecture and the data set"
    return f" (and {accuracies[best]:.1%} with {best}); {remedy}"


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of samples (N, C, H, W), on the CPU, a chunk at a time on the model's device."""
    device = next((parameter.device for parameter in model.parameters()), x.device)
    with mode(model, train=False), torch.no_grad():
        chunks = [model(chunk.to(device)).cpu() for chunk in x.split(CHUNK)]
    return torch.cat(chunks) if chunks[0].ndim else chunks[0]


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return (logits.argmax(1) == y).double().mean().item()
