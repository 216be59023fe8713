"""One frozen, validated description of a run, and the order in which it is put together.

Precedence: defaults < the method's recipe < configuration file < flags. Values are checked against what is
registered before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from attacks.plugins.registry import Registry, UnknownName
from attacks.registry import ATTACKS
from bench.config.protocols import check as check_protocols
from bench.config.protocols import resolve as resolve_protocols
from bench.config.speedups import SWITCHES
from bench.config.speedups import parse as parse_switches
from bench.config.stop_rules import Rule
from bench.data.registry import DATASETS
from bench.errors import UsageError
from bench.models.registry import resolve as resolve_model
from methods.registry import METHODS

Select = Literal["last", "best", "test"]
PREPARATIONS = ("bf16", "channels_last", "compile")
TABLE_ATTACKS = ("fgsm", "pgd", "cw", "autoattack")


@dataclass(frozen=True)
class RunSettings:
    """Everything that `bench run` was asked for.

    Attributes:
        methods: names, in the order of the table; () means all.
        dataset, model: names; None takes the data set's usual model.
        teacher: a checkpoint file or `robustbench:ID`; None trains one in the same plan.
        teacher_model: architecture of the teacher; None takes the data set's.
        natural_teacher, natural_teacher_model: likewise, of the teacher in the role "natural" (MTARD has both); its
            architecture is the other teacher's unless it is said.
        attacks: names of the attacks of the table; None takes the usual ones, or all of the protocols.
        protocols: evaluation protocols, whose attacks run with the published settings.
        seeds: one run per method and seed.
        recipe: name; None takes the data set's.
        epochs, batch_size: override the recipe's; epoch-valued settings follow in proportion.
        micro_batch: training samples that go through the network at once; None is a whole batch, while memory lasts.
        sync_bn: several processes that train one model share BatchNorm's statistics.
        norm, eps: threat model; None takes the data set's usual radius.
        uniform_threat: every method trains against eps, in 10 steps of eps / 4, whatever its paper does.
        select: "last", "best" (held-out), "test" (replication only); None takes the recipe's.
        limit, train_limit: stratified parts of test and training samples.
        autoattack_limit: a stratified part of the test samples for AutoAttack alone.
        block: test samples that are attacked together, part of an evaluation's identity; None takes the data set's.
        shard: "2/4": of every evaluation only the second of four shares of the blocks; `bench merge` finishes it.
        prepare: how the copy of a model that is searched is sped up beside what is usual: "bf16", "channels_last",
            "compile"; "none" alone searches the model itself. Verdicts are the model's in any case.
        train_with: switches that make training steps faster, see `bench.config.speedups`; () takes those of the device.
        stop_when: "worst<20%": stop an evaluation as soon as its upper bound decides that; its figures are bounds then.
        overrides: METHOD.FIELD, METHOD.recipe.FIELD, ATTACK.FIELD, teacher.FIELD or natural_teacher.FIELD -> value.
        device: "auto" (cuda, then mps, then cpu) or a torch device.
        threads: CPU threads of each job; part of a run's identity.
        workers: jobs side by side; None means one per core on a CPU, one per GPU otherwise.
        gpus: "2" or "all": jobs side by side on so many GPUs; None means one.
        deterministic: bit-reproducible on a GPU as well.
        out, data_dir: folders of results and of data sets.
        download: fetch missing data sets and zoo weights.
        plugins: files or modules that register more.
    """

    methods: tuple[str, ...] = ()
    dataset: str = "digits"
    model: str | None = None
    teacher: str | None = None
    teacher_model: str | None = None
    natural_teacher: str | None = None
    natural_teacher_model: str | None = None
    attacks: tuple[str, ...] | None = None
    protocols: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    recipe: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    micro_batch: int | None = None
    sync_bn: bool = False
    norm: Literal["linf", "l2"] = "linf"
    eps: float | None = None
    uniform_threat: bool = False
    select: Select | None = None
    limit: int | None = None
    train_limit: int | None = None
    autoattack_limit: int | None = None
    block: int | None = None
    shard: str | None = None
    prepare: tuple[str, ...] = ()
    train_with: tuple[str, ...] = ()
    stop_when: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    threads: int = 1
    workers: int | None = None
    gpus: str | None = None
    deterministic: bool = False
    out: str = "results"
    data_dir: str = "data"
    download: bool = False
    plugins: tuple[str, ...] = ()

    def validated(self) -> RunSettings:
        """The same with names in their registered spelling.

        Raises:
            UsageError: for an unknown name or a value out of range.
        """
        for name, least in {"epochs": 1, "batch_size": 2, "limit": 1, "train_limit": 2, "block": 1, "threads": 1,
                            "workers": 1, "autoattack_limit": 1, "micro_batch": 1}.items():  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
        if self.eps is not None and not 0 < self.eps < math.inf:
            raise UsageError(f"--eps: expected a radius above 0 in the units of x in [0, 1], got {self.eps}; try 8/255")
        if not self.seeds:
            raise UsageError("--seeds: expected at least one seed, got none")
        if self.shard is not None and self.stop_when is not None:
            raise UsageError(
                "--stop-when: a shard sees a part of the samples and cannot decide it; leave one of them out"
            )
        if self.gpus is not None and self.gpus != "all" and not (self.gpus.isdecimal() and int(self.gpus) > 0):
            raise UsageError(f"--gpus: expected a number of GPUs or all, got {self.gpus}")
        part = share(self.shard)
        protocols, attacks = self._attacks()
        return replace(
            self,
            methods=named(METHODS, self.methods) or tuple(METHODS.names()),
            attacks=attacks,
            protocols=protocols,
            dataset=named(DATASETS, [self.dataset])[0],
            model=None if self.model is None else model_name(self.model),
            teacher_model=None if self.teacher_model is None else model_name(self.teacher_model),
            natural_teacher_model=(
                None if self.natural_teacher_model is None else model_name(self.natural_teacher_model)
            ),
            seeds=tuple(dict.fromkeys(self.seeds)),
            shard=None if part is None else "{}/{}".format(*part),
            prepare=parse_switches("--prepare", self.prepare, PREPARATIONS),
            train_with=parse_switches("--train-with", self.train_with, SWITCHES),
            stop_when=None if self.stop_when is None else str(Rule.parse(self.stop_when)),
        )

    def _attacks(self) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        """Protocols and attacks in their registered spelling; None stands for all attacks of the protocols."""
        if self.attacks is not None and not self.attacks:
            raise UsageError("--attacks: expected at least one attack, got none")
        protocols = resolve_protocols(self.protocols)
        attacks = TABLE_ATTACKS if self.attacks is None and not protocols else self.attacks
        known = None if attacks is None else named(ATTACKS, attacks)
        check_protocols(protocols, known, self.norm, self.overrides)
        return protocols, known

    def flat(self) -> dict[str, Any]:
        """Plain values, for storing."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def share(shard: str | None) -> tuple[int, int] | None:
    """Number and count of a shard, from 1: "2/4"; None stays None.

    Raises:
        UsageError: if it is none.
    """
    if shard is None:
        return None
    number, _, count = (word.strip() for word in shard.partition("/"))
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard {shard}: expected NUMBER/COUNT such as 2/4, the number from 1 to the count")
    return int(number), int(count)


def named(registry: Registry[Any], names: Iterable[str]) -> tuple[str, ...]:
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


def combined(*layers: Mapping[str, Any]) -> RunSettings:
    """Settings from layers, later layers override earlier ones; their overrides are merged one by one."""
    merged: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
        overrides.update(layer.get("overrides", {}))
    return RunSettings(**{**merged, "overrides": overrides}).validated()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
