"""Cost of per-class work in a training step: ABSLD's temperatures and sums, FRL's weights and radii."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.training.trainer import Trainer
from benchmarks import timing
from benchmarks.tables import Page, yes
from benchmarks.trained import Ground, SuiteStep
from methods.base import Adversarial, Batch, Terms

SHARE = 0.01  # of a step, at most
REPEAT, TURNS = 50, 9


def _absld(trainer: Trainer, batch: Batch, adv: Adversarial, terms: Terms) -> timing.Task:
    """Tempered soft labels, and the sums that move the temperatures."""
    method: Any = trainer.method
    taught = trainer.ctx.teacher("robust", batch.x)

    def work() -> None:
        method.soft_labels(taught, batch.y)
        method.observe(batch, adv, terms, trainer.ctx)

    return work


def _frl(trainer: Trainer, batch: Batch, adv: Adversarial, terms: Terms) -> timing.Task:
    """Radii, and both weights of the loss."""
    method: Any = trainer.method

    def work() -> None:
        method.eps * method.radius_scale.to(batch.x.dtype)[batch.y]
        method._share(method.weight_clean, batch)
        method._share(method.weight_boundary, batch)
        method.observe(batch, adv, terms, trainer.ctx)

    return work


WORK: Mapping[str, Callable[[Trainer, Batch, Adversarial, Terms], timing.Task]] = {"absld": _absld, "frl": _frl}


def table(page: Page, ground: Ground, methods: Sequence[str], clock: Callable[[timing.Task], float]) -> None:
    """A row per method: the share of its step that goes into classes."""
    rows = []
    for name in methods:
        step = SuiteStep(ground.trainer(name, None))
        trainer = step.trainer
        y = trainer.train.y[step.rows]
        batch = Batch(trainer.networks.images(trainer.train.x[step.rows].float() / 255), y, step.rows, y)
        adv = trainer.method.perturb(trainer.network, batch, trainer.ctx)
        work = WORK[name](trainer, batch, adv, trainer.method.loss(trainer.network, batch, adv, trainer.ctx))
        shares, each = [], []
        for _ in range(TURNS if not ground.planted else TURNS // 4):
            each.append(clock(lambda work=work: [work() for _ in range(REPEAT)]) / REPEAT)  # type: ignore[misc]
            shares.append(each[-1] / clock(step))
        share = statistics.median(shares)
        rows.append([name, f"{statistics.median(each) * 1e6:.0f}", f"{share:.2%}", yes(share < SHARE)])
    page.table("Work per class within a step", ["", "microseconds", "share of the step", f"under {SHARE:.0%}"], rows)
