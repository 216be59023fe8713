import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attacks.plugins.registry import UnknownName
from bench.data.augmentation import AUGMENTATIONS, augment
from bench.data.raw import Raw, stratified_order
from bench.data.registry import DATASETS
from bench.data.splits import Parts, limit, load, split, to_float
from bench.errors import BenchError, UsageError

BUILTIN = ("digits", "cifar10", "cifar100", "svhn")


def uneven_labels(counts: tuple[int, ...], seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(labels)


def raw(counts: tuple[int, ...], n_test: int = 40) -> Raw:
    rng = np.random.default_rng(1)
    y, y_test = uneven_labels(counts), np.arange(n_test) % len(counts)
    x, x_test = (rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8) for n in (len(y), n_test))
    return Raw(x, y, x_test, y_test, [f"c{k}" for k in range(len(counts))])


@pytest.fixture(scope="module")
def digits() -> Parts:
    return load("digits")


def test_digits_have_the_declared_parts(digits: Parts) -> None:
    facts = DATASETS.sketch("digits").facts
    assert digits.sizes == facts["sizes"] == {"train": 1197, "select": 100, "steer": 100, "test": 400}
    assert digits.image == facts["image"]
    assert digits.class_names == tuple("0123456789")
    assert digits.class_counts.tolist() == [118, 121, 118, 121, 121, 122, 121, 119, 116, 120]
    for part in (digits.train, digits.select, digits.steer, digits.test):
        assert part.x.dtype == torch.uint8
        assert part.y.dtype == part.index.dtype == torch.int64
        assert part.index.tolist() == list(range(len(part)))


def test_digits_parts_are_disjoint_and_together_the_published_images(digits: Parts) -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    expected = sorted(
        (int(y), *np.round(x * 255 / 16).astype(int).tolist()) for x, y in zip(pixels, labels, strict=True)
    )
    parts = (digits.train, digits.select, digits.steer, digits.test)
    found = sorted((int(y), *x.flatten().tolist()) for part in parts for x, y in zip(part.x, part.y, strict=True))
    assert found == expected


def test_the_split_and_its_hash_never_move(digits: Parts) -> None:
    torch.manual_seed(99)
    assert load("digits").hash == digits.hash
    assert digits.hash == "c31a5e6693ac9706e98d930459931b99c9cf688fe73ca1c4e5036cde4b39ddd3"
    assert load("digits", test_limit=50).hash != digits.hash


@pytest.mark.parametrize("counts", [(100, 100, 100), (500, 50, 5), (7, 300, 2, 91)])
def test_every_start_of_the_order_is_stratified(counts: tuple[int, ...]) -> None:
    y = uneven_labels(counts)
    order = stratified_order(y)
    assert sorted(order.tolist()) == list(range(len(y)))
    for n in range(len(counts), len(y) + 1, 7):
        taken = np.bincount(y[order[:n]], minlength=len(counts))
        share = n * np.array(counts) / len(y)
        assert (taken >= 1).all()
        assert (np.abs(taken - share) <= len(counts)).all()
    assert sorted(y[order[: len(counts)]].tolist()) == list(range(len(counts)))


def test_a_balanced_start_is_balanced_exactly() -> None:
    y = uneven_labels((40,) * 10)
    assert np.bincount(y[stratified_order(y)[:130]]).tolist() == [13] * 10


def test_a_smaller_limit_is_contained_in_a_larger_one(digits: Parts) -> None:
    previous: set[int] = set()
    for n in (10, 11, 57, 200, 399, 400, 1000):
        part = limit(digits.test, n)
        index = part.index.tolist()
        assert len(part) == min(n, 400)
        assert index == sorted(index)
        assert previous <= set(index)
        assert torch.equal(part.x, digits.test.x[part.index])
        assert torch.equal(part.y, digits.test.y[part.index])
        previous = set(index)
    assert load("digits", test_limit=57).test.index.tolist() == limit(digits.test, 57).index.tolist()
    with pytest.raises(UsageError, match="test limit: expected at least 10 samples, one per class, got 9"):
        load("digits", test_limit=9)


