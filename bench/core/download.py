"""Published files: found below the data directory, or fetched there whole or not at all."""

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


def published(
    name: str,
    root: Path,
    download: bool,
    read: Callable[[Path], T],
    fetch: Callable[[Path], None] | None,
    files: Sequence[str],
    what: str,
) -> T:
    """Read published files below `root`; fetch them first where they are missing and that was asked for.

    Args:
        name: of the data set.
        root: the data directory.
        download: fetch what is missing or damaged.
        read: reads the files below a folder; RuntimeError says that they are missing or damaged.
        fetch: fetches them into a folder, progress and checksums included; None where nobody may.
        files: what they are called; what shares the first of them is not fetched twice at once.
        what: the same for a person, who is to put them there.

    Raises:
        UsageError: if they are missing, saying what to put where.
        BenchError: if they cannot be fetched.
    """
    try:
        return _quietly(read, root)
    except RuntimeError as error:  # torchvision's word for missing and for damaged
        there = any((root / file).exists() for file in files)
        told = " ".join(str(error).split())
        state = f"damaged or incomplete in {root} ({told})" if there else f"missing in {root}"
        if fetch is None:
            raise UsageError(f"{name}: data {state}; put {what}there, it may not be fetched for you") from error
        if not download:
            remedy = "add --download to the command (run, evaluate or card)"
            raise UsageError(f"{name}: data {state}; put {what}there, or {remedy}") from error
    try:
        with alone(files[0], root):
            with contextlib.suppress(RuntimeError):
                return _quietly(read, root)  # another process has fetched it meanwhile
            _fetch(root, read, fetch, files, f".{files[0]}.part-")
    except (OSError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise BenchError(f"{name}: the download failed ({told}); put {what}into {root} by hand") from error
    return _quietly(read, root)


def unpacked(name: str, root: Path, download: bool, read: Callable[[Path], T], base: str, url: str, md5: str) -> T:
    """Read what one published archive unpacks into.

    Args:
        name: see `published`.
        root: likewise.
        download: likewise.
        read: likewise.
        base: the folder that the archive unpacks into.
        url: of the archive.
        md5: its checksum.

    Raises:
        UsageError, BenchError: see `published`.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    def fetch(folder: Path) -> None:
        download_and_extract_archive(url, str(folder), md5=md5)

    return published(name, root, download, read, fetch, [base], f"the folder {base} (unpacked from {url}) ")


def intact(path: Path, md5: str | None = None) -> None:
    """See that a published file is there, and that it is what was published where its checksum is given.

    Raises:
        RuntimeError: naming the file.
    """
    from torchvision.datasets.utils import check_integrity

    if not check_integrity(path, md5):
        raise RuntimeError(f"{path} is {'not what was published' if path.is_file() else 'missing'}")


@contextmanager
def naming(files: Iterable[tuple[Path, str]]) -> Iterator[None]:
    """Let a reader that says no more than that something is missing or damaged name the first such file.

    Args:
        files: what it reads, with their checksums.

    Raises:
        RuntimeError: see `intact`; the reader's own where every file is intact.
    """
    try:
        yield
    except RuntimeError:
        for path, md5 in files:
            intact(path, md5)
        raise


def _fetch(
    root: Path, read: Callable[[Path], T], fetch: Callable[[Path], None], files: Sequence[str], prefix: str
) -> None:
    """Fetch into a folder of its own, see that it can be read, and only then move it into place."""
    with passing_folder(root, prefix) as folder:
        fetch(folder)
        _quietly(read, folder)
        for file in files:
            if (root / file).is_dir():
                shutil.rmtree(root / file)
            os.replace(folder / file, root / file)


@contextmanager
def passing_folder(root: Path, prefix: str) -> Iterator[Path]:
    """A new folder below `root` that is gone afterwards, and those of killed processes with it: hold the lock."""
    for leftover in root.glob(f"{glob.escape(prefix)}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=root, prefix=prefix) as folder:
        yield Path(folder)


@contextmanager
def alone(file: str, root: Path) -> Iterator[None]:
    """Hold the right to fetch a file or folder; the lock dies with its process."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f".{file}.lock"
    with FileLock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _quietly(read: Callable[[Path], T], folder: Path) -> T:
    with warnings.catch_warnings():  # the published pickles predate numpy's present rules for dtypes
        warnings.simplefilter("ignore")
        return read(folder)
