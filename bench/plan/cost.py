"""Estimated cost of a plan: passes, time, disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.passes import Passes
from attacks.registry import ATTACKS
from bench.core.files import is_done
from bench.data.registry import DATASETS
from bench.models.registry import MODELS
from bench.plan.jobs import EvalJob, Plan, TrainJob, blocks_of
from methods.registry import METHODS

# Multiply-adds per second that small batches reach in practice; the estimate is no better than these.
SPEED = {"cpu": 6e9, "cuda": 8e12, "mps": 1e12}


@dataclass(frozen=True)
class Cost:
    """Estimated cost of one job.

    Attributes:
        passes: of all its samples together, at most.
        seconds: rough; 0 where the model's size is unknown.
        bytes: of weights and state on disk.
        done: whether it is in the results folder already.
    """

    passes: Passes
    seconds: float
    bytes: float
    done: bool


def train_cost(job: TrainJob, out: Path) -> Cost:
    """Passes over the whole training, without those on held-out samples."""
    facts = DATASETS.sketch(job.dataset).facts
    size = job.train_limit or facts.get("sizes", {}).get("train", 0)
    passes = METHODS.sketch(job.method).call("passes", job.settings) * (size * job.recipe.epochs)
    mmacs, parameters = _model(job.model, facts)
    teachers = [_model(s["model"], facts)[0] for s in job.teachers.values() if "model" in s]
    teacher = sum(teachers) / max(1, len(teachers))  # several teachers are asked equally often
    work = (passes.forward + passes.input_grad + 2 * passes.backward) * mmacs
    work += (passes.teacher + passes.teacher_grad) * teacher
    checkpoints = 1 if job.select == "last" else 2
    return Cost(passes, _seconds(work, job), 4 * parameters * (checkpoints + 2), is_done(out / job.folder))


def evaluation_cost(job: EvalJob, out: Path) -> Cost:
    """Passes if no sample is ever fooled, an upper bound; of a part, for its blocks."""
    facts = DATASETS.sketch(job.dataset).facts
    full = facts.get("sizes", {}).get("test", 0)
    size = min(full, job.limit) if job.limit else full
    if job.part is not None:
        size = sum(min(job.block, size - b * job.block) for b in blocks_of(job.part, -(-size // job.block)))
    passes = ATTACKS.sketch(job.attack).call("passes", job.settings, facts.get("classes", 10)) * size
    mmacs, _ = _model(job.model, facts)
    return Cost(
        passes, _seconds((passes.forward + passes.input_grad) * mmacs, job), 20.0 * size, is_done(out / job.folder)
    )


def totals(plan: Plan, out: Path) -> tuple[list[tuple[TrainJob, Cost]], list[tuple[EvalJob, Cost]]]:
    """The cost of every job."""
    return (
        [(job, train_cost(job, out)) for job in plan.train],
        [(job, evaluation_cost(job, out)) for job in plan.evaluate],
    )


def _seconds(million_multiply_adds: float, job: TrainJob | EvalJob) -> float:
    speed = SPEED.get(job.device.partition(":")[0], SPEED["cpu"])
    return million_multiply_adds * 1e6 / (speed * (job.threads**0.5 if job.device == "cpu" else 1))


def _model(name: str, facts: Mapping[str, Any]) -> tuple[float, float]:
    """Millions of multiply-adds and parameters, at the data set's image size; zeros for a user's builder."""
    if ":" in name:
        return 0.0, 0.0
    known = MODELS.sketch(name).facts
    image, measured = facts.get("image", (3, 32, 32)), known.get("image", (3, 32, 32))
    return known.get("mmacs", 0.0) * (image[1] * image[2]) / (measured[1] * measured[2]), known.get("parameters", 0.0)
