"""Data sets of the user's own, by where they are: `folder:PATH`, `folder:PATH@SIZE` and `npz:FILE`.

Free of torch: what a plan must know is read from headers and names of files. In results such a set goes by a name
made of its file's name and a hash of its content, so that it may be moved but not changed under a run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import image_folder as photos
from bench.data import npz
from bench.data.raw import Raw, usual_sizes
from bench.errors import UsageError

FORMS = {
    "folder:PATH": "Images in a sub-folder per class, below train and test or to be split; PATH@64 gives a size",
    "npz:FILE": "Arrays x_train, y_train, x_test, y_test (uint8, NHWC), optionally class_names",
}
LARGE = 32


@dataclass(frozen=True)
class Own:
    """Where a data set is.

    Attributes:
        kind: "folder" or "npz".
        path: absolute.
        size: of a folder's images, None for their own.
    """

    kind: str
    path: Path
    size: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" + (f"@{self.size}" if self.size else "")


def parse(name: str) -> Own | None:
    """What a name says of a data set of the user's own; None if it is not of that form.

    Raises:
        UsageError: if the path is missing.
    """
    kind, colon, rest = name.partition(":")
    kind = kind.strip().lower()
    if not colon or kind not in ("folder", "npz"):
        return None
    if not rest.strip():
        raise UsageError(f"--dataset {name}: expected a path after the colon, as in {' or '.join(FORMS)}")
    sized = re.fullmatch(r"(.+)@(\d+)", rest.strip())
    if kind == "folder" and sized and not Path(rest).is_dir():
        return Own(kind, _absolute(sized[1]), int(sized[2]))
    return Own(kind, _absolute(rest.strip()))


def facts(own: Own) -> dict[str, Any]:
    """What a registration would say of a set, see `bench.data.registry`.

    There is no usual radius. Images are shifted in training but not mirrored, since that may change their class.

    Raises:
        UsageError: if there is no such file or folder.
        BenchError: if it is not a data set.
    """
    if own.kind == "npz":
        header = npz.header(own.path)
        _, height, width, channels = header.shapes["x_train"]
        told = _facts(header.class_names, (channels, height, width), header.y_train, header.y_test)
    else:
        found = photos.listing(own.path)
        told = _facts(found.class_names, photos.image_of(found, own.size), found.train.y, found.test.y)
        if found.unread:
            train, test = found.parts
            told["notes"] = (f"{own}: trains on {train}, tests on {test}; not read: {', '.join(found.unread)}",)
    return told


def label(own: Own) -> str:
    """The set's name in results: its file's name and 10 digits of a hash of its content.

    Of a folder's images it is names and sizes of the files that are hashed.
    """
    if own.kind == "npz":
        digest = npz.header(own.path).digest
    else:
        found = photos.listing(own.path)
        digest = photos.digest(found, photos.image_of(found, own.size))
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", own.path.stem if own.kind == "npz" else own.path.name)[:40].strip("_")
    size = f"_{own.size}" if own.size else ""
    return f"{stem or own.kind}{size}-{hashlib.sha256(digest.encode()).hexdigest()[:10]}"


def read(own: Own) -> Raw:
    """The data set itself."""
    return npz.read(own.path) if own.kind == "npz" else photos.read(own.path, own.size)


def _facts(names: Sequence[str], image: tuple[int, int, int], y_train: Any, y_test: Any) -> dict[str, Any]:
    large = image[1] >= LARGE
    counts: Mapping[str, Any] = {
        part: tuple(np.bincount(y, minlength=len(names)).tolist()) for part, y in (("train", y_train), ("test", y_test))
    }
    return {
        "classes": len(names), "image": image, "sizes": usual_sizes(len(y_train), len(y_test), len(names)),
        "class_names": tuple(names), "class_counts": counts,
        "model": "resnet18" if large else "small_cnn", "teacher_model": "wrn34_10" if large else "small_cnn_wide",
        "recipe": "paper", "augment": "crop",
    }  # fmt: skip


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
