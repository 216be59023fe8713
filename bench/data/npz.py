"""Data sets in one NumPy archive: `npz:FILE` with x_train, y_train, x_test, y_test and optionally class_names.

Free of torch. Plans read headers, labels and names alone; the archive's checksums of the images identify its content.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.raw import IN_MEMORY, Images, ImageSource, Raw, check_images, check_labels, check_same_shape
from bench.errors import BenchError, UsageError

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NAMES = "class_names"
UNREADABLE = (OSError, ValueError, EOFError, TypeError, AttributeError, struct.error, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Header:
    """Everything in a file but its images.

    Attributes:
        shapes: of the four arrays.
        y_train, y_test: labels.
        class_names: one per class; numbers where the file names none.
        digest: hexadecimal, over names, sizes and checksums of the arrays.
        unread: names of other arrays in the file.
    """

    shapes: Mapping[str, tuple[int, ...]]
    y_train: NDArray[Any]
    y_test: NDArray[Any]
    class_names: tuple[str, ...]
    digest: str
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Member:
    """An array inside the file: where its data begins, and whether it can be memory-mapped."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    crc: int
    mappable: bool


class MappedImages:
    """Memory-mapped images of a file that is too big for memory; a `bench.data.raw.ImageSource`."""

    ndim = 4

    def __init__(self, path: Path, member: _Member) -> None:
        self.shape, self.dtype, self._crc = member.shape, member.dtype, member.crc
        self._x = np.memmap(path, member.dtype, "r", member.start, member.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64]) -> Images:
        return np.asarray(self._x[rows])

    def fingerprint(self, rows: NDArray[np.int64]) -> bytes:
        """Hash of the checksum of all images and of the positions."""
        return hashlib.sha256(f"{self._crc} ".encode() + rows.astype("<i8").tobytes()).digest()


def header(path: Path, class_names: Sequence[str] | None = None) -> Header:
    """Read and check everything but the images.

    Args:
        path: the file.
        class_names: names to use instead of the file's.

    Raises:
        UsageError: if there is no such file.
        BenchError: if it cannot be read, or is not a data set.
    """
    if not path.is_file():
        raise UsageError(f"npz:{path}: no such file; expected one with the arrays {', '.join(ARRAYS)}")
    state = path.stat()
    return _header(path, state.st_mtime_ns, state.st_size, None if class_names is None else tuple(class_names))


@lru_cache(maxsize=8)
def _header(path: Path, mtime: int, size: int, class_names: tuple[str, ...] | None) -> Header:
    members, unread = _members(path)
    lacking = [name for name in ARRAYS if name not in members]
    if lacking:
        raise BenchError(f"{path}: expected the arrays {', '.join(ARRAYS)}; not found: {', '.join(lacking)}")
    for part in ("train", "test"):
        check_images(f"{path}: {part}", members[f"x_{part}"].shape, members[f"x_{part}"].dtype)
    check_same_shape(str(path), members["x_train"].shape, members["x_test"].shape)
    wanted = ("y_train", "y_test", *((NAMES,) if NAMES in members and class_names is None else ()))
    for name in wanted:
        _check_plain(path, name, members[name].dtype)
    small = _arrays(path, wanted)
    names = class_names or _names(path, small)
    for part in ("train", "test"):
        check_labels(f"{path}: {part}", small[f"y_{part}"], members[f"x_{part}"].shape[0], names)
    identity = [f"{name} {members[name].shape} {members[name].crc}" for name in ARRAYS]
    digest = hashlib.sha256("\n".join([*identity, *names]).encode()).hexdigest()
    shapes = {name: members[name].shape for name in ARRAYS}
    y_train, y_test = (small[f"y_{part}"].astype(np.int64) for part in ("train", "test"))
    return Header(shapes, y_train, y_test, names, digest, unread)


def read(path: Path, class_names: Sequence[str] | None = None) -> Raw:
    """The data set; more than `bench.data.raw.IN_MEMORY` bytes of images stay in the file unless it is compressed.

    Args:
        path: the file.
        class_names: names to use instead of the file's.

    Raises:
        UsageError, BenchError: see `header`.
    """
    known = header(path, class_names)
    members, _ = _members(path)
    x: dict[str, Images | ImageSource] = {}
    big = sum(int(np.prod(known.shapes[name])) for name in ("x_train", "x_test")) > IN_MEMORY
    for name in ("x_train", "x_test"):
        x[name] = MappedImages(path, members[name]) if big and members[name].mappable else _arrays(path, (name,))[name]
    return Raw(**x, y_train=known.y_train, y_test=known.y_test, class_names=known.class_names)


def _check_plain(path: Path, name: str, dtype: np.dtype[Any]) -> None:
    """Check that an array holds no Python objects, which cannot be loaded without running code of the file.

    Raises:
        BenchError: naming the array and the remedy.
    """
    if dtype.hasobject:
        what, kind = ("strings", "str") if name == NAMES else ("integers", "int64")
        raise BenchError(f"{path}: {name}: expected {what}, got Python objects; save it as {name}.astype('{kind}')")


def _names(path: Path, small: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    if NAMES not in small:
        labels = [y for y in (small["y_train"], small["y_test"]) if np.issubdtype(y.dtype, np.integer) and y.size]
        classes = 1 + max((int(y.max()) for y in labels), default=0)
        if classes > sum(y.size for y in labels) > 0:  # and before a billion of names are written
            raise BenchError(
                f"{path}: expected labels that count the classes from 0, each with samples, got labels up to "
                f"{classes - 1} for {sum(y.size for y in labels)} samples; number the classes without gaps"
            )
        return tuple(map(str, range(classes)))
    given = small[NAMES]
    if given.ndim != 1 or given.dtype.kind not in "US":
        raise BenchError(f"{path}: expected {NAMES} as a list of strings, got {given.dtype} of shape {given.shape}")
    try:
        names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in given.tolist())
        "".join(names).encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        wrong = f"got {error.object!r}; save them as numpy.array([...], dtype=str)"
        raise BenchError(f"{path}: expected {NAMES} in UTF-8, {wrong}") from None
    if len(set(names)) < len(names):
        raise BenchError(f"{path}: expected {NAMES} to differ, got one of them twice")
    return names


def _arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (*UNREADABLE, KeyError) as error:
        raise _unreadable(path, error) from error


def _members(path: Path) -> tuple[dict[str, _Member], tuple[str, ...]]:
    """The arrays of a data set, and names of whatever else is in the file."""
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            named = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = {name: info for name, info in named.items() if name in (*ARRAYS, NAMES)}
            others = tuple(name for name in named if name not in wanted)
            return {name: _member(stream, archive, info) for name, info in wanted.items()}, others
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _member(stream: Any, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(member)
        inside = member.tell()
    stream.seek(info.header_offset + 26)  # lengths of the name and of the extra field, which precede the data
    before = 30 + sum(struct.unpack("<HH", stream.read(4)))
    mappable = info.compress_type == zipfile.ZIP_STORED and not fortran
    return _Member(shape, dtype, info.header_offset + before + inside, info.CRC, mappable)


def _unreadable(path: Path, error: Exception) -> BenchError:
    return BenchError(f"{path}: cannot be read ({error}); expected a file written by numpy.savez")
