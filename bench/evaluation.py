"""Model x attack -> outcomes. The harness walks stages and blocks, trusts no attack, and can stop anywhere.

Each (stage, block) pair draws from a stream of its own and is stored when it is finished, so order, workers and
interruptions change nothing. A stage gets the samples of its block that are right and still standing; an attack
without stages attacks every sample.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.ascent import mode
from attacks.base import Attack
from attacks.tables import ATTACKS
from attacks.threat import ThreatModel, distance
from bench import device as devices
from bench import store
from bench.checkpoints import fit, load_weights
from bench.counting import Counter
from bench.data import Parts, limit, to_float
from bench.errors import BenchError
from bench.jobs import FORMAT, EvalJob
from bench.models import build
from bench.outcomes import Outcomes
from bench.plan import BLOCK
from bench.progress import Progress
from bench.streams import forked, generator


@dataclass
class Verdicts:
    """What an attack did to the samples (n,), stage after stage.

    Attributes:
        label, clean: labels and clean predictions.
        stages: stage -> (prediction, robust) after it, cumulative.
        left_out: stage -> why it could not run.
        passes: forward and input-gradient passes of the attack, in samples.
    """

    label: Tensor
    clean: Tensor
    stages: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)


def run_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    name: str,
    *,
    seed: int = 0,
    block: int = BLOCK,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Verdicts:
    """Attack samples and recompute every verdict with the model as it was given.

    Args:
        model: on `device`.
        x: (n, C, H, W) in [0, 1], on the CPU or the device.
        y: (n,) labels.
        attack: what to run.
        name: its name, for messages and streams.
        seed: of the streams.
        block: samples that are attacked together.
        device: where the model is.
        folder: where finished (stage, block) pairs are stored and found again; None stores nothing.
        progress: receives progress and says when to stop.

    Raises:
        BenchError: if the attack returns another shape, what is not finite, or what lies outside box or ball.
        Interrupted: if asked to stop.
    """
    clean = predict(model, x, device, block)
    verdicts = Verdicts(y.cpu(), clean, passes={"forward": 0, "input_grad": 0})
    walk = _Walk(model, x, y, attack, name, seed, block, device, folder, progress or Progress(), verdicts)
    num_classes = _num_classes(model, x, device)
    for number, stage in enumerate(attack.stages or (attack,)):
        label = getattr(stage, "name", f"stage{number + 1}") if attack.stages else name
        reason = getattr(stage, "left_out", lambda _: None)(num_classes)
        if reason is None:
            walk.stage(number, label, stage)
        else:
            verdicts.left_out[label] = reason
            walk.progress.line(f"{name}: {label} is left out: {reason}")
    return verdicts


class _Walk:
    """The state of an evaluation as it goes through stages and blocks."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, name: str, seed: int, block: int,
        device: torch.device | str, folder: Path | None, progress: Progress, verdicts: Verdicts,
    ) -> None:  # fmt: skip
        self.model, self.x, self.y, self.attack, self.name = model, x, y, attack, name
        self.seed, self.device, self.folder, self.progress, self.verdicts = seed, device, folder, progress, verdicts
        self.blocks = torch.arange(len(y)).split(block)
        self.prediction, self.robust = verdicts.clean.clone(), verdicts.clean == verdicts.label
        self.timer = store.Timer()

    def stage(self, number: int, label: str, stage: Attack) -> None:
        """Run one stage over all blocks, on the samples that it is due, and note where that leaves every sample."""
        total = len(self.blocks) * max(1, len(self.attack.stages))
        for b, rows in enumerate(self.blocks):
            due = rows[self.robust[rows]] if self.attack.stages else rows
            if len(due):
                self._block(label, stage, b, due)
            share = _bound(self.robust, self.blocks, b, self.attack.stages != ())
            self.progress.update(number * len(self.blocks) + b + 1, total, f"{label} {share:.2%} robust so far")
        self.verdicts.stages[label] = (self.prediction.clone(), self.robust.clone())
        share = self.robust.double().mean().item() * 100
        seconds = self.timer.seconds
        self.progress.line(f"robust accuracy after {label.upper()}: {share:.2f} % (total time {seconds:.1f} s)")

    def _block(self, label: str, stage: Attack, b: int, due: Tensor) -> None:
        done = _stored(self.folder, label, b)
        if done is None:
            self.progress.check()
            purpose = (self.name, label, b)
            done = _attack_block(
                self.model, self.x[due], self.y[due], stage, label, self.seed, purpose, self.device
            )  # fmt: skip
            _store(self.folder, label, b, done)
        self.prediction[due] = torch.tensor(done["prediction"])
        self.robust[due] &= self.prediction[due] == self.verdicts.label[due]
        for kind in self.verdicts.passes:
            self.verdicts.passes[kind] += done["passes"][kind]


