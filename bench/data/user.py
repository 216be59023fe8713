"""Users' data sets, which need no registration: `folder:PATH`, `folder:PATH@SIZE` and `npz:FILE`.

Free of torch: plans read headers and names of files alone. In results such a data set has a name made of its file's
name and a hash of its content, so that it may be moved but not changed under a run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import image_folder, npz
from bench.data.raw import Raw, default_sizes
from bench.errors import UsageError

FORMS = {
    "folder:PATH": "Images in a sub-folder per class, below train and test or to be split; PATH@64 gives a size",
    "npz:FILE": "Arrays x_train, y_train, x_test, y_test (uint8, NHWC), optionally class_names",
}
LARGE = 32


@dataclass(frozen=True)
class UserDataset:
    """Kind and place of a user's data set.

    Attributes:
        kind: "folder" or "npz".
        path: absolute.
        size: height and width that a folder's images are brought to; None for their most common size.
    """

    kind: str
    path: Path
    size: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" + (f"@{self.size}" if self.size else "")


def parse(name: str) -> UserDataset | None:
    """The data set that a name such as `npz:FILE` stands for; None if the name is not of that form.

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
        return UserDataset(kind, _absolute(sized[1]), int(sized[2]))
    return UserDataset(kind, _absolute(rest.strip()))


def facts(dataset: UserDataset) -> dict[str, Any]:
    """What a registration would say of the data set, see `bench.data.registry`.

    There is no default radius. Images are shifted in training but not mirrored, since that may change their class.

    Raises:
        UsageError: if there is no such file or folder.
        BenchError: if it is not a data set.
    """
    if dataset.kind == "npz":
        header = npz.header(dataset.path)
        _, height, width, channels = header.shapes["x_train"]
        known = _registration(header.class_names, (channels, height, width), header.y_train, header.y_test)
        known["notes"] = (f"{dataset}: not read: {', '.join(header.unread)}",) if header.unread else ()
    else:
        files = image_folder.listing(dataset.path)
        image = image_folder.image_shape(files, dataset.size)
        known = _registration(files.class_names, image, files.train.y, files.test.y)
        known["notes"] = _notes(dataset, files)
    return known


def label(dataset: UserDataset) -> str:
    """The data set's name in results: its file's name and 10 digits of a hash of its content.

    Of a folder of images, names and sizes of the files are hashed.
    """
    if dataset.kind == "npz":
        digest = npz.header(dataset.path).digest
    else:
        files = image_folder.listing(dataset.path)
        digest = image_folder.digest(files, image_folder.image_shape(files, dataset.size))
    file_name = dataset.path.stem if dataset.kind == "npz" else dataset.path.name
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", file_name)[:40].strip("_")
    size = f"_{dataset.size}" if dataset.size else ""
    return f"{stem or dataset.kind}{size}-{hashlib.sha256(digest.encode()).hexdigest()[:10]}"


def read(dataset: UserDataset) -> Raw:
    """Read the data set."""
    return npz.read(dataset.path) if dataset.kind == "npz" else image_folder.read(dataset.path, dataset.size)


def _notes(dataset: UserDataset, files: image_folder.Listing) -> tuple[str, ...]:
    """What is not read of a folder, and an order of classes that other programs do not have."""
    notes = []
    if files.unread:
        parts = "trains on {}, tests on {}; ".format(*files.parts) if files.parts else ""
        notes.append(f"{dataset}: {parts}not read: {', '.join(files.unread)}")
    as_text = sorted(files.class_names)
    if as_text != list(files.class_names):
        first = next(name for name, other in zip(as_text, files.class_names, strict=True) if name != other)
        notes.append(
            f"{dataset}: classes in the order of their numbers, not of text, in which {first} comes earlier; for a "
            "network trained in another order: bench evaluate --class-order FILE"
        )
    return tuple(notes)


def _registration(names: Sequence[str], image: tuple[int, int, int], y_train: Any, y_test: Any) -> dict[str, Any]:
    large = image[1] >= LARGE
    counts: Mapping[str, Any] = {
        part: tuple(np.bincount(y, minlength=len(names)).tolist()) for part, y in (("train", y_train), ("test", y_test))
    }
    return {
        "classes": len(names), "image": image, "sizes": default_sizes(len(y_train), len(y_test), len(names)),
        "class_names": tuple(names), "class_counts": counts,
        "model": "resnet18" if large else "small_cnn", "teacher_model": "wrn34_10" if large else "small_cnn_wide",
        "recipe": "paper", "augment": "crop",
    }  # fmt: skip


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
