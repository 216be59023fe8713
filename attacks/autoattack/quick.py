"""autoattack-quick: what the full ensemble finds, for a tenth of its passes. It is ours, and it is not AutoAttack.

Most passes of the full ensemble go into samples that nothing ever fools. Which these are shows early: the least margin
z_y - z_t that a few steps reach, as a share of the margin at x, hardly moves afterwards. So the cheap phases see every
sample and every target, and the dear ones what came near:

    probe     APGD on cross-entropy, which fells most of what falls at all
    sweep     a few steps of APGD on the margin to every target, which orders the targets
    chase     on from the best points of the nearest targets, fewer and longer, as the share allows
    restarts  short runs of APGD from fresh starts where the share is small, the more of them the smaller it is, on
              cross-entropy, difference of logits ratio and margin in turns; then FAB
    guard     Square, briefly, longer where the share is small. Where it is ahead of what gradients reached, as it is
              where they are masked, it goes on for as long as the pace it has kept can still bring it there

A verdict is an upper bound on robustness, like that of any attack. The numbers were tuned on four models and on one of
them with masked gradients; benchmarks/quick.py compares verdicts with the full ensemble's on others. No paper's number
is claimed for it, and what it finds is never to be reported as AutoAttack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.autoattack.apgd import STRIDE, SearchState, auto_pgd, surface
from attacks.autoattack.fab import approach_within
from attacks.autoattack.square import SquareState, random_search
from attacks.autoattack.stage import Stage, Standing
from attacks.objectives import Objective, cross_entropy, targeted_dlr, targeted_margin
from attacks.passes import Passes
from attacks.plugins.ranges import Count
from attacks.registry import ATTACKS

PROBE = 20  # steps
# Sweep and chase: the share below which a target is worth it, targets at most, steps, length of the first over eps.
ROUNDS = ((math.inf, 1000, 8, 2.0), (0.4, 3, 15, 1.0), (0.2, 2, 40, 0.5))
NEAR = 0.2  # the share below which a target is worth everything
NEAREST = 3  # such targets, at most
STEPS = 25  # from each fresh start: where a search ends depends on its start above all
TURNS = 6  # starts after which the share has to be smaller by half
FAB = 50  # steps
GUARD = 100  # queries of Square where it is behind
LONG_GUARD = 400  # the same where the share is small
REVIEWS = (200, 400, 800, 1600, 3200)  # queries after which it is given up where it is too slow
HOPE = 1.75  # times the pace so far is what Square is trusted with


class TargetMargins:
    """The smallest margin of each sample to each of its target classes so far.

    Attributes:
        standing: the samples.
        classes: (N, T) the most likely wrong classes at x.
        clean: (N,) z_y minus the largest other logit, at x; above zero.
        margin: (N, T) the least z_y - z_t so far.
        point: (N, T, C, H, W) where that was.
    """

    def __init__(self, standing: Standing, targets: int, start: Tensor) -> None:
        self.standing = standing
        self.classes = torch.stack([standing.target(rank) for rank in range(1, targets + 1)], dim=1)
        own, others = (standing.logits.gather(1, of) for of in (standing.y[:, None], self.classes))
        self.clean = (own - others[:, :1]).squeeze(1).clamp_min(torch.finfo(own.dtype).tiny)
        self.margin = torch.full_like(others, torch.inf)
        self.point = start[:, None].repeat(1, targets, *[1] * (start.ndim - 1))
        self._all = torch.arange(len(start), device=start.device)

    def nearest(self, most: int) -> Tensor:
        """The columns (at most `most`, N) of each sample's nearest targets."""
        return self.margin.argsort(dim=1, stable=True).T[:most]

    def target(self, column: Tensor) -> Tensor:
        """The class (N,) in a column (N,)."""
        return self.classes[self._all, column]

    def best(self, column: Tensor) -> Tensor:
        """The point (N, C, H, W) nearest to the target in a column (N,)."""
        return self.point[self._all, column]

    def rows(self, column: Tensor, bar: float) -> Tensor:
        """Positions (M,) of what stands and was brought within a share of the margin at x to the target in a column."""
        return torch.where(self.standing.left & (self.margin[self._all, column] <= bar * self.clean))[0]

    def note(self, state: SearchState, column: Tensor) -> None:
        """Update with a search on the margin to the target in a column (N,)."""
        margin, at = -state.best_loss, column[state.rows]
        better = margin < self.margin[state.rows, at]
        rows, at = state.rows[better], at[better]
        self.margin[rows, at], self.point[rows, at] = margin[better], state.best[better]


