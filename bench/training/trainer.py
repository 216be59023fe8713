"""The training loop: batches, optimiser, hooks of the method, history, checkpoint selection, resuming."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.draws import PartGenerator
from attacks.pgd import PGD
from attacks.threat import ThreatModel
from bench.core import files
from bench.core.out_of_memory import BatchLimit, merge_limits
from bench.core.pass_counter import PassCounter
from bench.core.progress import Progress
from bench.core.seeding import derive, forked, generator, seed_global
from bench.data.augmentation import augment
from bench.data.splits import Part, Parts, to_float
from bench.distributed.process_group import ProcessGroup
from bench.errors import BenchError, Interrupted
from bench.models.builders import build
from bench.models.checkpoints import fit, load_run_weights, save_weights
from bench.plan.jobs import TrainJob
from bench.training.epoch_sums import EpochSums
from bench.training.fast_networks import EXAMPLES, FastNetworks
from bench.training.microbatch import splits_exactly
from bench.training.resume import load_state, save_state
from bench.training.run_record import resumed_environments, run_record
from bench.training.step import TrainingStep, micro_batch_limit, require_same_state
from bench.training.validation import selection_metrics, validate
from methods.base import HIDDEN, Batch, Context, Method, Terms, Validation
from methods.losses import sum_dtype
from methods.registry import METHODS

FINITE_EVERY = 50


class Trainer:
    """One run, from its start or from its stored state to its end.

    Args:
        job: what to train.
        parts: the data.
        folder: where the run is stored.
        teachers: role -> frozen teacher.
        start: weights to start from, for a warm start.
        progress: receives progress and says when to stop.
        group: the processes that train the model together; of them the first alone writes.
    """

    def __init__(
        self,
        job: TrainJob,
        parts: Parts,
        folder: Path,
        *,
        teachers: Mapping[str, nn.Module],
        start: Mapping[str, Tensor] | None = None,
        progress: Progress | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.job, self.parts, self.folder, self.progress = job, parts, folder, progress or Progress()
        self.group = group or ProcessGroup()
        self.device = torch.device(job.device)
        self.train = (parts.train if job.recipe.holdout else parts.train.concat(parts.select, parts.steer)).to(
            self.device
        )
        self.model = build(job.model, parts.num_classes, *parts.image[:2], seed=derive(job.seed, "model"))
        if start is not None:
            fit(self.model, dict(start), where=f"{job.title}: warm start")
        self.model = self.group.convert_batchnorm(self.model.to(self.device))
        try:
            method = build_method(job, parts.num_classes)
            self.train = replace(self.train, y=method.visible_labels(self.train.y))
        except (TypeError, ValueError) as error:
            raise BenchError(f"{job.title}: {error}") from None
        self.method = method.to(self.device, sum_dtype(self.device))
        self.counter = PassCounter()
        self.networks = FastNetworks(
            self.model, {role: teacher.to(self.device) for role, teacher in teachers.items()},
            to_float(self.train.x[:EXAMPLES].to(self.device)), job.train_with,
            counter=self.counter, warn=self.progress.line,
        )  # fmt: skip
        self.network = self.networks.student
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), lr=job.recipe.lr, momentum=job.recipe.momentum,
            weight_decay=job.recipe.weight_decay, nesterov=job.recipe.nesterov, fused="fused" in job.train_with or None,
        )  # fmt: skip
        self.ctx = self._context()
        reporting: dict[str, Any] = {"tell": self.progress.line, "counter": self.counter}
        self.validation_limit = BatchLimit(job.title, **reporting)
        self.limit = micro_batch_limit(job, self.method, self.model, self.group, **reporting)
        self.training_step = TrainingStep(
            self.method, self.network, self.ctx, group=self.group, limit=self.limit, counter=self.counter
        )
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.environments: list[dict[str, Any]] = []
        self.position = (0, 0)
        self.sums = EpochSums(parts.num_classes, self.device)

    def _context(self) -> Context:
        recipe, y, classes = self.job.recipe, self.train.y, self.parts.num_classes
        return Context(
            epochs=recipe.epochs, steps=math.ceil(len(y) / recipe.batch_size), device=self.device,
            num_classes=classes, class_counts=torch.bincount(y[y != HIDDEN], minlength=classes),
            generator=torch.Generator(self.device), teachers=self.networks.teachers, reduce=self.group.reduce,
            validator=self._validate if recipe.holdout else None, for_attack=self.networks.for_attack,
        )  # fmt: skip

    def run(self) -> None:
        """Train to the end, storing after every epoch.

        Raises:
            BenchError: if the loss is not finite.
            Interrupted: if asked to stop; everything is saved.
        """
        with forked(self.device):
            try:
                self.method.setup(self.model, self.ctx)
            except ValueError as error:
                raise BenchError(f"{self.job.title}: {error}") from None
            self._resume()
            self._write_run_record()
            for epoch in range(self.position[0], self.ctx.epochs):
                if epoch in {1, self.position[0]}:
                    self.networks.recheck()
                timer = files.Timer()
                self._epoch(epoch)
                if self.group.is_main:
                    row = {"what": "epoch", "epoch": epoch, "seconds": timer.seconds}
                    files.append_line(self.folder / "timing.jsonl", row)
        hashes: dict[str, str] = {}
        if self.group.is_main:
            files.write_lines(self.folder / "history.jsonl", self.history)
            hashes = self._save_last()
        self._write_run_record(hashes)
        if self.group.is_main:
            files.mark_done(self.folder)

    def _epoch(self, epoch: int) -> None:
        ctx, first = self.ctx, self.position[1] if epoch == self.position[0] else 0
        self._set_lr(epoch, first)
        self.model.train()
        if first == 0:
            self.progress.check(self.group.any_rank)
            ctx.generator.manual_seed(derive(self.job.seed, "begin", epoch))
            self.method.begin_epoch(self.model, ctx)
            self.sums.clear()
        order = torch.randperm(len(self.train), generator=generator("cpu", self.job.seed, "order", epoch))
        batches = order.to(self.device).split(self.job.recipe.batch_size)
        shares = tuple(batch[slice(*self.group.share(len(batch)))] for batch in batches)
        for step, rows in enumerate(self.train.prefetch(shares)):
            if step < first:
                continue
            if step > 0 and self.group.any_rank(self.progress.stopping):
                self._check_finite(epoch, step)
                self._save(epoch, step)
                raise Interrupted(
                    f"{self.job.title}: saved in epoch {epoch}, step {step}; run the same command to go on"
                )
            self._set_lr(epoch, step)
            self._step(epoch, step, batches[step], rows)
        self._check_finite(epoch, ctx.steps)
        ctx.generator.manual_seed(derive(self.job.seed, "end", epoch))
        self.method.end_epoch(self.model, ctx)
        state = require_same_state(self._class_state(), self.job.title, self.group)
        for other in self.group.gather({name: sums.cpu() for name, sums in self.sums.tensors().items()})[1:]:
            self.sums.merge(other)
        limit = merge_limits(self.group.gather(self.limit.state_dict()))
        row = {"epoch": epoch, "lr": ctx.lr, **self.sums.row(), "state": state, **limit.row()}
        validation = self._select(epoch)
        if validation:
            row["validation"] = validation
        self.history.append(row)
        self._save(epoch + 1, 0)
        if self.group.is_main:
            files.write_lines(self.folder / "history.jsonl", self.history)
        self.progress.update(epoch + 1, ctx.epochs, _summary(row))

    def _set_lr(self, epoch: int, step: int) -> None:
        ctx = self.ctx
        ctx.epoch, ctx.lr = epoch, self.job.recipe.lr_at(epoch, (step + 0.5) / ctx.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = ctx.lr

    def _step(self, epoch: int, step: int, whole: Tensor, rows: Tensor) -> None:
        """One optimiser step on the rows `whole`, of which `rows` are this process's share."""
        ctx, seed = self.ctx, self.job.seed
        ctx.step = step
        seed_global(self.device, derive(seed, "forward", epoch, step, *self.group.seed_purpose))
        batch, first = self._batch(whole, rows, derive(seed, "augment", epoch, step))
        if len(whole) < self.group.min_samples:  # BatchNorm has no statistics of one sample
            self.sums.skipped += 1
            return
        adv = self.training_step.perturb(batch, first, derive(seed, "perturb", epoch, step))
        with self.training_step.around(batch, adv):
            terms = self.training_step.backward(batch, adv)
            step_terms = terms or Terms(batch.x.new_zeros(0), {})
            if len(rows):
                self.method.observe(batch, adv, step_terms, ctx)
            if terms is not None:
                self.optimiser.step()
        self.training_step.sync_batchnorm_stats()
        self.method.after_step(self.model, ctx)
        self.sums.skipped += terms is None
        self.sums.add(step_terms, adv.of(batch.y))
        if (step + 1) % FINITE_EVERY == 0:
            self._check_finite(epoch, step)

    def _batch(self, whole: Tensor, rows: Tensor, seed: int) -> tuple[Batch, int]:
        """This process's share of a step, and where it begins; every sample is augmented as in one process."""
        first, last = self.group.share(len(whole))
        kind, reflect = self.job.recipe.augment or "none", "_reflect"
        padding = "reflect" if kind.endswith(reflect) else "zeros"
        labels, x = self.train.y[whole], self.train.x[rows]
        with self.training_step.stream.within(first, last, len(whole)):
            stream = self.training_step.stream.manual_seed(seed)
            x = to_float(augment(x, kind.removesuffix(reflect), stream, padding=padding))
        return Batch(self.networks.images(x), labels[first:last], rows, labels), first

    def _check_finite(self, epoch: int, step: int) -> None:
        if not bool(torch.isfinite(self.group.reduce(self.sums.loss))):
            raise BenchError(
                f"{self.job.title}: the loss is not finite in epoch {epoch}, by step {step}; lower the learning rate "
                f"(--set {self.job.method}.recipe.lr=...) or check the settings that were changed"
            )

    # Validation and selection

    def _validate(self, attack: Attack, model: nn.Module | None = None) -> Validation:
        """Labels, clean and attacked logits of the part of the validation split that steers the method."""
        return self._attack_part(self.parts.steer, attack, model or self.model, "steer")

    def _attack_part(self, part: Part, attack: Attack, model: nn.Module, purpose: str) -> Validation:
        stream = PartGenerator(self.device)
        stream.manual_seed(derive(self.job.seed, purpose, self.ctx.epoch))
        with self.counter.count_as("validation"):
            return validate(
                model, part, attack, stream, device=self.device, group=self.group, limit=self.validation_limit
            )

    def _select(self, epoch: int) -> dict[str, float] | None:
        """Validate under PGD-10 if the selection rule asks for it; store the weights if they are the best so far."""
        job = self.job
        if job.select == "last" or not is_selection_epoch(epoch, self.ctx.epochs):
            return None
        part = self.parts.test if job.select == "test" else self.parts.select
        attack = PGD(ThreatModel(job.norm, job.eps), steps=10)  # type: ignore[arg-type]
        outputs = self._attack_part(part, attack, self.method.evaluation_model(self.model), "select")
        metrics = selection_metrics(*outputs, self.parts.num_classes)
        if self.best is None or metrics["score"] > self.best["score"]:
            self.best = {"epoch": epoch, "score": metrics["score"]}
            if self.group.is_main:
                self.best["sha256"] = save_weights(self.folder / "best.safetensors", self._weights())
        return metrics

    # Storing

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in self.method.evaluation_model(self.model).state_dict().items()}

    def _save_last(self) -> dict[str, str]:
        """Save the last weights; SHA-256 of the run's files, of the best weights as they were when saved."""
        hashes = {"last.safetensors": save_weights(self.folder / "last.safetensors", self._weights())}
        if self.best is not None:
            best = self.folder / "best.safetensors"
            hashes[best.name] = self.best.get("sha256") or files.file_hash(best)  # states of before have none
        return hashes | {name: files.file_hash(self.folder / name) for name in ("history.jsonl", "state.pt")}

    def _class_state(self) -> dict[str, list[float]]:
        """The method's per-class state, for the history."""
        return {name: getattr(self.method, name).cpu().double().tolist() for name in self.method.reported}

    def _save(self, epoch: int, step: int) -> None:
        """Store what resuming at (epoch, step) needs."""
        momentum = {
            str(i): state["momentum_buffer"]
            for i, parameter in enumerate(self.model.parameters())
            if "momentum_buffer" in (state := self.optimiser.state.get(parameter, {}))
        }
        groups = {
            "model": self.model.state_dict(), "method": self.method.state_dict(), "momentum": momentum,
            "tally": self.sums.tensors(),
        }  # fmt: skip
        position = {
            "position": [epoch, step], "passes": self._passes(), "best": self.best,
            "skipped": self.sums.skipped, "history": self.history,
            "cuts": self.group.gather([self.limit.state_dict(), self.validation_limit.state_dict()]),
        }  # fmt: skip
        save_state(
            self.folder / "state.pt", groups, position,
            key=self.job.key, group=self.group, per_process=("method", "tally"),
        )  # fmt: skip

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.is_file():
            return
        self.environments = resumed_environments(self.folder, self.job, self.parts, self.progress.line)
        groups, position = load_state(path, self.device, key=self.job.key, rank=self.group.rank)
        try:
            self.model.load_state_dict(groups["model"])
            self.method.load_state_dict(groups["method"])
        except RuntimeError as error:
            raise BenchError(f"{path}: does not fit this run ({error}); delete the folder and run again") from None
        for i, parameter in enumerate(self.model.parameters()):
            if str(i) in groups["momentum"]:  # in the layout of the parameter, which a fused step takes for granted
                momentum = torch.empty_like(parameter).copy_(groups["momentum"][str(i)])
                self.optimiser.state[parameter]["momentum_buffer"] = momentum.detach()
        self.sums.load(groups["tally"], position["skipped"])
        self.counter.restore(position["passes"] if self.group.is_main else {})
        cuts = position.get("cuts") or [position.get("cut", ())] * self.group.size  # states of before have one for all
        for limit, state in zip((self.limit, self.validation_limit), cuts[self.group.rank], strict=False):
            limit.load_state_dict(state)
        self.position, self.best, self.history = tuple(position["position"]), position["best"], position["history"]
        self.progress.line(f"resumed at epoch {self.position[0]}, step {self.position[1]}")

    def _passes(self) -> dict[str, dict[str, int]]:
        """Passes of all processes together, in the first of them."""
        total = PassCounter()
        for counts in self.group.gather(self.counter.counts):
            total.add(counts)
        return total.counts

    def _write_run_record(self, hashes: Mapping[str, str] | None = None) -> None:
        """Write run.json, at the end with the SHA-256 of the files beside it."""
        passes, limit = self._passes(), merge_limits(self.group.gather(self.limit.state_dict()))
        if self.group.is_main:
            record = run_record(
                self.job, self.parts, self.train,
                epoch_best=self.best["epoch"] if self.best else None,
                passes=passes, processes=self.group.describe(self.training_step.has_batchnorm),
                arithmetic=self.networks.facts, limit=limit, exact=splits_exactly(self.model),
                hashes=hashes or {}, environments=self.environments,
            )  # fmt: skip
            files.write_json(self.folder / "run.json", record)


