"""Small archives in the format of published data sets, and a local web server for them."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

WNIDS = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413",
         "n03445777", "n03888257")  # fmt: skip


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def save_image(path: Path, x: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path, quality=95)


def tarred(folder: Path, *names: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in names:
            archive.add(folder / name, name)
    return packed.getvalue()


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server for a folder, and the paths that it has sent."""
    sent: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append(self.path)
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Published:
    """Writes a data set's archives into the folder of a server and lets them pass for the published ones."""

    def __init__(self, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.url, self.patch = folder, url, monkeypatch

    def put(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return md5(content)

    def mnist(self, kind: str = "MNIST") -> np.ndarray:
        """Forty training and twenty test images as idx files, packed."""
        x = pixels(60, 28, 28)
        y = (np.arange(60) % 10).astype(np.uint8)
        resources = []
        for name, rows in (("train", slice(40)), ("t10k", slice(40, 60))):
            images, labels = x[rows], y[rows]
            for file, head, body in (
                (f"{name}-images-idx3-ubyte.gz", struct.pack(">IIII", 2051, len(images), 28, 28), images),
                (f"{name}-labels-idx1-ubyte.gz", struct.pack(">II", 2049, len(labels)), labels),
            ):
                resources.append((file, self.put(file, gzip.compress(head + body.tobytes()))))
        self.patch.setattr(f"torchvision.datasets.{kind}.mirrors", [self.url])
        self.patch.setattr(f"torchvision.datasets.{kind}.resources", resources)
        return x[..., None]

    def fashion_mnist(self) -> np.ndarray:
        return self.mnist("FashionMNIST")

    def stl10(self) -> np.ndarray:
        """Binary files whose images are stored channel by channel and column by column."""
        x = pixels(30, 96, 96, 3)
        base = self.folder / "stl10_binary"
        base.mkdir()
        lists: dict[str, list[list[str]]] = {}
        for name, rows in (("train", slice(20)), ("test", slice(20, 30))):
            x[rows].transpose(0, 3, 2, 1).tofile(base / f"{name}_X.bin")
            (np.arange(30)[rows] % 10 + 1).astype(np.uint8).tofile(base / f"{name}_y.bin")
            files = [base / f"{name}_{kind}.bin" for kind in ("X", "y")]
            lists[name] = [[file.name, md5(file.read_bytes())] for file in files]
        self._archive("stl10_binary", "stl10_binary.tar.gz", "STL10", "tgz_md5")
        self.patch.setattr("torchvision.datasets.STL10.train_list", lists["train"])
        self.patch.setattr("torchvision.datasets.STL10.test_list", lists["test"])
        return x

    def cifar100(self) -> np.ndarray:
        """Pickles with rows of 3,072 bytes, plane by plane."""
        x = pixels(300, 32, 32, 3)
        base = self.folder / "cifar-100-python"
        base.mkdir()
        for name, rows in (("train", slice(200)), ("test", slice(200, 300))):
            data = x[rows].transpose(0, 3, 1, 2).reshape(-1, 3072)
            labels = (np.arange(300)[rows] % 100).tolist()
            (base / name).write_bytes(pickle.dumps({"data": data, "fine_labels": labels, "coarse_labels": labels}))
        names = [f"kind_{k}" for k in range(100)]
        (base / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": names}))
        self._archive("cifar-100-python", "cifar-100-python.tar.gz", "CIFAR100", "tgz_md5")
        sums = {name: md5((base / name).read_bytes()) for name in ("train", "test", "meta")}
        self.patch.setattr("torchvision.datasets.CIFAR100.train_list", [["train", sums["train"]]])
        self.patch.setattr("torchvision.datasets.CIFAR100.test_list", [["test", sums["test"]]])
        meta = {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]}
        self.patch.setattr("torchvision.datasets.CIFAR100.meta", meta)
        return x

    def svhn(self) -> np.ndarray:
        """Matlab files, images last, 10 for the digit 0."""
        x = pixels(40, 32, 32, 3)
        entries = {}
        for name, rows in (("train", slice(20)), ("test", slice(20, 40))):
            file = io.BytesIO()
            y = (np.arange(40)[rows] % 10).astype(np.uint8)
            savemat(file, {"X": x[rows].transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y)[:, None]})
            sums = self.put(f"{name}_32x32.mat", file.getvalue())
            entries[name] = [f"{self.url}{name}_32x32.mat", f"{name}_32x32.mat", sums]
        self.patch.setattr("torchvision.datasets.SVHN.split_list", entries)
        return x

    def imagenette(self, size: int = 160) -> None:
        """Two photographs to train and one to test in each class, the shorter side at the archive's size."""
        base = f"imagenette2-{size}"
        for k, wnid in enumerate(WNIDS):
            for part, count in (("train", 2), ("val", 1)):
                for i in range(count):
                    path = self.folder / base / part / wnid / f"{wnid}_{i}.JPEG"
                    save_image(path, pixels(size, size + 10 * k, 3, seed=k))
        content = tarred(self.folder, base)
        entry = {f"{size}px": (f"{self.url}{base}.tgz", self.put(f"{base}.tgz", content))}
        self.patch.setattr("torchvision.datasets.Imagenette._ARCHIVES", entry)

    def tiny_imagenet(self) -> None:
        """The layout of tiny-imagenet-200 with three classes."""
        base = self.folder / "tiny-imagenet-200"
        wnids = ("n02124075", "n01443537", "n03126707")
        rows = []
        for k, wnid in enumerate(wnids):
            for i in range(3):
                save_image(base / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", pixels(64, 64, 3, seed=k))
            (base / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
            save_image(base / "val" / "images" / f"val_{k}.JPEG", pixels(64, 64, 3, seed=10 + k))
            rows.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t62\t62\n")
        save_image(base / "test" / "images" / "test_0.JPEG", pixels(64, 64, 3))
        (base / "val" / "val_annotations.txt").write_text("".join(rows))
        (base / "wnids.txt").write_text("\n".join(wnids) + "\n")
        words = "n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn03126707\tcrane\nn09999999\tcrane\n"
        (base / "words.txt").write_text(words)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for path in sorted(base.rglob("*")):
                archive.write(path, path.relative_to(self.folder))
        self.patch.setattr("bench.data.image_sets.TINY_URL", f"{self.url}tiny.zip")
        self.patch.setattr("bench.data.image_sets.TINY_MD5", self.put("tiny.zip", content.getvalue()))

    def _archive(self, base: str, name: str, kind: str, field: str) -> None:
        sums = self.put(name, tarred(self.folder, base))
        self.patch.setattr(f"torchvision.datasets.{kind}.url", f"{self.url}{name}")
        self.patch.setattr(f"torchvision.datasets.{kind}.{field}", sums)
