"""Run an attack on samples, stage by stage and block by block; verdicts are recomputed, no attack is trusted.

The result of each block after each stage is stored, and its draws belong to its samples (`attacks.draws`), so order,
workers and interruptions change nothing, and another block size nothing but rounding. A stage gets the samples of its
block that are right and still standing; an attack without stages attacks every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import Attack, predicted
from attacks.contexts import mode
from attacks.fast.prepared import Prepared
from attacks.plugins.sketch import check_attack
from attacks.threat import ThreatModel, distance
from bench.config.stop_rules import Rule
from bench.core import files
from bench.core.out_of_memory import BatchLimit
from bench.core.pass_counter import PassCounter
from bench.core.progress import Progress
from bench.core.seeding import forked, sample_generator
from bench.data.streamed import ImageTensor
from bench.errors import BenchError, UsageError
from bench.evaluation import block_store
from bench.evaluation.interface import check_logits
from bench.evaluation.live import StageProgress, TimeEstimate, bounds
from bench.plan.jobs import DEFAULT_BLOCK, blocks_of


@dataclass
class Verdicts:
    """Predictions and verdicts of the samples (n,) under an attack, stage after stage.

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
    stages, verdicts.left_out = applicable_stages(attack, name, num_classes)
    run = _AttackRun(
        model=model, x=x, attack=attack, name=name, seed=seed, block=block, device=device, folder=folder,
        progress=progress, part=part, stop=stop, prepare=prepare, verdicts=verdicts,
        time=TimeEstimate([_cost(stage, num_classes) for stage in stages.values()]),
    )  # fmt: skip
    run.run(stages, clean)
    return verdicts


