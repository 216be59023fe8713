"""Sanity checks of a model: signs that its gradients are masked, so that measured robustness is overestimated.

A model can stand an attack because it is robust, or because its gradients are of no use to the attacker ("gradient
masking"; Athalye et al. 2018, arXiv:1802.00420; Carlini et al. 2019, arXiv:1902.06705; Tramer et al. 2020,
arXiv:2002.08347). AutoAttack's released code warns of some of it in its log (Croce and Hein 2020, arXiv:2003.01690).
Here every check is data: what was measured (`attacks.sanity.measure`), the thresholds, and a sentence
(`attacks.sanity.findings`).

    examination = examine(model, x, y, threat=threat, generator=generator)
    examination.mark        # "reliable", "suspicious" or "unreliable": the worst level of all findings
    examination.findings    # one per check, those that were passed included

The checks run on at most 100 samples that the model gets right, about equally many of each class, and take at most 257
forward and 124 input-gradient passes for each of them: together what AutoAttack spends on four samples that stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import predicted
from attacks.contexts import full_precision, mode
from attacks.sanity import findings, measure
from attacks.sanity.findings import LEVELS, Finding, Level
from attacks.threat import ThreatModel

SAMPLES = 100
BATCH = 250

__all__ = ["Examination", "Finding", "Level", "examine"]


@dataclass(frozen=True)
class Examination:
    """Results of all checks of one model under one threat model.

    Attributes:
        findings: one per check.
        samples: how many samples the checks ran on.
        passes: forward and input-gradient passes that they took, in samples.
    """

    findings: tuple[Finding, ...]
    samples: int
    passes: Mapping[str, int]

    @property
    def mark(self) -> Level:
        """The worst level of all findings."""
        return max((finding.level for finding in self.findings), key=LEVELS.index, default="reliable")

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences of the findings that are not reliable, the worst first."""
        flagged = [finding for finding in self.findings if finding.level != "reliable"]
        return tuple(f.reason for f in sorted(flagged, key=lambda f: -LEVELS.index(f.level)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: mark, samples, passes, findings."""
        listed = [finding.as_dict() for finding in self.findings]
        return {"mark": self.mark, "samples": self.samples, "passes": dict(self.passes), "findings": listed}


def examine(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    generator: torch.Generator,
    stages: Mapping[str, Tensor] | None = None,
    right: Tensor | None = None,
    samples: int = SAMPLES,
) -> Examination:
    """Run all checks on a model.

    Args:
        model: x (N, C, H, W) in [0, 1] -> logits (N, K); left as it was, like the global random streams.
        x: (N, C, H, W), on the device of the model or on the CPU.
        y: (N,) int64 labels.
        threat: norm and radius that its robustness is stated for.
        generator: source of all draws; equal generators give equal results.
        stages: stage of an attack -> (N,) bool, which samples stood after it, in the order in which they ran.
        right: (N,) bool, which samples the model gets right; computed if not given.
        samples: at most so many are used for the checks that take passes.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), x.device)
    y = y.to(x.device)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with _reproducible(device, seed), mode(model, train=False):
        counted = measure.CountingModel(model)
        right = _is_right(counted, x, y, device) if right is None else right.to(x.device)
        finite, inside = _value_checks(x)
        rows = choose_samples(y, right & finite, samples, generator)
        results = [findings.box(inside), *_black_box(stages, right, y)]
        if len(rows):
            probe = measure.Probe(counted, x[rows].to(device).clamp(0, 1), y[rows].to(device), threat, generator)
            results += _outputs(probe) + _gradients(probe) + _attacks(probe)
    return Examination(tuple(results), len(rows), counted.passes)


def choose_samples(y: Tensor, right: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Positions, ascending, of at most `count` right samples, about as many of each class.

    Args:
        y: (N,) labels.
        right: (N,) bool.
        count: at most so many.
        generator: which of a class are taken.
    """
    order = torch.randperm(len(y), generator=generator, device=generator.device).to(y.device)
    order = order[right[order]]
    order = order[y[order].argsort(stable=True)]
    classes, sizes = y[order].unique_consecutive(return_counts=True)
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    rank = torch.arange(len(order), device=y.device) - first
    return order[rank.argsort(stable=True)[:count]].sort().values


def _outputs(probe: measure.Probe) -> list[Finding]:
    """Checks of the outputs alone."""
    change = measure.repeat_change(probe)
    random = findings.random_forward(change)
    regrouped = measure.batch_change(probe) if random.level == "reliable" else None
    return [random, findings.batch_dependence(regrouped), findings.probabilities(probe.logits)]


def _gradients(probe: measure.Probe) -> list[Finding]:
    """Whether gradients exist and agree with finite differences."""
    by_loss, by_margin = measure.gradients(probe)
    dead, lost = measure.is_zero(by_margin), measure.is_zero(by_loss)
    return [
        findings.zero_gradients(dead, probe.y),
        findings.saturation(lost & ~dead, probe.y),
        findings.gradient_agreement(measure.disagreement(probe), probe.y),
        findings.ascent(measure.margin_rises(probe, by_margin)),
    ]


def _attacks(probe: measure.Probe) -> list[Finding]:
    """Whether attacks behave as they should, and gradients beat gradient-free search."""
    results = [findings.whole_box(measure.whole_box(probe))]
    if probe.threat.eps == 0:
        return results
    path = measure.ascent_path(probe)
    fooled = measure.fooled_along(probe, path)
    return [
        *results,
        findings.more_steps(path),
        findings.one_step(measure.one_step(probe), fooled),
        findings.noise(measure.noise(probe), fooled),
        findings.search(measure.search(probe), fooled),
    ]


def _black_box(stages: Mapping[str, Tensor] | None, right: Tensor, y: Tensor) -> list[Finding]:
    """Samples that only a black-box stage fools; no finding without such a stage."""
    before, results = right.cpu().clone(), list[Finding]()
    for number, (name, after) in enumerate((stages or {}).items()):
        if name.startswith("square") and number:
            results += findings.black_box(name, before & ~after.cpu(), right.cpu(), y.cpu())
        before &= after.cpu()
    return results


def _value_checks(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whether all values of each sample are finite, and whether all are in [0, 1]; (N,) bool each, batch by batch."""
    checked = [
        torch.stack([part.isfinite(), (part >= 0) & (part <= 1)]).flatten(2).all(2).to(x.device)
        for part in x.split(BATCH)
    ]
    finite, inside = torch.cat(checked, dim=1) if checked else torch.ones(2, 0, dtype=torch.bool, device=x.device)
    return finite, inside


def _is_right(model: nn.Module, x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    with torch.no_grad():
        parts = [predicted(model(part.to(device))).to(x.device) for part in x.split(BATCH)]
    return torch.cat(parts) == y if parts else torch.zeros_like(y, dtype=torch.bool)


@contextmanager
def _reproducible(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global random streams and restore them; no TF32, since some checks see rounding."""
    with full_precision(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
