"""Make the plan of a run: a job for each method, seed and attack, behind those of teachers and warm starts.

Imports no torch and reads no data: what a method declares is read from its sketch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attacks.plugins.ranges import accepted
from attacks.plugins.registry import Registry, canonical
from attacks.plugins.sketch import Sketch
from attacks.registry import ATTACKS
from bench.config import protocols
from bench.config.defaults import (
    TEACHER_ROLES,
    dataset_eps,
    default_eps,
    default_model,
    teacher_flag,
    teacher_model,
    teacher_setting,
    teacher_source,
)
from bench.config.protocols import AttackRequest
from bench.config.settings import TABLE_ATTACKS, RunSettings, share
from bench.config.speedups import active_switches
from bench.core.device import has_bf16
from bench.core.files import file_hash
from bench.data.registry import DATASETS
from bench.errors import UsageError
from bench.models.registry import source as model_source
from bench.plan.jobs import DEFAULT_BLOCK, EvalJob, Plan, TrainJob
from methods import recipes
from methods.recipes import Recipe
from methods.registry import METHODS

UNIFORM_STEPS = 10
FULL_AUTOATTACK = ("autoattack", "autoattack-reference")  # limited by --autoattack-limit
RECIPE_KINDS = {name: kind for name, kind in recipes.KINDS.items() if name not in ("settings", "source")}


@dataclass
class _Planner:
    run: RunSettings
    device: str
    processes: int = 1
    train: dict[str, TrainJob] = field(default_factory=dict)
    evaluated: dict[str, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def job(self, method: str, seed: int, *, teacher_role: str | None = None) -> TrainJob:
        """The job of a method and seed, planned behind the jobs that it needs; `teacher_role` for a teacher."""
        sketch = METHODS.sketch(method)
        facts = DATASETS.sketch(self.run.dataset).facts
        role = "student" if teacher_role is None else "teacher"
        owner = method if teacher_role is None else teacher_setting(teacher_role)
        overrides = _overrides(self.run, owner, sketch)
        try:
            recipe_name, recipe = self._recipe(method, role, sketch, overrides, facts)
            select = recipe.selection_rule(self.run.select)
        except ValueError as error:
            raise UsageError(f"--set {owner}.{error}") from None
        eps = default_eps(self.run)
        settings = self._settings(method, sketch, recipe, overrides, eps, facts)
        changed = ", ".join(f"{name}={_text(value)}" for name, value in overrides.items())
        model = default_model(self.run) if teacher_role is None else teacher_model(self.run, teacher_role)
        settings.update({name: value for name, value in overrides.items() if not name.startswith("recipe.")})
        trained = METHODS.sketch(f"ema:{method}") if recipe.ema else sketch
        job = TrainJob(
            dataset=self.run.dataset, model=model, method=method, seed=seed, role=role,
            label=f"{method} ({changed})" if changed else method,
            settings=settings, recipe_name=recipe_name, recipe=recipe, norm=self.run.norm, eps=eps,
            select=select, train_limit=self.run.train_limit,
            teachers={r: self._teacher(r) for r in sketch.fact("teachers", ())},
            warm_start=self._warm_start(sketch.fact("warm_start"), seed),
            device=self.device, threads=self.run.threads, deterministic=self.run.deterministic,
            revision=_revision(trained, settings), source=_source_hash(METHODS, method),
            model_source=model_source(model),
            train_with=self._switches(),
            micro_batch=self._micro_batch(recipe), processes=self.processes, sync_bn=self.run.sync_bn,
        )  # fmt: skip
        self.train.setdefault(job.key, job)
        return job

    def _switches(self) -> tuple[str, ...]:
        switches = active_switches(self.run.train_with, self.device, deterministic=self.run.deterministic)
        if "bf16" in self.run.train_with or "bf16" not in switches or has_bf16(self.device):
            return switches
        self._note("this GPU has no bfloat16 of its own: training computes in float32")
        return tuple(name for name in switches if name != "bf16")

    def _recipe(
        self, method: str, role: str, sketch: Sketch, overrides: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> tuple[str, Recipe]:
        known = recipes.all_recipes(sketch.fact("recipes", {}))
        default = facts.get("recipe", "paper")
        name = (self.run.recipe or default).lower()
        if name not in known and method not in self.run.methods:
            name = default  # of a teacher or a warm start that the run does not name
        if role == "teacher" and f"{name}_teacher" in known:
            name = f"{name}_teacher"
        elif f"{name}_{self.run.dataset}" in known:
            name = f"{name}_{self.run.dataset}"
        elif name in ("paper", "short") and self.run.dataset != "cifar10":
            self._note(f"the papers' recipes are those for CIFAR-10 where they have none for {self.run.dataset}")
        if name not in known:
            raise UsageError(f"--recipe {name}: {method} has the recipes {', '.join(sorted(known))}")
        recipe: Recipe = known[name]
        changes = {key.removeprefix("recipe."): v for key, v in overrides.items() if key.startswith("recipe.")}
        epochs = changes.get("epochs", self.run.epochs)
        if epochs is not None and epochs != recipe.epochs:
            self._note(f"{method}: {recipe.epochs} epochs become {epochs}; epoch-valued settings follow in proportion")
            settings = {
                key: _rescaled(value, epochs / recipe.epochs) if key in sketch.fact("epoch_settings", ()) else value
                for key, value in recipe.settings.items()
            }
            milestones = _rescaled(recipe.milestones, epochs / recipe.epochs)
            recipe = replace(recipe, epochs=epochs, milestones=milestones, settings=settings)
        if self.run.batch_size is not None:
            recipe = replace(recipe, batch_size=self.run.batch_size)
        recipe = replace(recipe, **{"augment": recipe.augment or facts.get("augment", "none"), **changes})
        supported = _supported_augmentation(recipe.augment or "none", facts.get("augment"))
        if supported != recipe.augment and "augment" not in changes:
            recipe = replace(recipe, augment=supported)
            what = "augmentation" if supported == "none" else "mirrored images"
            self._note(f"{method}: {self.run.dataset} is trained without {what}")
        if recipe.ema and sketch.fact("averages_weights"):
            recipe = replace(recipe, ema=0.0)
            self._note(f"{method}: averages weights itself, so the recipe's moving average is left out")
        return name, recipe

    def _settings(
        self, method: str, sketch: Sketch, recipe: Recipe, given: Iterable[str], eps: float, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Keyword arguments of the method: its defaults, scaled to the run's epochs and radius."""
        settings = dict(sketch.settings)
        paper = recipes.all_recipes(sketch.fact("recipes", {}))["paper"]
        for name in sketch.fact("epoch_settings", ()):
            settings[name] = _rescaled(settings[name], recipe.epochs / paper.epochs)
        settings.update(recipe.settings)
        factor = eps / recipe.threat_eps
        if self.run.uniform_threat:
            settings.update(eps=eps, step_size=eps / 4, steps=UNIFORM_STEPS)
            self._note(f"every method trains against eps {eps:.4g} in {UNIFORM_STEPS} steps of {eps / 4:.4g}")
        elif abs(factor - 1) > 1e-9:
            self._note(f"{method}: training radius and step are scaled by {factor:.4g}, to eps {eps:.4g}")
            settings.update(eps=settings["eps"] * factor, step_size=settings["step_size"] * factor)
        settings.update(num_classes=facts.get("classes", 10), norm=self.run.norm)
        for name in given:
            if name in ("num_classes", "norm"):
                raise UsageError(f"--set {method}.{name}: comes from the data set and --norm; leave it out")
            if self.run.uniform_threat and name in ("eps", "step_size", "steps"):
                raise UsageError(f"--set {method}.{name}: --uniform-threat sets it for all; leave out one of the two")
        return settings

    def _micro_batch(self, recipe: Recipe) -> int | None:
        """The size of `--micro-batch`, if it splits this recipe's batches at all."""
        size = self.run.micro_batch
        return None if size is None or size >= recipe.batch_size else size

    def _teacher(self, role: str) -> dict[str, str]:
        """The source of a teacher: the file or zoo id that was given, else a job of this plan."""
        name, flag = teacher_setting(role), teacher_flag(role)
        given: str | None = getattr(self.run, name)
        if given is not None:
            return teacher_source(given, teacher_model(self.run, role), where=flag)
        method, _ = TEACHER_ROLES.get(role, TEACHER_ROLES["robust"])
        job = self.job(method, 0, teacher_role=role)
        self.evaluated.setdefault(job.key)
        label = f"{job.label} on {job.model}"
        return {"key": job.key, "folder": str(job.folder), "model": job.model, "label": label}

    def _warm_start(self, method: str | None, seed: int) -> dict[str, str] | None:
        if method is None:
            return None
        job = self.job(METHODS.resolve(method), seed)
        return {"key": job.key, "folder": str(job.folder), "label": job.label}

    def _note(self, sentence: str) -> None:
        self.notes.setdefault(sentence)


