"""Files that are no checkpoints are told by what they are."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.errors import BenchError
from bench.models.checkpoints import load_weights

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 44867369\n"


def array() -> bytes:
    written = io.BytesIO()
    np.save(written, np.zeros(3))
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<head><title>404</title></head>", "a web page"),
        (POINTER, "a git-lfs pointer instead of the file; run `git lfs pull` in its repository"),
        (b'{"error": "Not Found"}', r"JSON, as servers send with an error \(\{\"error\": \"Not Found\"\}\)"),
        (b"\xef\xbb\xbfNot Found\r\n", r"text \(Not Found\); delete it and fetch the file again"),
        (("Zugriff verweigert: " + "\u00e4" * 500).encode(), r"text \(Zugriff verweigert: \u00e4+\.\.\.\)"),
        (bytes(range(100, 256)) * 9, "bytes of no format that is known here"),
        (gzip.compress(bytes(100)), "a packed file; unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file"),
        (array(), "a numpy array; save names and tensors"),
    ],
    ids=["page", "pointer", "json", "text", "long", "garbage", "gzip", "hdf5", "npy"],
)
def test_what_is_no_checkpoint_is_told_by_its_first_bytes(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(BenchError, match=rf"w\.pt: expected weights, got {what}"):
        load_weights(tmp_path / "w.pt")


def test_archives_are_told_by_what_they_hold(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(tmp_path / "a.pt", "a.pt")
    with tarfile.open(tmp_path / "packed.tar", "w") as tar:
        tar.add(tmp_path / "a.pt", "a.pt")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    for name, what in {
        "packed.zip": r"a zip archive with a\.pt in it; unpack it",
        "packed.tar": "a packed file; unpack it",
        "arrays.npz": "numpy arrays; save tensors instead",
    }.items():
        with pytest.raises(BenchError, match=rf"{name}: expected weights, got {what}"):
            load_weights(tmp_path / name)
