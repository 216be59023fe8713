"""What run.json says of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.core import device as devices
from bench.core.out_of_memory import Cut, is_exact
from bench.plan.jobs import FORMAT
from methods.base import HIDDEN

if TYPE_CHECKING:
    from bench.training.trainer import Trainer


def description(trainer: Trainer, passes: Mapping[str, Mapping[str, int]], cut: Cut) -> dict[str, Any]:
    """The content of run.json.

    Args:
        trainer: of the run.
        passes: made so far, of all processes together.
        cut: the smallest micro-batches of any process.
    """
    job, parts, best = trainer.job, trainer.parts, trainer.best
    training = {name: value for name, value in asdict(job.recipe).items() if name != "settings"}
    names = ("model", "method", "label", "seed", "role")
    return {
        "format": FORMAT, "key": job.key, "dataset": parts.name, **{name: getattr(job, name) for name in names},
        "recipe": job.recipe_name, "epochs": job.recipe.epochs, "selection": job.select,
        "epoch_best": best["epoch"] if best else None,
        "norm": job.norm, "eps": job.eps, "settings": dict(job.settings), "training": training,
        "data": {
            "classes": parts.num_classes, "class_names": list(parts.class_names), "train_size": len(trainer.train),
            "select_size": len(parts.select), "steer_size": len(parts.steer), "test_size": len(parts.test),
            "class_counts": parts.counts, "hash": parts.hash, "test_hash": parts.test_hash, **_labelled_size(trainer),
        },
        "teachers": {role: dict(source) for role, source in job.teachers.items()},
        "warm_start": None if job.warm_start is None else dict(job.warm_start),
        "passes": passes, "versions": devices.versions(),
        "processes": trainer.team.describe(trainer.stepping.normed),
        "micro_batch": cut.describe(asked=job.micro_batch, exact=is_exact(trainer.model)),
        "hardware": devices.describe(job.device, job.threads), "arithmetic": trainer.forms.facts,
        "deterministic": job.deterministic, "revision": job.revision, "source": job.source,
        "model_source": job.model_source,
    }  # fmt: skip


def _labelled_size(trainer: Trainer) -> dict[str, int]:
    """How many labels the method asked to see, where it did not ask for all."""
    labelled = int((trainer.train.y != HIDDEN).sum())
    return {} if labelled == len(trainer.train) else {"labelled_size": labelled}