def make_plan(run: RunSettings, device: str, processes: int = 1) -> Plan:
    """All jobs of a run.

    Args:
        run: validated settings.
        device: the device they resolve to.
        processes: how many train each model together.

    Raises:
        UsageError: if a setting does not fit the method, the recipe or the data set.

    >>> from bench.config.settings import combined
    >>> plan = make_plan(combined({"methods": ("rslad",), "attacks": ("pgd",)}), "cpu")
    >>> [job.title for job in plan.train]
    ['trades (teacher)', 'rslad seed 0']
    >>> [job.title for job in plan.evaluate]
    ['trades (teacher), last', 'rslad seed 0, last']
    """
    check_overrides(run)
    planner = _Planner(run, device, processes)
    planner.notes.update(dict.fromkeys(protocols.scaling_notes(run.protocols, run.eps, dataset_eps(run))))
    for method in run.methods:
        for seed in run.seeds:
            planner.evaluated.setdefault(planner.job(method, seed).key)
    jobs = [planner.train[key] for key in planner.evaluated]
    evaluate = [
        evaluation
        for job in jobs
        for checkpoint in (("last",) if job.select == "last" else ("best", "last"))
        for evaluation in evaluation_jobs(
            run, device, job.folder, job.key, job.model, job.title, checkpoint=checkpoint, seed=job.seed
        )
    ]
    return Plan(tuple(planner.train.values()), tuple(evaluate), tuple(planner.notes))


