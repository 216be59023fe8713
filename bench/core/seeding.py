"""Random streams, each derived from a seed and a purpose, so that none depends on what another has drawn.

No stream has a state that must be saved: the stream of a training step follows from the run's seed, the epoch and
the step, so a resumed run draws what the undisturbed one would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from attacks.draws import SampleGenerator


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits from a seed and a purpose."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, *purpose: str | int) -> torch.Generator:
    """A generator on a device, for one purpose."""
    return torch.Generator(device=device).manual_seed(derive(seed, *purpose))


def sample_generator(seed: int, *purpose: str | int, block: int, samples: Sequence[int]) -> SampleGenerator:
    """A CPU generator for a block of samples; what a sample draws does not depend on the block it is in."""
    keys = [derive(seed, *purpose, "sample", number) for number in samples]
    return SampleGenerator(derive(seed, *purpose, block), keys)


def seed_global(device: torch.device, seed: int) -> None:
    """Seed the global streams of the CPU and of a device.

    `torch.manual_seed` tries every kind of device, which takes a millisecond where there is none.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Leave the global streams of the CPU and of the device as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
