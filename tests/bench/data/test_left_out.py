"""Data that are left out are said, the order of classes, and files that are no images."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import image_files, image_folder
from bench.data.registry import DATASETS
from bench.data.splits import load
from bench.errors import BenchError
from tests.bench.data.test_user import write_folder, write_npz
from tests.helpers.archives import pixels, save_image
from tests.helpers.jobs import bench, output_of


@pytest.mark.parametrize("parts", [("train", "test"), ("",)])
def test_what_is_not_read_is_counted_by_kind(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        root = tmp_path / "pets" / part
        write_folder(root, {"__background__": 2, ".stray": 2, "ant": 6, "bee": 6})
        for name in ("a.heic", "b.HEIC", "labels.mat", "README", ".DS_Store"):
            (root / "ant" / name).write_bytes(b"")
        save_image(root / "beside.png", pixels(16, 16, 3))
    n, s = len(parts), "s" if len(parts) > 1 else ""
    (note,) = DATASETS.notes(f"folder:{tmp_path}/pets")
    for kind in (
        f"{n} folder{s} __background__ (hidden by its name)", f"{n} folder{s} .stray (hidden by its name)",
        f"{2 * n} files ending in .heic", f"{n} file{s} ending in .mat", f"{n} file{s} without an ending",
        f"{n} image{s} beside the folders of classes",
    ):  # fmt: skip
        assert kind in note, note
    assert "DS_Store" not in note
    assert "more" not in note
    for i in range(9):
        (tmp_path / "pets" / f"{i}.kind{i}").write_bytes(b"")
    assert re.search(r", \d+ more$", DATASETS.notes(f"folder:{tmp_path}/pets")[0])
    assert "__background__" in output_of("show", f"folder:{tmp_path}/pets")


def test_jpegs_of_every_ending_are_read(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        for i, ending in enumerate((".jpg", ".jpeg", ".jfif", ".JFIF", ".jpe")):
            write_folder(tmp_path, {name: 1})
            Image.fromarray(pixels(16, 16, 3, seed=i)).save(tmp_path / name / f"{i}{ending}", format="JPEG")
    assert len(image_folder.listing(tmp_path).train.y) + len(image_folder.listing(tmp_path).test.y) == 12
    assert DATASETS.notes(f"folder:{tmp_path}") == ()


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("..", "1 link to a folder above"),
        ("up", "1 link to nothing"),
        ("none.png", "1 link to nothing"),
        ("../bee/over", "2 links to a folder above"),
    ],
)
def test_links_that_lead_nowhere_or_round_in_a_circle_are_not_followed(tmp_path: Path, target: str, kind: str) -> None:
    write_folder(tmp_path, {"ant": 6, "bee": 6, "bee/over": 3})
    (tmp_path / "ant" / "up").symlink_to(target)
    if target == "../bee/over":  # a circle of two links
        (tmp_path / "bee" / "over" / "back").symlink_to("../../ant")
    (note,) = DATASETS.notes(f"folder:{tmp_path}")
    assert note.endswith(f"not read: {kind}")
    load(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["pipe.png", "pipe"])
def test_a_pipe_among_images_does_not_hang(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, {"ant": 6, "bee": 6})
    os.mkfifo(tmp_path / "ant" / name)
    assert "1 non-file such as a pipe" in DATASETS.notes(f"folder:{tmp_path}")[0]
    load(f"folder:{tmp_path}")


def test_a_file_is_read_as_an_image_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encapsulated PostScript would start Ghostscript, whatever its name; too many pixels would fill the memory."""
    write_folder(tmp_path, {"ant": 6, "bee": 6})
    Image.fromarray(pixels(16, 16, 3)).save(tmp_path / "ant" / "zzz.png", format="EPS")
    with pytest.raises(BenchError, match=r"zzz\.png: cannot be read as an image \(cannot identify"):
        load(f"folder:{tmp_path}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    monkeypatch.setattr(Image, "_decompression_bomb_check", lambda size: None)  # which only warns below twice that
    with pytest.raises(BenchError, match=r"cannot be read as an image \(16x16 are more than 200 pixels"):
        image_files.read_image(tmp_path / "ant" / "000.png", 16, 16, 3)


def test_names_of_files_in_another_encoding_are_read_and_those_of_classes_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"ant": 6, "bee": 6})
    os.rename(tmp_path / "ant" / "000.png", os.fsencode(tmp_path / "ant") + b"/caf\xe9.png")
    assert sum(load(f"folder:{tmp_path}").sizes.values()) == 12
    os.rename(tmp_path / "ant", os.fsencode(tmp_path) + b"/fourmi\xe9")
    result = bench("show", f"folder:{tmp_path}")
    assert result.exit_code == 1
    assert r"expected names of classes in UTF-8, got b'fourmi\xe9'; rename it" in result.stderr


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (map(str, range(12)), [str(k) for k in range(12)]),
        (["c10", "c9", "c08"], ["c08", "c9", "c10"]),
        (["v1_10", "v1_9"], ["v1_9", "v1_10"]),
        (["10 a", "9 b"], ["10 a", "9 b"]),  # they differ in more than their number
        (["DC-10", "DC-3", "F-16"], ["DC-10", "DC-3", "F-16"]),
        (["2", "10", "other"], ["10", "2", "other"]),
        (["b", "a"], ["a", "b"]),
    ],
)
def test_numbered_classes_are_in_the_order_of_their_numbers(names: list[str], expected: list[str]) -> None:
    assert image_folder.in_order(list(names)) == expected


