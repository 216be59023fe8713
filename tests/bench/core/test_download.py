import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.config.settings import RunSettings
from bench.data.raw import Raw
from bench.data.registry import DATASETS
from bench.errors import BenchError, UsageError
from bench.plan.planner import make_plan
from tests.helpers.archives import Published, pixels, save_image, served

ARRAYS = ("mnist", "fashion_mnist", "stl10", "cifar100", "svhn")
PHOTOS = ("imagenette", "tiny_imagenet")
PLACES = {
    "mnist": ["MNIST"], "fashion_mnist": ["FashionMNIST"], "stl10": ["stl10_binary"],
    "cifar100": ["cifar-100-python"], "svhn": ["test_32x32.mat", "train_32x32.mat"],
    "imagenette": ["imagenette2-160"], "tiny_imagenet": ["tiny-imagenet-200"],
}  # fmt: skip


FIRST = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte.gz", "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte.gz",
    "stl10": "stl10_binary/train_X.bin", "cifar100": "cifar-100-python/train", "svhn": "train_32x32.mat",
}  # fmt: skip


class Shop(Published):
    sent: list[str]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    folder = tmp_path / "server"
    folder.mkdir()
    with served(folder) as (url, sent):
        made = Shop(folder, url, monkeypatch)
        made.sent = sent
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def left_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def same(a: Raw, b: Raw) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("x_train", "y_train", "x_test", "y_test")
    )


@pytest.mark.parametrize("name", [*ARRAYS, *PHOTOS])
def test_a_set_is_fetched_whole_with_progress_and_read_again_without(
    name: str, shop: Shop, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = getattr(shop, name)()
    with pytest.raises(UsageError, match=f"{name}: data missing in {root}; put .*there, or add --download to the"):
        DATASETS[name](root, False)
    assert left_in(root) == []
    fetched = DATASETS[name](root, True)
    fetched.check(name)
    if expected is not None:
        n = len(fetched.x_train)
        assert np.array_equal(fetched.x_train, expected[:n])
        assert np.array_equal(fetched.x_test, expected[n:])
        assert fetched.y_train.tolist() == (np.arange(n) % len(fetched.class_names)).tolist()
    assert left_in(root) == PLACES[name]
    assert "100%" in capfd.readouterr().err
    count = len(shop.sent)
    assert same(DATASETS[name](root, False), fetched)
    assert same(DATASETS[name](root, True), fetched)
    assert len(shop.sent) == count


@pytest.mark.parametrize("name", [*ARRAYS, *PHOTOS])
def test_a_half_archive_is_refused_and_nothing_is_left(name: str, shop: Shop, root: Path) -> None:
    getattr(shop, name)()
    for path in shop.folder.iterdir():
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BenchError, match=f"{name}: the download failed .*; put .* into {root} by hand"):
        DATASETS[name](root, True)
    assert left_in(root) == []


@pytest.mark.parametrize("name", [*ARRAYS, *PHOTOS])
def test_what_is_damaged_on_disk_is_said_and_fetched_anew(name: str, shop: Shop, root: Path) -> None:
    getattr(shop, name)()
    fetched = DATASETS[name](root, True)
    place = root / PLACES[name][-1]
    if name in PHOTOS:
        gone = min((place / "train").iterdir())
        shutil.rmtree(gone)
        told = f"{gone} is missing"
    else:
        told = f"{root / FIRST[name]} is not what was published"
        files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        for file in files:
            file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UsageError, match=re.escape(f"{name}: data damaged or incomplete in {root} ({told}); put ")):
        DATASETS[name](root, False)
    assert same(DATASETS[name](root, True), fetched)
    assert left_in(root) == PLACES[name]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar100", "cifar-100-python/meta"),
        ("stl10", "stl10_binary/test_y.bin"),
        ("svhn", "test_32x32.mat"),
        ("tiny_imagenet", "tiny-imagenet-200/wnids.txt"),
    ],
)
def test_a_file_that_is_gone_is_named(name: str, file: str, shop: Shop, root: Path) -> None:
    getattr(shop, name)()
    DATASETS[name](root, True)
    (root / file).unlink()
    with pytest.raises(UsageError, match=re.escape(f"{name}: data damaged or incomplete in {root} ({root / file} is")):
        DATASETS[name](root, False)


