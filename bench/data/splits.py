"""The fixed parts of a data set: train, select and steer (both held out from the training images), and test.

Every subset is a prefix of one fixed order of the samples whose every prefix is stratified. So a smaller limit is
contained in a larger one, and neither the run's seed nor a library's random stream moves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data.raw import Images, ImageSource, Labels, Raw, default_sizes, split_held_out, stratified_order
from bench.data.registry import DATASETS
from bench.data.streamed import ImageTensor, StreamedImages
from bench.errors import BenchError, UsageError

__all__ = ["PARTS", "Part", "Parts", "Raw", "limit", "load", "split", "stratified_order", "to_float"]

PARTS = ("train", "select", "steer", "test")
DEVICE_SHARE = 0.5  # of the free memory of a GPU, for the images of one part


@dataclass(frozen=True, eq=False)
class Part:
    """Some samples of a data set.

    Attributes:
        x: images (N, C, H, W) uint8, in memory; `StreamedImages`, read when indexed, where they do not fit.
        y: classes (N,) int64.
        index: positions (N,) int64 in the part before any limit.
    """

    x: ImageTensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, positions: Tensor) -> Part:
        """The samples at these positions, in this order."""
        x = self.x.take(positions) if isinstance(self.x, StreamedImages) else self.x[positions]
        return Part(x, self.y[positions], self.index[positions])

    def to(self, device: torch.device | str) -> Part:
        """The same samples on a device; images that would take too much of it stay and are moved when indexed."""
        x = self.x
        if isinstance(x, Tensor) and not _fits_on(x, torch.device(device)):
            x = StreamedImages.from_tensor(x)
        return Part(x.to(device), self.y.to(device), self.index.to(device))

    def concat(self, *others: Part) -> Part:
        """These samples and then those of other parts of the same data set."""
        if not others:
            return self
        parts = (self, *others)
        streamed = [part.x for part in parts if isinstance(part.x, StreamedImages)]
        all_streamed = len(streamed) == len(parts)
        x = streamed[0].concat(streamed[1:]) if all_streamed else torch.cat([part.x[:] for part in parts])
        return Part(x, torch.cat([part.y for part in parts]), torch.cat([part.index for part in parts]))

    def prefetch(self, batches: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """The same batches of rows; streamed images are read one batch ahead."""
        return self.x.prefetch(batches) if isinstance(self.x, StreamedImages) else iter(batches)


@dataclass(frozen=True, eq=False)
class Parts:
    """A data set, split.

    Attributes:
        name: the registered name; of a user's data set the one it has in results.
        train: what every method trains on.
        select: held-out training images that choose the checkpoint.
        steer: held-out training images that steer methods such as FRL; disjoint from `select`.
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

    @property
    def counts(self) -> dict[str, list[int]]:
        """Samples of each class in each part."""
        return {part: torch.bincount(getattr(self, part).y, minlength=self.num_classes).tolist() for part in PARTS}

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the images and labels of all parts, limits included, and the class names.

        Of streamed images, names and sizes of the files are hashed.
        """
        return self._hash(PARTS)

    @cached_property
    def test_hash(self) -> str:
        """The same of the test part alone."""
        return self._hash(("test",))

    def _hash(self, names: Sequence[str]) -> str:
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for part in names:
            samples: Part = getattr(self, part)
            digest.update(f"{part} {tuple(samples.x.shape)}".encode())
            x = samples.x
            digest.update(x.fingerprint() if isinstance(x, StreamedImages) else x.cpu().contiguous().numpy().data)
            digest.update(samples.y.cpu().numpy().astype("<i8").data)
        return digest.hexdigest()

    def require_same(self, stored: Mapping[str, Any], which: str, where: str) -> None:
        """Check that stored results belong to these data.

        Args:
            stored: the entry on data of run.json; where that has no hash, nothing is compared.
            which: "hash", of all parts, or "test_hash".
            where: whose results, for the message.

        Raises:
            BenchError: if the hashes differ.
        """
        expected, actual = stored.get(which), getattr(self, which)
        if expected not in (None, actual):
            raise BenchError(
                f"{where}: expected the data that its results belong to ({which} {expected[:12]}), got others "
                f"({actual[:12]}); put those back into the data folder, or give another --out; images that another "
                "version of the packages decodes differ as well"
            )


def load(
    name: str,
    root: Path | str = "data",
    *,
    download: bool = False,
    train_limit: int | None = None,
    test_limit: int | None = None,
) -> Parts:
    """Read a data set and split it into its fixed parts.

    >>> parts = load("digits", train_limit=200, test_limit=50)
    >>> parts.sizes
    {'train': 200, 'select': 100, 'steer': 100, 'test': 50}
    >>> tuple(parts.test.x.shape)
    (50, 1, 8, 8)

    Args:
        name: a registered dataset, or `folder:PATH` or `npz:FILE`.
        root: the data directory.
        download: fetch what is missing.
        train_limit: train on a stratified subset of this size.
        test_limit: test on a stratified subset of this size.

    Raises:
        UnknownName: if no dataset has this name.
        UsageError: if files are missing or a limit is too small.
        BenchError: if the files are not the data set.
    """
    dataset, known = DATASETS[name], DATASETS.label(DATASETS.resolve(name))
    facts = DATASETS.sketch(name).facts
    raw = dataset(Path(root), download)
    raw.check(known)
    _check_registration(known, raw, facts)
    parts = split(known, raw, facts.get("sizes", {}))
    train = parts.train if train_limit is None else limit(parts.train, train_limit, f"{known}: train limit")
    test = parts.test if test_limit is None else limit(parts.test, test_limit, f"{known}: test limit")
    return replace(parts, train=train, test=test)


def split(name: str, raw: Raw, sizes: Mapping[str, int]) -> Parts:
    """Hold `select` and `steer` out from the training images; sizes that are not given are `default_sizes`.

    Raises:
        BenchError: if that leaves no training images, or a part without one of the classes.
    """
    n, classes = len(raw.y_train), len(raw.class_names)
    default = default_sizes(n, len(raw.y_test), classes)
    n_select, n_steer = (sizes.get(part, default[part]) for part in ("select", "steer"))
    if n_select + n_steer >= n:
        raise BenchError(
            f"{name}: {n_select} samples to select and {n_steer} to steer leave none of {n} to train; "
            "add training images or lower its sizes"
        )
    rows = split_held_out(raw.y_train, n_select, n_steer)
    for part, chosen in zip(("train", "select", "steer"), (rows[2], *rows[:2]), strict=True):
        absent = np.setdiff1d(np.arange(classes), raw.y_train[chosen])
        if len(absent) and len(chosen) >= classes:
            count = int((raw.y_train == absent[0]).sum())
            raise BenchError(
                f"{name}: class {absent[0]} ({raw.class_names[absent[0]]}) has {count} training images, too few for "
                f"one of them in {part}; add some, or leave the class out"
            )
    select, steer, train = (_part(raw.x_train, raw.y_train, chosen) for chosen in rows)
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
    rows = torch.from_numpy(np.sort(stratified_order(labels)[:n])).to(part.y.device)
    return part.take(rows)


@overload
def to_float(x: Tensor) -> Tensor: ...
@overload
def to_float(x: StreamedImages) -> StreamedImages: ...
def to_float(x: ImageTensor) -> ImageTensor:
    """Images in [0, 1] float32 from uint8; of `StreamedImages`, such images when indexed.

    >>> to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [0.0, 1.0]
    """
    return x.to_float() if isinstance(x, StreamedImages) else x.to(torch.float32) / 255


def _part(x: Images | ImageSource, y: Labels, rows: NDArray[np.int64] | None = None) -> Part:
    chosen = np.arange(len(y)) if rows is None else rows
    images: ImageTensor
    if isinstance(x, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(x[chosen].transpose(0, 3, 1, 2)))
    else:
        images = StreamedImages.from_source(x, torch.from_numpy(chosen))
    labels = torch.from_numpy(y[chosen].astype(np.int64))
    return Part(images, labels, torch.arange(len(labels)))


def _fits_on(x: Tensor, device: torch.device) -> bool:
    """Whether images take little enough of a device to be copied there as a whole."""
    return device.type != "cuda" or x.numel() * x.element_size() <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]


def _check_registration(name: str, raw: Raw, facts: Mapping[str, Any]) -> None:
    """Compare the data with the facts of the registration, as far as it gives any."""
    height, width, channels = raw.x_train.shape[1:]
    sizes = facts.get("sizes", {})
    declared = {
        "classes": facts.get("classes"),
        "images (channels, height, width)": facts.get("image"),
        "training images": sum(sizes[part] for part in PARTS[:3]) if "train" in sizes else None,
        "test images": sizes.get("test"),
    }
    counts = facts.get("class_counts", {})
    actual: tuple[Any, ...] = (len(raw.class_names), (channels, height, width), len(raw.y_train), len(raw.y_test))
    for part, y in (("train", raw.y_train), ("test", raw.y_test)):
        declared[f"images of each class to {part}"] = counts.get(part)
        actual += (tuple(np.bincount(y, minlength=len(raw.class_names)).tolist()),)
    for (what, expected), got in zip(declared.items(), actual, strict=True):
        if expected not in (None, got):
            raise BenchError(
                f"{name}: expected {what}: {expected}, got {got}; the files are not this dataset, or not all of it"
            )
