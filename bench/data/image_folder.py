"""Data sets of image files: `folder:PATH` with a sub-folder per class, and reading of image files.

Free of torch. An image is scaled so that its shorter side fits (bilinear, antialiased), and its centre is cut out;
one that has the size already is left as it is. Orientation tags are not followed, transparency is dropped.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.raw import IN_MEMORY, SMALLEST, Images, ImageSource, Labels, Raw, check_labels, stratified_order
from bench.errors import BenchError, UsageError

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
GREY = ("1", "L", "LA")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
PROBES = 64
CHUNK = 1024
log = logging.getLogger("bench")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Paths, sizes and classes of image files.

    Attributes:
        root: the folder they are in.
        names: paths below it, with forward slashes.
        sizes: of the files in bytes.
        y: their classes (N,).
    """

    root: Path
    names: Sequence[str]
    sizes: Sequence[int]
    y: Labels

    def take(self, rows: NDArray[np.int64]) -> ImageFiles:
        """The files at these positions."""
        chosen = rows.tolist()
        return ImageFiles(self.root, [self.names[i] for i in chosen], [self.sizes[i] for i in chosen], self.y[rows])

    def manifest(self) -> bytes:
        """Names and sizes, one line per file."""
        return "".join(f"{name} {size}\n" for name, size in zip(self.names, self.sizes, strict=True)).encode()


@dataclass(frozen=True, eq=False)
class Listing:
    """Classes and image files of a folder.

    Attributes:
        class_names: the class sub-folders, sorted.
        train, test: the files.
        parts: names of the folders of train and test; none where one folder was split.
        unread: other folders beside them.
    """

    class_names: tuple[str, ...]
    train: ImageFiles
    test: ImageFiles
    parts: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


