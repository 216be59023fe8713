"""Checks before a launch, so that no hours are lost: missing data, impossible settings, implausible teachers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.registry import ATTACKS
from attacks.threat import ThreatModel
from bench.config.defaults import teacher_flag
from bench.core import files
from bench.core.seeding import forked
from bench.data.splits import Parts, limit, load
from bench.errors import UsageError
from bench.evaluation.cards import Conditions, ensure_card
from bench.launch.scheduler import Workspace
from bench.models.builders import build
from bench.models.teachers import load_teacher
from bench.plan.jobs import EvalJob, Plan, TrainJob
from bench.training.step import min_micro_batch, why_unsplittable
from bench.training.trainer import build_method
from methods.base import HIDDEN, Context, Validation


def preflight(plan: Plan, workspace: Workspace, note: Callable[[str], None] = lambda sentence: None) -> None:
    """Read the data once, build every attack, model and method, set the methods up, and check the given teachers.

    A given teacher gets its card here, see `bench.evaluation.cards`. Jobs that are done already are passed over; a
    plan without others costs nothing.

    Args:
        plan: the jobs.
        workspace: folders and plug-ins.
        note: receives a sentence before anything that takes time.

    Raises:
        UsageError: for the first thing that cannot work.
        BenchError: if a given teacher is refused.
    """
    missing = [job for job in plan.jobs if not files.is_done(workspace.out / job.folder)]
    if not missing:
        return
    for job in missing:
        try:
            _check_settings(job)
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from None
    parts = load(missing[0].dataset, workspace.data_dir, download=workspace.download)
    for kind, n in {(isinstance(job, TrainJob), _limit(job)) for job in missing}:
        if n is not None:
            limit(parts.train if kind else parts.test, n, "--train-limit" if kind else "--limit")
    trainings = [job for job in missing if isinstance(job, TrainJob)]
    _set_up_all(trainings, parts)
    given = {
        source.get("file", source["label"]): (source, job, f"{teacher_flag(role)}-model")
        for job in trainings
        for role, source in job.teachers.items()
        if "key" not in source
    }
    limits = [job.limit for job in plan.evaluate if job.limit is not None]
    largest = max(limits) if limits and len(limits) == len(plan.evaluate) else None
    for source, job, flag in given.values():
        folders = (workspace.out, workspace.data_dir)
        teacher = load_teacher(source, job, parts, *folders, workspace.download, flag=flag, note=note)
        conditions = Conditions(job.norm, job.eps, largest, job.device, job.threads, job.deterministic)
        ensure_card(source, teacher, parts, conditions, out=workspace.out, data_dir=workspace.data_dir, note=note)


def _limit(job: TrainJob | EvalJob) -> int | None:
    return job.train_limit if isinstance(job, TrainJob) else job.limit


def _check_settings(job: TrainJob | EvalJob) -> None:
    """Build the method or the attack of a job, which check their settings."""
    if isinstance(job, TrainJob):
        method = build_method(job, job.settings["num_classes"])
        why_unsplittable(job, method, job.processes)
        if method.drops_rows and job.sync_bn:
            raise ValueError(
                f"{job.title}: may leave a process without samples, and --sync-bn waits for all; leave out --sync-bn"
            )
    else:
        ATTACKS[job.attack](threat=ThreatModel(job.norm, job.eps), **job.settings)  # type: ignore[arg-type]


class _UnavailableTeachers(Mapping[str, Any]):
    """Stands for the teachers before the run: raises LookupError when a method asks for one."""

    def _refuse(self, *asked: Any) -> Any:
        raise LookupError("not before the run has begun")

    __getitem__ = __iter__ = __len__ = _refuse


def _unavailable_validation(*asked: Any) -> Validation:
    """Stands for validation before the run, likewise."""
    raise LookupError("not before the run has begun")


def _set_up_all(jobs: Sequence[TrainJob], parts: Parts) -> None:
    """Build every network, and set every method up on it, once for all seeds."""
    labels: dict[tuple[int | None, bool], Tensor] = {}
    for name in dict.fromkeys(job.model for job in jobs):
        model = build(name, parts.num_classes, *parts.image[:2], seed=0)
        for job in {replace(job, seed=0).key: job for job in reversed(jobs) if job.model == name}.values():
            limited = (job.train_limit, job.recipe.holdout)
            labels[limited] = labels[limited] if limited in labels else _labels(job, parts)
            _set_up(job, parts, copy.deepcopy(model), labels[limited])


def _labels(job: TrainJob, parts: Parts) -> Tensor:
    """The labels that a run trains on."""
    train = parts.train if job.train_limit is None else limit(parts.train, job.train_limit)
    return torch.cat([part.y for part in (train, *(() if job.recipe.holdout else (parts.select, parts.steer)))])


def _set_up(job: TrainJob, parts: Parts, model: nn.Module, y: Tensor) -> None:
    """Let a method say what it cannot work with, as it does when its run begins.

    Raises:
        UsageError: if it refuses the labels, the schedule or the model, or the micro-batches are too small.
    """
    min_micro_batch(job, model)
    method = build_method(job, parts.num_classes)
    try:
        with forked(torch.device("cpu")):
            y = method.visible_labels(y)
            method.setup(model, _context(job, y, parts.num_classes))
    except ValueError as error:
        raise UsageError(f"{job.title}: {error}") from None
    except Exception:  # it needs teachers or validation, which only the run has
        return


def _context(job: TrainJob, y: Tensor, num_classes: int) -> Context:
    return Context(
        epochs=job.recipe.epochs, steps=math.ceil(len(y) / job.recipe.batch_size), device=torch.device("cpu"),
        num_classes=num_classes, class_counts=torch.bincount(y[y != HIDDEN], minlength=num_classes),
        generator=torch.Generator(), teachers=_UnavailableTeachers(),
        validator=_unavailable_validation if job.recipe.holdout else None,
    )  # fmt: skip