def build_method(job: TrainJob, num_classes: int) -> Method:
    """The method of a job; a recipe with a moving average of the weights puts the composition `ema` around it."""
    name, settings = job.method, {**job.settings, "num_classes": num_classes}
    if job.recipe.ema:
        name, settings["ema_decay"] = f"ema:{name}", job.recipe.ema
    return METHODS[name](**settings)


def is_selection_epoch(epoch: int, epochs: int) -> bool:
    """Whether the model is validated after an epoch (from 0): up to 40 each, else each fifth and the last quarter."""
    return epochs <= 40 or (epoch + 1) % 5 == 0 or epoch >= epochs - epochs // 4


def _summary(row: Mapping[str, Any]) -> str:
    view = "adv" if "adv" in row["train"] else "clean"
    accuracy = row["train"].get(view, {}).get("accuracy", float("nan"))
    text = f"loss {row['loss']:.3f}, {view} {accuracy:.1%}"
    return text + (f", held-out worst {row['validation']['worst']:.1%}" if "validation" in row else "")


def train(
    job: TrainJob, parts: Parts, out: Path, data_dir: Path, progress: Progress | None = None,
    *, download: bool = False, group: ProcessGroup | None = None,
) -> Path:  # fmt: skip
    """Train one job, or go on with it; returns its folder.

    Args:
        job: what to train.
        parts: its data.
        out: results folder; teachers and warm starts of the same plan are read from it.
        data_dir: data folder, for zoo teachers.
        progress: receives progress and says when to stop.
        download: fetch a zoo teacher if it is missing.
        group: the processes that train it together, each of which calls this.

    Raises:
        BenchError: if a teacher is refused or the loss is not finite.
        Interrupted: if asked to stop.
    """
    from bench.models.teachers import load_teacher

    folder = out / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    teachers = {
        role: load_teacher(source, job, parts, out, data_dir, download, job.device)
        for role, source in job.teachers.items()
    }
    start = None
    if job.warm_start is not None:
        start = load_run_weights(out / job.warm_start["folder"])
    Trainer(job, parts, folder, teachers=teachers, start=start, progress=progress, group=group).run()
    return folder
