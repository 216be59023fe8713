"""Inputs of the training benchmarks: synthetic data of a shape, and trainers stopped before their next step."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.config.settings import RunSettings
from bench.config.speedups import NONE
from bench.core.pass_counter import PassCounter
from bench.core.seeding import derive, forked
from bench.data.splits import Part, Parts, load, to_float
from bench.models.builders import build
from bench.plan.planner import make_plan
from bench.training.fast_networks import FastNetworks
from bench.training.trainer import Trainer
from benchmarks.passes import Ledger
from benchmarks.plain_steps import AS_RELEASED, STEPS, Scene, Written
from methods.base import Batch

FEW = 20  # held-out samples of planted data, for methods that look at some before an epoch


@dataclass(frozen=True)
class Ground:
    """Data, model and batch of a measurement.

    Attributes:
        dataset: whose settings and recipe methods take.
        model, teacher: architectures.
        batch: samples of a step.
        device, threads: where it runs.
        planted: images are random; else the data set is loaded, as digits can be everywhere.
    """

    dataset: str
    model: str
    teacher: str
    batch: int
    device: str = "cpu"
    threads: int = 1
    planted: bool = False

    @property
    def name(self) -> str:
        """The heading of its tables."""
        images = "random images in the shape of " if self.planted else ""
        return f"{images}{self.dataset}, {self.model}, batch {self.batch}"

    @cached_property
    def parts(self) -> Parts:
        """The data."""
        if not self.planted:
            return load(self.dataset)
        stream = torch.Generator().manual_seed(0)
        sizes = {"train": self.batch, "select": FEW, "steer": FEW, "test": FEW}
        made = {name: _planted(n, stream) for name, n in sizes.items()}
        return Parts(self.dataset, **made, class_names=tuple("0123456789"))

    def trainer(self, method: str, switches: Sequence[str] | None) -> Trainer:
        """A trainer in its last epoch, when every mechanism of a method is at work; weights do not move.

        Args:
            method: name.
            switches: of `bench.config.speedups`; None takes the device's.
        """
        settings = RunSettings(
            methods=(method,), dataset=self.dataset, model=self.model, batch_size=self.batch, device=self.device,
            threads=self.threads, train_with=() if switches is None else tuple(switches) or (NONE,),
        )  # fmt: skip
        plan = make_plan(settings.validated(), self.device)
        (job,) = [job for job in plan.train if job.method == method and job.role == "student"]
        channels, size, _ = self.parts.image
        teachers = {
            role: build(self.teacher, self.parts.num_classes, channels, size, seed=i).eval().requires_grad_(False)
            for i, role in enumerate(job.teachers)
        }
        trainer = Trainer(job, self.parts, Path(tempfile.gettempdir()), teachers=teachers)
        with forked(trainer.device):
            trainer.ctx.epoch, trainer.ctx.lr = job.recipe.epochs - 1, 0.0
            trainer.method.setup(trainer.model, trainer.ctx)
            trainer.ctx.generator.manual_seed(0)
            trainer.model.train()
            trainer.method.begin_epoch(trainer.model, trainer.ctx)
        self.rest(trainer.optimiser)
        return trainer

    def rest(self, optimiser: torch.optim.Optimizer, lr: float = 0.0) -> None:
        """Let an optimiser do its work without moving a weight."""
        for group in optimiser.param_groups:
            group["lr"] = lr


class SuiteStep:
    """A task: the next step of a trainer, on the same batch every time."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.step = trainer, 0
        self.rows = torch.arange(min(trainer.job.recipe.batch_size, len(trainer.train)), device=trainer.device)

    def __call__(self) -> None:
        """Make the step."""
        self.trainer._step(self.trainer.ctx.epoch, self.step, self.rows, self.rows)
        self.step += 1

    def counted(self) -> Ledger:
        """The passes of a step, which is made."""
        ledger = Ledger()
        with ledger.watching(networks_of(self.trainer)):
            self()
        return ledger


