"""Published data sets: read from the data directory, or downloaded there first, completely or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from bench.errors import BenchError, UsageError

T = TypeVar("T")


def read_published(
    name: str,
    root: Path,
    download: bool,
    read: Callable[[Path], T],
    fetch: Callable[[Path], None] | None,
    files: Sequence[str],
    what: str,
) -> T:
    """Read published files below `root`; download them first if they are missing and `download` is set.

    Args:
        name: of the data set.
        root: the data directory.
        download: fetch what is missing or damaged.
        read: reads the files below a folder; RuntimeError if they are missing or damaged, as torchvision raises it.
        fetch: downloads them into a folder and checks their checksums; None if only the user may.
        files: their names; downloads that share the first of them wait for each other.
        what: description of the files for messages.

    Raises:
        UsageError: if they are missing, saying what to put where.
        BenchError: if they cannot be fetched.
    """
    try:
        return _without_warnings(read, root)
    except RuntimeError as error:
        exists = any((root / file).exists() for file in files)
        reason = " ".join(str(error).split())
        state = f"damaged or incomplete in {root} ({reason})" if exists else f"missing in {root}"
        if fetch is None:
            raise UsageError(f"{name}: data {state}; put {what}there, it may not be fetched for you") from error
        if not download:
            remedy = "add --download to the command (run, evaluate or card)"
            raise UsageError(f"{name}: data {state}; put {what}there, or {remedy}") from error
    try:
        with download_lock(files[0], root):
            with contextlib.suppress(RuntimeError):
                return _without_warnings(read, root)  # another process has fetched it meanwhile
            _fetch_into_place(root, read, fetch, files, f".{files[0]}.part-")
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BenchError(f"{name}: the download failed ({reason}); put {what}into {root} by hand") from error
    return _without_warnings(read, root)


def read_archive(name: str, root: Path, download: bool, read: Callable[[Path], T], base: str, url: str, md5: str) -> T:
    """Read the folder that a published archive unpacks into; see `read_published`.

    Args:
        name: see `read_published`.
        root: see there.
        download: see there.
        read: see there.
        base: the folder that the archive unpacks into.
        url: of the archive.
        md5: its checksum.

    Raises:
        UsageError, BenchError: see `read_published`.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    def fetch(folder: Path) -> None:
        download_and_extract_archive(url, str(folder), md5=md5)

    return read_published(name, root, download, read, fetch, [base], f"the folder {base} (unpacked from {url}) ")


def check_file(path: Path, md5: str | None = None) -> None:
    """Check that a published file exists and, if given, its checksum.

    Raises:
        RuntimeError: naming the file.
    """
    from torchvision.datasets.utils import check_integrity

    if not check_integrity(path, md5):
        raise RuntimeError(f"{path} is {'not what was published' if path.is_file() else 'missing'}")


@contextmanager
def naming_damaged(files: Iterable[tuple[Path, str]]) -> Iterator[None]:
    """Have a reader whose RuntimeError does not say which file is missing or damaged name the first such file.

    Args:
        files: those it reads, with their checksums.

    Raises:
        RuntimeError: see `check_file`; the reader's own where every file is intact.
    """
    try:
        yield
    except RuntimeError:
        for path, md5 in files:
            check_file(path, md5)
        raise


def _fetch_into_place(
    root: Path, read: Callable[[Path], T], fetch: Callable[[Path], None], files: Sequence[str], prefix: str
) -> None:
    """Download into a temporary folder, check that it can be read, and only then move it into place."""
    with temporary_folder(root, prefix) as folder:
        fetch(folder)
        _without_warnings(read, folder)
        for file in files:
            if (root / file).is_dir():
                shutil.rmtree(root / file)
            os.replace(folder / file, root / file)


@contextmanager
def temporary_folder(root: Path, prefix: str) -> Iterator[Path]:
    """A temporary folder below `root`; also removes those of killed processes, so hold the lock."""
    for leftover in root.glob(f"{glob.escape(prefix)}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=root, prefix=prefix) as folder:
        yield Path(folder)


@contextmanager
def download_lock(file: str, root: Path) -> Iterator[None]:
    """Lock the download of a file or folder; the lock is released when its process dies."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f".{file}.lock"
    with FileLock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _without_warnings(read: Callable[[Path], T], folder: Path) -> T:
    with warnings.catch_warnings():  # numpy's, about dtypes in the published pickles
        warnings.simplefilter("ignore")
        return read(folder)
