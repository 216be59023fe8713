"""What a plan is made of: jobs, each a folder whose name is the hash of everything its content depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bench.store import key_of
from methods.recipes import Recipe

FORMAT = 1


@dataclass(frozen=True)
class TrainJob:
    """One training run.

    Attributes:
        dataset, model, method, seed, role: what is trained; the role is "student" or "teacher".
        label: the name of its row: the method, with the settings the user changed.
        settings: keyword arguments of the method.
        recipe_name, recipe: the schedule, every value resolved.
        norm, eps: the threat model it is evaluated under.
        select: checkpoint rule.
        train_limit: stratified part of the training samples.
        teachers: role -> where the teacher comes from: {"key": ..., "folder": ...} or {"file": ...} or {"zoo": ...}.
        warm_start: {"key": ..., "folder": ...}, or None.
        device, threads, deterministic: what the bits depend on besides.
        source: hash of the plug-in's file, or "" for a method of the suite.
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

    @property
    def key(self) -> str:
        """Hash of everything the weights depend on."""
        identity = asdict(self)
        identity["recipe"] |= {"source": "", "selection": "", "settings": {}}  # what these say stands elsewhere
        for name in ("role", "label", "recipe_name"):
            del identity[name]
        identity["teachers"] = {role: _origin(teacher) for role, teacher in self.teachers.items()}
        identity["warm_start"] = None if self.warm_start is None else _origin(self.warm_start)
        identity["device"] = self.device.partition(":")[0]
        if self.select != "test":
            del identity["norm"], identity["eps"]  # the selection attack is the only other reader
            identity["selection_threat"] = None if self.select == "last" else [self.norm, self.eps]
        return key_of({"format": FORMAT, **identity})

    @property
    def folder(self) -> Path:
        """Its place below the results folder."""
        return Path(self.dataset, self.model.replace("/", "_").replace(":", "_"), self.method, self.key)

    @property
    def requires(self) -> tuple[str, ...]:
        """Keys of the runs it starts from."""
        sources = [*self.teachers.values(), *([self.warm_start] if self.warm_start else [])]
        return tuple(source["key"] for source in sources if "key" in source)

    @property
    def title(self) -> str:
        """For logs and progress: method, seed."""
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
        dataset, model: what is attacked.
        norm, eps: threat model.
        seed: of the evaluation's streams.
        limit: stratified part of the test samples, None for all.
        block: samples that are attacked together.
        device, threads, deterministic, revision: what the bits depend on besides.
        title: for logs and progress.
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

    @property
    def key(self) -> str:
        """Hash of everything the outcomes depend on."""
        identity = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("run", "title")}
        identity["device"] = self.device.partition(":")[0]
        identity["settings"] = dict(self.settings)
        return key_of({"format": FORMAT, **identity})

    @property
    def folder(self) -> Path:
        """Its place below the results folder."""
        return self.run / "eval" / self.key

    @property
    def requires(self) -> tuple[str, ...]:
        """Key of the run it attacks."""
        return (self.run_key,)


@dataclass(frozen=True)
class Plan:
    """Jobs in an order in which each comes after what it needs.

    Attributes:
        train, evaluate: the jobs.
        notes: what was adapted, one sentence each.
    """

    train: tuple[TrainJob, ...]
    evaluate: tuple[EvalJob, ...]
    notes: tuple[str, ...] = ()

    @property
    def jobs(self) -> tuple[TrainJob | EvalJob, ...]:
        """All of them."""
        return (*self.train, *self.evaluate)


def _origin(source: Mapping[str, str]) -> dict[str, str]:
    """What identifies a teacher: the key of its run, the hash of its file, or its id."""
    return {name: source[name] for name in ("key", "sha256", "zoo", "model") if name in source}
