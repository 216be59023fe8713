"""The built-in datasets that come as image files: Imagenette, Tiny ImageNet and ImageNet.

Each is at hand in any size: `imagenette_320` is Imagenette at 320x320. What takes more than 2 GiB of memory is read
from the files batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.core.download import read_archive, read_published
from bench.data.image_files import ImageFiles, LazyImages
from bench.data.image_folder import scan
from bench.data.raw import Raw
from bench.data.registry import DATASETS
from bench.errors import BenchError

IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
IMAGENETTE_CLASSES = tuple(IMAGENETTE.values())
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
TINY_FOLDER = "tiny-imagenet-200"
MARGIN = 8 / 7  # ImageNet's standard test crop: the shorter side at 256 for a centre of 224


@DATASETS.register(
    "imagenette",
    classes=10,
    class_names=IMAGENETTE_CLASSES,
    image=(3, 160, 160),
    any_size=True,
    sizes={"train": 7969, "select": 500, "steer": 1000, "test": 3925},
    class_counts={
        "train": (963, 955, 993, 858, 941, 956, 961, 931, 951, 960),
        "test": (387, 395, 357, 386, 409, 394, 389, 419, 399, 390),
    },
    eps={"linf": 8 / 255},
    model="resnet18",
    teacher_model="wrn34_10",
    recipe="paper",
    augment="crop_flip",
)
def imagenette(root: Path, download: bool, size: int = 160) -> Raw:
    """Imagenette (Howard, 2019, second version): 13,394 photographs of 10 classes of ImageNet, slightly unbalanced.

    160x160 pixels, or another size by name: imagenette_320. Sizes up to 160 and up to 320 are cut from the archives
    of those sizes, larger ones from the full archive.
    """
    from torchvision.datasets import Imagenette

    archive = "160px" if size <= 160 else "320px" if size <= 320 else "full"
    url, md5 = Imagenette._ARCHIVES[archive]
    base = url.rpartition("/")[2].removesuffix(".tgz")

    def read(folder: Path) -> Raw:
        train, test = (_part(folder / base / part, list(IMAGENETTE)) for part in ("train", "val"))
        return _raw(train, test, size, size, IMAGENETTE_CLASSES)

    return read_archive(DATASETS.resolve(f"imagenette_{size}"), root, download, read, base, url, md5)


@DATASETS.register(
    "tiny_imagenet",
    classes=200,
    image=(3, 64, 64),
    any_size=True,
    sizes={"train": 90000, "select": 4000, "steer": 6000, "test": 10000},
    eps={"linf": 8 / 255, "l2": 0.5},
    model="resnet18",
    teacher_model="wrn34_10",
    recipe="paper",
    augment="crop_flip",
)
def tiny_imagenet(root: Path, download: bool, size: int = 64) -> Raw:
    """Tiny ImageNet (Stanford CS231n): 110,000 photographs of 64x64 pixels in 200 classes.

    The published validation images are the test part: the labels of the published test images are not public.
    """

    def read(folder: Path) -> Raw:
        base = folder / TINY_FOLDER
        try:
            wnids = sorted((base / "wnids.txt").read_text().split())
            words = dict(line.split("\t", 1) for line in (base / "words.txt").read_text().splitlines() if "\t" in line)
        except OSError as error:
            raise RuntimeError(_describe(error)) from error
        names = _unique_names([words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids], wnids)
        return _raw(_part(base / "train", wnids), _tiny_val(base / "val", wnids), size, size, names)

    name = DATASETS.resolve(f"tiny_imagenet_{size}")
    return read_archive(name, root, download, read, TINY_FOLDER, TINY_URL, TINY_MD5)


@DATASETS.register(
    "imagenet",
    classes=1000,
    image=(3, 224, 224),
    any_size=True,
    sizes={"train": 1251167, "select": 10000, "steer": 20000, "test": 50000},
    eps={"linf": 4 / 255, "l2": 3.0},
    model="resnet18",
    teacher_model="wrn34_10",
    recipe="paper",
    augment="crop_flip",
)
def imagenet(root: Path, download: bool, size: int = 224) -> Raw:
    """ImageNet (Russakovsky et al., 2015): 1,331,167 photographs in 1,000 classes, the training classes unbalanced.

    224x224 pixels, cut from the centre at 8/7 of that; the published validation images are the test part. It may not
    be fetched without an account at image-net.org, so its folders must be there: imagenet/train and imagenet/val, each
    with a sub-folder per class (n01440764 and so on).
    """
    from torchvision.models import ResNet18_Weights

    def read(folder: Path) -> Raw:
        base = folder / "imagenet"
        wnids = sorted(path.name for path in (base / "train").glob("n*") if path.is_dir())
        names = ResNet18_Weights.DEFAULT.meta["categories"]  # in the order of the sorted sub-folders
        if len(wnids) != len(names):
            raise RuntimeError(f"{base / 'train'}: {len(wnids)} of {len(names)} class folders")
        return _raw(_part(base / "train", wnids), _part(base / "val", wnids), size, round(size * MARGIN), names)

    what = (
        "the folders imagenet/train and imagenet/val with a sub-folder per class (n01440764 and so on), unpacked from "
        "the archives of ILSVRC 2012 at https://image-net.org, "
    )
    return read_published(DATASETS.resolve(f"imagenet_{size}"), root, download, read, None, ["imagenet"], what)


def _part(folder: Path, wnids: Sequence[str]) -> ImageFiles:
    """The files of a part; RuntimeError, as for damaged data, if a class is missing."""
    try:
        return scan(folder, wnids)
    except (OSError, BenchError) as error:
        raise RuntimeError(_describe(error)) from error


def _tiny_val(folder: Path, wnids: Sequence[str]) -> ImageFiles:
    """Tiny ImageNet's validation images, all in one folder, with their classes in a table."""
    label = {wnid: k for k, wnid in enumerate(wnids)}
    table = folder / "val_annotations.txt"
    try:
        rows = [line.split("\t")[:2] for line in table.read_text().splitlines() if line]
        names = [f"images/{name}" for name, _ in rows]
        sizes = [(folder / name).stat().st_size for name in names]
        return ImageFiles(folder, names, sizes, np.asarray([label[wnid] for _, wnid in rows], dtype=np.int64))
    except OSError as error:
        raise RuntimeError(_describe(error)) from error
    except (ValueError, KeyError) as error:
        raise RuntimeError(f"{table} is not what was published") from error


def _describe(error: Exception) -> str:
    """Text of an error, naming the file if one is missing."""
    return f"{error.filename} is missing" if isinstance(error, FileNotFoundError) else str(error)


def _raw(train: ImageFiles, test: ImageFiles, size: int, shorter: int, names: Sequence[str]) -> Raw:
    x_train, x_test = (LazyImages(files, size, shorter=shorter).load() for files in (train, test))
    return Raw(x_train, train.y, x_test, test.y, names)


def _unique_names(names: Sequence[str], wnids: Sequence[str]) -> list[str]:
    """Names of classes; those that two classes share get the WordNet id."""
    return [f"{name} ({wnid})" if names.count(name) > 1 else name for name, wnid in zip(names, wnids, strict=True)]
