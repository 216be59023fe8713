import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.config.settings import RunSettings, combined
from bench.data import image_files, image_folder, npz
from bench.data.raw import Raw
from bench.data.registry import DATASETS
from bench.data.splits import limit, load, to_float
from bench.errors import BenchError, UsageError
from bench.evaluation.evaluate import evaluate_job
from bench.plan.planner import make_plan
from bench.training.trainer import train
from tests.helpers.archives import pixels, save_image
from tests.helpers.jobs import bench


def write_npz(path: Path, **change: np.ndarray | None) -> Path:
    arrays: dict[str, np.ndarray | None] = {
        "x_train": pixels(120, 16, 16, 3), "y_train": np.arange(120, dtype=np.uint8) % 4,
        "x_test": pixels(40, 16, 16, 3, seed=1), "y_test": np.arange(40) % 4,
    }  # fmt: skip
    arrays.update(change)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def write_folder(root: Path, counts: dict[str, int], side: tuple[int, int] = (16, 16), seed: int = 0) -> Path:
    for k, (name, count) in enumerate(counts.items()):
        for i in range(count):
            save_image(root / name / f"{i:03}.png", pixels(*side, 3, seed=seed + 1000 * k + i))
    return root


def plan_of(dataset: str, **more: object) -> RunSettings:
    return RunSettings(dataset=dataset, methods=("natural",), attacks=("fgsm",), eps=0.1, **more).validated()


