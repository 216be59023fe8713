"""Sanity checks of a model for masked gradients, from Python and as part of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from attacks.base import NO_CLASS, Attack
from attacks.sanity.checks import SAMPLES, Examination
from attacks.sanity.checks import examine as run_checks
from attacks.sanity.findings import Finding, finite
from attacks.threat import ThreatModel
from bench.core.progress import Progress
from bench.core.seeding import generator
from bench.data.streamed import ImageTensor
from bench.evaluation.stages import Verdicts
from bench.results.outcomes import CLEAN, Outcomes

# Passes per sample from which an attack makes a claim of robustness; below it (FGSM) checks would cost more than it.
CLAIM = 10


def examine(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel | None = None,
    outcomes: Outcomes | None = None,
    seed: int = 0,
) -> Examination:
    """Whether the robustness of a model can be believed; what notebooks and other programs call.

    Args:
        model: x (N, C, H, W) in [0, 1] -> logits (N, K); left as it was.
        x: (n, C, H, W) float32 in [0, 1].
        y: (n,) int64.
        threat: threat model of the claim; Linf 8/255 if not given.
        outcomes: of `bench.evaluate` on the same samples; the stages of its attacks are looked at as well.
        seed: of all random draws.

    Returns:
        `.mark` ("reliable", "suspicious" or "unreliable"), `.reasons`, and `.findings`, one per check.

    >>> import bench
    >>> model = nn.Sequential(nn.Flatten(), nn.Softmax(1))
    >>> x = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.52, 0.48]]).view(3, 1, 1, 2)
    >>> found = bench.examine(model, x, torch.tensor([0, 1, 0]))
    >>> print(found.mark, *found.reasons, sep=": ")
    suspicious: 100% of the outputs are non-negative and sum to 1; the model returns probabilities: return logits
    """
    stages = {} if outcomes is None else _stages_of_ensemble(outcomes)
    right = None if outcomes is None else torch.from_numpy(outcomes.verdict(CLEAN).robust)
    draws = generator("cpu", seed, "sanity")
    found = run_checks(model, x, y, threat=threat or ThreatModel(), stages=stages, right=right, generator=draws)
    known = () if outcomes is None else dict.fromkeys((CLEAN, *outcomes.attacks))
    broken = _finite([torch.from_numpy(outcomes.verdict(name).prediction) for name in known] if outcomes else [])
    return replace(found, findings=(*found.findings, *broken))


def _finite(predictions: Sequence[Tensor]) -> tuple[Finding, ...]:
    """The finding on outputs that were not finite; none where all were."""
    broken = sum(int((prediction == NO_CLASS).sum()) for prediction in predictions)
    return (finite(broken, sum(map(len, predictions))),) if broken else ()


def _stages_of_ensemble(outcomes: Outcomes) -> dict[str, Tensor]:
    """Verdicts by stage of the first attack with a black-box stage; empty if there is none."""
    for attack in outcomes.attacks:
        stages = {name.partition("/")[2]: outcomes.verdict(name).robust for name in outcomes.stages(attack)}
        if any(name.startswith("square") for name in stages):
            return {name: torch.from_numpy(robust) for name, robust in stages.items()}
    return {}


def sanity_entry(
    model: nn.Module, x: ImageTensor, attack: Attack, verdicts: Verdicts, *, classes: int, seed: int, block: int,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The entry `sanity` of eval.json; nothing for an attack of a single step or two.

    The draws depend on the seed alone, so all attacks on a model under one threat model come to the same findings, but
    for those about stages. No more samples are looked at together than a block has.
    """
    predictions = [verdicts.clean, *(prediction for prediction, _ in list(verdicts.stages.values())[-1:])]
    broken = _finite(predictions)
    cost = attack.passes(classes)
    if not attack.stages and cost.forward + cost.input_grad < CLAIM:
        return {"sanity": Examination(broken, 0, {}).as_dict()} if broken else {}
    images = cast(Tensor, x)  # run_checks indexes and splits it, which streamed images can as well
    found = run_checks(
        model, images, verdicts.label.to(x.device), threat=attack.threat,
        stages={label: robust for label, (_, robust) in verdicts.stages.items()},
        right=verdicts.clean == verdicts.label, samples=min(SAMPLES, block), generator=generator("cpu", seed, "sanity"),
    )  # fmt: skip
    found = replace(found, findings=(*found.findings, *broken))
    (progress or Progress()).line(f"sanity checks: {'; '.join([found.mark, *found.reasons])}")
    return {"sanity": found.as_dict()}