def test_parts_held_out_are_disjoint_and_stratified() -> None:
    data = raw((600, 300, 100))
    parts = split("mine", data, {"select": 50, "steer": 100})
    assert parts.sizes == {"train": 850, "select": 50, "steer": 100, "test": 40}
    assert torch.bincount(parts.select.y).tolist() == [30, 15, 5]
    assert torch.bincount(parts.steer.y).tolist() == [60, 30, 10]
    rows = torch.cat([part.x for part in (parts.train, parts.select, parts.steer)]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 1000
    assert split("mine", data, {}).sizes == {"train": 800, "select": 100, "steer": 100, "test": 40}
    with pytest.raises(BenchError, match="leave none of 1000 to train"):
        split("mine", data, {"select": 500, "steer": 500})


@pytest.mark.parametrize(("name", "per_class"), [("cifar10", (100, 300)), ("cifar100", (25, 30))])
def test_declared_sizes_of_cifar_hold_out_equal_shares(name: str, per_class: tuple[int, int]) -> None:
    facts = DATASETS.sketch(name).facts
    classes, sizes = facts["classes"], facts["sizes"]
    y = uneven_labels((50000 // classes,) * classes)
    order = stratified_order(y)
    select, steer = order[: sizes["select"]], order[sizes["select"] : sizes["select"] + sizes["steer"]]
    assert np.bincount(y[select]).tolist() == [per_class[0]] * classes
    assert np.bincount(y[steer]).tolist() == [per_class[1]] * classes
    assert sizes["train"] == 50000 - sizes["select"] - sizes["steer"]


def test_declared_sizes_of_svhn_hold_out_proportional_shares() -> None:
    counts = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)
    sizes = DATASETS.sketch("svhn").facts["sizes"]
    assert sizes["train"] + sizes["select"] + sizes["steer"] == sum(counts)
    y = uneven_labels(counts)
    order = stratified_order(y)
    held = np.split(order, [sizes["select"], sizes["select"] + sizes["steer"]])[:2]
    for rows in held:
        share = len(rows) * np.array(counts) / sum(counts)
        assert (np.abs(np.bincount(y[rows]) - share) <= 1).all()


@pytest.mark.parametrize("name", BUILTIN)
def test_declared_facts_name_what_exists(name: str) -> None:
    from bench.models.registry import MODELS

    facts = DATASETS.sketch(name).facts
    assert facts["model"] in MODELS
    assert facts["teacher_model"] in MODELS
    assert facts["augment"] in AUGMENTATIONS
    assert set(facts["eps"]) == {"linf", "l2"}


def test_a_dataset_of_ones_own_is_held_against_what_it_declares(monkeypatch) -> None:
    for table in ("_objects", "_facts"):
        monkeypatch.setattr(DATASETS, table, dict(getattr(DATASETS, table)))
    data = raw((60, 60, 60))

    def toy(root: Path, download: bool) -> Raw:
        return data

    DATASETS.register("toy_shapes", classes=3, image=(1, 8, 9), sizes={"select": 9, "steer": 9})(toy)
    with pytest.raises(BenchError, match=r"toy_shapes: expected images .*: \(1, 8, 9\), got \(1, 8, 8\)"):
        load("toy_shapes")
    DATASETS.register("toy_plain")(toy)
    assert load("Toy-Plain").sizes == {"train": 144, "select": 18, "steer": 18, "test": 40}
    with pytest.raises(UnknownName, match="did you mean 'cifar10'"):
        load("cifar-1O")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((180, 8, 8, 1))}, "train: expected images as uint8 .* got float64"),
        ({"x_test": np.zeros((40, 8, 8), np.uint8)}, r"test: expected images as uint8 of shape \(N, H, W, C\)"),
        ({"y_test": np.zeros(39, np.int64)}, "one integer label for each of 40 images"),
        (
            {"y_train": uneven_labels((60, 60, 60)) + 1},
            "labels from 0 to 2, got 1 to 3; if they count from 1, subtract",
        ),
        ({"y_test": np.arange(40) % 2}, r"class 2 \(c2\) has none"),
        ({"x_test": np.zeros((40, 9, 9, 1), np.uint8)}, "expected images of one shape"),
        ({"x_test": np.zeros((40, 9, 8, 1), np.uint8)}, "test: expected square images, got 9x8"),
    ],
)
def test_wrong_arrays_are_named(change: dict[str, np.ndarray], message: str) -> None:
    good = raw((60, 60, 60))
    with pytest.raises(BenchError, match=message):
        Raw(**{**good.__dict__, **change}).check("mine")


