"""Draws that belong to samples: the same in every batch, and as random as others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks.draws import PartGenerator, SampleGenerator, integers, normal, rand, rounds, uniform

KEYS = [int(key) for key in torch.randint(2**62, (300,), generator=torch.Generator().manual_seed(0))]


def streams(keys: list[int], seed: int = 5) -> SampleGenerator:
    return SampleGenerator(seed, keys)


def test_the_words_are_those_of_splitmix64() -> None:
    """The first five outputs for the seed 1234567, as published with other implementations."""
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    generator = streams([1234567])
    words = torch.cat([generator.bits(2), generator.bits(3)], 1)
    assert [word % 2**64 for word in words[0].tolist()] == published


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_sample_gets_the_same_draws_in_every_batch(draw: object, dtype: torch.dtype) -> None:
    assert callable(draw)
    like = torch.zeros(300, 3, 2, dtype=dtype)
    whole = streams(KEYS)
    first, second = draw(like, whole), draw(like, whole)
    assert first.dtype == dtype and first.shape == like.shape
    rows = [7, 250, 8]
    some = streams([KEYS[i] for i in rows])
    assert torch.equal(draw(like[:3], some), first[rows])
    assert torch.equal(draw(like[:3], some), second[rows])
    assert not torch.equal(first, second)


def test_rounds_are_the_same_however_many_are_drawn_at_once() -> None:
    many, few = streams(KEYS), streams(KEYS[40:50])
    drawn = rounds(7, 300, 4, generator=many)
    parts = torch.cat([rounds(n, 10, 4, generator=few) for n in (1, 4, 2)])
    assert drawn.shape == (7, 300, 4)
    assert torch.equal(parts, drawn[:, 40:50])


def spread(values: Tensor, cells: int = 100) -> float:
    """Chi-square of uniform draws over cells, over its degrees of freedom: about 1."""
    counts = torch.histc(values, cells, 0, 1)
    expected = values.numel() / cells
    return float(((counts - expected) ** 2 / expected).sum() / (cells - 1))


@pytest.mark.parametrize("keys", [KEYS, list(range(300))], ids=["random keys", "keys in a row"])
def test_draws_are_spread_evenly_and_have_nothing_to_do_with_one_another(keys: list[int]) -> None:
    values = rand(300, 400, generator=streams(keys))
    assert 0 <= float(values.min()) < 1e-4 and 0.9999 < float(values.max()) < 1
    assert 0.6 < spread(values) < 1.5
    assert 0.1 < spread(values[:, 0], 10) < 2.5, "the first draw of every sample"
    centred = values - 0.5
    for one, other in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
        assert abs(float((one * other).mean())) * 12 < 0.015, "neighbours in a sample, and neighbouring samples"
    gauss = normal(torch.zeros(300, 400), streams(keys))
    assert abs(float(gauss.mean())) < 0.01 and abs(float(gauss.std()) - 1) < 0.01
    assert abs(float((gauss.abs() < 0.6745).float().mean()) - 0.5) < 0.01
    assert bool(gauss.isfinite().all())


def test_for_another_number_of_samples_it_is_the_plain_generator() -> None:
    def plain() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    like = torch.zeros(4, 2)
    assert torch.equal(uniform(like, streams(KEYS)), torch.rand(4, 2, generator=plain()))
    assert torch.equal(normal(like, streams(KEYS)), torch.randn(4, 2, generator=plain()))
    assert torch.equal(rounds(3, 2, 4, generator=streams(KEYS)), torch.rand(3, 2, 4, generator=plain()))
    assert torch.equal(torch.randperm(9, generator=streams(KEYS)), torch.randperm(9, generator=plain()))


@pytest.mark.parametrize("shape", [(10, 3), (10, 2, 4)])
def test_parts_of_a_batch_get_the_draws_of_the_whole(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)

    def drawn(stream: torch.Generator, part: Tensor) -> list[Tensor]:
        n = len(part)
        times = rounds(3, n, 2, generator=stream).transpose(0, 1)
        return [uniform(part, stream), normal(part, stream), integers(7, n, generator=stream), times]

    plain = drawn(torch.Generator().manual_seed(5), x)
    stream = PartGenerator()
    found = []
    for first, last in ((0, 4), (4, 5), (5, 10)):
        stream.manual_seed(5)
        with stream.within(first, last, 10):
            found.append(drawn(stream, x[first:last]))
    for whole, *parts in zip(plain, *found, strict=True):
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(uniform(x[:4], stream.manual_seed(5)), uniform(x[:4], torch.Generator().manual_seed(5)))
