"""The built-in datasets that come as arrays: digits, CIFAR-10, CIFAR-100, SVHN, MNIST, Fashion-MNIST and STL-10."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.download import check_file, naming_damaged, read_archive, read_published
from bench.data import npz
from bench.data.raw import Images, Labels, Raw, stratified_order
from bench.data.registry import DATASETS

DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@DATASETS.register(
    "digits",
    classes=10,
    class_names=DIGITS,
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
    order = stratified_order(y)
    test, train = np.sort(order[:400]), np.sort(order[400:])
    return Raw(x[train], y[train], x[test], y[test], DIGITS)


@DATASETS.register(
    "cifar10",
    classes=10,
    class_names=CIFAR10_CLASSES,
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
        return npz.read(packed, CIFAR10_CLASSES)
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
    class_names=DIGITS,
    image=(3, 32, 32),
    sizes={"train": 69257, "select": 1000, "steer": 3000, "test": 26032},
    class_counts={
        "train": (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        "test": (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
    },
    eps={"linf": 8 / 255, "l2": 0.5},
    model="resnet18",
    teacher_model="wrn34_10",
    recipe="paper",
    augment="crop",
)
def svhn(root: Path, download: bool) -> Raw:
    """Street View House Numbers (Netzer et al., 2011): 99,289 digits of 32x32 pixels, the classes unbalanced.

    The published extra part is not read.
    """
    from torchvision.datasets import SVHN

    sums = dict(SVHN.split_list[part][1:] for part in ("train", "test"))
    files = list(sums)

    def read(folder: Path) -> list[Any]:
        with naming_damaged((folder / file, md5) for file, md5 in sums.items()):
            return [SVHN(folder, split=part) for part in ("train", "test")]

    def fetch(folder: Path) -> None:
        for part in ("train", "test"):
            SVHN(folder, split=part, download=True)

    url = SVHN.split_list["train"][0].rpartition("/")[0] + "/"
    train, test = read_published("svhn", root, download, read, fetch, files, f"{' and '.join(files)} from {url} ")
    x_train, x_test = (np.ascontiguousarray(part.data.transpose(0, 2, 3, 1)) for part in (train, test))
    return Raw(x_train, train.labels, x_test, test.labels, DIGITS)


@DATASETS.register(
    "mnist",
    classes=10,
    class_names=DIGITS,
    image=(1, 28, 28),
    sizes={"train": 56000, "select": 1000, "steer": 3000, "test": 10000},
    class_counts={
        "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    },
    eps={"linf": 0.3, "l2": 2.0},
    model="small_cnn",
    teacher_model="small_cnn_wide",
    recipe="paper",
    augment="crop",
)
def mnist(root: Path, download: bool) -> Raw:
    """MNIST (LeCun et al., 1998): 70,000 handwritten digits of 28x28 pixels, the classes slightly unbalanced."""
    return _mnist("mnist", "MNIST", DIGITS, root, download)


@DATASETS.register(
    "fashion_mnist",
    classes=10,
    class_names=FASHION,
    image=(1, 28, 28),
    sizes={"train": 56000, "select": 1000, "steer": 3000, "test": 10000},
    eps={"linf": 0.1},
    model="small_cnn",
    teacher_model="small_cnn_wide",
    recipe="paper",
    augment="crop_flip",
)
def fashion_mnist(root: Path, download: bool) -> Raw:
    """Fashion-MNIST (Xiao et al., 2017): 70,000 pictures of garments of 28x28 pixels."""
    return _mnist("fashion_mnist", "FashionMNIST", FASHION, root, download)


@DATASETS.register(
    "stl10",
    classes=10,
    class_names=STL10_CLASSES,
    image=(3, 96, 96),
    sizes={"train": 4000, "select": 500, "steer": 500, "test": 8000},
    eps={"linf": 8 / 255},
    model="resnet18",
    teacher_model="wrn34_10",
    recipe="paper",
    augment="crop_flip",
)
def stl10(root: Path, download: bool) -> Raw:
    """STL-10 (Coates et al., 2011): 13,000 labelled photographs of 96x96 pixels; the unlabelled ones are not used."""
    from torchvision.datasets import STL10

    sums = dict([*STL10.train_list, *STL10.test_list])

    def part(folder: Path, name: str) -> tuple[Images, Labels]:
        files = [folder / STL10.base_folder / f"{name}_{kind}.bin" for kind in ("X", "y")]
        for file in files:
            check_file(file, sums[file.name])
        x = np.fromfile(files[0], np.uint8).reshape(-1, 3, 96, 96)  # columns before rows
        return np.ascontiguousarray(x.transpose(0, 3, 2, 1)), np.fromfile(files[1], np.uint8).astype(np.int64) - 1

    def read(folder: Path) -> Raw:
        return Raw(*part(folder, "train"), *part(folder, "test"), STL10_CLASSES)

    return read_archive("stl10", root, download, read, STL10.base_folder, STL10.url, STL10.tgz_md5)


def _mnist(name: str, kind: str, class_names: tuple[str, ...], root: Path, download: bool) -> Raw:
    """A data set in MNIST's format, with torchvision's reader and checksums, from packed or unpacked files."""
    import torchvision.datasets

    published_set = getattr(torchvision.datasets, kind)

    def read(folder: Path) -> Raw:
        arrays = [_idx(folder / kind / "raw" / file, md5) for file, md5 in published_set.resources]
        x_train, y_train, x_test, y_test = arrays
        return Raw(x_train[..., None], y_train, x_test[..., None], y_test, class_names)

    def fetch(folder: Path) -> None:
        published_set(folder, download=True)

    files = ", ".join(file for file, _ in published_set.resources)
    what = f"the folder {kind}/raw ({files} from {published_set.mirrors[0]}) "
    return read_published(name, root, download, read, fetch, [kind], what)


def _idx(packed: Path, md5: str) -> Any:
    """Images (N, H, W) uint8 or labels (N,) int64; of the packed file, whose checksum is known, if it exists."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    read = read_image_file if "images" in packed.name else read_label_file
    file = packed if packed.exists() else packed.with_suffix("")
    check_file(file, md5 if file == packed else None)
    try:
        if file != packed:
            return read(str(file)).numpy()
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / packed.stem
            plain.write_bytes(gzip.decompress(packed.read_bytes()))
            return read(str(plain)).numpy()
    except (OSError, ValueError, TypeError, AssertionError, EOFError, RuntimeError) as error:  # torchvision asserts
        raise RuntimeError(f"{file} cannot be read: {str(error) or 'not in idx form'}") from error


def _cifar(name: str, kind: str, root: Path, download: bool, also: str = "") -> Raw:
    """CIFAR in its authors' format, with torchvision's reader and checksums."""
    import torchvision.datasets

    reader = getattr(torchvision.datasets, kind)

    def read(folder: Path) -> list[Any]:
        base, meta = folder / reader.base_folder, reader.meta
        sums = [*reader.train_list, *reader.test_list, (meta["filename"], meta["md5"])]
        with naming_damaged((base / file, md5) for file, md5 in sums):
            return [reader(folder, train=flag) for flag in (True, False)]

    def fetch(folder: Path) -> None:
        reader(folder, train=True, download=True)

    what = f"the folder {reader.base_folder} (unpacked from {reader.url}) {also}"
    train, test = read_published(name, root, download, read, fetch, [reader.base_folder], what)
    labels = (np.asarray(part.targets, dtype=np.int64) for part in (train, test))
    return Raw(train.data, next(labels), test.data, next(labels), train.classes)
