"""The settings of a run: one frozen, validated object, put together from layers.

Precedence: defaults < the method's recipe < configuration file < flags. Values are checked against what is
registered before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from attacks.plugins.ranges import Count, at_least, between
from attacks.plugins.registry import Registry, UnknownName
from attacks.registry import ATTACKS
from bench.config.protocols import check_conflicts as check_protocols
from bench.config.protocols import resolve as resolve_protocols
from bench.config.setting import declared, setting
from bench.config.speedups import SWITCHES
from bench.config.speedups import parse as parse_switches
from bench.config.stop_rules import Rule
from bench.data.registry import DATASETS
from bench.errors import UsageError
from bench.models.registry import resolve as resolve_model
from methods.recipes import MOST_EPOCHS
from methods.registry import METHODS

TABLE_ATTACKS = ("fgsm", "pgd", "cw", "autoattack")
PREPARATIONS = ("bf16", "channels_last", "compile")


def share(shard: str) -> tuple[int, int]:
    """Number and count of a shard, from 1: "2/4".

    Raises:
        UsageError: if it is none.
    """
    number, _, count = (word.strip() for word in shard.partition("/"))
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard {shard}: expected NUMBER/COUNT such as 2/4, the number from 1 to the count")
    return int(number), int(count)


def registered(registry: Registry[Any], names: Iterable[str]) -> tuple[str, ...]:
    """Names in their registered spelling, without repetitions.

    Raises:
        UsageError: for an unknown name.
    """
    try:
        return tuple(dict.fromkeys(registry.resolve(name) for name in names))
    except UnknownName as error:
        raise UsageError(str(error)) from None


def model_name(name: str) -> str:
    """A model's name in its registered spelling.

    Raises:
        UsageError: for an unknown name.
    """
    try:
        return resolve_model(name)
    except UnknownName as error:
        raise UsageError(str(error)) from None


def _attack_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise UsageError("--attacks: expected at least one attack, got none")
    return registered(ATTACKS, names)


def _positive_radius(eps: float) -> float:
    if eps <= 0:
        raise UsageError(f"--eps: expected a radius above 0 in the units of x in [0, 1], got {eps}; try 8/255")
    return eps


def _distinct_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds:
        raise UsageError("--seeds: expected at least one seed, got none")
    return tuple(dict.fromkeys(seeds))


def _number_of_gpus(gpus: str) -> str:
    if gpus != "all" and not (gpus.isdecimal() and int(gpus) > 0):
        raise UsageError(f"--gpus: expected a number of GPUs or all, got {gpus}")
    return gpus


@dataclass(frozen=True)
class RunSettings:
    """Everything that `bench run` can be asked for.

    Each field declares a setting; its help is the description, with the default in brackets where the data set, the
    recipe or the device decides it.
    """

    # Training
    methods: tuple[str, ...] = setting(
        (), "Methods to train.  [all]", flags=("--methods", "--method"),
        check=lambda names: registered(METHODS, names) or tuple(METHODS.names()),
    )  # fmt: skip
    model: str | None = setting(None, "Architecture of the students.  [the data set's]", check=model_name)
    teacher: str | None = setting(None, "Checkpoint or robustbench:ID.  [trained in the same run]", metavar="FILE|ID")
    teacher_model: str | None = setting(None, "Architecture of the teacher.  [the data set's]", check=model_name)
    natural_teacher: str | None = setting(None, "The non-robust teacher of mtard.  [trained too]", metavar="FILE|ID")
    natural_teacher_model: str | None = setting(None, "Its architecture.  [the teacher's]", check=model_name)
    recipe: str | None = setting(None, "Schedule, e.g. paper.  [the data set's]")
    epochs: Annotated[int, between(1, MOST_EPOCHS)] | None = setting(
        None, "Epochs; everything counted in epochs follows in proportion."
    )
    batch_size: Annotated[int, at_least(2)] | None = setting(None, "Samples per optimiser step.  [the recipe's]")
    micro_batch: Count | None = setting(None, "Of these at once; halved by itself when memory runs out.  [all]")
    sync_bn: bool = setting(False, "With torchrun: one BatchNorm over all processes.")
    select: Literal["last", "best", "test"] | None = setting(
        None, "Checkpoint: last, best on held-out samples, or best on the test set (replication only).  [the recipe's]"
    )
    train_limit: Annotated[int, at_least(2)] | None = setting(None, "Train on a stratified part of this size.")
    train_with: tuple[str, ...] = setting(
        (), "Train faster: bf16, channels-last, compile, fold, fused; or none.  [the device's]",
        check=lambda words: parse_switches("--train-with", words, SWITCHES),
    )  # fmt: skip
    uniform_threat: bool = setting(
        False, "Train every method against --eps, in 10 steps of eps/4, whatever its paper does."
    )

    # Evaluation
    dataset: str = setting(
        "digits", "Data set; `bench list datasets`.  [digits]", check=lambda name: registered(DATASETS, [name])[0]
    )
    attacks: tuple[str, ...] | None = setting(
        None, "Attacks of the table.  [fgsm,pgd,cw,autoattack, or all of the protocol]", check=_attack_names
    )
    protocols: tuple[str, ...] = setting(
        (), "Attack as published; `bench list protocols`.", flags=("--protocols", "--protocol"),
        check=resolve_protocols,
    )  # fmt: skip
    seeds: tuple[int, ...] = setting(
        (0,), "One run per method and seed.  [0]", flags=("--seeds", "--seed"), check=_distinct_seeds
    )
    norm: Literal["linf", "l2"] = setting("linf", "Norm of the threat model.  [linf]")
    eps: float | None = setting(
        None, "Its radius in units of x in [0, 1], e.g. 8/255.  [the data set's]", metavar="NUMBER|a/b",
        check=_positive_radius,
    )  # fmt: skip
    limit: Count | None = setting(None, "Test on a stratified part of this size.")
    autoattack_limit: Count | None = setting(None, "The same for AutoAttack alone.")
    # Part of an evaluation's key.
    block: Count | None = setting(None, "Test samples that are attacked together.  [the data set's]")
    shard: str | None = setting(
        None, "Only a share of the blocks of each evaluation; then `bench merge`.", metavar="I/N",
        check=lambda shard: "{}/{}".format(*share(shard)),
    )  # fmt: skip
    # How the searched copy of a model is sped up; verdicts are the model's in any case.
    prepare: tuple[str, ...] = setting(
        (), "Search faster: bf16, channels-last, compile; or none.  [folded]",
        check=lambda words: parse_switches("--prepare", words, PREPARATIONS),
    )  # fmt: skip
    stop_when: str | None = setting(
        None, "Stop an evaluation once it is certain, e.g. worst<20%.", metavar="RULE",
        check=lambda rule: str(Rule.parse(rule)),
    )  # fmt: skip
    device: str = setting("auto", "auto (cuda, then mps, then cpu) or a torch device.  [auto]")
    # Part of a run's key.
    threads: Count = setting(1, "CPU threads of each job.  [1]")
    workers: Count | None = setting(None, "Jobs side by side.  [one per core on a CPU, one per GPU]")
    gpus: str | None = setting(
        None, "Jobs side by side on several GPUs, each bound to one.  [1]", metavar="N|all", numeric=True,
        check=_number_of_gpus,
    )  # fmt: skip
    deterministic: bool = setting(False, "Bit-reproducible on a GPU as well; slower.")
    out: str = setting("results", "Results folder.  [results]", metavar="PATH")
    data_dir: str = setting("data", "Folder of the data sets.  [data]", metavar="PATH")
    download: bool = setting(False, "Fetch missing data.")
    plugins: tuple[str, ...] = setting(())
    # METHOD.FIELD, METHOD.recipe.FIELD, ATTACK.FIELD, teacher.FIELD or natural_teacher.FIELD -> value
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def validated(self) -> RunSettings:
        """The same with every value in its normal form, names in their registered spelling.

        Raises:
            UsageError: for an unknown name, a value out of range, or settings that contradict each other.
        """
        run = replace(self, **{name: setting.checked(getattr(self, name)) for name, setting in SETTINGS.items()})
        if run.shard is not None and run.stop_when is not None:
            raise UsageError(
                "--stop-when: a shard sees a part of the samples and cannot decide it; leave one of them out"
            )
        check_protocols(run.protocols, run.attacks, run.norm, run.overrides)
        _check_radius(run)
        # With protocols None stands for all of their attacks.
        return run if run.attacks is not None or run.protocols else replace(run, attacks=TABLE_ATTACKS)


def _check_radius(run: RunSettings) -> None:
    """Refuse a radius that leaves nothing of the image: in Linf above 1, in L2 above the diagonal of the box."""
    if run.eps is None:
        return
    size = math.prod(DATASETS.sketch(run.dataset).fact("image", (3, 32, 32)))
    most = 1.0 if run.norm == "linf" else math.sqrt(size)
    if run.eps > most:
        hint = f"; did you mean {run.eps:g}/255?" if run.eps <= 255 else ""
        raise UsageError(
            f"--eps: expected a radius of at most {most:.4g}, beyond which {run.norm} holds every image in [0, 1], got "
            f"{run.eps:g}{hint}"
        )


SETTINGS = declared(RunSettings)


def combined(*layers: Mapping[str, Any]) -> RunSettings:
    """Validated settings from layers: later ones override earlier ones; their overrides are merged one by one.

    >>> run = combined({"methods": ("Trades",), "epochs": 7}, {"epochs": 9, "eps": 0.1})
    >>> run.methods, run.epochs, run.eps, run.attacks
    (('trades',), 9, 0.1, ('fgsm', 'pgd', 'cw', 'autoattack'))

    Raises:
        UsageError: as `RunSettings.validated` does.
    """
    merged: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
        overrides.update(layer.get("overrides", {}))
    return RunSettings(**{**merged, "overrides": overrides}).validated()
