"""Images that are read when they are asked for: the form of a part whose images fit neither memory nor device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data.raw import Stored


class Rows:
    """Images (N, C, H, W) of which only the rows asked for are read, and then put on a device.

    It offers what the suite asks of a tensor of images: `shape`, `len`, `[rows]`, `[:n]`, `split` and `to`; rows
    come as a tensor on the device, uint8, or float32 in [0, 1] after `to_float`.

    Args:
        read: positions (M,) of the source -> images (M, C, H, W) uint8 on the CPU.
        positions: (N,) int64, which images of the source these are.
        image: (C, H, W).
        fingerprint: positions -> what identifies the images there.
        device: where rows go.
        scaled: whether rows come as float32 in [0, 1].
    """

    def __init__(
        self,
        read: Callable[[NDArray[np.int64]], Tensor],
        positions: Tensor,
        image: tuple[int, int, int],
        fingerprint: Callable[[NDArray[np.int64]], bytes],
        device: torch.device | str = "cpu",
        scaled: bool = False,
    ) -> None:
        self._read, self._positions, self._image, self._fingerprint = read, positions.cpu(), image, fingerprint
        self.device, self._scaled = torch.device(device), scaled
        self._coming: dict[int, Future[Tensor]] = {}  # by the id of the batch of rows, which `ahead` keeps alive

    @classmethod
    def stored(cls, source: Stored, positions: Tensor) -> Rows:
        """Images of a source that reads them itself."""
        _, height, width, channels = source.shape

        def read(rows: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(source[rows].transpose(0, 3, 1, 2)))

        return cls(read, positions, (channels, height, width), source.fingerprint)

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        """Images (N, C, H, W) uint8 that stay in the host's memory."""

        def fingerprint(rows: NDArray[np.int64]) -> bytes:
            return hashlib.sha256(x[torch.from_numpy(rows)].numpy().data).digest()

        channels, height, width = x.shape[1:]
        return cls(lambda rows: x[torch.from_numpy(rows)], torch.arange(len(x)), (channels, height, width), fingerprint)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), *self._image))

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return torch.float32 if self._scaled else torch.uint8

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Images (M, C, H, W) at these rows, on the device."""
        coming = self._coming.pop(id(rows), None)
        x = self._chosen(rows) if coming is None else coming.result()
        x = x.to(self.device, non_blocking=True)
        return x.to(torch.float32) / 255 if self._scaled else x

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, so many at a time."""
        for rows in self.ahead(torch.arange(len(self)).split(size)):
            yield self[rows]

    def ahead(self, batches: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """The same batches of rows; while one is in use the next is read."""
        # All at once: a reader that asked a GPU for them batch by batch would wait for the steps before.
        wanted = torch.cat(batches).cpu().split([len(rows) for rows in batches]) if batches else ()
        for number, rows in enumerate(batches):
            for place in range(number, min(number + 2, len(batches))):
                if id(batches[place]) not in self._coming:
                    self._coming[id(batches[place])] = self._pool.submit(self._chosen, wanted[place])
            yield rows
            if id(rows) in self._coming:  # passed over
                self._coming.pop(id(rows)).cancel()

    def to(self, device: torch.device | str) -> Rows:
        """The same images, bound for a device."""
        return Rows(self._read, self._positions, self._image, self._fingerprint, device, self._scaled)

    def scaled(self) -> Rows:
        """The same images as float32 in [0, 1]."""
        return Rows(self._read, self._positions, self._image, self._fingerprint, self.device, True)

    def take(self, rows: Tensor) -> Rows:
        """The images at these rows, still unread."""
        positions = self._positions[rows.cpu()]
        return Rows(self._read, positions, self._image, self._fingerprint, self.device, self._scaled)

    def joined(self, others: list[Rows]) -> Rows:
        """These and further images of the same source, still unread."""
        positions = torch.cat([self._positions, *(other._positions for other in others)])
        return Rows(self._read, positions, self._image, self._fingerprint, self.device, self._scaled)

    def fingerprint(self) -> bytes:
        """What identifies the images: of files their names and sizes, the pixels being too many to read."""
        return self._fingerprint(self._positions.numpy())

    def _chosen(self, rows: Tensor | slice) -> Tensor:
        chosen = rows if isinstance(rows, slice) else rows.cpu()
        x = self._read(self._positions[chosen].numpy())
        return x.pin_memory() if self.device.type == "cuda" else x  # from other memory a copy waits for the device

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1)