def check_overrides(run: RunSettings) -> None:
    """Check that every `--set` names a setting of something registered, with a value in its range.

    Raises:
        UsageError: otherwise.
    """
    teachers = {setting: method for method, setting in TEACHER_ROLES.values()}
    for owner in dict.fromkeys(dotted.partition(".")[0] for dotted in run.overrides):
        method = teachers.get(canonical(owner), owner)
        if method not in METHODS and method not in ATTACKS or any(dotted == owner for dotted in run.overrides):
            (dotted, *_) = (dotted for dotted in run.overrides if dotted.partition(".")[0] == owner)
            raise UsageError(
                f"--set {dotted}: expected METHOD.FIELD, METHOD.recipe.FIELD, ATTACK.FIELD, teacher.FIELD or "
                "natural_teacher.FIELD"
            )
        _overrides(run, owner, (METHODS if method in METHODS else ATTACKS).sketch(method))


def refuse_unread_overrides(run: RunSettings, train: Iterable[TrainJob] = ()) -> None:
    """Check that every `--set` is about an attack of the run, or a method or teacher that it trains.

    Args:
        run: settings.
        train: its trainings.

    Raises:
        UsageError: otherwise.
    """
    read = {canonical(request.attack) for request in requested_attacks(run)}
    for job in train:
        teachers = {setting for method, setting in TEACHER_ROLES.values() if method == job.method}
        read |= teachers if job.role == "teacher" else {canonical(job.method)}
    for dotted in run.overrides:
        owner = dotted.partition(".")[0]
        if canonical(owner) not in read:
            raise UsageError(f"--set {dotted}: {owner} is not among the methods, teachers and attacks of this run")