def test_another_order_of_classes_is_said_and_is_another_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"folder:{write_folder(tmp_path / 'pets', {str(k): 5 for k in range(12)})}"
    assert load(name).class_names == tuple(str(k) for k in range(12))
    assert "classes in the order of their numbers, not of text, in which 10 comes earlier" in DATASETS.notes(name)[0]
    label = DATASETS.label(name)
    monkeypatch.setattr(image_folder, "in_order", sorted)  # as stored results had it
    image_folder._cached_listing.cache_clear()
    assert DATASETS.label(name) != label
    assert DATASETS.notes(name) == ()
    image_folder._cached_listing.cache_clear()


def test_other_arrays_of_an_npz_are_said(tmp_path: Path) -> None:
    more = {"x_val": pixels(4, 16, 16, 3), "y_val": np.arange(4), "note": np.array([{}], dtype=object)}
    path = write_npz(tmp_path / "a.npz", **more)
    assert DATASETS.notes(f"npz:{path}") == (f"npz:{path}: not read: x_val, y_val, note",)
    assert "x_val" in output_of("show", f"npz:{path}")
    assert DATASETS.notes(f"npz:{write_npz(tmp_path / 'b.npz')}") == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"class_names": np.array(["caf\u00e9".encode("latin-1"), b"a", b"b", b"c"])},
            r"UTF-8, got b'caf\\xe9'; save",
        ),
        ({"class_names": np.array(["\udce9", "a", "b", "c"])}, "class_names in UTF-8, got "),
        ({"y_test": np.full(40, 2_000_000_000)}, "labels up to 2000000000 for 160 samples"),
        ({"y_train": np.full(120, 2**63, np.uint64)}, "labels up to 9223372036854775808 for 160 samples"),
    ],
)
def test_names_and_labels_of_an_npz_are_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, np.ndarray], told: str
) -> None:
    with pytest.raises(BenchError, match=told):
        DATASETS.sketch(f"npz:{write_npz(tmp_path / 'a.npz', **change)}")


def test_labels_of_every_integer_type_are_read(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.int16, np.uint64):
        arrays = {"y_train": (np.arange(120) % 4).astype(dtype), "y_test": (np.arange(40) % 4).astype(dtype)}
        name = f"npz:{write_npz(tmp_path / f'{np.dtype(dtype)}.npz', **arrays)}"
        assert load(name).counts["test"] == list(DATASETS.sketch(name).facts["class_counts"]["test"]) == [10] * 4