def _attack_block(
    model: nn.Module, x: Tensor, y: Tensor, stage: Attack, label: str, seed: int,
    purpose: tuple[str | int, ...], device: torch.device | str,
) -> dict[str, Any]:  # fmt: skip
    """Predictions under attack of one block, and the passes it took."""
    x, y = x.to(device), y.to(device)
    counter = Counter()
    watch = counter.watch(model, "attack")
    given = _snapshot(model)
    try:
        with forked(torch.device(device)), mode(model, train=False):
            x_adv = stage(model, x.clone(), y.clone(), generator=generator("cpu", seed, "attack", *purpose))
    except ValueError as error:
        raise BenchError(f"attack {label}: {error}") from None
    finally:
        watch.remove()
    _check_untouched(label, model, given)
    check_result(label, x_adv, x, stage.threat)
    column = counter.counts.get("attack", {})
    return {
        "prediction": predict(model, x_adv, device, len(x)).tolist(),
        "passes": {kind: column.get(kind, 0) for kind in ("forward", "input_grad")},
    }


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _check_untouched(name: str, model: nn.Module, given: dict[str, Tensor]) -> None:
    """Refuse an attack that moved the model: its verdicts would be those of another one."""
    now = model.state_dict()
    moved = [key for key in given if not torch.equal(given[key], now[key])]
    if moved:
        raise BenchError(f"attack {name}: expected the model unchanged, got another {moved[0]}; attack a copy of it")


def check_result(name: str, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    """Refuse what an attack may not return.

    Raises:
        BenchError: naming the attack, what was expected and what came.
    """
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        got = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise BenchError(f"attack {name}: expected x_adv of shape {tuple(x.shape)}, got {got}")
    if not bool(torch.isfinite(x_adv).all()):
        raise BenchError(
            f"attack {name}: expected finite x_adv, got NaN or infinity; the attack or the model overflows"
        )
    if not bool(threat.contains(x_adv, x).all()):
        far = distance(x_adv, x, threat.norm).max().item()
        low, high = x_adv.min().item(), x_adv.max().item()
        raise BenchError(
            f"attack {name}: expected x_adv in [0, 1] and within {threat.norm} {threat.eps:.6g} of x, got "
            f"[{low:.4g}, {high:.4g}] at distance {far:.6g}; project before returning"
        )


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, device: torch.device | str, batch: int) -> Tensor:
    """Predicted classes (n,) on the CPU, with the model in eval mode."""
    with mode(model, train=False):
        parts = [model(part.to(device)).argmax(1).cpu() for part in x.split(max(1, batch))]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attacks: Iterable[str | Attack] = ("pgd", "autoattack"),
    threat: ThreatModel | None = None,
    seed: int = 0,
    block: int = BLOCK,
    class_names: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """Attack a model on samples; what notebooks and other programs call.

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
    """
    threat = threat or ThreatModel()
    device = next((p.device for p in model.parameters()), x.device)
    predictions: dict[str, np.ndarray[Any, Any]] = {}
    robust: dict[str, np.ndarray[Any, Any]] = {}
    clean = predict(model, x, device, block)
    for item in attacks:
        known = ATTACKS.resolve(item) if isinstance(item, str) else getattr(item, "name", type(item).__name__.lower())
        attack = ATTACKS[known](threat=threat) if isinstance(item, str) else item
        if known in predictions:
            raise ValueError(f"evaluate: two attacks are called {known!r}; give one a `name` of its own")
        verdicts = run_attack(model, x, y, attack, known, seed=seed, block=block, device=device, progress=progress)
        named = columns(known, verdicts)
        predictions |= {name: prediction.numpy() for name, (prediction, _) in named.items()}
        robust |= {name: verdict.numpy() for name, (_, verdict) in named.items()}
    return Outcomes(
        np.arange(len(y)), y.cpu().numpy(), clean.numpy(), attacks=predictions, robust=robust,
        num_classes=_num_classes(model, x, device), class_names=class_names,
    )  # fmt: skip