def evaluation_jobs(
    run: RunSettings, device: str, folder: Path, key: str, model: str, title: str,
    *, checkpoint: str = "last", seed: int = 0,
) -> tuple[EvalJob, ...]:  # fmt: skip
    """Every attack of a run on one checkpoint.

    Raises:
        UsageError: if a setting does not fit.
    """
    check_overrides(run)
    block = run.block or DATASETS.sketch(run.dataset).fact("block", DEFAULT_BLOCK)
    jobs: dict[str, EvalJob] = {}
    for request in requested_attacks(run):
        attack = request.attack
        sketch = ATTACKS.sketch(attack)
        defaults = {name: value for name, value in sketch.settings.items() if name != "threat"}
        limits = [n for n in (run.limit, run.autoattack_limit if attack in FULL_AUTOATTACK else None) if n is not None]
        job = EvalJob(
            run=folder,
            run_key=key,
            checkpoint=checkpoint,
            attack=attack,
            settings={**defaults, **request.settings, **_overrides(run, attack, sketch)},
            dataset=run.dataset,
            model=model,
            norm=run.norm,
            eps=request.eps,
            seed=seed,
            limit=min(limits, default=None),
            block=block,
            device=device,
            threads=run.threads,
            deterministic=run.deterministic,
            revision=sketch.fact("revision", 1),
            title=", ".join(filter(None, (title, checkpoint, request.protocol))),
            source=_source_hash(ATTACKS, attack),
            part=None if run.shard is None else share(run.shard),
            prepare=run.prepare,
            stop_when=run.stop_when,
        )
        jobs.setdefault(job.key, job)  # settings that two protocols share are one evaluation
    return tuple(jobs.values())


def requested_attacks(run: RunSettings) -> list[AttackRequest]:
    """The attacks of a run: those of its protocols, or those it names.

    Raises:
        UsageError: if there is no radius.
    """
    if run.protocols:
        return protocols.attack_requests(run.protocols, run.attacks, run.eps, dataset_eps(run))
    eps = default_eps(run)
    return [AttackRequest(attack, {}, eps) for attack in run.attacks or TABLE_ATTACKS]


def _overrides(run: RunSettings, name: str, sketch: Sketch) -> dict[str, Any]:
    """The values of `--set` for a method or an attack, checked against its settings and their ranges."""
    checked: dict[str, Any] = {}
    for dotted, value in run.overrides.items():
        owner, _, rest = dotted.partition(".")
        if canonical(owner) != canonical(name):
            continue
        of_recipe = rest.startswith("recipe.")
        known = RECIPE_KINDS if of_recipe else sketch.settings
        word = rest.removeprefix("recipe.").replace("-", "_")
        if word not in known:
            raise UsageError(f"--set {dotted}: {name} has no setting {word!r}; it has {', '.join(sorted(known))}")
        kind = RECIPE_KINDS[word] if of_recipe else sketch.kind(word)
        try:
            checked[f"recipe.{word}" if of_recipe else word] = accepted(value, kind)
        except ValueError as error:
            raise UsageError(f"--set {dotted}: {error}") from None
    return checked


def _supported_augmentation(augment: str, dataset_augment: str | None) -> str:
    """The part of a recipe's augmentation that keeps the labels of the data set: a mirrored digit is another sign."""
    if dataset_augment == "none":
        return dataset_augment
    return augment.replace("crop_flip", "crop") if dataset_augment == "crop" else augment


def _rescaled(value: Any, ratio: float) -> Any:
    if isinstance(value, tuple):
        return tuple(_rescaled(item, ratio) for item in value)
    return int(value * ratio + 0.5)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _revision(sketch: Sketch, settings: Mapping[str, Any]) -> int:
    """The revision of a method with these settings: numbers of an option may have moved alone."""
    moved: Mapping[str, Any] = sketch.fact("option_revisions", {})
    revision: int = sketch.fact("revision", 1)
    return revision + sum(bool(settings[name] == value) for name, value in moved.items())


def _source_hash(registry: Registry[Any], name: str) -> str:
    """The hash of a plug-in's file, of all of them in a composition; those of the suite carry a revision instead."""
    parts = METHODS.parts(name) if registry is METHODS else [(registry, name)]
    files = [table.sketch(part).source for table, part in parts if part not in table.builtin]
    return "+".join(file_hash(file) for file in files if file is not None)
