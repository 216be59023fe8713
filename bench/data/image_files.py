"""Image files: reading them at one size as they are indexed, and the shape that a set of them has.

Free of torch. An image is scaled so that its shorter side fits (bilinear, antialiased), and its centre is cut out;
one that has the size already is left as it is. Orientation tags are not followed, transparency is dropped.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.raw import IN_MEMORY, Images, ImageSource, Labels
from bench.errors import BenchError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # none whose reader starts another program
GREY = ("1", "L", "LA")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
PROBES = 64
CHUNK = 1024
log = logging.getLogger("bench")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Paths, sizes and classes of image files.

    Attributes:
        root: the folder they are in.
        names: paths below it, with forward slashes.
        sizes: of the files in bytes.
        y: their classes (N,).
    """

    root: Path
    names: Sequence[str]
    sizes: Sequence[int]
    y: Labels

    def take(self, rows: NDArray[np.int64]) -> ImageFiles:
        """The files at these positions."""
        chosen = rows.tolist()
        return ImageFiles(self.root, [self.names[i] for i in chosen], [self.sizes[i] for i in chosen], self.y[rows])

    def manifest(self) -> bytes:
        """Names and sizes, one line per file."""
        lines = (f"{name} {size}\n" for name, size in zip(self.names, self.sizes, strict=True))
        return "".join(lines).encode(errors="surrogateescape")  # names of files need not be UTF-8


class LazyImages:
    """Image files that are read when rows are indexed, by threads; a `bench.data.raw.ImageSource`.

    Args:
        files: of the images.
        size: height and width of the centre crop.
        channels: 1 or 3; a grey file becomes a colour image of three equal channels.
        shorter: length that the shorter side is scaled to first; `size` if not given.
    """

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(self, files: ImageFiles, size: int, channels: int = 3, shorter: int | None = None) -> None:
        self._files, self._size, self._channels, self._shorter = files, size, channels, shorter or size
        self.grey = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self), self._size, self._size, self._channels)

    def __len__(self) -> int:
        return len(self._files.names)

    def __getitem__(self, rows: NDArray[np.int64]) -> Images:
        return np.stack(list(self._pool.map(self._image, rows.tolist())))

    def load(self) -> Images | ImageSource:
        """All images in memory; self where they take more than `bench.data.raw.IN_MEMORY` bytes."""
        if int(np.prod(self.shape)) > IN_MEMORY:
            return self
        images = np.empty(self.shape, np.uint8)
        self.grey = 0
        for rows in np.array_split(np.arange(len(self)), max(1, len(self) // CHUNK)):
            images[rows] = self[rows]
        if self.grey:
            log.info("%s: %d of %d images are grey and were read as colour", self._files.root, self.grey, len(self))
        return images

    def fingerprint(self, rows: NDArray[np.int64]) -> bytes:
        """Hash of names and sizes of the files and of the crop."""
        digest = hashlib.sha256(f"{self._size} {self._channels} {self._shorter}\n".encode())
        digest.update(self._files.take(rows).manifest())
        return digest.digest()

    def _image(self, row: int) -> Images:
        path = self._files.root / self._files.names[row]
        image, grey = read_image(path, self._size, self._shorter, self._channels)
        self.grey += grey
        return image

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def read_image(path: Path, size: int, shorter: int, channels: int) -> tuple[Images, bool]:
    """Read an image (size, size, channels); also returns whether a grey file was made a colour image.

    Raises:
        BenchError: if the file is no image, has more than 8 bits, or is in colour where the set is grey.
    """
    from PIL import Image

    try:
        with _opened(path) as file:
            file.load()
            grey = file.mode in GREY
            if file.mode in DEEP or (channels == 1 and not grey):
                wanted = "8 bits a channel" if file.mode in DEEP else "grey like the set's others"
                raise BenchError(f"{path}: expected an image with {wanted}, got mode {file.mode}; convert it")
            if "transparency" in file.info:
                file = file.convert("RGBA")
            image = file.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BenchError(f"{path}: cannot be read as an image ({error}); repair or remove it") from None
    width, height = image.size
    if min(width, height) != shorter:
        factor = shorter / min(width, height)
        width, height = (max(shorter, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return pixels.reshape(size, size, channels), grey and channels == 3


def probe(files: ImageFiles) -> tuple[int, int]:
    """Channels and size of image files, from the headers of some of them, evenly chosen.

    Returns:
        3 if one is in colour, else 1; the most common shorter side.

    Raises:
        BenchError: if one of them is no image.
    """
    from PIL import Image

    sides: Counter[int] = Counter()
    colour = False
    for row in sorted(set(np.linspace(0, len(files.names) - 1, PROBES).astype(int).tolist())):
        path = files.root / files.names[row]
        try:
            with _opened(path) as image:
                sides[min(image.size)] += 1
                colour = colour or image.mode not in (*GREY, *DEEP)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BenchError(f"{path}: cannot be read as an image ({error}); repair or remove it") from None
    return 3 if colour else 1, max(sides, key=lambda side: (sides[side], side))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image file, decoded by its content, of one of `FORMATS` and no more pixels than Pillow takes for safe."""
    from PIL import Image

    with Image.open(path, formats=FORMATS) as file:
        if file.width * file.height > (Image.MAX_IMAGE_PIXELS or file.width * file.height):
            raise ValueError(f"{file.width}x{file.height} are more than {Image.MAX_IMAGE_PIXELS:,} pixels")
        yield file
