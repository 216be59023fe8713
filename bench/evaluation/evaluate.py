"""Evaluate a model under attacks, from Python and as a job of a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.contexts import full_precision
from attacks.registry import ATTACKS
from attacks.threat import ThreatModel
from bench.config.stop_rules import Rule
from bench.core import checksums, files
from bench.core import device as devices
from bench.core.environment import environment_of
from bench.core.out_of_memory import BatchLimit
from bench.core.progress import Progress
from bench.data.splits import Parts, limit, to_float
from bench.data.streamed import ImageTensor
from bench.errors import BenchError
from bench.evaluation import block_store
from bench.evaluation.interface import as_module, check_interface
from bench.evaluation.sanity import sanity_entry
from bench.evaluation.stages import Verdicts, applicable_stages, class_count, predict, run_attack
from bench.models.builders import network
from bench.models.checkpoints import fit, load_run_weights
from bench.plan.jobs import DEFAULT_BLOCK, FORMAT, PARTIAL, EvalJob
from bench.results.keys import ONLY_FOR_EVALUATION_KEY
from bench.results.outcomes import FILE, Outcomes

SOME_CLASSES = 10  # whether an attack uses gradients does not depend on their number


@full_precision()
def evaluate(
    model: nn.Module,
    x: ImageTensor,
    y: Tensor,
    *,
    attacks: Iterable[str | Attack] = ("pgd", "autoattack"),
    threat: ThreatModel | None = None,
    seed: int = 0,
    block: int = DEFAULT_BLOCK,
    class_names: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """Attack a model on samples; what notebooks and other programs call. No product is rounded to TF32 meanwhile.

    Args:
        model: x (N, C, H, W) in [0, 1] -> logits (N, K); left as it was, its modes included.
        x: (n, C, H, W) float32 in [0, 1].
        y: (n,) int64.
        attacks: names, or attack objects.
        threat: threat model of the attacks that are given by name; Linf 8/255 if not given.
        seed: of all random draws.
        block: samples that are attacked together.
        class_names: names for tables.
        progress: receives progress.

    Returns:
        The outcome of every sample.

    Here the pixels of an image are its logits; the third image is so close to the boundary that PGD crosses it.

    >>> import bench
    >>> x = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.52, 0.48]]).view(3, 1, 1, 2)
    >>> outcomes = bench.evaluate(nn.Flatten(), x, torch.tensor([0, 1, 0]), attacks=["pgd"])
    >>> outcomes.average("clean"), outcomes.average("pgd"), outcomes.worst("pgd")
    (1.0, 0.6666666666666666, 0.5)
    """
    threat, model = threat or ThreatModel(), as_module(model)
    device = next((p.device for p in model.parameters()), x.device)
    predictions: dict[str, np.ndarray[Any, Any]] = {}
    robust: dict[str, np.ndarray[Any, Any]] = {}
    clean: Tensor | None = None  # found by the first attack, which learns there how much fits into memory
    built = [_built(item, threat) for item in ([attacks] if isinstance(attacks, str) else attacks)]
    check_interface(model, x, y, needs_gradient=any(_uses_gradients(attack) for _, attack in built))
    for known, attack in built:
        if known in predictions:
            raise ValueError(f"evaluate: two attacks are called {known!r}; give one a `name` of its own")
        verdicts = run_attack(
            model, x, y, attack, known, seed=seed, block=block, device=device, progress=progress, clean=clean
        )
        clean = verdicts.clean
        named = outcome_columns(known, verdicts)
        predictions |= {name: prediction.numpy() for name, (prediction, _) in named.items()}
        robust |= {name: verdict.numpy() for name, (_, verdict) in named.items()}
    clean = _predicted(model, x, device, block, progress or Progress()) if clean is None else clean
    return Outcomes(
        np.arange(len(y)), y.cpu().numpy(), clean.numpy(), attacks=predictions, robust=robust,
        num_classes=class_count(model, x, device), class_names=class_names,
    )  # fmt: skip


def _built(item: str | Attack, threat: ThreatModel) -> tuple[str, Attack]:
    """An attack with its name, from either."""
    if isinstance(item, str):
        known = ATTACKS.resolve(item)
        return known, ATTACKS[known](threat=threat)
    return getattr(item, "name", type(item).__name__.lower()), item


def _uses_gradients(attack: Attack) -> bool:
    return attack.passes(SOME_CLASSES).input_grad > 0


def _predicted(model: nn.Module, x: ImageTensor, device: torch.device, block: int, progress: Progress) -> Tensor:
    """Predicted classes (n,) on the CPU, in blocks that are halved where memory runs out."""
    batch_limit = BatchLimit("evaluate", tell=progress.line)
    return batch_limit.retry_smaller(lambda: predict(model, x, device, batch_limit.size or block), min(block, len(x)))


def outcome_columns(name: str, verdicts: Verdicts) -> dict[str, tuple[Tensor, Tensor]]:
    """Column -> (prediction, robust) of an attack: one for the attack, and one for each stage where it has several."""
    if not verdicts.stages:
        reasons = "; ".join(f"{label} {reason}" for label, reason in verdicts.left_out.items())
        raise BenchError(f"attack {name}: nothing of it can run: {reasons}; leave it out of --attacks")
    last = list(verdicts.stages.values())[-1]
    stages = {
        f"{name}/{label}": verdict for label, verdict in verdicts.stages.items() if list(verdicts.stages) != [name]
    }
    return {name: last, **stages}


def evaluate_job(job: EvalJob, parts: Parts, out: Path, progress: Progress | None = None) -> Path:
    """Run one evaluation of a plan, or go on with it; returns its folder.

    A part stores its block results and leaves the rest to whoever finishes the evaluation: with all of them stored
    nothing is attacked again.

    Raises:
        BenchError: if the data or the weights are not those of the run, or the attack misbehaves.
        Interrupted: if asked to stop.
    """
    timer, run = files.Timer(), checksums.read_record(out / job.run / "run.json")
    parts.require_same(run["data"], "test_hash", job.title)
    folder, file = out / job.folder, out / job.run / f"{job.checkpoint}.safetensors"
    made = network(job.model, job.dataset, job.norm, parts.num_classes, *parts.image[:2])
    model = fit(made, load_run_weights(out / job.run, job.checkpoint), where=str(file)).to(job.device)
    test = parts.test if job.limit is None else limit(parts.test, job.limit, "--limit")
    x, weights = to_float(test.x), files.file_hash(file)
    attack = ATTACKS[job.attack](threat=ThreatModel(job.norm, job.eps), **job.settings)  # type: ignore[arg-type]
    check_interface(model, x, test.y, needs_gradient=_uses_gradients(attack))
    stages, _ = applicable_stages(attack, job.attack, class_count(model, x, job.device))
    block_store.Manifest(job, weights, tuple(stages), -(-len(test) // job.block)).write(folder / PARTIAL)
    environments = block_store.add_environments(folder / PARTIAL, [environment_of(_here(job))])
    if len(environments) > 1:
        progress = progress or Progress()
        progress.line("the stored blocks come from several environments, so numbers can differ by rounding")
    verdicts = run_attack(
        model, x, test.y, attack, job.attack,
        seed=job.seed, block=job.block, device=job.device, folder=folder / PARTIAL, progress=progress,
        part=job.part, prepare=job.prepare, stop=None if job.stop_when is None else Rule.parse(job.stop_when),
    )  # fmt: skip
    if job.part is None:
        written = {FILE: _outcomes(job, verdicts, test.index, parts).write(folder / FILE)}
        searched = f", searched on: {' '.join(job.prepare)}" if job.prepare else ""
        implementation = getattr(attack, "implementation", "native") + searched
        facts = _facts(job, verdicts, parts, run, implementation, weights)
        checked = sanity_entry(
            model, x, attack, verdicts,
            classes=parts.num_classes, seed=job.seed, block=verdicts.micro_batch or job.block, progress=progress,
        )  # fmt: skip
        files.write_json(
            folder / "eval.json",
            {
                **facts,
                **checked,
                **({"environments": environments} if len(environments) > 1 else {}),
                "key_fields": {name: getattr(job, name) for name in ONLY_FOR_EVALUATION_KEY},
                "files": written,
            },
        )
    row = {"what": "evaluation", "attack": job.attack, "checkpoint": job.checkpoint, "seconds": timer.seconds}
    if job.part is not None:
        row |= {"what": "part of an evaluation", "part": list(job.part)}
    files.append_line(folder / "timing.jsonl", row)
    if job.part is None:
        files.mark_done(folder)
        block_store.clear(folder)  # not before: whoever ended in between would lose what took longest
    return folder


def _outcomes(job: EvalJob, verdicts: Verdicts, index: Tensor, parts: Parts) -> Outcomes:
    named = outcome_columns(job.attack, verdicts)
    return Outcomes(
        index.numpy(), verdicts.label.numpy(), verdicts.clean.numpy(),
        attacks={name: prediction.numpy() for name, (prediction, _) in named.items()},
        robust={name: robust.numpy() for name, (_, robust) in named.items()},
        num_classes=parts.num_classes, class_names=parts.class_names,
    )  # fmt: skip


def _facts(
    job: EvalJob, verdicts: Verdicts, parts: Parts, run: Mapping[str, Any], implementation: str, weights: str
) -> dict[str, Any]:
    """The content of eval.json; stopping rules and micro-batches only where there were any."""
    n = len(verdicts.label)
    last = run["epochs"] - 1 if run.get("epochs") is not None else None
    more: dict[str, Any] = {} if job.stop_when is None else {"stop_when": job.stop_when, "stopped": verdicts.stopped}
    if verdicts.micro_batch is not None:
        more["micro_batch"] = verdicts.micro_batch
    return {
        "format": FORMAT, "key": job.key, "checkpoint": job.checkpoint,
        "epoch": run.get("epoch_best") if job.checkpoint == "best" else last,
        "weights": weights, "attack": job.attack, "attack_settings": dict(job.settings),
        "implementation": implementation, "revision": job.revision, "source": job.source,
        "norm": job.norm, "eps": job.eps, "seed": job.seed, "n": n,
        "test_subset": n if n < len(parts.test) else None, "block": job.block,
        "classes": parts.num_classes, "class_names": list(parts.class_names),
        "stages": list(verdicts.stages), "left_out": verdicts.left_out, "passes": verdicts.passes,
        **_here(job), **more,
    }  # fmt: skip


def _here(job: EvalJob) -> dict[str, Any]:
    return {"versions": devices.versions(), "hardware": devices.hardware(job.device, job.threads)}
