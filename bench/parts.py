"""The fixed parts of a dataset: train, select and steer (both held out from the training images), and test.

Every choice of samples is the start of one fixed order per label vector, in which any start is stratified. So a
smaller limit is contained in a larger one, and neither the run's seed nor a library's random stream moves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data import DATASETS
from bench.errors import BenchError, UsageError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
PARTS = ("train", "select", "steer", "test")


@dataclass(frozen=True)
class Raw:
    """A dataset as it is published.

    Attributes:
        x_train: training images (N, H, W, C) uint8.
        y_train: their classes (N,), integers from 0.
        x_test: test images.
        y_test: their classes.
        class_names: one name per class.
    """

    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    class_names: Sequence[str]

    def check(self, where: str) -> None:
        """Hold shapes, dtypes and labels against what a dataset must be.

        Raises:
            BenchError: naming `where` and the first thing that is wrong.
        """
        _check_part(f"{where}: train", self.x_train, self.y_train, self.class_names)
        _check_part(f"{where}: test", self.x_test, self.y_test, self.class_names)
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise BenchError(
                f"{where}: expected images of one shape, got {self.x_train.shape[1:]} to train "
                f"and {self.x_test.shape[1:]} to test"
            )


@dataclass(frozen=True, eq=False)
class Part:
    """Some samples of a dataset, in memory.

    Attributes:
        x: images (N, C, H, W) uint8.
        y: classes (N,) int64.
        index: positions (N,) int64 in the part before any limit.
    """

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, positions: Tensor) -> Part:
        """The samples at these positions, in this order."""
        return Part(self.x[positions], self.y[positions], self.index[positions])

    def to(self, device: torch.device | str) -> Part:
        """The same samples on a device."""
        return Part(self.x.to(device), self.y.to(device), self.index.to(device))


@dataclass(frozen=True, eq=False)
class Parts:
    """A dataset, cut.

    Attributes:
        name: the registered name.
        train: what every method trains on.
        select: held-out training images that choose the checkpoint.
        steer: held-out training images that steer FRL and its kin; disjoint from `select`.
        test: the test images.
        class_names: one name per class.
    """

    name: str
    train: Part
    select: Part
    steer: Part
    test: Part
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width

    @property
    def sizes(self) -> dict[str, int]:
        """Samples in each part."""
        return {part: len(getattr(self, part)) for part in PARTS}

    @cached_property
    def class_counts(self) -> Tensor:
        """Training samples of each class, (K,) int64."""
        return torch.bincount(self.train.y, minlength=self.num_classes)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the images and labels of all parts, limits included, and the class names."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for part in PARTS:
            samples: Part = getattr(self, part)
            digest.update(f"{part} {tuple(samples.x.shape)}".encode())
            digest.update(samples.x.cpu().contiguous().numpy().data)
            digest.update(samples.y.cpu().numpy().astype("<i8").data)
        return digest.hexdigest()


def load(
    name: str,
    root: Path | str = "data",
    *,
    download: bool = False,
    train_limit: int | None = None,
    test_limit: int | None = None,
) -> Parts:
    """Read a dataset and cut it into its fixed parts.

    Args:
        name: a registered dataset.
        root: the data directory.
        download: fetch what is missing.
        train_limit: train on a stratified subset of this size.
        test_limit: test on a stratified subset of this size.

    Raises:
        UnknownName: if no dataset has this name.
        UsageError: if files are missing or a limit is too small.
        BenchError: if what was read is not the dataset.
    """
    known = DATASETS.resolve(name)
    dataset = DATASETS[known]
    facts = DATASETS.sketch(known).facts
    raw = dataset(Path(root), download)
    raw.check(known)
    _hold_against(known, raw, facts)
    parts = split(known, raw, facts.get("sizes", {}))
    train = parts.train if train_limit is None else limit(parts.train, train_limit, f"{known}: train limit")
    test = parts.test if test_limit is None else limit(parts.test, test_limit, f"{known}: test limit")
    return replace(parts, train=train, test=test)


def split(name: str, raw: Raw, sizes: Mapping[str, int]) -> Parts:
    """Cut `select` and `steer` off the training images; a tenth each where `sizes` is silent."""
    n = len(raw.y_train)
    n_select, n_steer = (sizes.get(part, n // 10) for part in ("select", "steer"))
    if n_select + n_steer >= n:
        raise BenchError(
            f"{name}: {n_select} samples to select and {n_steer} to steer leave none of {n} to train; lower its sizes"
        )
    order = stratified(raw.y_train)
    select, steer, train = (
        _part(raw.x_train, raw.y_train, np.sort(rows)) for rows in np.split(order, [n_select, n_select + n_steer])
    )
    return Parts(name, train, select, steer, _part(raw.x_test, raw.y_test), tuple(raw.class_names))


def limit(part: Part, n: int, where: str = "limit") -> Part:
    """A stratified subset of n samples, in the part's order; all of them where n is not smaller than the part.

    Raises:
        UsageError: if n is too small for one sample of each class.
    """
    labels = part.y.cpu().numpy()
    classes = len(np.unique(labels))
    if n < classes:
        raise UsageError(f"{where}: expected at least {classes} samples, one per class, got {n}; raise the limit")
    if n >= len(part):
        return part
    rows = torch.from_numpy(np.sort(stratified(labels)[:n])).to(part.y.device)
    return part.take(rows)


def stratified(y: Labels) -> NDArray[np.int64]:
    """An order of all samples in which every start is stratified.

    The first of each class come first; then a sample's place is its rank within its class over the size of the
    class, so a start of m samples holds m n_k / n of class k, give or take one. Ranks follow a hash of the
    sample's position.

    Args:
        y: classes (N,).

    Returns:
        Positions (N,).
    """
    _, classes, counts = np.unique(y, return_inverse=True, return_counts=True)
    shuffled = np.lexsort((_scramble(len(y)), classes))
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    rank = np.empty(len(y), dtype=np.int64)
    rank[shuffled] = np.arange(len(y)) - first[classes[shuffled]]
    place = (rank + 0.5) / counts[classes]
    return np.lexsort((classes, place, rank > 0))


def to_float(x: Tensor) -> Tensor:
    """Images in [0, 1] float32 from uint8."""
    return x.to(torch.float32) / 255


def _scramble(n: int) -> NDArray[np.uint64]:
    """A fixed 64-bit hash of the numbers below n (the finaliser of SplitMix64): the same with every library version."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return hashed


