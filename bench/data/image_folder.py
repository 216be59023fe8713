"""Data sets of image files: `folder:PATH` with a sub-folder per class.

Free of torch. What is not read of a folder is counted by kind. The files are read by `bench.data.image_files`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.image_files import ImageFiles, LazyImages, probe
from bench.data.raw import SMALLEST, Raw, check_labels, stratified_order
from bench.errors import BenchError, UsageError

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
KINDS = 6  # of files not read that a note names
FOLDER, IMAGE = "folder", "image"
NOWHERE, UPWARDS, SPECIAL = "link to nothing", "link to a folder above", "non-file such as a pipe"


@dataclass(frozen=True, eq=False)
class Listing:
    """Classes and image files of a folder.

    Attributes:
        class_names: the class sub-folders, see `in_order`.
        train, test: the files.
        parts: names of the folders of train and test; none where one folder was split.
        unread: other folders beside them, and how many files and folders of which kind are not read.
    """

    class_names: tuple[str, ...]
    train: ImageFiles
    test: ImageFiles
    parts: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def listing(folder: Path) -> Listing:
    """The class sub-folders of a folder and their image files, names in sorted order.

    A folder with one of `TRAIN` and one of `TEST`, in any case, holds its parts, the first of each in that order, if
    they hold folders and no images, or the same two or more folders; of any other a fixed stratified fifth, one image
    of each class at least, is the test part.

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
    inside, left_out = _folders(folder), Counter(_kinds_beside(folder))
    parts = _parts(folder, inside)
    if len(parts) == 2:
        names = _folders(folder / parts[0])
        odd = sorted(set(names) ^ set(_folders(folder / parts[1])))
        if odd:
            both = " and ".join(parts)
            raise BenchError(f"{folder}: expected the same classes in {both}, only one has {odd[0]}")
        train, test = (scan(folder / part, names, left_out) for part in parts)
        left_out.update(kind for part in parts for kind in _kinds_beside(folder / part))
    else:
        names, parts = inside, ()
        _check_classes(folder, names)
        everything = scan(folder, names, left_out)
        order = stratified_order(everything.y)
        cut = max(len(order) // 5, len(names))
        test, train = (everything.take(np.sort(rows)) for rows in np.split(order, [cut]))
    if len(names) < 2:
        raise BenchError(f"{folder}: expected a sub-folder for each of at least 2 classes, got {len(names)}")
    _check_encoding(folder, names)
    for part, files in (("train", train), ("test", test)):
        check_labels(f"{folder}: {part}", files.y, len(files.names), names)
    unread = (*(name for name in inside if parts and name not in parts), *_counted(left_out))
    return Listing(tuple(names), train, test, parts, unread)


def _parts(folder: Path, inside: Sequence[str]) -> tuple[str, ...]:
    """Names of the folders of the training and the test part, as far as there are."""
    only_folders = [name for name in inside if _has_only_folders(folder / name)]
    both = [[*_first_named(names, TRAIN), *_first_named(names, TEST)] for names in (only_folders, inside)]
    if len(both[0]) < 2 == len(both[1]):  # one of them holds images as well
        train, test = (set(_folders(folder / name)) for name in both[1])
        return tuple(both[1] if len(train) > 1 and train == test else both[0])
    return tuple(both[0])


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
        images = any(_kind(entry, ()) == IMAGE for entry in entries)
    return not images and bool(_folders(folder))


def scan(folder: Path, classes: Sequence[str], left_out: Counter[str] | None = None) -> ImageFiles:
    """The image files below the class sub-folders of a folder.

    Args:
        folder: of all classes, or of one part of the data set.
        classes: names of the sub-folders.
        left_out: receives how many of the other files there are of which kind.

    Raises:
        BenchError: if a class has none.
    """
    names: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        above = (os.path.realpath(folder / name),)
        found = sorted(_images(folder / name, name, Counter() if left_out is None else left_out, above))
        if not found:
            raise BenchError(f"{folder / name}: expected images of the class, found none ({', '.join(ENDINGS)})")
        names += [path for path, _ in found]
        sizes += [size for _, size in found]
        labels += [label] * len(found)
    return ImageFiles(folder, names, sizes, np.asarray(labels, dtype=np.int64))


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
    """Names of the folders in a folder but hidden ones and links upwards, in the order of classes."""
    with os.scandir(folder) as entries:
        kinds = {entry.name: _kind(entry, (os.path.realpath(folder),)) for entry in entries}
    return in_order([name for name, kind in kinds.items() if kind == FOLDER and not name.startswith((".", "__"))])


def in_order(names: Sequence[str]) -> list[str]:
    """Names sorted as text; where they differ in their last number alone, by that number.

    >>> in_order(["10", "9", "0"]), in_order(["x10", "y9", "z0"])
    (['0', '9', '10'], ['x10', 'y9', 'z0'])
    """
    found = [re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", name, re.DOTALL) for name in names]
    numbered = {name: int(match[2]) for name, match in zip(names, found, strict=True) if match}
    alike = len({(match[1], match[3]) if match else None for match in found}) == 1
    return sorted(names, key=lambda name: (numbered.get(name, 0) if alike else 0, name))


def _images(folder: Path, below: str, left_out: Counter[str], above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Paths and sizes of the image files in a folder and the folders in it; what else there is goes to `left_out`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            kind = _kind(entry, above)
            if kind == FOLDER and not entry.name.startswith("."):
                inner = (*above, os.path.realpath(entry.path))
                yield from _images(Path(entry.path), f"{below}/{entry.name}", left_out, inner)
            elif kind == IMAGE:
                yield f"{below}/{entry.name}", entry.stat().st_size
            elif kind:
                left_out[_hidden_folder(entry.name) if kind == FOLDER else kind] += 1


def _kinds_beside(folder: Path) -> list[str]:
    """Kinds of what lies beside the folders of classes or parts and is not read."""
    with os.scandir(folder) as entries:
        kinds = [(entry.name, _kind(entry, (os.path.realpath(folder),))) for entry in entries]
    hidden = [_hidden_folder(name) for name, kind in kinds if kind == FOLDER and name.startswith((".", "__"))]
    beside = {IMAGE: "image beside the folders of classes"}
    return hidden + [beside.get(kind, kind) for _, kind in kinds if kind not in ("", FOLDER)]


def _hidden_folder(name: str) -> str:
    return f"folder {name} (hidden by its name)"


def _kind(entry: os.DirEntry[str], above: Sequence[str]) -> str:
    """`FOLDER`, `IMAGE`, or what else an entry of a folder is, in words; nothing for hidden files but images.

    Args:
        entry: of a folder.
        above: real paths of that folder and of those through which it was reached.
    """
    hidden, image = entry.name.startswith("."), entry.name.lower().endswith(ENDINGS)
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself
        is_folder = is_file = False
    if is_folder:
        real = os.path.realpath(entry.path) if entry.is_symlink() else None
        return UPWARDS if real and any(os.path.commonpath((real, path)) == real for path in above) else FOLDER
    if hidden:
        return "image with a hidden name" if image and is_file else ""
    if not is_file:
        return NOWHERE if entry.is_symlink() and not os.path.exists(entry.path) else SPECIAL
    ending = os.path.splitext(entry.name)[1].lower()
    return IMAGE if image else f"file ending in {ending}" if ending else "file without an ending"


def _counted(left_out: Counter[str]) -> tuple[str, ...]:
    """How many there are of folders and of the most frequent other kinds, and of all others together."""
    ordered = sorted(left_out, key=lambda kind: (not kind.startswith(FOLDER), -left_out[kind], kind))
    phrases = []
    for kind in ordered[:KINDS]:
        noun, _, what = kind.partition(" ")
        plural = "s" if left_out[kind] > 1 else ""
        phrases.append(f"{left_out[kind]} {noun}{plural} {what}".encode(errors="replace").decode())
    rest = sum(left_out[kind] for kind in ordered[KINDS:])
    return (*phrases, *([f"{rest} more"] if rest else []))


def _check_encoding(folder: Path, names: Sequence[str]) -> None:
    """Check that names of classes are Unicode.

    Raises:
        BenchError: naming the first that is not.
    """
    for name in names:
        if name.encode(errors="ignore").decode() != name:
            raise BenchError(f"{folder}: expected names of classes in UTF-8, got {os.fsencode(name)!r}; rename it")


def digest(found: Listing, image: Any) -> str:
    """Hexadecimal hash of names and sizes of all files and of the images' shape."""
    hashed = hashlib.sha256(f"{image} {found.class_names}\n".encode())
    hashed.update(found.train.manifest() + b"\n" + found.test.manifest())
    return hashed.hexdigest()