def test_an_npz_file_is_a_data_set(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "my pets.npz", class_names=np.array(["ant", "bee", "cat", "dog"]))
    parts = load(f"npz:{path}")
    assert parts.class_names == ("ant", "bee", "cat", "dog")
    assert parts.sizes == {"train": 96, "select": 12, "steer": 12, "test": 40}
    assert parts.counts["select"] == [3, 3, 3, 3]
    assert parts.name.startswith("my_pets-")
    sketch = DATASETS.sketch(f"npz:{path}")
    assert sketch.facts["class_counts"] == {"train": (30, 30, 30, 30), "test": (10, 10, 10, 10)}
    assert (sketch.facts["classes"], sketch.facts["image"], sketch.facts["sizes"]) == (4, (3, 16, 16), parts.sizes)
    rows = torch.cat([part.x for part in (parts.train, parts.select, parts.steer)]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 120


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    assert load(f"npz:{write_npz(tmp_path / 'a.npz')}").class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"x_train": np.zeros((120, 16, 16, 3), np.float32)},
            "train: expected images as uint8 .* got float32 .*astype",
        ),
        ({"x_test": np.zeros((40, 3, 16, 16), np.uint8)}, r"test: expected .* channels seem to come first.*transpose"),
        ({"x_train": np.zeros((120, 16, 16), np.uint8)}, r"add the channel with x\[..., None\]"),
        ({"x_train": np.zeros((120, 16, 16, 9), np.uint8)}, "with 1 to 4 channels"),
        ({"x_train": np.zeros((120, 16, 12, 3), np.uint8)}, "train: expected square images, got 16x12"),
        ({"x_train": np.zeros((120, 4, 4, 3), np.uint8)}, "train: expected images of at least 8x8, got 4x4"),
        ({"x_test": np.zeros((40, 12, 12, 3), np.uint8)}, r"images of one shape, got \(16, 16, 3\) .* \(12, 12, 3\)"),
        ({"x_test": np.zeros((40, 16, 16, 1), np.uint8)}, r"images of one shape, got \(16, 16, 3\) .* \(16, 16, 1\)"),
        ({"y_train": np.arange(120) % 4 - 1}, "train: expected labels from 0 to 3, got -1 to 2"),
        (
            {"y_train": np.arange(120) % 4 / 1.0},
            "train: expected one integer label for each of 120 images, got float64",
        ),
        ({"y_train": np.arange(120)[:, None] % 4}, r"one integer label .* shape \(120, 1\); flatten .* y\[:, 0\]"),
        ({"y_train": np.arange(121)}, r"one integer label for each of 120 images, got int64 of shape \(121,\)$"),
        ({"y_train": np.arange(120) % 4 + 1}, r"train: .* class 0 \(0\) has none; if they count from 1, subtract 1"),
        ({"y_train": np.arange(120) % 3 * 2}, r"train: .* class 1 \(1\) has none$"),
        ({"y_test": np.arange(40) % 3}, r"test: expected samples of every class, class 3 \(3\) has none"),
        ({"y_test": np.arange(40) % 5}, r"train: expected samples of every class, class 4 \(4\) has none"),
        ({"class_names": np.array(["a", "b", "c"])}, "expected labels from 0 to 2, got 0 to 3"),
        ({"class_names": np.array(["a", "b", "c", "a"])}, "expected class_names to differ"),
        ({"class_names": np.arange(4)}, "expected class_names as a list of strings, got int64"),
        (
            {"y_test": None, "x_test": None},
            "expected the arrays x_train, y_train, x_test, y_test; not found: x_test, y_test",
        ),
        ({"y_test": np.array([{}] * 40, dtype=object)}, r"y_test: expected integers, .* objects; .*astype\('int64'\)"),
        ({"class_names": np.array([*"abcd"], dtype=object)}, r"class_names: expected strings, .*astype\('str'\)"),
    ],
)
def test_a_wrong_npz_is_refused_when_it_is_planned_and_when_it_is_read(
    tmp_path: Path, change: dict[str, np.ndarray | None], told: str
) -> None:
    name = f"npz:{write_npz(tmp_path / 'bad.npz', **change)}"
    for act in (lambda: make_plan(plan_of(name), "cpu"), lambda: DATASETS[name](tmp_path, False)):
        with pytest.raises(BenchError, match=f"bad.npz.*{told}"):
            act()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_npz_is_refused(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "cut.npz"
    content = io.BytesIO()
    with np.load(write_npz(tmp_path / "whole.npz")) as whole:
        save(content, **whole)
    for cut in (0, 10, len(content.getvalue()) // 2, len(content.getvalue()) - 5):
        path.write_bytes(content.getvalue()[:cut])
        with pytest.raises(BenchError, match=r"cut\.npz: cannot be read"):
            make_plan(plan_of(f"npz:{path}"), "cpu")
    damaged = bytearray(content.getvalue())
    damaged[2000] ^= 255  # inside the images, which planning does not read
    path.write_bytes(damaged)
    with pytest.raises(BenchError, match=r"cut\.npz: cannot be read"):
        load(f"npz:{path}")


@pytest.mark.parametrize("name", ["npz:{}/none.npz", "folder:{}/none", "folder:{}/none@32"])
def test_what_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no such f.*; expected one with"):
        make_plan(plan_of(name.format(tmp_path)), "cpu")
    with pytest.raises(UsageError, match="expected a path after the colon"):
        plan_of("npz:")


def test_a_set_of_ones_own_has_no_usual_radius(tmp_path: Path) -> None:
    run = RunSettings(dataset=f"npz:{write_npz(tmp_path / 'a.npz')}", methods=("natural",)).validated()
    with pytest.raises(UsageError, match="--eps: the data set npz:.*a.npz names no usual radius for linf; give one"):
        make_plan(run, "cpu")


def test_results_go_by_name_and_content_not_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = write_npz(tmp_path / "a.npz")
    (tmp_path / "b").mkdir()
    shutil.copy(a, tmp_path / "b" / "a.npz")
    with np.load(a) as arrays:
        np.savez_compressed(tmp_path / "b" / "packed.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    jobs = [make_plan(plan_of(f"npz:{path}"), "cpu") for path in (a, "a.npz", tmp_path / "b" / "a.npz")]
    assert len({plan.train[0].folder for plan in jobs}) == 1
    assert len({plan.evaluate[0].folder for plan in jobs}) == 1
    assert str(jobs[0].train[0].folder).startswith("a-")
    assert str(tmp_path) not in str(jobs[0].train[0].folder)
    packed = make_plan(plan_of("npz:b/packed.npz"), "cpu").train[0]
    assert packed.key != jobs[0].train[0].key  # its name differs
    changed = write_npz(tmp_path / "b" / "a.npz", x_test=pixels(40, 16, 16, 3, seed=7))
    assert make_plan(plan_of(f"npz:{changed}"), "cpu").train[0].key != jobs[0].train[0].key


def test_images_of_a_big_file_stay_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path / "big.npz")
    held = load(f"npz:{path}")
    monkeypatch.setattr(npz, "IN_MEMORY", 1000)
    raw = DATASETS[f"npz:{path}"](tmp_path, False)
    assert isinstance(raw.x_train, npz.MappedImages)
    far = load(f"npz:{path}", train_limit=50)
    near = limit(held.train, 50)
    assert torch.equal(far.train.x[torch.arange(50)], near.x)
    assert torch.equal(to_float(far.test.x)[:40], to_float(held.test.x))
    assert far.hash == load(f"npz:{path}", train_limit=50).hash != load(f"npz:{path}").hash


def test_a_folder_with_parts(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"bee": 30, "ant": 20})
    write_folder(tmp_path / "val", {"ant": 4, "bee": 5}, seed=90)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "ant" / ".hidden.png").write_bytes(b"")
    parts = load(f"folder:{tmp_path}")
    assert parts.class_names == ("ant", "bee")
    assert parts.sizes == {"train": 40, "select": 5, "steer": 5, "test": 9}
    assert parts.counts == {"train": [16, 24], "select": [2, 3], "steer": [2, 3], "test": [4, 5]}
    assert parts.test.x[0].permute(1, 2, 0).numpy().tolist() == pixels(16, 16, 3, seed=90).tolist()


