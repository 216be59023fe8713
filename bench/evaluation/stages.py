"""An attack on samples, walked stage by stage and block by block. The harness trusts no attack, and can stop anywhere.

The result of each block after each stage is stored, and its draws belong to its samples (`attacks.draws`), so order,
workers and interruptions change nothing, and another block size nothing but rounding. A stage gets the samples of its
block that are right and still standing; an attack without stages attacks every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.contexts import mode
from attacks.fast.prepared import Prepared
from attacks.threat import ThreatModel, distance
from bench.config.stop_rules import Rule
from bench.core import files
from bench.core.out_of_memory import BatchLimit
from bench.core.pass_counter import PassCounter
from bench.core.progress import Progress
from bench.core.seeding import forked, sample_generator
from bench.data.streamed import ImageTensor
from bench.errors import BenchError
from bench.evaluation import block_store
from bench.evaluation.live import Moment, Pace, bounds
from bench.plan.jobs import DEFAULT_BLOCK, blocks_of


@dataclass
class Verdicts:
    """What an attack did to the samples (n,), stage after stage.

    Attributes:
        label, clean: labels and clean predictions; of a part, -1 where a sample is not its own.
        stages: stage -> (prediction, robust) after it, cumulative.
        left_out: stage -> why it could not run.
        passes: forward and input-gradient passes of the attack, in samples.
        stopped: where a rule ended it before everything was attacked, and the bounds there; None if none did.
        micro_batch: samples that were attacked at once at most, where memory did not suffice for a block; else None.
    """

    label: Tensor
    clean: Tensor
    stages: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=lambda: {"forward": 0, "input_grad": 0})
    stopped: dict[str, Any] | None = None
    micro_batch: int | None = None


def run_attack(
    model: nn.Module,
    x: ImageTensor,
    y: Tensor,
    attack: Attack,
    name: str,
    *,
    seed: int = 0,
    block: int = DEFAULT_BLOCK,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    progress: Progress | None = None,
    part: tuple[int, int] | None = None,
    stop: Rule | None = None,
    prepare: Sequence[str] = (),
    clean: Tensor | None = None,
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
        folder: where results of finished blocks are stored and found again; None stores nothing.
        progress: receives progress and says when to stop.
        part: (number, count): only every count-th block from the number-th on; the rest counts as not robust.
        stop: looked at after every block, in order; ends everything as soon as the upper bounds decide it.
        prepare: switches of `attacks.fast.prepared.Prepared` beside its usual ones; "none" searches the model itself.
        clean: clean predictions (n,) of the same model, where they are known; else they are computed.

    Raises:
        BenchError: if the attack returns another shape, what is not finite, or what lies outside box or ball.
        Interrupted: if asked to stop.
    """
    progress = progress or Progress()
    num_classes = class_count(model, x, device)
    verdicts = Verdicts(y.cpu(), torch.full((len(y),), -1))
    stages, verdicts.left_out = due_stages(attack, name, num_classes)
    walk = _Walk(
        model=model, x=x, attack=attack, name=name, seed=seed, block=block, device=device, folder=folder,
        progress=progress, part=part, stop=stop, prepare=prepare, verdicts=verdicts,
        pace=Pace([_cost(stage, num_classes) for stage in stages.values()]),
    )  # fmt: skip
    walk.run(stages, clean)
    return verdicts


def due_stages(attack: Attack, name: str, num_classes: int) -> tuple[dict[str, Attack], dict[str, str]]:
    """The stages of an attack by label, in order, and why others are left out; one without stages is its own."""
    stages: dict[str, Attack] = {}
    left_out: dict[str, str] = {}
    for number, stage in enumerate(attack.stages or (attack,)):
        label = getattr(stage, "name", f"stage{number + 1}") if attack.stages else name
        reason = getattr(stage, "left_out", lambda _: None)(num_classes)
        if reason is None:
            stages[label] = stage
        else:
            left_out[label] = reason
    return stages, left_out


def _cost(stage: Attack, num_classes: int) -> float:
    passes = stage.passes(num_classes)
    return passes.forward + passes.input_grad