def applicable_stages(attack: Attack, name: str, num_classes: int) -> tuple[dict[str, Attack], dict[str, str]]:
    """The stages of an attack by label, in order, and why others are left out; one without stages is its own."""
    stages: dict[str, Attack] = {}
    left_out: dict[str, str] = {}
    for thing in (attack, *attack.stages):
        try:
            check_attack(getattr(thing, "name", name), thing)
        except ValueError as error:
            raise UsageError(str(error)) from None
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
class _AttackRun:
    """The state of an attack over stages and blocks; for the arguments see `run_attack`."""

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
    time: TimeEstimate

    def __post_init__(self) -> None:
        every = torch.arange(len(self.x)).split(self.block)
        self.blocks = {b: every[b] for b in blocks_of(self.part, len(every))}
        self.example = every[0]  # of the whole evaluation, so that every part searches the same model
        self.own = torch.cat([*self.blocks.values(), torch.empty(0, dtype=torch.int64)])
        self.prefix = "" if self.part is None else "part {}/{}: ".format(*self.part)
        self.timer = files.Timer()
        self._prepared: Prepared | None = None
        self.limit = BatchLimit(f"attack {self.name}", tell=self.progress.line)

    def run(self, stages: Mapping[str, Attack], clean: Tensor | None) -> None:
        """Clean predictions, unless they are known, then stage after stage, until a rule stops it."""
        for label, reason in self.verdicts.left_out.items():
            self.progress.line(f"{self.name}: {label} is left out: {reason}")
        self.predict_clean(clean)
        if not self.blocks:  # a part of more parts than blocks
            return
        for number, (label, stage) in enumerate(stages.items()):
            self.run_stage(number, label, stage, [*stages][number + 1 :])
            if self.verdicts.stopped:
                return

    def predict_clean(self, known: Tensor | None) -> None:
        """Clean predictions, block by block."""
        for b, rows in self.blocks.items():
            done = block_store.read(self.folder, block_store.CLEAN, b)
            if done is None:
                found = self._clean(rows) if known is None else known[rows]
                done = {"prediction": found.tolist()}
                block_store.write(self.folder, block_store.CLEAN, b, done)
            self.verdicts.clean[rows] = torch.tensor(done["prediction"])
        self.prediction, self.robust = self.verdicts.clean.clone(), self.verdicts.clean == self.verdicts.label

    def _clean(self, rows: Tensor) -> Tensor:
        return self.limit.retry_smaller(
            lambda: predict(self.model, self.x[rows], self.device, self.limit.size or len(rows)), len(rows)
        )

    def run_stage(self, number: int, label: str, stage: Attack, later: Sequence[str]) -> None:
        """Run one stage over all blocks, and record the predictions and verdicts after it."""
        total, before = len(self.blocks) * (number + 1 + len(later)), len(self.blocks) * number
        for count, (b, rows) in enumerate(self.blocks.items(), start=1):
            self._block(number, label, stage, b, self._samples_to_attack(rows))
            reached = self._stage_progress(number, label, count)
            self.progress.update(before + count, total, str(reached))
            if self.stop and self.stop.holds(reached.bounds) and self._is_unfinished(reached, later):
                self._record_stop(reached, later)
                break
        self.verdicts.stages[label] = (self.prediction.clone(), self.robust.clone())
        if self.verdicts.stopped is None:
            self._report(label)

    def _report(self, label: str) -> None:
        robust = self.robust[self.own]
        share, seconds = robust.double().mean().item() * 100, self.timer.seconds
        self.progress.line(
            f"{self.prefix}robust accuracy after {label.upper()}: {share:.2f} % (total time {seconds:.1f} s)"
        )
        at_most = bounds(robust, self.verdicts.label[self.own])
        self.progress.line(f"{self.prefix}upper bounds after {label.upper()}: {at_most}")

    def search_model(self, stage: Attack) -> nn.Module:
        """The network that a stage searches on: the model, or its prepared version if the stage can use one."""
        if "none" in self.prepare or not getattr(stage, "prepared", False):
            return self.model
        if self._prepared is None:
            self._prepared = Prepared(
                self.model, self.x[self.example[: self.limit.size]].to(self.device), **dict.fromkeys(self.prepare, True)
            )  # fmt: skip
            if self._prepared.note:
                self.progress.line(f"{self.name}: the model is searched as it is: {self._prepared.note}")
        return self._prepared

    def _samples_to_attack(self, rows: Tensor) -> Tensor:
        return rows[self.robust[rows]] if self.attack.stages else rows

    def _stage_progress(self, number: int, label: str, count: int) -> StageProgress:
        """Progress after the first `count` blocks of a stage."""
        blocks, label_of = list(self.blocks.values()), self.verdicts.label
        seen = self.robust[torch.cat(blocks[:count])]
        left = sum(len(self._samples_to_attack(rows)) for rows in blocks[count:])
        standing = int(self.robust.sum())
        return StageProgress(
            label, count, len(blocks), (int(seen.sum()), len(seen)), bounds(self.robust[self.own], label_of[self.own]),
            left, self.time.seconds_left(number, left, standing),
        )  # fmt: skip

    def _is_unfinished(self, reached: StageProgress, later: Sequence[str]) -> bool:
        """Whether anything is left to attack; if not, the figures are final."""
        return reached.left > 0 or (len(later) > 0 and bool(self.robust.any()))

    def _record_stop(self, reached: StageProgress, later: Sequence[str]) -> None:
        at_most = reached.bounds
        self.verdicts.stopped = {
            "rule": str(self.stop), "stage": reached.stage, "block": reached.done, "blocks": reached.blocks,
            "average": float(at_most.average), "worst": float(at_most.worst), "worst_class": at_most.worst_class,
            "not_run": list(later),
        }  # fmt: skip
        self.progress.line(
            f"stopped by {self.stop} in {reached.stage} after block {reached.done} of {reached.blocks}: {at_most}"
        )

    def _block(self, number: int, label: str, stage: Attack, b: int, rows: Tensor) -> None:
        done = block_store.read(self.folder, label, b)
        if done is None:
            done = self._attack(number, label, stage, b, rows)
            block_store.write(self.folder, label, b, done)
        self.prediction[rows] = torch.tensor(done["prediction"], dtype=torch.int64)
        self.robust[rows] &= self.prediction[rows] == self.verdicts.label[rows]
        for kind in self.verdicts.passes:
            self.verdicts.passes[kind] += done["passes"][kind]
        if "micro_batch" in done:
            self.verdicts.micro_batch = min(done["micro_batch"], self.verdicts.micro_batch or done["micro_batch"])

    def _attack(self, number: int, label: str, stage: Attack, b: int, rows: Tensor) -> dict[str, Any]:
        if len(rows) == 0:
            return {"prediction": [], "passes": dict.fromkeys(self.verdicts.passes, 0)}
        self.progress.check()
        network, timer = self.search_model(stage), files.Timer()

        def work() -> dict[str, Any]:
            spans = self.limit.spans(len(rows))
            return _concat_results(
                [self._attack_samples(network, stage, label, b, rows[first:last]) for first, last in spans]
            )

        done = self.limit.retry_smaller(work, len(rows))
        self.time.add(number, len(rows), sum(done["passes"].values()), timer.seconds)
        return done

    def _attack_samples(self, network: nn.Module, stage: Attack, label: str, b: int, rows: Tensor) -> dict[str, Any]:
        draws = sample_generator(self.seed, "attack", self.name, label, block=b, samples=rows.tolist())
        return _attack_block(
            self.model, network, self.x[rows], self.verdicts.label[rows], stage, label, self.device, draws
        )


def _concat_results(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result of a block from those of its micro-batches."""
    if len(parts) == 1:
        return parts[0]
    return {
        "prediction": [prediction for part in parts for prediction in part["prediction"]],
        "passes": {kind: sum(part["passes"][kind] for part in parts) for kind in parts[0]["passes"]},
        "micro_batch": max(len(part["prediction"]) for part in parts),
    }


def _attack_block(
    model: nn.Module, network: nn.Module, x: Tensor, y: Tensor, stage: Attack, label: str,
    device: torch.device | str, draws: torch.Generator,
) -> dict[str, Any]:  # fmt: skip
    """Predictions under attack of one block, and the passes it took."""
    x, y = x.to(device), y.to(device)
    counter = PassCounter()
    networks = network.networks if isinstance(network, Prepared) else (network,)
    watches = [counter.watch(watched, "attack") for watched in networks]
    given = _snapshot(model)
    try:
        with forked(torch.device(device)), mode(model, train=False):
            x_adv = stage(network, x.clone(), y.clone(), generator=draws)
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
    """Predicted classes (n,) on the CPU, see `attacks.base.predicted`, with the model in eval mode."""
    with mode(model, train=False):
        parts = [predicted(model(part.to(device))).cpu() for part in x.split(max(1, batch))]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def class_count(model: nn.Module, x: ImageTensor, device: torch.device | str) -> int:
    """Number of classes that a model tells apart, from its logits for one of the samples x (n, C, H, W)."""
    with mode(model, train=False), torch.no_grad():
        return check_logits(model(x[:1].to(device)), 1)