def test_a_folder_of_one_level_is_split_the_same_way_each_time(tmp_path: Path) -> None:
    write_folder(tmp_path, {"ant": 30, "bee": 60, "wasp": 3})
    raw = DATASETS[f"folder:{tmp_path}"](tmp_path, False)
    assert np.bincount(raw.y_train).tolist() == [24, 49, 2]
    assert np.bincount(raw.y_test).tolist() == [6, 11, 1]
    everything = np.concatenate([raw.x_train, raw.x_test]).reshape(93, -1)
    assert len(np.unique(everything, axis=0)) == 93
    again = DATASETS[f"folder:{shutil.copytree(tmp_path, tmp_path.parent / 'copy')}"](tmp_path, False)
    assert np.array_equal(raw.x_test, again.x_test)
    with pytest.raises(BenchError, match=r"class 2 \(wasp\) has 2 training images, too few for one of them in train"):
        load(f"folder:{tmp_path}")


def test_images_are_scaled_and_cut_to_one_size(tmp_path: Path) -> None:
    write_folder(tmp_path, {"ant": 10, "bee": 10}, side=(20, 12))
    save_image(tmp_path / "ant" / "wide.jpg", pixels(40, 80, 3))
    assert DATASETS.sketch(f"folder:{tmp_path}").facts["image"] == (3, 12, 12)
    parts = load(f"folder:{tmp_path}")
    assert parts.image == (3, 12, 12)
    middle = pixels(20, 12, 3, seed=3)[4:16].tolist()  # the height's centre
    images = torch.cat([part.x for part in (parts.train, parts.select, parts.steer, parts.test)])
    assert middle in images.permute(0, 2, 3, 1).tolist()
    assert load(f"folder:{tmp_path}@8").image == (3, 8, 8)
    flat = Image.fromarray(np.full((40, 80, 3), 77, np.uint8))
    flat.save(tmp_path / "flat.png")
    x, grey = image_files.read_image(tmp_path / "flat.png", 8, 10, 3)
    assert (x.shape, x.min(), x.max(), grey) == ((8, 8, 3), 77, 77, False)


