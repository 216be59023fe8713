"""The built-in datasets: scikit-learn's digits, CIFAR-10, CIFAR-100 and SVHN."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import DATASETS
from bench.errors import BenchError, UsageError
from bench.parts import Raw, stratified

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@DATASETS.register(
    "digits",
    classes=10,
    image=(1, 8, 8),
    sizes={"train": 1197, "select": 100, "steer": 100, "test": 400},
    eps={"linf": 0.15, "l2": 0.5},
    model="small_cnn",
    teacher_model="small_cnn_wide",
    recipe="digits",
    block=200,
    augment="none",
)
def digits(root: Path, download: bool) -> Raw:
    """1,797 handwritten digits of 8x8 pixels (Alpaydin and Kaynak, 1998), bundled with scikit-learn."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    y = labels.astype(np.int64)
    order = stratified(y)
    test, train = np.sort(order[:400]), np.sort(order[400:])
    return Raw(x[train], y[train], x[test], y[test], [str(digit) for digit in range(10)])


@DATASETS.register(
    "cifar10",
    classes=10,
    image=(3, 32, 32),
    sizes={"train": 46000, "select": 1000, "steer": 3000, "test": 10000},
    eps={"linf": 8 / 255, "l2": 0.5},
    model="resnet18",
    teacher_model="wrn34_10",
    recipe="paper",
    augment="crop_flip",
)
def cifar10(root: Path, download: bool) -> Raw:
    """CIFAR-10 (Krizhevsky, 2009): 60,000 photographs of 32x32 pixels; also read from `cifar10.npz`."""
    packed = root / "cifar10.npz"
    if packed.is_file():
        return _read_npz(packed, CIFAR10_CLASSES)
    return _cifar("cifar10", "CIFAR10", root, download, "or cifar10.npz (x_train, y_train, x_test, y_test) ")


@DATASETS.register(
    "cifar100",
    classes=100,
    image=(3, 32, 32),
    sizes={"train": 44500, "select": 2500, "steer": 3000, "test": 10000},
    eps={"linf": 8 / 255, "l2": 0.5},
    model="resnet18",
    teacher_model="wrn34_10",
    recipe="paper",
    augment="crop_flip",
)
def cifar100(root: Path, download: bool) -> Raw:
    """CIFAR-100 (Krizhevsky, 2009): 60,000 photographs of 32x32 pixels in 100 classes."""
    return _cifar("cifar100", "CIFAR100", root, download)


@DATASETS.register(
    "svhn",
    classes=10,
    image=(3, 32, 32),
    sizes={"train": 69257, "select": 1000, "steer": 3000, "test": 26032},
    eps={"linf": 8 / 255, "l2": 0.5},
    model="resnet18",
    teacher_model="wrn34_10",
    recipe="paper",
    augment="crop",
)
def svhn(root: Path, download: bool) -> Raw:
    """Street View House Numbers (Netzer et al., 2011): 99,289 digits of 32x32 pixels, the classes unbalanced."""
    from torchvision.datasets import SVHN

    def read(folder: Path) -> list[Any]:
        return [SVHN(folder, split=part) for part in ("train", "test")]

    def fetch(folder: Path) -> None:
        for part in ("train", "test"):
            SVHN(folder, split=part, download=True)

    files = [SVHN.split_list[part][1] for part in ("train", "test")]
    url = SVHN.split_list["train"][0].rpartition("/")[0] + "/"
    train, test = _published("svhn", root, download, read, fetch, files, f"{' and '.join(files)} from {url} ")
    x_train, x_test = (np.ascontiguousarray(part.data.transpose(0, 2, 3, 1)) for part in (train, test))
    return Raw(x_train, train.labels, x_test, test.labels, [str(digit) for digit in range(10)])


def _cifar(name: str, kind: str, root: Path, download: bool, also: str = "") -> Raw:
    """CIFAR in the form in which its authors publish it, through torchvision's reader and checksums."""
    import torchvision.datasets

    reader = getattr(torchvision.datasets, kind)

    def read(folder: Path) -> list[Any]:
        return [reader(folder, train=flag) for flag in (True, False)]

    def fetch(folder: Path) -> None:
        reader(folder, train=True, download=True)

    what = f"the folder {reader.base_folder} (unpacked from {reader.url}) {also}"
    train, test = _published(name, root, download, read, fetch, [reader.base_folder], what)
    labels = (np.asarray(part.targets, dtype=np.int64) for part in (train, test))
    return Raw(train.data, next(labels), test.data, next(labels), train.classes)


def _published(
    name: str,
    root: Path,
    download: bool,
    read: Callable[[Path], list[Any]],
    fetch: Callable[[Path], None],
    files: list[str],
    what: str,
) -> list[Any]:
    """Read published files below `root`; fetch them first where they are missing and that was asked for.

    Raises:
        UsageError: if they are missing, saying what to put where.
        BenchError: if they cannot be fetched.
    """
    try:
        return _quietly(read, root)
    except RuntimeError as error:  # torchvision's word for missing and for damaged
        state = "damaged or incomplete" if any((root / file).exists() for file in files) else "missing"
        if not download:
            raise UsageError(
                f"{name}: data {state} in {root}; put {what}there, or fetch it with "
                f"`bench run --dataset {name} --data-dir {root} --download`"
            ) from error
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as folder:
        try:
            fetch(Path(folder))
            _quietly(read, Path(folder))
        except (OSError, RuntimeError) as error:
            raise BenchError(f"{name}: the download failed ({error}); put {what}into {root} by hand") from error
        for file in files:
            if (root / file).is_dir():
                shutil.rmtree(root / file)
            os.replace(Path(folder) / file, root / file)
    return _quietly(read, root)


def _quietly(read: Callable[[Path], list[Any]], folder: Path) -> list[Any]:
    with warnings.catch_warnings():  # the published pickles predate numpy's present rules for dtypes
        warnings.simplefilter("ignore")
        return read(folder)


def _read_npz(path: Path, class_names: tuple[str, ...]) -> Raw:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in NPZ_ARRAYS if name in file}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise BenchError(f"{path}: cannot be read ({error}); expected a file written by numpy.savez") from error
    lacking = [name for name in NPZ_ARRAYS if name not in arrays]
    if lacking:
        raise BenchError(f"{path}: expected the arrays {', '.join(NPZ_ARRAYS)}, {', '.join(lacking)} missing")
    raw = Raw(**arrays, class_names=class_names)
    raw.check(str(path))
    return raw
