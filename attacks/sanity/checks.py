"""Sanity checks: may the robustness of a model be believed, or does it only hide from the attack?

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

from attacks.contexts import mode, unrounded
from attacks.sanity import findings as symptoms
from attacks.sanity import measure as probes
from attacks.sanity.findings import LEVELS, Finding, Level
from attacks.threat import ThreatModel

SAMPLES = 100
BATCH = 250

__all__ = ["Examination", "Finding", "Level", "examine"]


@dataclass(frozen=True)
class Examination:
    """What the checks of one model under one threat model found.

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
        findings = [finding.as_dict() for finding in self.findings]
        return {"mark": self.mark, "samples": self.samples, "passes": dict(self.passes), "findings": findings}


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
    with _apart(device, seed), mode(model, train=False):
        watched = probes.Watched(model)
        right = _right(watched, x, y, device) if right is None else right.to(x.device)
        finite, inside = _values(x)
        rows = choose(y, right & finite, samples, generator)
        findings = [symptoms.box(inside), *_stages(stages, right, y)]
        if len(rows):
            seen = probes.Probe(watched, x[rows].to(device).clamp(0, 1), y[rows].to(device), threat, generator)
            findings += _answers(seen) + _gradients(seen) + _attacks(seen)
    return Examination(tuple(findings), len(rows), watched.passes)


def choose(y: Tensor, right: Tensor, count: int, generator: torch.Generator) -> Tensor:
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


def _answers(seen: probes.Probe) -> list[Finding]:
    """What the outputs alone say."""
    change = probes.repeats(seen)
    random = symptoms.random_forward(change)
    company = probes.company(seen) if random.level == "reliable" else None
    return [random, symptoms.batch_dependence(company), symptoms.probabilities(seen.logits)]


def _gradients(seen: probes.Probe) -> list[Finding]:
    """Whether there are gradients, and whether they are those of the function."""
    by_loss, by_margin = probes.gradients(seen)
    dead, lost = probes.is_zero(by_margin), probes.is_zero(by_loss)
    return [
        symptoms.zero_gradients(dead, seen.y),
        symptoms.saturation(lost & ~dead, seen.y),
        symptoms.gradient_agreement(probes.disagreement(seen), seen.y),
        symptoms.ascent(probes.rises(seen, by_margin)),
    ]


def _attacks(seen: probes.Probe) -> list[Finding]:
    """Whether gradients lead to where they should, and better than blind search does."""
    findings = [symptoms.whole_box(probes.whole_box(seen))]
    if seen.threat.eps == 0:
        return findings
    climb = probes.climb(seen)
    fooled = probes.fooled_on_the_way(seen, climb)
    return [
        *findings,
        symptoms.more_steps(climb),
        symptoms.one_step(probes.one_step(seen), fooled),
        symptoms.noise(probes.noise(seen), fooled),
        symptoms.search(probes.search(seen), fooled),
    ]


def _stages(stages: Mapping[str, Tensor] | None, right: Tensor, y: Tensor) -> list[Finding]:
    """What a black-box stage found that the stages before it had not; nothing without one."""
    before, findings = right.cpu().clone(), list[Finding]()
    for number, (name, after) in enumerate((stages or {}).items()):
        if name.startswith("square") and number:
            findings += symptoms.black_box(name, before & ~after.cpu(), right.cpu(), y.cpu())
        before &= after.cpu()
    return findings


def _values(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample whether all values are finite, and whether all are in [0, 1]; no more in memory than a batch."""
    judged = [
        torch.stack([part.isfinite(), (part >= 0) & (part <= 1)]).flatten(2).all(2).to(x.device)
        for part in x.split(BATCH)
    ]
    finite, inside = torch.cat(judged, dim=1) if judged else torch.ones(2, 0, dtype=torch.bool, device=x.device)
    return finite, inside


def _right(model: nn.Module, x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    with torch.no_grad():
        parts = [model(part.to(device)).argmax(1).to(x.device) for part in x.split(BATCH)]
    return torch.cat(parts) == y if parts else torch.zeros_like(y, dtype=torch.bool)


@contextmanager
def _apart(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global random streams and put them back; round no product to TF32, since some checks see rounding."""
    with unrounded(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