def test_a_declared_size_is_another_set(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", {"ant": 10, "bee": 10})
    folders = {make_plan(plan_of(f"folder:{tmp_path}/pets{size}"), "cpu").train[0].folder for size in ("", "@8", "@12")}
    assert len(folders) == 3
    assert sorted(str(folder).partition("-")[0] for folder in folders) == ["pets", "pets_12", "pets_8"]


def test_a_changed_folder_is_another_set(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", {"ant": 10, "bee": 10})
    before = make_plan(plan_of(f"folder:{tmp_path}/pets"), "cpu").train[0].key
    save_image(tmp_path / "pets" / "ant" / "new.png", pixels(16, 16, 3))
    assert make_plan(plan_of(f"folder:{tmp_path}/pets"), "cpu").train[0].key != before


def bad_class(root: Path) -> None:
    (root / "cow").mkdir()


def bad_image(root: Path) -> None:
    (root / "ant" / "zzz.png").write_bytes(b"no image")


def bad_cut(root: Path) -> None:
    file = root / "bee" / "003.png"
    file.write_bytes(file.read_bytes()[:-300])


def bad_deep(root: Path) -> None:
    Image.fromarray(np.full((16, 16), 1000, np.uint16)).save(root / "ant" / "zzz.png")


def bad_lone(root: Path) -> None:
    shutil.rmtree(root / "ant")


def bad_flat(root: Path) -> None:
    for path in root.iterdir():
        shutil.rmtree(path)
    save_image(root / "0.png", pixels(16, 16, 3))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (bad_class, r"cow: expected images of the class, found none \(.jpg"),
        (bad_image, r"zzz.png: cannot be read as an image"),
        (bad_cut, r"003.png: cannot be read as an image \(.*truncated.*; repair or remove it"),
        (bad_deep, "zzz.png: expected an image with 8 bits a channel, got mode I;16; convert it"),
        (bad_lone, "expected a sub-folder for each of at least 2 classes, got 1"),
        (bad_flat, "expected a sub-folder for each of at least 2 classes, got 0"),
    ],
)
def test_a_bad_folder_is_one_sentence(tmp_path: Path, spoil: Callable[[Path], None], told: str) -> None:
    write_folder(tmp_path, {"ant": 10, "bee": 10})
    spoil(tmp_path)
    with pytest.raises(BenchError, match=told):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("called", [("Train", "Test"), ("TRAINING", "Validation"), ("training", "testing")])
def test_parts_are_known_in_any_case_and_by_their_longer_names(tmp_path: Path, called: tuple[str, str]) -> None:
    for root, names in (("usual", ("train", "test")), ("other", called)):
        for name, count, seed in zip(names, (10, 4), (0, 90), strict=True):
            write_folder(tmp_path / root / name, {"ant": count, "bee": count}, seed=seed)
    other = load(f"folder:{tmp_path}/other")
    assert other.class_names == ("ant", "bee")
    assert other.hash == load(f"folder:{tmp_path}/usual").hash


def test_classes_may_be_called_like_parts(tmp_path: Path) -> None:
    write_folder(tmp_path, {"Training": 10, "match": 10, "testing": 10})
    assert load(f"folder:{tmp_path}").class_names == ("Training", "match", "testing")


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("train/ant", "train/bee"), r"expected test \(or val\) beside train, with .* folder:.*/train for a"),
        (("Train/ant", "Train/bee", "notes"), r"expected test \(or val\) beside Train, with"),
        (
            ("fold1/ant", "fold1/bee", "fold2/ant", "fold2/bee"),
            "fold1: .* class, found only folders such as ant and bee",
        ),
        (
            ("ant", "bee/large", "bee/small"),
            "bee: .* class, found only folders such as large and small; call the parts",
        ),
        (("test/ant", "test/bee", "val/ant", "val/bee"), "expected train beside test, with a folder for each class"),
    ],
)
def test_folders_that_hold_no_classes_are_not_taken_for_them(
    tmp_path: Path, folders: tuple[str, ...], told: str
) -> None:
    write_folder(tmp_path, dict.fromkeys(folders, 10))
    with pytest.raises(BenchError, match=told):
        make_plan(plan_of(f"folder:{tmp_path}"), "cpu")


def test_a_class_may_be_called_train_and_have_its_images_one_folder_down(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 10, "train/old": 3, "train/new": 3, "bus/images": 10})
    raw = DATASETS[f"folder:{tmp_path}"](tmp_path, False)
    assert list(raw.class_names) == ["bus", "train"]
    assert (np.bincount(raw.y_train) + np.bincount(raw.y_test)).tolist() == [10, 16]


def test_what_is_not_read_of_a_folder_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        write_folder(tmp_path / "pets" / part, {"ant": 10, "bee": 10})
    name, flags = "folder:pets", ("--eps", "0.1", "--device", "cpu")
    assert DATASETS.notes(name) == DATASETS.notes("digits") == ()
    write_folder(tmp_path / "pets" / "val", {"ant": 10})
    note = f"folder:{tmp_path}/pets: trains on train, tests on test; not read: val"
    assert note in " ".join(bench("show", name).stdout.split())
    planned = bench("run", "--methods", "natural,pgd_at", "--dataset", name, *flags, "--dry-run")
    evaluated = bench("evaluate", "--checkpoint", "none.pt", "--model", "small_cnn", "--dataset", name, *flags)
    for result in (planned, evaluated):
        assert result.stderr.count(f"note: {note}\n") == result.stderr.count("not read") == 1