def save_npz(path: Path, **change: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(50, dtype=np.uint8) % 10,
        "x_test": rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8),
        "y_test": np.arange(20, dtype=np.uint8) % 10,
    }
    np.savez(path, **{name: array for name, array in {**arrays, **change}.items() if array is not None})


def test_cifar10_from_npz(tmp_path: Path) -> None:
    save_npz(tmp_path / "cifar10.npz")
    read = DATASETS["cifar10"](tmp_path, False)
    assert read.x_train.shape == (50, 32, 32, 3)
    assert read.class_names[3] == "cat"
    with pytest.raises(BenchError, match="cifar10: expected training images: 50000, got 50"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((50, 3, 32, 32), np.float32)}, "train: expected images as uint8"),
        ({"y_test": np.full(20, 10, np.uint8)}, "expected labels from 0 to 9, got 10 to 10"),
        ({"y_test": None}, "expected the arrays .*; not found: y_test"),
        ({"y_test": np.array([{}] * 20, dtype=object)}, "y_test: expected integers, got Python objects"),
    ],
)
def test_a_wrong_npz_is_refused(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    save_npz(tmp_path / "cifar10.npz", **change)
    with pytest.raises(BenchError, match=message):
        DATASETS["cifar10"](tmp_path, False)


def test_a_damaged_npz_is_refused(tmp_path: Path) -> None:
    save_npz(tmp_path / "cifar10.npz")
    whole = (tmp_path / "cifar10.npz").read_bytes()
    np.save(tmp_path / "lone.npy", np.zeros(3))
    for content in (b"", b"PK\x03\x04 nothing", whole[: len(whole) // 2], (tmp_path / "lone.npy").read_bytes()):
        (tmp_path / "cifar10.npz").write_bytes(content)
        with pytest.raises(BenchError, match=r"cifar10\.npz: cannot be read"):
            DATASETS["cifar10"](tmp_path, False)


@pytest.mark.parametrize(
    ("name", "told"),
    [("cifar10", "cifar-10-batches-py.*cifar10.npz"), ("cifar100", "cifar-100-python"), ("svhn", "test_32x32.mat")],
)
def test_missing_files_say_what_to_put_where(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: data missing in .*absent; .*{told}.*, or add --download") as caught:
        load(name, tmp_path / "absent")
    assert "bench run" not in str(caught.value)  # copied as it is, that would train every method
    assert not (tmp_path / "absent").exists()


def published_cifar10(folder: Path, images: int = 10) -> None:
    """Files in the form in which CIFAR-10 is published, with few images."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        data = rng.integers(0, 256, (images, 3072), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": data, "labels": list(range(images))}))
    names = [f"class{k}" for k in range(10)]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksums of torchvision are those of the real files; let any file pass for its own."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())


@pytest.mark.usefixtures("unchecked")
def test_published_files_are_read(tmp_path: Path) -> None:
    published_cifar10(tmp_path)
    read = DATASETS["cifar10"](tmp_path, False)
    assert read.x_train.shape == (50, 32, 32, 3)
    assert read.y_test.tolist() == list(range(10))
    assert list(read.class_names) == [f"class{k}" for k in range(10)]
    batch = pickle.loads((tmp_path / "cifar-10-batches-py/data_batch_1").read_bytes())
    assert np.array_equal(read.x_train[0, :, :, 2].ravel(), batch["data"][0, 2048:])


@pytest.mark.usefixtures("unchecked")
def test_a_download_appears_whole_and_replaces_a_damaged_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "torchvision.datasets.cifar.download_and_extract_archive",
        lambda url, folder, **_: published_cifar10(Path(folder)),
    )
    damaged = tmp_path / "cifar-10-batches-py"
    damaged.mkdir()
    (damaged / "data_batch_1").write_bytes(b"half")
    with pytest.raises(UsageError, match="cifar10: data damaged or incomplete in .*/data_batch_1 is not what was"):
        DATASETS["cifar10"](tmp_path, False)
    assert len(DATASETS["cifar10"](tmp_path, True).x_train) == 50
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("File not found or corrupted.")])
def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch, error: Exception) -> None:
    def broken(url: str, folder: str, **_: object) -> None:
        (Path(folder) / "cifar-10-python.tar.gz").write_bytes(b"half")
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", broken)
    with pytest.raises(BenchError, match=f"download failed .{error}.*cs.toronto.edu.*by hand"):
        DATASETS["cifar10"](tmp_path, True)
    assert list(tmp_path.iterdir()) == []


def test_svhn_is_read_in_the_suites_order(tmp_path: Path, monkeypatch) -> None:
    from scipy.io import savemat

    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda path, md5=None: Path(path).is_file())
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 30), dtype=np.uint8)
    y = (np.arange(30) % 10 + 1).astype(np.uint8)[:, None]  # published: 10 stands for the digit 0
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": y})
    read = DATASETS["svhn"](tmp_path, False)
    read.check("svhn")
    assert read.y_train[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert np.array_equal(read.x_test[7], x[..., 7])


def test_to_float_covers_the_unit_interval() -> None:
    x = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert x.dtype == torch.float32
    assert x.tolist() == pytest.approx([0, 0.2, 1])


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_equals_padding_cropping_and_flipping_each_image(padding: str, dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, (40, 3, 8, 9), generator=stream(1)).to(dtype)
    moved = augment(x, "crop_flip", stream(), padding=padding)
    draws = stream()
    dy, dx = (torch.randint(9, (40, 1), generator=draws) for _ in range(2))
    flip = torch.randint(2, (40, 1), generator=draws)
    mode = "constant" if padding == "zeros" else "reflect"
    padded = F.pad(x.float(), (4, 4, 4, 4), mode=mode).to(dtype)
    for i in range(40):
        # the window is mirrored, so a flipped image is read from the right
        window = padded[i, :, dy[i] : dy[i] + 8, dx[i] : dx[i] + 9]
        assert torch.equal(moved[i], window.flip(2) if flip[i] else window)
    assert moved.dtype == dtype
    assert 0 < flip.sum() < 40


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augmentation_draws_from_its_generator_alone(kind: str) -> None:
    x = torch.randint(0, 256, (16, 1, 8, 8), generator=stream(1)).to(torch.uint8)
    before = torch.get_rng_state()
    assert torch.equal(augment(x, kind, stream(3)), augment(x, kind, stream(3)))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(augment(x, kind, stream(3)), augment(x, kind, stream(4))) == (kind == "none")


def test_augmentation_refuses_what_it_does_not_know() -> None:
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="expected a kind of none, crop, flip, crop_flip .* got 'rotate'"):
        augment(x, "rotate", stream())
    with pytest.raises(ValueError, match="a reflection of 4 pixels does not fit into 4x4"):
        augment(x, "crop", stream(), padding="reflect")