def _part(x: Images, y: Labels, rows: NDArray[np.int64] | None = None) -> Part:
    x, y = (x, y) if rows is None else (x[rows], y[rows])
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(y.astype(np.int64))
    return Part(images, labels, torch.arange(len(labels)))


def _check_part(where: str, x: Images, y: Labels, class_names: Sequence[str]) -> None:
    if x.dtype != np.uint8 or x.ndim != 4:
        raise BenchError(f"{where}: expected images as uint8 of shape (N, H, W, C), got {x.dtype} of {x.shape}")
    if x.shape[1] != x.shape[2]:
        raise BenchError(f"{where}: expected square images, got {x.shape[1]}x{x.shape[2]}; pad or crop them")
    if not np.issubdtype(y.dtype, np.integer) or y.shape != x.shape[:1]:
        raise BenchError(
            f"{where}: expected one integer label for each of {len(x)} images, got {y.dtype} of shape {y.shape}"
        )
    classes = len(class_names)
    if len(y) and (y.min() < 0 or y.max() >= classes):
        raise BenchError(f"{where}: expected labels from 0 to {classes - 1}, got {y.min()} to {y.max()}")
    absent = sorted(set(range(classes)) - set(y.tolist()))
    if absent:
        raise BenchError(
            f"{where}: expected samples of every class, class {absent[0]} ({class_names[absent[0]]}) has none"
        )


def _hold_against(name: str, raw: Raw, facts: Mapping[str, Any]) -> None:
    """Compare what was read with what the registration says; what it does not say is not compared."""
    height, width, channels = raw.x_train.shape[1:]
    sizes = facts.get("sizes", {})
    declared = {
        "classes": facts.get("classes"),
        "images (channels, height, width)": facts.get("image"),
        "training images": sum(sizes[part] for part in PARTS[:3]) if "train" in sizes else None,
        "test images": sizes.get("test"),
    }
    found = (len(raw.class_names), (channels, height, width), len(raw.y_train), len(raw.y_test))
    for (what, expected), got in zip(declared.items(), found, strict=True):
        if expected not in (None, got):
            raise BenchError(
                f"{name}: expected {what}: {expected}, got {got}; the files are not this dataset, or not all of it"
            )