@dataclass(kw_only=True, eq=False)
class _Walk:
    """The state of an evaluation as it goes through stages and blocks; `run_attack` says what it is given."""

    model: nn.Module
    x: ImageTensor
    attack: Attack
    name: str
    seed: int
    block: int
    device: torch.device | str
    folder: Path | None
    progress: Progress
    part: tuple[int, int] | None
    stop: Rule | None
    prepare: Sequence[str]
    verdicts: Verdicts
    pace: Pace

    def __post_init__(self) -> None:
        every = torch.arange(len(self.x)).split(self.block)
        self.blocks = {b: every[b] for b in blocks_of(self.part, len(every))}
        self.example = every[0]  # of the whole evaluation, so that every part searches the same model
        self.own = torch.cat([*self.blocks.values(), torch.empty(0, dtype=torch.int64)])
        self.prefix = "" if self.part is None else "part {}/{}: ".format(*self.part)
        self.timer = files.Timer()
        self._prepared: Prepared | None = None
        self.cut = BatchLimit(f"attack {self.name}", tell=self.progress.line)

    def run(self, stages: Mapping[str, Attack], clean: Tensor | None) -> None:
        """Clean predictions, unless they are known, then stage after stage, until a rule stops it."""
        for label, reason in self.verdicts.left_out.items():
            self.progress.line(f"{self.name}: {label} is left out: {reason}")
        self.look(clean)
        if not self.blocks:  # a part of more parts than blocks
            return
        for number, (label, stage) in enumerate(stages.items()):
            self.stage(number, label, stage, [*stages][number + 1 :])
            if self.verdicts.stopped:
                return

    def look(self, known: Tensor | None) -> None:
        """Clean predictions, block by block."""
        for b, rows in self.blocks.items():
            done = block_store.read(self.folder, block_store.CLEAN, b)
            if done is None:
                spared = partial(self.cut.retry_smaller, partial(self._clean, rows), len(rows))
                found = spared() if known is None else known[rows]
                done = {"prediction": found.tolist()}
                block_store.write(self.folder, block_store.CLEAN, b, done)
            self.verdicts.clean[rows] = torch.tensor(done["prediction"])
        self.prediction, self.robust = self.verdicts.clean.clone(), self.verdicts.clean == self.verdicts.label

    def _clean(self, rows: Tensor) -> Tensor:
        return predict(self.model, self.x[rows], self.device, self.cut.size or len(rows))

    def stage(self, number: int, label: str, stage: Attack, later: Sequence[str]) -> None:
        """Run one stage over all blocks, on the samples that it is due, and note where that leaves every sample."""
        total, before = len(self.blocks) * (number + 1 + len(later)), len(self.blocks) * number
        for place, (b, rows) in enumerate(self.blocks.items(), start=1):
            self._block(number, label, stage, b, self._due(rows))
            moment = self._moment(number, label, place)
            self.progress.update(before + place, total, str(moment))
            if self.stop and self.stop.holds(moment.bounds) and self._worth_stopping(moment, later):
                self._note_stop(moment, later)
                break
        self.verdicts.stages[label] = (self.prediction.clone(), self.robust.clone())
        if self.verdicts.stopped is None:
            self._sum_up(label)

    def _sum_up(self, label: str) -> None:
        robust = self.robust[self.own]
        share, seconds = robust.double().mean().item() * 100, self.timer.seconds
        self.progress.line(
            f"{self.prefix}robust accuracy after {label.upper()}: {share:.2f} % (total time {seconds:.1f} s)"
        )
        at_most = bounds(robust, self.verdicts.label[self.own])
        self.progress.line(f"{self.prefix}upper bounds after {label.upper()}: {at_most}")

    def searched(self, stage: Attack) -> nn.Module:
        """What a stage works on: the model, or its prepared form where the stage knows what that is."""
        if "none" in self.prepare or not getattr(stage, "prepared", False):
            return self.model
        if self._prepared is None:
            self._prepared = Prepared(
                self.model, self.x[self.example[: self.cut.size]].to(self.device), **dict.fromkeys(self.prepare, True)
            )  # fmt: skip
            if self._prepared.note:
                self.progress.line(f"{self.name}: the model is searched as it is: {self._prepared.note}")
        return self._prepared

    def _due(self, rows: Tensor) -> Tensor:
        return rows[self.robust[rows]] if self.attack.stages else rows

    def _moment(self, number: int, label: str, place: int) -> Moment:
        """Where it stands after so many blocks of a stage."""
        blocks, label_of = list(self.blocks.values()), self.verdicts.label
        seen = self.robust[torch.cat(blocks[:place])]
        left = sum(len(self._due(rows)) for rows in blocks[place:])
        standing = int(self.robust.sum())
        return Moment(
            label, place, len(blocks), (int(seen.sum()), len(seen)), bounds(self.robust[self.own], label_of[self.own]),
            left, self.pace.left(number, left, standing),
        )  # fmt: skip

    def _worth_stopping(self, moment: Moment, later: Sequence[str]) -> bool:
        """Whether anything is left to attack; if not, the figures are final and no bounds."""
        return moment.left > 0 or (len(later) > 0 and bool(self.robust.any()))

    def _note_stop(self, moment: Moment, later: Sequence[str]) -> None:
        at_most = moment.bounds
        self.verdicts.stopped = {
            "rule": str(self.stop), "stage": moment.stage, "block": moment.done, "blocks": moment.blocks,
            "average": float(at_most.average), "worst": float(at_most.worst), "worst_class": at_most.worst_class,
            "not_run": list(later),
        }  # fmt: skip
        self.progress.line(
            f"stopped by {self.stop} in {moment.stage} after block {moment.done} of {moment.blocks}: {at_most}"
        )

    def _block(self, number: int, label: str, stage: Attack, b: int, due: Tensor) -> None:
        done = block_store.read(self.folder, label, b)
        if done is None:
            done = self._attack(number, label, stage, b, due)
            block_store.write(self.folder, label, b, done)
        self.prediction[due] = torch.tensor(done["prediction"], dtype=torch.int64)
        self.robust[due] &= self.prediction[due] == self.verdicts.label[due]
        for kind in self.verdicts.passes:
            self.verdicts.passes[kind] += done["passes"][kind]
        if "micro_batch" in done:
            self.verdicts.micro_batch = min(done["micro_batch"], self.verdicts.micro_batch or done["micro_batch"])

    def _attack(self, number: int, label: str, stage: Attack, b: int, due: Tensor) -> dict[str, Any]:
        if len(due) == 0:
            return {"prediction": [], "passes": dict.fromkeys(self.verdicts.passes, 0)}
        self.progress.check()
        searched, timer = self.searched(stage), files.Timer()

        def work() -> dict[str, Any]:
            spans = self.cut.spans(len(due))
            return _joined([self._part(searched, stage, label, b, due[first:last]) for first, last in spans])

        done = self.cut.retry_smaller(work, len(due))
        self.pace.add(number, len(due), sum(done["passes"].values()), timer.seconds)
        return done

    def _part(self, searched: nn.Module, stage: Attack, label: str, b: int, due: Tensor) -> dict[str, Any]:
        draws = sample_generator(self.seed, "attack", self.name, label, block=b, samples=due.tolist())
        return _attack_block(
            self.model, searched, self.x[due], self.verdicts.label[due], stage, label, self.device, draws
        )


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The pair of a block from what its parts have given."""
    if len(parts) == 1:
        return parts[0]
    return {
        "prediction": [prediction for part in parts for prediction in part["prediction"]],
        "passes": {kind: sum(part["passes"][kind] for part in parts) for kind in parts[0]["passes"]},
        "micro_batch": max(len(part["prediction"]) for part in parts),
    }


def _attack_block(
    model: nn.Module, searched: nn.Module, x: Tensor, y: Tensor, stage: Attack, label: str,
    device: torch.device | str, draws: torch.Generator,
) -> dict[str, Any]:  # fmt: skip
    """Predictions under attack of one block, and the passes it took."""
    x, y = x.to(device), y.to(device)
    counter = PassCounter()
    networks = searched.networks if isinstance(searched, Prepared) else (searched,)
    watches = [counter.watch(network, "attack") for network in networks]
    given = _snapshot(model)
    try:
        with forked(torch.device(device)), mode(model, train=False):
            x_adv = stage(searched, x.clone(), y.clone(), generator=draws)
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
def predict(model: nn.Module, x: ImageTensor, device: torch.device | str, batch: int) -> Tensor:
    """Predicted classes (n,) on the CPU, with the model in eval mode."""
    with mode(model, train=False):
        parts = [model(part.to(device)).argmax(1).cpu() for part in x.split(max(1, batch))]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def class_count(model: nn.Module, x: ImageTensor, device: torch.device | str) -> int:
    """Number of classes that a model tells apart, from its logits for one of the samples x (n, C, H, W)."""
    with mode(model, train=False), torch.no_grad():
        return int(model(x[:1].to(device)).shape[1])
