"""The one training loop: batches, optimiser, hooks, history, selection, and a state to resume from."""

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
from bench.models.checkpoints import fit, load_weights, save_weights
from bench.plan.jobs import TrainJob
from bench.training.epoch_sums import Tally
from bench.training.fast_networks import EXAMPLES, FastNetworks
from bench.training.microbatch import is_exact
from bench.training.resume import load_state, save_state
from bench.training.run_record import description
from bench.training.step import Stepping, agreed_state, cut_of
from bench.training.validation import attacked, judged
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
        said: dict[str, Any] = {"tell": self.progress.line, "counter": self.counter}
        self.judging = BatchLimit(job.title, **said)
        self.cut = cut_of(job, self.method, self.model, self.group, **said)
        self.stepping = Stepping(
            self.method, self.network, self.ctx, group=self.group, cut=self.cut, counter=self.counter
        )
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.position = (0, 0)
        self.tally = Tally(parts.num_classes, self.device)

    def _context(self) -> Context:
        recipe, y, classes = self.job.recipe, self.train.y, self.parts.num_classes
        return Context(
            epochs=recipe.epochs, steps=math.ceil(len(y) / recipe.batch_size), device=self.device,
            num_classes=classes, class_counts=torch.bincount(y[y != HIDDEN], minlength=classes),
            generator=torch.Generator(self.device), teachers=self.networks.teachers, reduce=self.group.reduce,
            validator=self._validate if recipe.holdout else None, for_attack=self.networks.searched,
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
            self._describe()
            for epoch in range(self.position[0], self.ctx.epochs):
                timer = files.Timer()
                self._epoch(epoch)
                if self.group.is_main:
                    row = {"what": "epoch", "epoch": epoch, "seconds": timer.seconds}
                    files.append_line(self.folder / "timing.jsonl", row)
        if self.group.is_main:
            save_weights(self.folder / "last.safetensors", self._weights())
            files.write_lines(self.folder / "history.jsonl", self.history)
        self._describe()
        if self.group.is_main:
            files.mark_done(self.folder)

    def _epoch(self, epoch: int) -> None:
        ctx, first = self.ctx, self.position[1] if epoch == self.position[0] else 0
        self._set_rate(epoch, first)
        self.model.train()
        if first == 0:
            self.progress.check(self.group.any_rank)
            ctx.generator.manual_seed(derive(self.job.seed, "begin", epoch))
            self.method.begin_epoch(self.model, ctx)
            self.tally.clear()
        order = torch.randperm(len(self.train), generator=generator("cpu", self.job.seed, "order", epoch))
        batches = order.to(self.device).split(self.job.recipe.batch_size)
        own = tuple(batch[slice(*self.group.share(len(batch)))] for batch in batches)
        for step, rows in enumerate(self.train.prefetch(own)):
            if step < first:
                continue
            if step > 0 and self.group.any_rank(self.progress.stopping):
                self._check_finite(epoch, step)
                self._save(epoch, step)
                raise Interrupted(
                    f"{self.job.title}: saved in epoch {epoch}, step {step}; run the same command to go on"
                )
            self._set_rate(epoch, step)
            self._step(epoch, step, batches[step], rows)
        self._check_finite(epoch, ctx.steps)
        ctx.generator.manual_seed(derive(self.job.seed, "end", epoch))
        self.method.end_epoch(self.model, ctx)
        state = agreed_state(self._state(), self.job.title, self.group)
        for other in self.group.gather({name: sums.cpu() for name, sums in self.tally.tensors().items()})[1:]:
            self.tally.take_in(other)
        cut = merge_limits(self.group.gather(self.cut.state_dict()))
        row = {"epoch": epoch, "lr": ctx.lr, **self.tally.row(), "state": state, **cut.row()}
        validation = self._select(epoch)
        if validation:
            row["validation"] = validation
        self.history.append(row)
        self._save(epoch + 1, 0)
        if self.group.is_main:
            files.write_lines(self.folder / "history.jsonl", self.history)
        self.progress.update(epoch + 1, ctx.epochs, _running(row))

    def _set_rate(self, epoch: int, step: int) -> None:
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
            self.tally.skipped += 1
            return
        adv = self.stepping.perturb(batch, first, derive(seed, "perturb", epoch, step))
        with self.stepping.around(batch, adv):
            terms = self.stepping.backward(batch, adv)
            found = terms or Terms(batch.x.new_zeros(0), {})
            if len(rows):
                self.method.observe(batch, adv, found, ctx)
            if terms is not None:
                self.optimiser.step()
        self.stepping.sync_batchnorm_stats()
        self.method.after_step(self.model, ctx)
        self.tally.skipped += terms is None
        self.tally.add(found, adv.of(batch.y))
        if (step + 1) % FINITE_EVERY == 0:
            self._check_finite(epoch, step)

    def _batch(self, whole: Tensor, rows: Tensor, seed: int) -> tuple[Batch, int]:
        """This process's share of a step, and where it begins; every sample is augmented as in one process."""
        first, last = self.group.share(len(whole))
        kind, reflect = self.job.recipe.augment or "none", "_reflect"
        padding = "reflect" if kind.endswith(reflect) else "zeros"
        labels, x = self.train.y[whole], self.train.x[rows]
        with self.stepping.stream.within(first, last, len(whole)):
            stream = self.stepping.stream.manual_seed(seed)
            x = to_float(augment(x, kind.removesuffix(reflect), stream, padding=padding))
        return Batch(self.networks.images(x), labels[first:last], rows, labels), first

    def _check_finite(self, epoch: int, step: int) -> None:
        if not bool(torch.isfinite(self.group.reduce(self.tally.loss))):
            raise BenchError(
                f"{self.job.title}: the loss is not finite in epoch {epoch}, by step {step}; lower the learning rate "
                f"(--set {self.job.method}.recipe.lr=...) or check the settings that were changed"
            )

    # Validation and selection

    def _validate(self, attack: Attack, model: nn.Module | None = None) -> Validation:
        """Clean and attacked logits on the steer part."""
        return self._attacked(self.parts.steer, attack, model or self.model, "steer")

    def _attacked(self, part: Part, attack: Attack, model: nn.Module, purpose: str) -> Validation:
        stream = PartGenerator(self.device)
        stream.manual_seed(derive(self.job.seed, purpose, self.ctx.epoch))
        with self.counter.count_as("validation"):
            return attacked(model, part, attack, stream, device=self.device, group=self.group, cut=self.judging)

    def _select(self, epoch: int) -> dict[str, float] | None:
        """Average plus worst class under PGD-10 where the rule asks for it; keeps the best weights."""
        job = self.job
        if job.select == "last" or not selection_due(epoch, self.ctx.epochs):
            return None
        part = self.parts.test if job.select == "test" else self.parts.select
        attack = PGD(ThreatModel(job.norm, job.eps), steps=10)  # type: ignore[arg-type]
        found = self._attacked(part, attack, self.method.evaluation_model(self.model), "select")
        figures = judged(*found, self.parts.num_classes)
        if self.best is None or figures["score"] > self.best["score"]:
            self.best = {"epoch": epoch, "score": figures["score"]}
            if self.group.is_main:
                save_weights(self.folder / "best.safetensors", self._weights())
        return figures

    # Storing

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in self.method.evaluation_model(self.model).state_dict().items()}

    def _state(self) -> dict[str, list[float]]:
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
            "tally": self.tally.tensors(),
        }  # fmt: skip
        position = {
            "position": [epoch, step], "passes": self._passes(), "best": self.best,
            "skipped": self.tally.skipped, "history": self.history,
            "cuts": self.group.gather([self.cut.state_dict(), self.judging.state_dict()]),
        }  # fmt: skip
        save_state(self.folder / "state.pt", groups, position, group=self.group, own=("method", "tally"))

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.is_file():
            return
        if (self.folder / "run.json").is_file():
            self.parts.require_same(files.read_json(self.folder / "run.json")["data"], "hash", self.job.title)
        groups, position = load_state(path, self.device, self.group.rank)
        try:
            self.model.load_state_dict(groups["model"])
            self.method.load_state_dict(groups["method"])
        except RuntimeError as error:
            raise BenchError(f"{path}: does not fit this run ({error}); delete the folder and run again") from None
        for i, parameter in enumerate(self.model.parameters()):
            if str(i) in groups["momentum"]:  # in the layout of the parameter, which a fused step takes for granted
                momentum = torch.empty_like(parameter).copy_(groups["momentum"][str(i)])
                self.optimiser.state[parameter]["momentum_buffer"] = momentum.detach()
        self.tally.load(groups["tally"], position["skipped"])
        self.counter.restore(position["passes"] if self.group.is_main else {})
        cuts = position.get("cuts") or [position.get("cut", ())] * self.group.size  # states of before have one for all
        for cut, state in zip((self.cut, self.judging), cuts[self.group.rank], strict=False):
            cut.load_state_dict(state)
        self.position, self.best, self.history = tuple(position["position"]), position["best"], position["history"]
        self.progress.line(f"resumed at epoch {self.position[0]}, step {self.position[1]}")

    def _passes(self) -> dict[str, dict[str, int]]:
        """Passes of all processes together, for the first of them."""
        total = PassCounter()
        for counts in self.group.gather(self.counter.counts):
            total.add(counts)
        return total.counts

    def _describe(self) -> None:
        """Write run.json."""
        passes, cut = self._passes(), merge_limits(self.group.gather(self.cut.state_dict()))
        if self.group.is_main:
            record = description(
                self.job, self.parts, self.train,
                epoch_best=self.best["epoch"] if self.best else None,
                passes=passes, processes=self.group.describe(self.stepping.normed), arithmetic=self.networks.facts,
                cut=cut, exact=is_exact(self.model),
            )  # fmt: skip
            files.write_json(self.folder / "run.json", record)


def build_method(job: TrainJob, num_classes: int) -> Method:
    """The method of a job; a recipe with a moving average of the weights puts the composition `ema` around it."""
    name, settings = job.method, {**job.settings, "num_classes": num_classes}
    if job.recipe.ema:
        name, settings["ema_decay"] = f"ema:{name}", job.recipe.ema
    return METHODS[name](**settings)


def selection_due(epoch: int, epochs: int) -> bool:
    """Whether a checkpoint is judged after an epoch (from 0): all of up to 40, else each fifth and the last quarter."""
    return epochs <= 40 or (epoch + 1) % 5 == 0 or epoch >= epochs - epochs // 4


def _running(row: Mapping[str, Any]) -> str:
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
        start = load_weights(out / job.warm_start["folder"] / "last.safetensors")
    Trainer(job, parts, folder, teachers=teachers, start=start, progress=progress, group=group).run()
    return folder
