"""Loading of teachers from a run, a file or the zoo, and the check that they suit the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import comb
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from attacks.contexts import mode
from bench.data.splits import Parts, stratified_order, to_float
from bench.errors import BenchError
from bench.models.builders import network
from bench.models.checkpoints import fit, load_run_weights, load_weights

PROBE = 500
CHUNK = 100
LEVEL = 0.0003  # of the comparison with another range or order: 1 in 1,000 for three of them
NORMALISATION_REMEDY = "put that normalisation inside the model or pass --mean and --std"
BUILDER_REMEDY = (
    "wrap the network in bench.models.Normalized with that normalisation, in a builder of your own, and choose it with "
    "{flag} FILE.py:BUILDER"
)
CLASS_ORDER_REMEDY = "give the order with --class-order FILE"
OUTPUTS_REMEDY = "put its outputs into the order of the data set in a builder of your own"


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
    device: str = "cpu", flag: str = "--teacher-model", note: Callable[[str], None] | None = None,
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
        note: receives sentences on the normalisation and the order of classes; nothing is compared without it.

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
        say = note or (lambda sentence: None)
        model = fit(made, weights, channels=parts.image[0], where=file, flag=flag, note=say)
    model.eval().requires_grad_(False).to(device)
    remedies = (BUILDER_REMEDY.format(flag=flag), OUTPUTS_REMEDY)
    check_model(model, parts, f"teacher {source['label']}", remedies, note)
    return model


def check_model(
    model: nn.Module,
    parts: Parts,
    label: str,
    remedies: tuple[str, str] = (NORMALISATION_REMEDY, CLASS_ORDER_REMEDY),
    note: Callable[[str], None] | None = None,
) -> None:
    """Refuse a model with other classes, outputs that are not finite, another input range, or an accuracy near chance.

    Near chance is below twice chance or a tenth above it, whichever is less. A model that is better by more than
    chance on inputs of another range, or with another order of classes, is noted.

    Args:
        model: takes images in [0, 1].
        parts: the data.
        label: name of the model in messages.
        remedies: for another input range and for another order of classes, in messages.
        note: receives what is noted; nothing is compared without it unless the model is refused.

    Raises:
        BenchError: naming the fault.
    """
    held_out = parts.select.take(torch.from_numpy(np.sort(stratified_order(parts.select.y.cpu().numpy())[:PROBE])))
    x, y = to_float(held_out.x[:]), held_out.y
    logits = _logits(model, x)
    if logits.ndim != 2 or logits.shape[1] != parts.num_classes:
        raise BenchError(
            f"{label}: expected logits (N, {parts.num_classes}) for {parts.name}, got {tuple(logits.shape)}; "
            "choose one trained on this data set"
        )
    _check_finite(logits, parts.name, label)
    right = logits.argmax(1) == y
    accuracy = right.double().mean().item()
    least = min(2 / parts.num_classes, 1 / parts.num_classes + 0.1)
    if accuracy >= least and note is None:
        return
    hints = (_range_hint(model, x, y, right, refused=accuracy < least), _order_hint(logits, y))
    found = [(hint, remedy) for hint, remedy in zip(hints, remedies, strict=True) if hint]
    if accuracy < least:
        why = " (and {}); {}".format(*found[0]) if found else "; check the file, the architecture and the data set"
        raise BenchError(
            f"{label}: expected a clean accuracy of at least {100 * least:.3g}% on held-out {parts.name}, got "
            f"{accuracy:.1%}{why}"
        )
    say = note or (lambda sentence: None)
    for hint, remedy in found:
        say(f"{label}: {accuracy:.1%} of {len(y)} held-out images are right, and {hint}; {remedy}")


def _check_finite(logits: Tensor, data: str, label: str) -> None:
    """Check that all outputs are finite numbers.

    Raises:
        BenchError: saying on how many images which are not.
    """
    nan = logits.isnan().any(1)
    infinite = logits.isinf().any(1) & ~nan
    found = [f"{what} on {int(rows.sum())}" for what, rows in (("NaN", nan), ("infinity", infinite)) if rows.any()]
    if found:
        raise BenchError(
            f"{label}: expected finite outputs on held-out {data}, got {' and '.join(found)} of {len(logits)} images; "
            "check the file, the architecture and the range of inputs that it expects"
        )


def _range_hint(model: nn.Module, x: Tensor, y: Tensor, right: Tensor, refused: bool) -> str:
    """For messages: whether the model does better on inputs in another range than [0, 1].

    Better is by a fifth of all images for a model that is refused, else by more than chance.
    """
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp(min=1e-6)
    ranges = {"standardised inputs": (x - mean) / std, "inputs in [0, 255]": x * 255, "inputs in [-1, 1]": 2 * x - 1}
    others = {name: _logits(model, scaled).argmax(1) == y for name, scaled in ranges.items()}
    best = max(others, key=lambda name: int(others[name].sum()))
    gain = int(others[best].sum()) - int(right.sum())
    better = gain >= 0.2 * len(y) if refused else _is_better(others[best], right)
    return f"{others[best].double().mean().item():.1%} with {best}" if better else ""


def _order_hint(logits: Tensor, y: Tensor) -> str:
    """For messages: whether the outputs follow another order of classes.

    The order that is right most often on one half of the samples of every class is compared on the other half.
    """
    from scipy.optimize import linear_sum_assignment

    classes, guess = logits.shape[1], logits.argmax(1)
    half = torch.zeros(len(y), dtype=torch.bool)
    for k in range(classes):
        half[(y == k).nonzero()[::2]] = True
    counts = torch.bincount(y[half] * classes + guess[half], minlength=classes**2).view(classes, classes)
    _, outputs = linear_sum_assignment(-(2 * counts + torch.eye(classes, dtype=torch.int64)).numpy())
    reordered, plain = torch.from_numpy(outputs)[y[~half]] == guess[~half], y[~half] == guess[~half]
    if not _is_better(reordered, plain):
        return ""
    return f"{reordered.double().mean().item():.1%} if its outputs follow another order of classes"


def _is_better(right: Tensor, other: Tensor) -> bool:
    """Whether the first of two classifiers of the same samples is better by more than chance (sign test)."""
    wins, losses = int((right & ~other).sum()), int((other & ~right).sum())
    n = wins + losses
    return bool(sum(comb(n, k) for k in range(wins, n + 1)) < LEVEL * 2**n)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of samples (N, C, H, W), on the CPU, a chunk at a time on the model's device."""
    device = next((parameter.device for parameter in model.parameters()), x.device)
    with mode(model, train=False), torch.no_grad():
        chunks = [model(chunk.to(device)).cpu() for chunk in x.split(CHUNK)]
    return torch.cat(chunks) if chunks[0].ndim else chunks[0]