class PlainStep:
    """A task: the plain step of a method, with weights, teacher and batch of a trainer.

    Args:
        method: name.
        trainer: of the suite's step; without switches, so that its teacher is as it was.
        how: the way it is written.
    """

    def __init__(self, method: str, trainer: Trainer, how: Written = AS_RELEASED) -> None:
        job, model = trainer.job, copy.deepcopy(trainer.model)
        recipe = job.recipe
        optimiser = torch.optim.SGD(
            model.parameters(), lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )  # fmt: skip
        self.teachers = trainer.ctx.teachers
        teacher = self.teachers.get("robust")
        self.scene = Scene(model, teacher, optimiser, trainer.method, torch.Generator(trainer.device), how)
        self.write = STEPS[method]
        self.x: Tensor = to_float(trainer.train.x[: recipe.batch_size])
        self.y = trainer.train.y[: recipe.batch_size]
        self.seed = derive(job.seed, "perturb", trainer.ctx.epoch, 0)

    def __call__(self) -> None:
        """Make the step."""
        self.scene.generator.manual_seed(self.seed)
        self.write(self.scene, self.x, self.y)

    def counted(self) -> Ledger:
        """The passes of a step, which is made."""
        ledger, scene = Ledger(), self.scene
        networks = {("student", "as it is"): scene.model}
        with ledger.watching(networks | ({("teacher", "as it is"): scene.teacher} if scene.teacher else {})):
            self()
        return ledger


def networks_of(trainer: Trainer) -> Mapping[tuple[str, str], nn.Module]:
    """Every network whose passes a step makes, by owner and form."""
    networks = trainer.networks
    found: dict[tuple[str, str], nn.Module] = {("student", "as it is"): networks.student}
    if networks.folded is not None:
        found["student", "folded"] = networks.folded
    for role, teacher in networks.teachers.items():
        found[f"teacher {role}" if len(networks.teachers) > 1 else "teacher", "as it is"] = teacher
    return found


def gradients_differ(trainer: Trainer, plain: PlainStep, dtype: torch.dtype = torch.float64) -> float:
    """How far the gradients of both steps are apart, relative to those of the plain one.

    From the same weights, statistics, draws and images, few of them where images are planted. In float64 a difference
    of passes cannot hide behind rounding, which in float32 turns some signs of the attack's gradients.
    """
    planted = len(trainer.parts.train) == trainer.job.recipe.batch_size
    n = 2 if planted else trainer.job.recipe.batch_size
    x, y = to_float(trainer.train.x[:n]).to(dtype), trainer.train.y[:n]
    model = copy.deepcopy(trainer.model).to(dtype)
    other = copy.deepcopy(model)
    script = replace(plain.scene, model=other, optimiser=_Nothing(other), teacher=_cast(plain, dtype))
    given = {role: copy.deepcopy(teacher).to(dtype) for role, teacher in plain.teachers.items()}
    networks = FastNetworks(model, given, x, trainer.job.train_with, counter=PassCounter(), warn=lambda sentence: None)
    ctx = replace(
        trainer.ctx, teachers=networks.teachers, for_attack=networks.for_attack,
        generator=torch.Generator(x.device).manual_seed(plain.seed),
    )  # fmt: skip
    batch = Batch(networks.images(x), y, torch.arange(n, device=x.device), y)
    adv = trainer.method.perturb(networks.student, batch, ctx)
    trainer.method.loss(networks.student, batch, adv, ctx).loss.mean().backward()
    script.generator.manual_seed(plain.seed)
    plain.write(script, x, y)
    ours, theirs = (torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]).double()
                    for m in (model, other))  # fmt: skip
    return float((ours - theirs).norm() / theirs.norm())


class _Nothing(torch.optim.SGD):
    """An optimiser whose step changes nothing, so that gradients can be read."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Nothing."""


def _cast(plain: PlainStep, dtype: torch.dtype) -> nn.Module | None:
    return None if plain.scene.teacher is None else copy.deepcopy(plain.scene.teacher).to(dtype)


def _planted(n: int, stream: torch.Generator) -> Part:
    x = torch.randint(256, (n, 3, 32, 32), generator=stream, dtype=torch.uint8)
    return Part(x, torch.arange(n) % 10, torch.arange(n))
