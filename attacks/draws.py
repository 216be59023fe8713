"""Random draws per batch or per sample; those per sample do not depend on how a batch is split.

Attacks draw through `rand` and `normal`, one row per sample. From a plain `torch.Generator` a row depends on the rows
before it. From `SampleGenerator` it depends on the sample alone: a counter and the sample's own key go through the
mixing function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), which passes for random and has no state. So
however samples are cut into batches, each gets the same draws. `PartGenerator` gives the parts of one known batch the
draws of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor

GAMMA = -0x61C8864680B583EB  # 2^64 over the golden ratio, and the two multipliers of the mix, as signed numbers
FIRST, SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
HIGH_BITS = {torch.float32: 24, torch.float64: 53}  # of a draw: as many as the type can hold below 1


class SampleGenerator(torch.Generator):
    """A generator on the CPU that gives each sample of a batch draws of its own.

    Code that does not know this class, or draws for another number of samples, can use it as a plain generator.

    Args:
        seed: of the plain generator.
        keys: a seed of 63 bits for each sample (N,).
    """

    def __new__(cls, seed: int, keys: Sequence[int]) -> SampleGenerator:  # noqa: D102 - the base takes a device
        return super().__new__(cls)

    def __init__(self, seed: int, keys: Sequence[int]) -> None:
        self.manual_seed(seed)
        self.keys = torch.tensor(keys, dtype=torch.int64)
        self.drawn = 0

    def bits(self, count: int) -> Tensor:
        """The next `count` words of each sample, (N, count) int64, all 64 bits random."""
        counter = torch.arange(self.drawn + 1, self.drawn + count + 1)
        self.drawn += count
        word = self.keys[:, None] + counter * GAMMA
        word = word.bitwise_xor_(_shift_right(word, 30)).mul_(FIRST)
        word = word.bitwise_xor_(_shift_right(word, 27)).mul_(SECOND)
        return word.bitwise_xor_(_shift_right(word, 31))


class PartGenerator(torch.Generator):
    """A generator that draws for a whole batch and hands out the rows of a part of it.

    Where a batch is split into micro-batches or over processes, each from the same state, every sample
    gets what it would get in the whole. Whoever draws for another number of samples takes it for a plain generator.

    Args:
        device: where numbers are drawn.
    """

    def __new__(cls, device: torch.device | str = "cpu") -> PartGenerator:  # noqa: D102 - as the base
        return super().__new__(cls, device)  # type: ignore[call-arg]

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.rows, self.total = slice(0, 0), 0

    @contextmanager
    def within(self, first: int, last: int, total: int) -> Iterator[None]:
        """Draw for `total` samples meanwhile, and hand out the rows from first to last."""
        self.rows, self.total = slice(first, last), total
        try:
            yield
        finally:
            self.rows, self.total = slice(0, 0), 0

    def size_for(self, samples: int) -> int:
        """For how many samples to draw when `samples` rows are wanted."""
        return self.total if samples == self.rows.stop - self.rows.start else samples


def rand(*shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """U(0, 1) draws of a shape (N, ...), a row per sample, on the generator's device."""
    if not _has_keys(generator, shape[0]) or dtype not in HIGH_BITS:
        whole, rows = _batch_rows(generator, shape[0])
        return torch.rand(whole, *shape[1:], generator=generator, device=generator.device, dtype=dtype)[rows]
    high = HIGH_BITS[dtype]
    words = generator.bits(torch.Size(shape[1:]).numel())
    return _shift_right(words, 64 - high).to(dtype).mul_(0.5**high).view(shape)


def rounds(times: int, samples: int, width: int, *, generator: torch.Generator) -> Tensor:
    """U(0, 1) draws (times, samples, width) for a search of many rounds; drawn a part at a time they are the same."""
    if not _has_keys(generator, samples):
        whole, rows = _batch_rows(generator, samples)
        return torch.rand(times, whole, width, generator=generator, device=generator.device)[:, rows]
    return rand(samples, times, width, generator=generator).transpose(0, 1).contiguous()


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """U(0, 1) draws with the shape, type and device of a tensor (N, ...), made on the generator's device."""
    return rand(*like.shape, generator=generator, dtype=like.dtype).to(like.device)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) draws with the shape, type and device of a tensor (N, ...), made on the generator's device."""
    if _has_keys(generator, len(like)):
        share = rand(*like.shape, generator=generator, dtype=torch.float64)
        draws: Tensor = torch.special.ndtri(share.clamp_min_(0.5**54))
    else:
        whole, rows = _batch_rows(generator, len(like))
        shape = (whole, *like.shape[1:])
        draws = torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)[rows]
    return draws.to(like.device, like.dtype)


def integers(high: int, samples: int, *, generator: torch.Generator) -> Tensor:
    """One integer in [0, high) per sample, (samples, 1) int64, on the generator's device."""
    whole, rows = _batch_rows(generator, samples)
    return torch.randint(high, (whole, 1), generator=generator, device=generator.device)[rows]


def _batch_rows(generator: torch.Generator, samples: int) -> tuple[int, slice]:
    """Number of samples to draw for, and the rows to return."""
    if isinstance(generator, PartGenerator) and generator.total:
        whole = generator.size_for(samples)
        return whole, generator.rows if whole != samples else slice(None)
    return samples, slice(None)


def _has_keys(generator: torch.Generator, samples: int) -> TypeGuard[SampleGenerator]:
    return isinstance(generator, SampleGenerator) and len(generator.keys) == samples


def _shift_right(words: Tensor, by: int) -> Tensor:
    """Words shifted right, zeros coming in from the left, where int64 would repeat the sign."""
    return (words >> by).bitwise_and_((1 << (64 - by)) - 1)
