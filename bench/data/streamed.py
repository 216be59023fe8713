"""Streamed images: read from disk or copied to the device when indexed, where they do not fit as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data.raw import ImageSource


class StreamedImages:
    """Images (N, C, H, W) that are read and put on a device when rows are indexed.

    It has the part of a tensor's interface that the suite uses: `shape`, `len`, `[rows]`, `[:n]`, `split` and `to`;
    indexing gives a tensor on the device, uint8, or float32 in [0, 1] after `to_float`.

    Args:
        read: positions (M,) of the source -> images (M, C, H, W) uint8 on the CPU.
        positions: (N,) int64, of these images in the source.
        image: (C, H, W).
        fingerprint: positions -> a hash of the images there.
        device: of indexed images.
        scaled: whether indexed images are float32 in [0, 1].
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
        self._pending: dict[int, Future[Tensor]] = {}  # by the id of the batch of rows, which `prefetch` keeps alive

    @classmethod
    def from_source(cls, source: ImageSource, positions: Tensor) -> StreamedImages:
        """Images of a source on disk."""
        _, height, width, channels = source.shape

        def read(rows: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(source[rows].transpose(0, 3, 1, 2)))

        return cls(read, positions, (channels, height, width), source.fingerprint)

    @classmethod
    def from_tensor(cls, x: Tensor) -> StreamedImages:
        """Images (N, C, H, W) uint8 that stay in host memory."""

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
        """Of indexed images."""
        return torch.float32 if self._scaled else torch.uint8

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Images (M, C, H, W) at these rows, on the device."""
        pending = self._pending.pop(id(rows), None)
        x = self._read_rows(rows) if pending is None else pending.result()
        x = x.to(self.device, non_blocking=True)
        return x.to(torch.float32) / 255 if self._scaled else x

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time."""
        for rows in self.prefetch(torch.arange(len(self)).split(size)):
            yield self[rows]

    def prefetch(self, batches: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """The same batches of rows; while one is in use the next is read."""
        # All at once: a reader that asked a GPU for them batch by batch would wait for the steps before.
        wanted = torch.cat(batches).cpu().split([len(rows) for rows in batches]) if batches else ()
        for number, rows in enumerate(batches):
            for place in range(number, min(number + 2, len(batches))):
                if id(batches[place]) not in self._pending:
                    self._pending[id(batches[place])] = self._pool.submit(self._read_rows, wanted[place])
            yield rows
            if id(rows) in self._pending:  # the caller did not index it
                self._pending.pop(id(rows)).cancel()

    def to(self, device: torch.device | str) -> StreamedImages:
        """The same images, to be put on a device when indexed."""
        return StreamedImages(self._read, self._positions, self._image, self._fingerprint, device, self._scaled)

    def to_float(self) -> StreamedImages:
        """The same images as float32 in [0, 1]."""
        return StreamedImages(self._read, self._positions, self._image, self._fingerprint, self.device, True)

    def take(self, rows: Tensor) -> StreamedImages:
        """The images at these rows, unread."""
        positions = self._positions[rows.cpu()]
        return StreamedImages(self._read, positions, self._image, self._fingerprint, self.device, self._scaled)

    def concat(self, others: list[StreamedImages]) -> StreamedImages:
        """These and further images of the same source, unread."""
        positions = torch.cat([self._positions, *(other._positions for other in others)])
        return StreamedImages(self._read, positions, self._image, self._fingerprint, self.device, self._scaled)

    def fingerprint(self) -> bytes:
        """A hash of the images; of files, of their names and sizes, since reading all pixels takes too long."""
        return self._fingerprint(self._positions.numpy())

    def _read_rows(self, rows: Tensor | slice) -> Tensor:
        x = self._read(self._positions[rows if isinstance(rows, slice) else rows.cpu()].numpy())
        return x.pin_memory() if self.device.type == "cuda" else x  # a copy from pageable memory is synchronous

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1)


ImageTensor = Tensor | StreamedImages