@ATTACKS.register("autoattack-quick")
@dataclass(frozen=True)
class Quick(Stage):
    """What the full ensemble finds, sooner.

    Args:
        threat: norm and radius.
        targets: number of target classes, the most likely wrong ones first; at most K - 1.
        starts: fresh starts towards a target that came near.
        queries: queries of Square where it is ahead of the gradients.
    """

    targets: Count = 9
    starts: Count = 24
    queries: Count = 5000
    revision = 2
    name = "autoattack-quick"

    def passes(self, num_classes: int) -> Passes:
        """At most: for a sample that comes near every target, and on which Square is ahead of the gradients."""
        targets = min(self.targets, num_classes - 1)
        runs = [(1, PROBE), *((most, steps) for _, most, steps, _ in ROUNDS), *[(NEAREST, STEPS)] * self.starts]
        total = Passes(forward=2 + self.queries)
        for most, steps in runs:
            total += Passes(forward=steps + 1, input_grad=steps) * min(most, targets)
        return total + Passes(forward=2 * FAB, input_grad=FAB) * min(NEAREST, targets)

    def search(self, model: nn.Module, standing: Standing, generator: torch.Generator) -> None:
        """Phase by phase, on what is left."""
        classes = standing.logits.shape[1]
        probe = self._start(standing, generator)
        self._climb(model, standing, standing.rows, cross_entropy(standing.y), probe, PROBE)
        reached = TargetMargins(standing, min(self.targets, classes - 1), self._start(standing, generator))
        for bar, most, steps, stride in ROUNDS:
            for column in reached.nearest(most):
                rows, objective = reached.rows(column, bar), targeted_margin(standing.y, reached.target(column))
                state = self._climb(model, standing, rows, objective, reached.best(column), steps, stride)
                reached.note(state, column)
        for turn in range(self.starts):
            start, untargeted = self._start(standing, generator), turn % 3 == 0
            towards = targeted_dlr if turn % 3 == 1 and classes >= 4 else targeted_margin
            for column in reached.nearest(1 if untargeted else NEAREST):
                objective = cross_entropy(standing.y) if untargeted else towards(standing.y, reached.target(column))
                rows = reached.rows(column, NEAR / 2 ** (turn // TURNS))
                self._climb(model, standing, rows, objective, start, STEPS)
        for column in reached.nearest(NEAREST):
            rows = reached.rows(column, NEAR)
            if len(rows):
                target = reached.target(column)[rows]
                approach_within(model, standing, rows, target, threat=self.threat, steps=FAB)
        self._guard(model, standing, reached, generator)

    def _start(self, standing: Standing, generator: torch.Generator) -> Tensor:
        return surface(standing.x, self.threat.norm, self.threat.eps, generator)

    def _climb(
        self, model: nn.Module, standing: Standing, rows: Tensor, objective: Objective, start: Tensor, steps: int,
        stride: float = STRIDE,
    ) -> SearchState:  # fmt: skip
        return auto_pgd(model, standing, objective, start, threat=self.threat, steps=steps, stride=stride, rows=rows)

    def _guard(self, model: nn.Module, standing: Standing, reached: TargetMargins, generator: torch.Generator) -> None:
        best, clean = reached.margin.amin(1), reached.clean
        near = best <= NEAR * clean

        def give_up(query: int, state: SquareState) -> Tensor | None:
            behind = state.margin >= best[state.rows]
            if query == GUARD:
                return behind & ~near[state.rows]
            if query not in REVIEWS:
                return None
            # Square gains about as much with every doubling of the queries.
            to_come = math.log(self.queries / query) / math.log(query) * (clean[state.rows] - state.margin)
            slow = state.margin > HOPE * to_come
            return slow | behind if query >= LONG_GUARD else slow

        random_search(model, standing, generator, threat=self.threat, queries=self.queries, give_up=give_up)
