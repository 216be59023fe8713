"""Models under benchmark: folders of runs, checkpoints trained elsewhere, and any of them with masked gradients."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from attacks.threat import ThreatModel
from bench.core.files import is_done, read_json
from bench.core.values import parse_number
from bench.data.registry import DATASETS
from bench.data.splits import Part, Parts, limit, load, to_float
from bench.errors import UsageError
from bench.models.builders import build
from bench.models.checkpoints import fit, load_weights
from bench.plan.jobs import DEFAULT_BLOCK

T = TypeVar("T")
LEVELS = 16  # of the masking, at least


class Rounded(nn.Module):
    """A model behind an input rounded to levels 2 eps apart: no gradient passes, and a step of eps can reach a level.

    Args:
        model: takes images in [0, 1].
        eps: the radius it is attacked with.
    """

    def __init__(self, model: nn.Module, eps: float) -> None:
        super().__init__()
        self.model = model
        self.levels = max(LEVELS, round(1 / (2 * eps)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.model((x * self.levels).round() / self.levels)
        return logits


@dataclass(frozen=True)
class Subject:
    """A trained model and the samples it is attacked on, as plain data that any process can load.

    Attributes:
        name: its heading in tables.
        dataset, data_dir: whose test part is attacked, and where it is.
        model: architecture, or FILE.py:BUILDER.
        weights: file of the weights.
        norm, eps: the threat model.
        block: samples that are attacked together.
        mean, std: normalisation in front, where the weights need one.
        masked: whether the input is rounded, see `Rounded`.
    """

    name: str
    dataset: str
    data_dir: str
    model: str
    weights: str
    norm: str
    eps: float
    block: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    masked: bool = False

    @property
    def threat(self) -> ThreatModel:
        """Norm and radius."""
        return ThreatModel(self.norm, self.eps)  # type: ignore[arg-type]

    def load(self) -> nn.Module:
        """The model, in eval mode, on the CPU."""
        parts = _parts(self.dataset, self.data_dir)
        network = build(self.model, parts.num_classes, *parts.image[:2], seed=0)
        weights = load_weights(self.weights)
        model = fit(network, weights, mean=self.mean or None, std=self.std or None, where=self.weights)
        return (Rounded(model, self.eps) if self.masked else model).eval()

    def samples(self, n: int) -> tuple[Tensor, Tensor]:
        """A stratified part of the test images (n, C, H, W) and their labels; see `unseen`."""
        part = unseen(_parts(self.dataset, self.data_dir), n)
        return to_float(part.x[:]), part.y


def unseen(parts: Parts, n: int) -> Part:
    """A stratified part of n samples that no model was trained on: the test part, then the held-out ones as well."""
    if n <= len(parts.test):
        return limit(parts.test, n, "--samples")
    pools = (parts.test, parts.select, parts.steer)
    x, y, index = (torch.cat([getattr(pool, field) for pool in pools]) for field in ("x", "y", "index"))
    return limit(Part(x, y, index), n, "--samples")


@lru_cache(maxsize=2)
def _parts(dataset: str, data_dir: str) -> Parts:
    return load(dataset, data_dir)


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """Options that name models; those of a checkpoint are given once for all, or once for each."""
    parser.add_argument("folders", nargs="*", type=Path, help="folders of training runs; none: digits, trained first")
    parser.add_argument("--checkpoint", action="append", default=[], help="weights trained elsewhere; repeatable")
    parser.add_argument("--model", action="append", default=[], help="its architecture, or FILE.py:BUILDER")
    parser.add_argument("--mean", action="append", default=[], type=_numbers, help="its normalisation, per channel")
    parser.add_argument("--std", action="append", default=[], type=_numbers, help="likewise")
    parser.add_argument("--dataset", action="append", default=[], help="its data set (default: cifar10)")
    parser.add_argument(
        "--checkpoint-eps", action="append", default=[], type=parse_number, help="its radius, e.g. 2/255"
    )
    parser.add_argument("--data-dir", default="data", help="folder of the data sets")
    parser.add_argument("--eps", type=parse_number, help="radius for the runs (default: the one each was trained with)")
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf")
    parser.add_argument("--block", type=int, help="samples attacked together (default: the data set's)")
    parser.add_argument("--methods", default="pgd_at,trades", help="what is trained on digits without folders")
    parser.add_argument("--runs", type=Path, default=Path("results/benchmarks/runs"), help="where that is kept")


def subjects(options: argparse.Namespace) -> list[Subject]:
    """The models that the options name.

    Raises:
        UsageError: if a folder holds no run, or the options of the checkpoints do not pair up.
    """
    folders = options.folders
    if not folders and not options.checkpoint:
        folders = [trained(options.runs, method) for method in options.methods.split(",")]
    return [*(_of_run(folder, options) for folder in folders), *_of_checkpoints(options)]


def masked(subject: Subject) -> Subject:
    """The same model with its gradients masked."""
    return replace(subject, name=f"{subject.name}, masked", masked=True)


def trained(runs: Path, method: str, *extra: str, dataset: str = "digits", model: str = "small_cnn") -> Path:
    """The folder of a run that the suite itself trains, unless it is there already.

    Raises:
        UsageError: if the training fails.
    """
    command = [sys.executable, "-m", "bench", "run", "--methods", method, "--dataset", dataset, "--model", model]
    command += ["--attacks", "fgsm", "--out", str(runs), "--quiet", *extra]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        raise UsageError(f"benchmarks: training failed; see what `{' '.join(command[1:])}` says")
    found = [done.parent for done in (runs / dataset / model / method).glob("*/done")]
    return max(found, key=lambda folder: (folder / "done").stat().st_mtime)


def _of_run(folder: Path, options: argparse.Namespace) -> Subject:
    if not is_done(folder):
        raise UsageError(f"{folder}: expected the folder of a finished run, with `done` in it")
    run = read_json(folder / "run.json")
    dataset, model, label = str(run["dataset"]), str(run["model"]), str(run["label"])
    eps = float(run["eps"]) if options.eps is None else options.eps
    weights = str(folder / "last.safetensors")
    name = f"{dataset}, {Path(model).name}, {label}"
    return Subject(name, dataset, options.data_dir, model, weights, options.norm, eps, _block(dataset, options))


def _of_checkpoints(options: argparse.Namespace) -> list[Subject]:
    count = len(options.checkpoint)
    models = _paired("--model", options.model, count)
    means, stds = _paired("--mean", options.mean, count, ()), _paired("--std", options.std, count, ())
    datasets = _paired("--dataset", options.dataset, count, "cifar10")
    usual = [float(DATASETS.sketch(dataset).fact("eps")[options.norm]) for dataset in datasets]
    radii = _paired("--checkpoint-eps", options.checkpoint_eps, count) if options.checkpoint_eps else usual
    return [
        Subject(
            f"{dataset}, {Path(file).name}", dataset, options.data_dir, model, file, options.norm, eps,
            _block(dataset, options), mean, std,
        )
        for file, model, mean, std, dataset, eps in zip(
            options.checkpoint, models, means, stds, datasets, radii, strict=True
        )
    ]  # fmt: skip


def _paired(option: str, given: Sequence[T], count: int, default: T | None = None) -> list[T]:
    """One value per checkpoint."""
    if not given and default is not None:
        return [default] * count
    if len(given) == 1:
        return list(given) * count
    if len(given) != count:
        raise UsageError(f"{option}: expected one for all or one for each of {count} checkpoints, got {len(given)}")
    return list(given)


def _block(dataset: str, options: argparse.Namespace) -> int:
    return int(options.block or DATASETS.sketch(dataset).fact("block", DEFAULT_BLOCK))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def comma_list(convert: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A converter of comma lists for argparse."""
    return lambda text: [convert(part) for part in text.split(",")]
