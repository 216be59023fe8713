"""Training and evaluation jobs: each has a folder named by a hash of everything that its content depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench.data.registry import DATASETS
from bench.models.registry import folder_name
from bench.results.keys import evaluation_key, training_key
from methods.recipes import Recipe

FORMAT = 1
PARTIAL = "partial"
DEFAULT_BLOCK = 100  # test samples attacked together, unless the run or the data set says otherwise


@dataclass(frozen=True)
class TrainJob:
    """One training run.

    Attributes:
        dataset, model, method, seed: identity of the run.
        role: "student" or "teacher".
        label: the name of its row: the method, with the settings the user changed.
        settings: keyword arguments of the method.
        recipe_name, recipe: the schedule, every value resolved.
        norm, eps: the threat model it is evaluated under.
        select: checkpoint rule.
        train_limit: number of training samples, a stratified part; None for all.
        teachers: role -> where the teacher comes from: {"key": ..., "folder": ..., "model": ...},
            {"file": ..., "model": ...} or {"zoo": ...}.
        warm_start: {"key": ..., "folder": ...}, or None.
        device, threads, deterministic: rounding depends on them.
        revision: of the method.
        source: hash of the plug-in's file, or "" for a method of the suite.
        train_with: the switches of `bench.config.speedups` that are on.
        model_source: hash of the file with the model's builder, or "" for a network of the suite or of a package.
        micro_batch: samples of a step that go through the network at once; None is all.
        processes: number of processes that train it together.
        sync_bn: whether BatchNorm's statistics are those of all processes.
    """

    dataset: str
    model: str
    method: str
    seed: int
    role: str
    label: str
    settings: Mapping[str, Any]
    recipe_name: str
    recipe: Recipe
    norm: str
    eps: float
    select: str
    train_limit: int | None
    teachers: Mapping[str, Mapping[str, str]]
    warm_start: Mapping[str, str] | None
    device: str
    threads: int
    deterministic: bool
    revision: int
    source: str = ""
    train_with: tuple[str, ...] = ()
    model_source: str = ""
    micro_batch: int | None = None
    processes: int = 1
    sync_bn: bool = False

    @property
    def key(self) -> str:
        """Hash of everything the weights depend on."""
        recipe = {f.name: getattr(self.recipe, f.name) for f in fields(self.recipe)}
        return training_key({**_fields(self), "recipe": recipe})

    @property
    def folder(self) -> Path:
        """Its folder below the results folder."""
        model, method = folder_name(self.model), self.method.replace(":", "+")
        return Path(DATASETS.label(self.dataset), model, method, self.key)

    @property
    def id(self) -> str:
        """Unique among the jobs of a launch: its key."""
        return self.key

    @property
    def lock_folder(self) -> Path:
        """The folder that is locked while it runs, and holds the message of a failure."""
        return self.folder

    @property
    def requires(self) -> tuple[str, ...]:
        """Keys of the runs it starts from."""
        sources = [*self.teachers.values(), *([self.warm_start] if self.warm_start else [])]
        return tuple(source["key"] for source in sources if "key" in source)

    @property
    def title(self) -> str:
        """For logs and progress: method and seed."""
        return f"{self.label} (teacher)" if self.role == "teacher" else f"{self.label} seed {self.seed}"


@dataclass(frozen=True)
class EvalJob:
    """One attack on one checkpoint.

    Attributes:
        run: folder of the run, below the results folder.
        run_key: its key.
        checkpoint: "last" or "best".
        attack: name.
        settings: the attack's settings besides its threat model.
        dataset, model: test data and network.
        norm, eps: threat model.
        seed: of the evaluation's streams.
        limit: stratified part of the test samples, None for all.
        block: samples that are attacked together.
        device, threads, deterministic, revision: rounding depends on them, or the attack.
        title: for logs and progress.
        source: hash of the plug-in's file, or "" for an attack of the suite.
        part: (number, count): only every count-th block, from the number-th on; None is the whole evaluation.
        prepare: how the searched copy of the model is sped up, see `bench.config.settings`; () is the default.
        stop_when: rule in the spelling of `bench.config.stop_rules.Rule`, or None; a part has none.
    """

    run: Path
    run_key: str
    checkpoint: str
    attack: str
    settings: Mapping[str, Any]
    dataset: str
    model: str
    norm: str
    eps: float
    seed: int
    limit: int | None
    block: int
    device: str
    threads: int
    deterministic: bool
    revision: int
    title: str = ""
    source: str = ""
    part: tuple[int, int] | None = None
    prepare: tuple[str, ...] = ()
    stop_when: str | None = None

    @property
    def key(self) -> str:
        """Hash of everything the outcomes depend on; parts have the key of the whole."""
        return evaluation_key(_fields(self))

    @property
    def folder(self) -> Path:
        """Its folder below the results folder."""
        return self.run / "eval" / self.key

    @property
    def id(self) -> str:
        """Unique among the jobs of a launch: its key, and its part."""
        return self.key if self.part is None else "{}/{}-of-{}".format(self.key, *self.part)

    @property
    def lock_folder(self) -> Path:
        """The folder that is locked while it runs, and holds the message of a failure; each part has its own."""
        return self.folder if self.part is None else self.folder / PARTIAL / "part-{}-of-{}".format(*self.part)

    @property
    def whole(self) -> EvalJob:
        """The whole evaluation, if this is a part of one."""
        return replace(self, part=None)

    @property
    def requires(self) -> tuple[str, ...]:
        """Key of the run it attacks."""
        return (self.run_key,)


Job = TrainJob | EvalJob


def title(job: Job) -> str:
    """The name of a job in progress lines and messages."""
    if isinstance(job, TrainJob):
        return f"train {job.title}"
    return f"{job.attack} on {job.title}" + ("" if job.part is None else " (part {}/{})".format(*job.part))


@dataclass(frozen=True)
class Plan:
    """Jobs, each behind those that it needs.

    Attributes:
        train, evaluate: the jobs.
        notes: adaptations of recipes and settings, a sentence each.
    """

    train: tuple[TrainJob, ...]
    evaluate: tuple[EvalJob, ...]
    notes: tuple[str, ...] = ()

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All of them."""
        return (*self.train, *self.evaluate)


def _fields(job: Job) -> dict[str, Any]:
    """The fields of a job by name, as its key takes them."""
    values = {f.name: getattr(job, f.name) for f in fields(job)}
    return {**values, "format": FORMAT, "settings": dict(job.settings), "dataset": DATASETS.label(job.dataset)}


def blocks_of(part: tuple[int, int] | None, blocks: int) -> Sequence[int]:
    """The blocks, from 0, of a part (number, count): every count-th; all of them if it is None."""
    return range(blocks) if part is None else range(part[0] - 1, blocks, part[1])