def test_unpacked_and_packed_files_of_mnist_will_both_do(shop: Shop, root: Path) -> None:
    shop.mnist()
    fetched = DATASETS["mnist"](root, True)
    raw = root / "MNIST" / "raw"
    packed = sorted(raw.glob("*.gz"))
    assert len(packed) == 4
    for path in packed:
        path.with_suffix("").unlink()
    assert same(DATASETS["mnist"](root, False), fetched)
    DATASETS["mnist"](root / "other", True)
    for path in (root / "other/MNIST/raw").glob("*.gz"):
        path.unlink()
    assert same(DATASETS["mnist"](root / "other", False), fetched)
    short = root / "other/MNIST/raw/train-images-idx3-ubyte"
    short.write_bytes(short.read_bytes()[:-100])
    with pytest.raises(UsageError, match=f"mnist: data damaged .*{short} cannot be read: "):
        DATASETS["mnist"](root / "other", False)


def test_an_interrupted_download_leaves_nothing_and_a_killed_one_is_cleared_away(
    shop: Shop, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.mnist()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.utils._urlretrieve", stop)
        with pytest.raises(KeyboardInterrupt):
            DATASETS["mnist"](root, True)
    assert left_in(root) == []
    (root / ".MNIST.part-killed").mkdir()
    (root / ".MNIST.part-killed" / "half.gz").write_bytes(b"half")
    DATASETS["mnist"](root, True)
    assert left_in(root) == ["MNIST"]


def fetched_at_once(names: list[str], root: Path) -> list[Raw]:
    found: list[Raw] = []
    threads = [threading.Thread(target=lambda name=name: found.append(DATASETS[name](root, True))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_two_at_once_fetch_once(shop: Shop, root: Path) -> None:
    shop.svhn()
    DATASETS["svhn"](root.parent / "alone", True)
    once = sorted(shop.sent)
    shop.sent.clear()
    found = fetched_at_once(["svhn"] * 3, root)
    assert len(found) == 3
    assert same(found[0], found[2])
    assert sorted(shop.sent) == once
    assert left_in(root) == PLACES["svhn"]


def test_sizes_of_a_set_at_once_fetch_their_archive_once(shop: Shop, root: Path) -> None:
    shop.tiny_imagenet()
    DATASETS["tiny_imagenet"](root.parent / "alone", True)
    once = list(shop.sent)
    shop.sent.clear()
    found = fetched_at_once(["tiny_imagenet", "tiny_imagenet_32", "tiny_imagenet_48"], root)
    assert sorted(raw.x_train.shape[1] for raw in found) == [32, 48, 64]
    assert shop.sent == once
    assert left_in(root) == PLACES["tiny_imagenet"]


def test_a_server_that_is_not_there_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.STL10.url", "http://127.0.0.1:9/stl10_binary.tar.gz")
    with pytest.raises(BenchError, match=r"stl10: the download failed .*refused.*stl10_binary \(unpacked from http"):
        DATASETS["stl10"](root, True)
    assert left_in(root) == []


def test_imagenette_has_its_names_and_any_size(shop: Shop, root: Path) -> None:
    shop.imagenette()
    read = DATASETS["imagenette"](root, True)
    assert read.x_train.shape == (20, 160, 160, 3)
    assert read.class_names[3] == "chain saw"
    with pytest.raises(UsageError, match="^imagenette: data missing .*imagenette2-160"):
        DATASETS["imagenette_160"](root / "none", False)
    assert read.y_test.tolist() == list(range(10))
    small = DATASETS["Imagenette@48"](root, False)
    assert small.x_test.shape == (10, 48, 48, 3)
    assert DATASETS.resolve("imagenette-160") == "imagenette"
    assert DATASETS.resolve("imagenette@48") == "imagenette_48"
    assert DATASETS.sketch("imagenette_48").facts["image"] == (3, 48, 48)
    with pytest.raises(KeyError, match="unknown dataset 'cifar10_48'"):
        DATASETS.resolve("cifar10_48")
    shop.imagenette(320)
    with pytest.raises(UsageError, match="^imagenette_200: data missing .*imagenette2-320"):
        DATASETS["imagenette_200"](root, False)
    assert DATASETS["imagenette_200"](root, True).x_train.shape == (20, 200, 200, 3)


def test_another_size_is_another_run() -> None:
    folders = set()
    for dataset in ("imagenette", "imagenette_160", "imagenette_64"):
        run = RunSettings(dataset=dataset, methods=("natural",), attacks=("fgsm",)).validated()
        folders.add(make_plan(run, "cpu").train[0].folder)
    assert {folder.parts[0] for folder in folders} == {"imagenette", "imagenette_64"}
    assert len(folders) == 2


def test_tiny_imagenet_takes_its_validation_images_to_test(shop: Shop, root: Path) -> None:
    shop.tiny_imagenet()
    read = DATASETS["tiny_imagenet"](root, True)
    assert list(read.class_names) == ["goldfish", "Egyptian cat", "crane"]
    assert read.y_train.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert read.y_test.tolist() == [1, 0, 2]  # in the order of the table
    assert read.x_test.shape == (3, 64, 64, 3)
    table = root / "tiny-imagenet-200/val/val_annotations.txt"
    table.write_text(table.read_text().replace("val_2.JPEG", "val_7.JPEG"))
    with pytest.raises(UsageError, match="^tiny_imagenet_32: data damaged .*images/val_7.JPEG is missing"):
        DATASETS["tiny_imagenet_32"](root, False)
    table.write_text(table.read_text().replace("val_7.JPEG", "val_2.JPEG").replace("n0", "m0"))
    with pytest.raises(UsageError, match="tiny_imagenet: data damaged .*val_annotations.txt is not what was published"):
        DATASETS["tiny_imagenet"](root, False)


def test_imagenet_is_read_from_its_folders_and_never_fetched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights

    with pytest.raises(
        UsageError, match="imagenet: data missing in .*imagenet/train and imagenet/val .*not be fetched"
    ):
        DATASETS["imagenet"](root, True)
    monkeypatch.setitem(ResNet18_Weights.DEFAULT.meta, "categories", ["tench", "goldfish"])
    for part, count in (("train", 3), ("val", 1)):
        for wnid in ("n01440764", "n01443537"):
            for i in range(count):
                save_image(root / "imagenet" / part / wnid / f"{i}.JPEG", pixels(30, 40, 3))
    read = DATASETS["imagenet_32"](root, False)
    assert read.x_train.shape == (6, 32, 32, 3)
    assert (read.y_test.tolist(), list(read.class_names)) == ([0, 1], ["tench", "goldfish"])
    shutil.rmtree(root / "imagenet/train/n01440764")
    with pytest.raises(UsageError, match="^imagenet_32: data damaged or incomplete .*train: 1 of 2 class folders"):
        DATASETS["imagenet_32"](root, False)


@pytest.mark.parametrize("name", DATASETS.names())
def test_declared_counts_are_those_of_the_sizes(name: str) -> None:
    facts = DATASETS.sketch(name).facts
    assert len(facts.get("class_names", ())) in (0, facts["classes"])
    for part, counts in facts.get("class_counts", {}).items():
        sizes = facts["sizes"]
        total = sizes["test"] if part == "test" else sum(sizes[p] for p in ("train", "select", "steer"))
        assert sum(counts) == total
        assert len(counts) == facts["classes"]
