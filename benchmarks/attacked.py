"""Native and released AutoAttack for comparison: stages by name, their settings, and a run of either in the harness."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn

from attacks.autoattack import reference
from attacks.base import Attack
from attacks.registry import ATTACKS
from attacks.threat import ThreatModel
from bench.evaluation.stages import Verdicts, predict, run_attack

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
ENSEMBLE = "autoattack"
SIDES = {"native": "", "reference": "-reference"}  # what follows the name of a stage or of the ensemble
# The members of the released ensemble, which are attacks here alone.
REFERENCE_STAGES = {
    stage.name: stage for stage in (reference.APGDCE, reference.APGDT, reference.FABT, reference.Square)
}
SUFFIXES = {**SIDES, "quick": "-quick"}  # the quick form has no stages, and is no side of a comparison for equality

__all__ = [
    "ENSEMBLE",
    "SIDES",
    "STAGES",
    "SUFFIXES",
    "Effort",
    "Verdicts",
    "add_effort_options",
    "build",
    "predict",
    "run",
]


@dataclass(frozen=True)
class Effort:
    """How hard the ensemble tries.

    Attributes:
        steps: of the gradient stages.
        targets: of the targeted stages.
        queries: of Square.
    """

    steps: int = 100
    targets: int = 9
    queries: int = 5000

    @classmethod
    def of(cls, options: argparse.Namespace) -> Effort:
        """As the options say."""
        return cls(options.steps, options.targets, options.queries)

    @property
    def text(self) -> str:
        """For the head of a page."""
        return f"{self.steps} steps, {self.targets} targets, {self.queries} queries"


def add_effort_options(parser: argparse.ArgumentParser) -> None:
    """Options of the effort."""
    parser.add_argument("--steps", type=int, default=Effort.steps, help="of the gradient stages (default: %(default)s)")
    parser.add_argument("--targets", type=int, default=Effort.targets, help="of the targeted ones (%(default)s)")
    parser.add_argument("--queries", type=int, default=Effort.queries, help="of Square (%(default)s)")


def build(name: str, side: str, threat: ThreatModel, effort: Effort) -> Attack:
    """A stage, or the ensemble, of one side."""
    known = name + SUFFIXES[side]
    attack = REFERENCE_STAGES.get(known) or ATTACKS[known]
    settings = {key: value for key, value in vars(effort).items() if key in signature(attack).parameters}
    return attack(threat=threat, **settings)


def run(
    model: nn.Module, x: Tensor, y: Tensor, name: str, side: str, threat: ThreatModel, effort: Effort,
    *, seed: int, block: int, device: str | torch.device = "cpu", prepare: Sequence[str] = (),
) -> Verdicts:  # fmt: skip
    """A stage, or the ensemble, of one side in the harness, with everything on that the harness turns on.

    `prepare` names switches of the prepared model besides; the verdicts stay those of the model as it is.
    """
    attack = build(name, side, threat, effort)
    known = name + SUFFIXES[side]
    return run_attack(model, x, y, attack, known, seed=seed, block=block, device=device, prepare=prepare)