class LazyImages:
    """Image files that are read when rows are indexed, by threads; a `bench.data.raw.ImageSource`.

    Args:
        files: of the images.
        size: height and width of the centre crop.
        channels: 1 or 3; a grey file becomes a colour image of three equal channels.
        shorter: length that the shorter side is scaled to first; `size` if not given.
    """

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(self, files: ImageFiles, size: int, channels: int = 3, shorter: int | None = None) -> None:
        self._files, self._size, self._channels, self._shorter = files, size, channels, shorter or size
        self.grey = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self), self._size, self._size, self._channels)

    def __len__(self) -> int:
        return len(self._files.names)

    def __getitem__(self, rows: NDArray[np.int64]) -> Images:
        return np.stack(list(self._pool.map(self._image, rows.tolist())))

    def load(self) -> Images | ImageSource:
        """All images in memory; self where they take more than `bench.data.raw.IN_MEMORY` bytes."""
        if int(np.prod(self.shape)) > IN_MEMORY:
            return self
        images = np.empty(self.shape, np.uint8)
        self.grey = 0
        for rows in np.array_split(np.arange(len(self)), max(1, len(self) // CHUNK)):
            images[rows] = self[rows]
        if self.grey:
            log.info("%s: %d of %d images are grey and were read as colour", self._files.root, self.grey, len(self))
        return images

    def fingerprint(self, rows: NDArray[np.int64]) -> bytes:
        """Hash of names and sizes of the files and of the crop."""
        digest = hashlib.sha256(f"{self._size} {self._channels} {self._shorter}\n".encode())
        digest.update(self._files.take(rows).manifest())
        return digest.digest()

    def _image(self, row: int) -> Images:
        path = self._files.root / self._files.names[row]
        image, grey = read_image(path, self._size, self._shorter, self._channels)
        self.grey += grey
        return image

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def read_image(path: Path, size: int, shorter: int, channels: int) -> tuple[Images, bool]:
    """Read an image (size, size, channels); also returns whether a grey file was made a colour image.

    Raises:
        BenchError: if the file is no image, has more than 8 bits, or is in colour where the set is grey.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            file.load()
            grey = file.mode in GREY
            if file.mode in DEEP or (channels == 1 and not grey):
                wanted = "8 bits a channel" if file.mode in DEEP else "grey like the set's others"
                raise BenchError(f"{path}: expected an image with {wanted}, got mode {file.mode}; convert it")
            if "transparency" in file.info:
                file = file.convert("RGBA")
            image = file.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BenchError(f"{path}: cannot be read as an image ({error}); repair or remove it") from None
    width, height = image.size
    if min(width, height) != shorter:
        factor = shorter / min(width, height)
        width, height = (max(shorter, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return pixels.reshape(size, size, channels), grey and channels == 3


def listing(folder: Path) -> Listing:
    """The class sub-folders of a folder and their image files, names in sorted order.

    A folder with one of `TRAIN` and one of `TEST`, in any case, holds its parts, the first of each in that order, if
    they hold folders and no images; of any other a fixed stratified fifth, one image of each class at least, is the
    test part.

    Raises:
        UsageError: if there is no such folder.
        BenchError: if it holds no classes or only one of the parts, a class holds no image, or the parts differ in
            their classes.
    """
    if not folder.is_dir():
        raise UsageError(f"folder:{folder}: no such folder; expected one with a sub-folder of images for each class")
    return _cached_listing(folder, tuple(_modification_times(folder, depth=2)))


@lru_cache(maxsize=4)
def _cached_listing(folder: Path, times: tuple[int, ...]) -> Listing:
    return _listing(folder)


def _listing(folder: Path) -> Listing:
    inside = _folders(folder)
    holding = [name for name in inside if _has_only_folders(folder / name)]
    parts = tuple(_first_named(holding, TRAIN) + _first_named(holding, TEST))
    if len(parts) == 2:
        names = _folders(folder / parts[0])
        odd = sorted(set(names) ^ set(_folders(folder / parts[1])))
        if odd:
            both = " and ".join(parts)
            raise BenchError(f"{folder}: expected the same classes in {both}, only one has {odd[0]}")
        train, test = (scan(folder / part, names) for part in parts)
    else:
        names, parts = inside, ()
        _check_classes(folder, names)
        everything = scan(folder, names)
        order = stratified_order(everything.y)
        cut = max(len(order) // 5, len(names))
        test, train = (everything.take(np.sort(rows)) for rows in np.split(order, [cut]))
    if len(names) < 2:
        raise BenchError(f"{folder}: expected a sub-folder for each of at least 2 classes, got {len(names)}")
    for part, files in (("train", train), ("test", test)):
        check_labels(f"{folder}: {part}", files.y, len(files.names), names)
    return Listing(tuple(names), train, test, parts, tuple(name for name in inside if parts and name not in parts))


def _first_named(folders: Sequence[str], names: Sequence[str]) -> list[str]:
    """The folder with the first of some names, in any case; empty if there is none."""
    return [folder for name in names for folder in folders if folder.lower() == name][:1]


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    """Check that folders taken for classes are not parts, or other folders with the classes below them.

    Raises:
        BenchError: naming the first that is.
    """
    for found, wanted in ((TRAIN, "test (or val)"), (TEST, "train")):
        for part in _first_named(names, found):
            if _has_only_folders(folder / part):
                raise BenchError(
                    f"{folder}: expected {wanted} beside {part}, with a folder for each class; add it, or give "
                    f"folder:{folder / part} for a fifth of it to be the test part"
                )
    for name in names:
        below = _folders(folder / name)
        if len(below) > 1 and _has_only_folders(folder / name):
            raise BenchError(
                f"{folder / name}: expected the images of a class, found only folders such as {below[0]} and "
                f"{below[1]}; call the parts train and test, or put all images of a class into one folder"
            )


def _has_only_folders(folder: Path) -> bool:
    """Whether a folder holds folders and no images."""
    with os.scandir(folder) as entries:
        images = any(entry.name.lower().endswith(ENDINGS) and entry.is_file() for entry in entries)
    return not images and bool(_folders(folder))


def scan(folder: Path, classes: Sequence[str]) -> ImageFiles:
    """The image files below the class sub-folders of a folder; other files are ignored.

    Raises:
        BenchError: if a class has none.
    """
    names: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images(folder / name, name))
        if not found:
            raise BenchError(f"{folder / name}: expected images of the class, found none ({', '.join(ENDINGS)})")
        names += [path for path, _ in found]
        sizes += [size for _, size in found]
        labels += [label] * len(found)
    return ImageFiles(folder, names, sizes, np.asarray(labels, dtype=np.int64))


def probe(files: ImageFiles) -> tuple[int, int]:
    """Channels and size of image files, from the headers of some of them, evenly chosen.

    Returns:
        3 if one is in colour, else 1; the most common shorter side.

    Raises:
        BenchError: if one of them is no image.
    """
    from PIL import Image

    sides: Counter[int] = Counter()
    colour = False
    for row in sorted(set(np.linspace(0, len(files.names) - 1, PROBES).astype(int).tolist())):
        path = files.root / files.names[row]
        try:
            with Image.open(path) as image:
                sides[min(image.size)] += 1
                colour = colour or image.mode not in (*GREY, *DEEP)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BenchError(f"{path}: cannot be read as an image ({error}); repair or remove it") from None
    return 3 if colour else 1, max(sides, key=lambda side: (sides[side], side))


def image_shape(found: Listing, size: int | None) -> tuple[int, int, int]:
    """(channels, size, size) of a folder's images: the size asked for, else the most common shorter side.

    Raises:
        BenchError: if an image cannot be read, or is too small.
    """
    channels, common = probe(found.train)
    side = size or common
    if side < SMALLEST:
        raise BenchError(f"{found.train.root}: expected images of at least {SMALLEST}x{SMALLEST}, got {side}x{side}")
    return channels, side, side


def read(folder: Path, size: int | None = None) -> Raw:
    """The data set in a folder; see `listing` and `image_shape`."""
    listing(folder)  # checks the folder, but is cached and may have missed that a file was overwritten
    found = _listing(folder)
    channels, side, _ = image_shape(found, size)
    x_train, x_test = (LazyImages(files, side, channels).load() for files in (found.train, found.test))
    return Raw(x_train, found.train.y, x_test, found.test.y, found.class_names)


def _modification_times(folder: Path, depth: int) -> Iterator[int]:
    """Times of the last change to a folder and to the folders in it."""
    yield folder.stat().st_mtime_ns
    for name in _folders(folder) if depth else ():
        yield from _modification_times(folder / name, depth - 1)


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__")))


def _images(folder: Path, below: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images(Path(entry.path), f"{below}/{entry.name}")
            elif entry.name.lower().endswith(ENDINGS):
                yield f"{below}/{entry.name}", entry.stat().st_size


def digest(found: Listing, image: Any) -> str:
    """Hexadecimal hash of names and sizes of all files and of the images' shape."""
    hashed = hashlib.sha256(f"{image} {found.class_names}\n".encode())
    hashed.update(found.train.manifest() + b"\n" + found.test.manifest())
    return hashed.hexdigest()