def columns(name: str, verdicts: Verdicts) -> dict[str, tuple[Tensor, Tensor]]:
    """The columns of an attack: its own, and one per stage where it has several."""
    if not verdicts.stages:
        reasons = "; ".join(f"{label} {reason}" for label, reason in verdicts.left_out.items())
        raise BenchError(f"attack {name}: nothing of it can run: {reasons}; leave it out of --attacks")
    last = list(verdicts.stages.values())[-1]
    stages = {f"{name}/{label}": pair for label, pair in verdicts.stages.items() if list(verdicts.stages) != [name]}
    return {name: last, **stages}


def evaluate_job(
    job: EvalJob, parts: Parts, out: Path, progress: Progress | None = None, *, data_dir: Path = Path("data")
) -> Path:
    """Run one evaluation of a plan, or go on with it; returns its folder.

    Raises:
        BenchError: if the weights do not fit, or the attack misbehaves.
        Interrupted: if asked to stop.
    """
    timer = store.Timer()
    folder, run = out / job.folder, out / job.run
    file = run / f"{job.checkpoint}.safetensors"
    described = store.read_json(run / "run.json")
    weights = load_weights(file)
    model = fit(_network(job, parts, data_dir), weights, where=str(file)).to(job.device)
    test = parts.test if job.limit is None else limit(parts.test, job.limit, "--limit")
    threat = ThreatModel(job.norm, job.eps)  # type: ignore[arg-type]
    attack = ATTACKS[job.attack](threat=threat, **job.settings)
    verdicts = run_attack(
        model, to_float(test.x), test.y, attack, job.attack,
        seed=job.seed, block=job.block, device=job.device, folder=folder / "partial", progress=progress,
    )  # fmt: skip
    named = columns(job.attack, verdicts)
    outcomes = Outcomes(
        test.index.numpy(), test.y.numpy(), verdicts.clean.numpy(),
        attacks={name: prediction.numpy() for name, (prediction, _) in named.items()},
        robust={name: robust.numpy() for name, (_, robust) in named.items()},
        num_classes=parts.num_classes, class_names=parts.class_names,
    )  # fmt: skip
    outcomes.write(folder / "outcomes.parquet")
    last = described["epochs"] - 1 if described.get("epochs") is not None else None
    store.write_json(folder / "eval.json", {
        "format": FORMAT, "key": job.key, "checkpoint": job.checkpoint,
        "epoch": described.get("epoch_best") if job.checkpoint == "best" else last,
        "weights": store.file_hash(file), "attack": job.attack, "attack_settings": dict(job.settings),
        "implementation": getattr(attack, "implementation", "native"), "revision": job.revision,
        "norm": job.norm, "eps": job.eps, "seed": job.seed, "n": len(test),
        "test_subset": len(test) if len(test) < len(parts.test) else None, "block": job.block,
        "classes": parts.num_classes, "class_names": list(parts.class_names),
        "stages": list(verdicts.stages), "left_out": verdicts.left_out, "passes": verdicts.passes,
        "versions": devices.versions(), "hardware": devices.describe(job.device, job.threads),
    })  # fmt: skip
    shutil.rmtree(folder / "partial", ignore_errors=True)
    row = {"what": "evaluation", "attack": job.attack, "checkpoint": job.checkpoint, "seconds": timer.seconds}
    store.append_line(folder / "timing.jsonl", row)
    store.mark_done(folder)
    return folder


def _network(job: EvalJob, parts: Parts, data_dir: Path) -> nn.Module:
    """The architecture of a job, from the registry or from the zoo."""
    if job.model.startswith("robustbench:"):
        from bench.zoo import zoo_model

        return zoo_model(job.model.partition(":")[2], job.dataset, job.norm, data_dir / "zoo", download=False)
    return build(job.model, parts.num_classes, *parts.image[:2], seed=0)


def _num_classes(model: nn.Module, x: Tensor, device: torch.device | str) -> int:
    with mode(model, train=False), torch.no_grad():
        return int(model(x[:1].to(device)).shape[1])


def _bound(robust: Tensor, blocks: tuple[Tensor, ...], done: int, staged: bool) -> float:
    """Robust share of what is decided: all samples while stages remove them, else those of the finished blocks."""
    seen = robust if staged else robust[: int(blocks[done][-1]) + 1]
    return seen.double().mean().item()


def _stored(folder: Path | None, stage: str, block: int) -> dict[str, Any] | None:
    if folder is None or not (path := folder / f"{stage}-{block}.json").is_file():
        return None
    return store.read_json(path)


def _store(folder: Path | None, stage: str, block: int, done: Mapping[str, Any]) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        store.write_text(folder / f"{stage}-{block}.json", json.dumps(done))
