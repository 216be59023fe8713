"""A data set as it is published, the checks that it must pass, and the stratified order that its parts are cut along.

Free of torch: plans check the headers of a user's data set in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
SMALLEST = 8
MOST_CHANNELS = 4
IN_MEMORY = 2 << 30  # bytes; a bigger array of images stays on disk, and rows are read when they are indexed


class ImageSource(Protocol):
    """Images (N, H, W, C) uint8 that stay on disk until rows are indexed; the part of an array that the suite uses."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""

    @property
    def ndim(self) -> int:
        """4."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: NDArray[np.int64]) -> Images:
        """Images (M, H, W, C) at positions (M,)."""

    def fingerprint(self, rows: NDArray[np.int64]) -> bytes:
        """A hash of the images at these positions that is known without reading them."""


@dataclass(frozen=True)
class Raw:
    """A dataset as it is published.

    Attributes:
        x_train: training images (N, H, W, C) uint8, in memory or `ImageSource`.
        y_train: their classes (N,), integers from 0.
        x_test: test images.
        y_test: their classes.
        class_names: one name per class.
    """

    x_train: Images | ImageSource
    y_train: Labels
    x_test: Images | ImageSource
    y_test: Labels
    class_names: Sequence[str]

    def check(self, where: str) -> None:
        """Check shapes, dtypes and labels.

        Raises:
            BenchError: naming `where` and the first fault.
        """
        for part, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            check_images(f"{where}: {part}", x.shape, x.dtype)
            check_labels(f"{where}: {part}", y, len(x), self.class_names)
        check_same_shape(where, self.x_train.shape, self.x_test.shape)


def check_images(where: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Check that an array holds square images of 8 bits, channels last.

    Raises:
        BenchError: naming `where`, the fault and the remedy.
    """
    wanted = f"{where}: expected images as uint8 of shape (N, H, W, C), got {dtype} of {shape}"
    if dtype != np.uint8:
        raise BenchError(f"{wanted}; scale to 0..255 and convert with .astype('uint8')")
    if len(shape) != 4:
        raise BenchError(wanted + ("; add the channel with x[..., None]" if len(shape) == 3 else ""))
    if shape[3] > MOST_CHANNELS:
        turn = "; the channels seem to come first: turn them with x.transpose(0, 2, 3, 1)"
        raise BenchError(wanted + (turn if shape[1] <= MOST_CHANNELS else ", with 1 to 4 channels"))
    if shape[1] == shape[2] < SMALLEST:
        raise BenchError(f"{where}: expected images of at least {SMALLEST}x{SMALLEST}, got {shape[1]}x{shape[2]}")
    if shape[1] != shape[2]:
        raise BenchError(f"{where}: expected square images, got {shape[1]}x{shape[2]}; pad or crop them")


def check_labels(where: str, y: NDArray[Any], images: int, class_names: Sequence[str]) -> None:
    """Check that every image has a label and every class an image.

    Raises:
        BenchError: naming `where`, the fault and the remedy.
    """
    if not np.issubdtype(y.dtype, np.integer) or y.shape != (images,):
        flatten = "; flatten them with y[:, 0]" if y.shape == (images, 1) else ""
        raise BenchError(
            f"{where}: expected one integer label for each of {images} images, "
            f"got {y.dtype} of shape {y.shape}{flatten}"
        )
    classes = len(class_names)
    shift = "; if they count from 1, subtract 1" if len(y) and y.min() == 1 else ""
    if len(y) and (y.min() < 0 or y.max() >= classes):
        raise BenchError(f"{where}: expected labels from 0 to {classes - 1}, got {y.min()} to {y.max()}{shift}")
    absent = sorted(set(range(classes)) - set(y.tolist()))
    if absent:
        raise BenchError(
            f"{where}: expected samples of every class, class {absent[0]} ({class_names[absent[0]]}) has none{shift}"
        )


def check_same_shape(where: str, train: tuple[int, ...], test: tuple[int, ...]) -> None:
    """Check that training and test images have one shape.

    Raises:
        BenchError: naming both shapes.
    """
    if train[1:] != test[1:]:
        raise BenchError(f"{where}: expected images of one shape, got {train[1:]} to train and {test[1:]} to test")


def stratified_order(y: Labels) -> NDArray[np.int64]:
    """An order of all samples whose every prefix is stratified.

    The first sample of each class comes first; the others are sorted by their rank within the class over the size of
    the class, so a prefix of m samples holds m n_k / n of class k, plus or minus one. Ranks follow a hash of the
    sample's position.

    Args:
        y: classes (N,).

    Returns:
        Positions (N,).
    """
    _, classes, counts = np.unique(y, return_inverse=True, return_counts=True)
    shuffled = np.lexsort((_hash_positions(len(y)), classes))
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    rank = np.empty(len(y), dtype=np.int64)
    rank[shuffled] = np.arange(len(y)) - first[classes[shuffled]]
    quantile = (rank + 0.5) / counts[classes]
    return np.lexsort((classes, quantile, rank > 0))


def split_held_out(
    y: Labels, n_select: int, n_steer: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the parts select, steer and train, each ascending and with every frequent class.

    Args:
        y: classes (N,) of all training samples.
        n_select: samples held out to select checkpoints.
        n_steer: samples held out to steer methods.
    """
    order = stratified_order(y)
    select, rest = np.split(order, [n_select])
    _, first = np.unique(y[rest], return_index=True)  # a rare class may come late in the order
    rest = np.concatenate((rest[np.sort(first)], np.delete(rest, first)))
    steer, train = np.split(rest, [n_steer])
    return np.sort(select), np.sort(steer), np.sort(train)


def default_sizes(train: int, test: int, classes: int) -> dict[str, int]:
    """Sizes of the parts if a registration gives none: a tenth each to select and to steer, at least one per class.

    Args:
        train: training images.
        test: test images.
        classes: number of classes.
    """
    tenth = max(train // 10, classes)
    return {"train": train - 2 * tenth, "select": tenth, "steer": tenth, "test": test}


def _hash_positions(n: int) -> NDArray[np.uint64]:
    """A 64-bit hash of the numbers below n (the finaliser of SplitMix64), the same with every library version."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return hashed
