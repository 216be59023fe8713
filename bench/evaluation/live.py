"""Progress of a running evaluation: robust accuracy so far, upper bounds, time left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.config.stop_rules import Bounds


def bounds(robust: Tensor, label: Tensor) -> Bounds:
    """Upper bounds from the samples (n,) that can still end as robust and their labels (n,)."""
    size = int(label.max()) + 1 if len(label) else 0
    counts = torch.bincount(label, minlength=size)
    return Bounds.of(torch.bincount(label[robust], minlength=size).tolist(), counts.tolist())


@dataclass(frozen=True)
class StageProgress:
    """Progress of an evaluation after a block.

    Attributes:
        stage: label of the stage.
        done, blocks: blocks of the stage that are finished, and all of them.
        seen: robust samples and all samples of the finished blocks.
        bounds: over all samples.
        left: samples that the stage still has to attack.
        seconds: that the rest takes, or None while that is not known.
    """

    stage: str
    done: int
    blocks: int
    seen: tuple[int, int]
    bounds: Bounds
    left: int
    seconds: float | None

    def __str__(self) -> str:
        robust, samples = self.seen
        parts = [f"{self.stage}  block {self.done}/{self.blocks}", f"robust so far {robust / max(1, samples):.1%}"]
        parts[-1] = parts[-1].replace("%", " %")
        parts += [str(self.bounds), f"{self.left:,} left"]
        return "  ".join([*parts, *([duration(self.seconds)] if self.seconds is not None else [])])


def duration(seconds: float) -> str:
    """A rough duration: `~40 s`, `~3 min`, `~2.5 h`."""
    if seconds < 60:
        return f"~{seconds:.0f} s"
    return f"~{seconds / 60:.0f} min" if seconds < 5400 else f"~{seconds / 3600:.1f} h"


class TimeEstimate:
    """Estimate of the time left in an evaluation if no further sample falls, from the blocks that were timed.

    Args:
        costs: passes per sample of each stage, at most, as the attacks declare them.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self.costs = costs
        self.samples, self.seconds = [0] * len(costs), [0.0] * len(costs)
        self.passes = 0

    def add(self, stage: int, samples: int, passes: int, seconds: float) -> None:
        """Add the time of a block."""
        self.samples[stage] += samples
        self.seconds[stage] += seconds
        self.passes += passes

    def seconds_left(self, stage: int, samples: int, standing: int) -> float | None:
        """Seconds for these samples of a stage and `standing` ones of each later stage; None before the first block.

        A stage that has begun is estimated from its own blocks, a later one from its passes.
        """
        if not self.passes:
            return None
        rate = sum(self.seconds) / self.passes
        here = self.seconds[stage] / self.samples[stage] if self.samples[stage] else self.costs[stage] * rate
        return samples * here + standing * rate * sum(self.costs[stage + 1 :])
