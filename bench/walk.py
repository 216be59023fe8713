"""An attack on samples, walked stage by stage and block by block. The harness trusts no attack, and can stop anywhere.

Each (stage, block) pair draws from a stream of its own and is stored when it is finished, so order, workers and
interruptions change nothing. A stage gets the samples of its block that are right and still standing; an attack
without stages attacks every sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks.ascent import mode
from attacks.base import Attack
from attacks.prepared import Prepared
from attacks.threat import ThreatModel, distance
from bench import store
from bench.counting import Counter
from bench.errors import BenchError
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
    num_classes = class_count(model, x, device)
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
        self._prepared: Prepared | None = None

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

    def searched(self, stage: Attack) -> nn.Module:
        """What a stage works on: the model, or its prepared form where the stage knows what that is."""
        if not getattr(stage, "prepared", False):
            return self.model
        if self._prepared is None:
            self._prepared = Prepared(self.model, self.x[self.blocks[0]].to(self.device))
            if self._prepared.note:
                self.progress.line(f"{self.name}: the model is searched as it is: {self._prepared.note}")
        return self._prepared

    def _block(self, label: str, stage: Attack, b: int, due: Tensor) -> None:
        done = _stored(self.folder, label, b)
        if done is None:
            self.progress.check()
            purpose = (self.name, label, b)
            done = _attack_block(
                self.model, self.searched(stage), self.x[due], self.y[due], stage, label, self.seed, purpose, self.device
            )  # fmt: skip
            _store(self.folder, label, b, done)
        self.prediction[due] = torch.tensor(done["prediction"])
        self.robust[due] &= self.prediction[due] == self.verdicts.label[due]
        for kind in self.verdicts.passes:
            self.verdicts.passes[kind] += done["passes"][kind]


def _attack_block(
    model: nn.Module, searched: nn.Module, x: Tensor, y: Tensor, stage: Attack, label: str, seed: int,
    purpose: tuple[str | int, ...], device: torch.device | str,
) -> dict[str, Any]:  # fmt: skip
    """Predictions under attack of one block, and the passes it took."""
    x, y = x.to(device), y.to(device)
    counter = Counter()
    networks = searched.networks if isinstance(searched, Prepared) else (searched,)
    watches = [counter.watch(network, "attack") for network in networks]
    given = _snapshot(model)
    try:
        with forked(torch.device(device)), mode(model, train=False):
            x_adv = stage(searched, x.clone(), y.clone(), generator=generator("cpu", seed, "attack", *purpose))
    except ValueError as error:
        raise BenchError(f"attack {label}: {error}") from None
    finally:
        for watch in watches:
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


def class_count(model: nn.Module, x: Tensor, device: torch.device | str) -> int:
    """Number of classes that a model tells apart, from its logits for one of the samples x (n, C, H, W)."""
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