def test_parts_with_other_classes_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"ant": 5, "bee": 5})
    write_folder(tmp_path / "test", {"ant": 5, "cow": 5})
    with pytest.raises(BenchError, match="expected the same classes in train and test, only one has bee"):
        load(f"folder:{tmp_path}")


def test_grey_images_of_a_colour_set_are_told_and_colour_in_a_grey_set_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "colour", {"ant": 10, "bee": 10})
    save_image(tmp_path / "colour" / "bee" / "grey.png", pixels(16, 16))
    with caplog.at_level("INFO", "bench"):
        parts = load(f"folder:{tmp_path}/colour")
    assert "images are grey and were read as colour" in caplog.text
    images = torch.cat([part.x for part in (parts.train, parts.select, parts.steer, parts.test)])
    grey = [x for x in images if torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])]
    assert len(grey) == 1
    for i in range(200):
        save_image(tmp_path / "grey" / f"c{i % 2}" / f"{i:03}.png", pixels(16, 16, seed=i))
    assert load(f"folder:{tmp_path}/grey").image == (1, 16, 16)
    odd = image_folder.listing(tmp_path / "grey").train
    save_image(odd.root / odd.names[1], pixels(16, 16, 3))  # not among the headers that are probed
    with pytest.raises(BenchError, match=r"expected an image with grey like the set's others, got mode RGB"):
        load(f"folder:{tmp_path}/grey")


def test_images_that_do_not_fit_are_read_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, {"ant": 30, "bee": 20})
    held: Raw = DATASETS[f"folder:{tmp_path}"](tmp_path, False)
    near = load(f"folder:{tmp_path}")
    monkeypatch.setattr(image_files, "IN_MEMORY", 1000)
    raw = DATASETS[f"folder:{tmp_path}"](tmp_path, False)
    assert isinstance(raw.x_train, image_files.LazyImages)
    assert raw.x_train.shape == held.x_train.shape
    assert np.array_equal(raw.x_train[np.arange(40)], held.x_train)
    far = load(f"folder:{tmp_path}")
    for part in ("train", "select", "steer", "test"):
        a, b = getattr(far, part), getattr(near, part)
        assert a.x.shape == b.x.shape
        assert torch.equal(torch.cat(list(a.x.split(7))), b.x)
    assert far.hash == load(f"folder:{tmp_path}").hash
    save_image(tmp_path / "ant" / "000.png", pixels(16, 16, 3, seed=5)[:, ::2].repeat(2, axis=1))
    assert far.hash != load(f"folder:{tmp_path}").hash


def test_training_and_attacks_see_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "pets", {"ant": 30, "bee": 30}, side=(8, 8))
    recipe = {"pgd_at.recipe.holdout": False}
    run = combined({
        "dataset": f"folder:{tmp_path}/pets", "methods": ("pgd_at",), "attacks": ("pgd",), "eps": 0.1, "epochs": 2,
        "batch_size": 16, "select": "last", "overrides": recipe,
    })  # fmt: skip
    plan = make_plan(run, "cpu")
    weights, outcomes = [], []
    for name, held in (("near", image_files.IN_MEMORY), ("far", 100)):
        monkeypatch.setattr(image_files, "IN_MEMORY", held)
        parts, out = load(run.dataset), tmp_path / name
        folder = train(plan.train[0], parts, out, tmp_path)
        weights.append((folder / "last.safetensors").read_bytes())
        outcomes.append((evaluate_job(plan.evaluate[0], parts, out) / "outcomes.parquet").read_bytes())
        described = json.loads((folder / "run.json").read_text())
        assert described["dataset"] == folder.parts[-4]
        assert described["dataset"].startswith("pets-")
        assert described["data"]["class_counts"] == parts.counts
    assert weights[0] == weights[1]
    assert outcomes[0] == outcomes[1]
