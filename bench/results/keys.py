"""Keys of runs and evaluations: hashes of settings, from the fields of a job or from what is stored of it.

run.json and eval.json hold every field that a key is made of, some of them under `key_fields` since they stand nowhere
else. Records that are older lack those; what they can have been is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Any

from bench.core.files import key_of

Fields = dict[str, Any]

# Which fields are no part of a key: some never are, others, which came after runs were stored, not at this value.
NEVER_IN_KEY = ("role", "label", "recipe_name", "run", "title", "part")
LEFT_OUT_AT: dict[str, Any] = {
    "train_with": (), "model_source": "", "micro_batch": None, "processes": 1, "sync_bn": False,
    "prepare": (), "stop_when": None,
}  # fmt: skip
LEFT_OUT_OF_RECIPE_AT: dict[str, Any] = {"schedule": "steps", "ema": 0.0}
# Fields that stand nowhere else in run.json and eval.json.
ONLY_FOR_TRAINING_KEY = ("train_limit", "train_with", "micro_batch", "sync_bn")
ONLY_FOR_EVALUATION_KEY = ("limit", "deterministic", "prepare")
SWITCHES = ("bf16", "channels_last", "compile", "fold", "fused")


def training_key(fields: Mapping[str, Any]) -> str:
    """Hash of everything the weights of a run depend on, from the fields of its job, the recipe's as a mapping."""
    elsewhere = {"source": "", "selection": "", "settings": {}}  # in other fields of the job
    identity = {
        **_identity(fields),
        "recipe": {**_in_key(fields["recipe"], LEFT_OUT_OF_RECIPE_AT), **elsewhere},
        "teachers": {role: _origin(teacher) for role, teacher in fields["teachers"].items()},
        "warm_start": None if fields["warm_start"] is None else _origin(fields["warm_start"]),
    }
    if fields["select"] != "test":
        del identity["norm"], identity["eps"]  # the selection attack is the only other reader
        identity["selection_threat"] = None if fields["select"] == "last" else [fields["norm"], fields["eps"]]
    return key_of(identity)


def evaluation_key(fields: Mapping[str, Any]) -> str:
    """Hash of everything the outcomes of an evaluation depend on, from the fields of its job."""
    return key_of(_identity(fields))


def _identity(fields: Mapping[str, Any]) -> Fields:
    """The fields of a job that are in its key."""
    return {**_in_key(fields, LEFT_OUT_AT), "device": fields["device"].partition(":")[0]}


def _in_key(fields: Mapping[str, Any], left_out_at: Mapping[str, Any]) -> Fields:
    values = {name: value for name, value in fields.items() if name not in NEVER_IN_KEY}
    return {name: value for name, value in values.items() if name not in left_out_at or value != left_out_at[name]}


def _origin(source: Mapping[str, str]) -> dict[str, str]:
    """Identity of a teacher: the key of its run; else the hash of its file with its entry, or its id in the zoo."""
    names = ("key",) if "key" in source else ("sha256", "entry", "zoo", "model", "model_source")
    return {name: source[name] for name in names if name in source}


def training_fields(run: Mapping[str, Any]) -> Iterator[Fields]:
    """The fields of a run's job from its run.json; several candidates where it does not state all of them.

    Raises:
        KeyError, TypeError, AttributeError: if an entry is missing that run.json always had, or is something else.
    """
    names = ("format", "dataset", "model", "method", "seed", "settings", "norm", "eps", "teachers", "warm_start")
    hardware = run["hardware"]
    fixed = {name: run[name] for name in (*names, "deterministic", "revision")} | {
        "select": run["selection"], "recipe": run["training"], "source": run.get("source", ""),
        "model_source": run.get("model_source", ""), "processes": run["processes"]["count"],
        "device": hardware["device"], "threads": hardware["threads"],
    }  # fmt: skip
    return _with_candidates(fixed, run.get("key_fields") or {}, _training_candidates(run))


def _training_candidates(run: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What the fields of a run can have been that its run.json does not state."""
    data, arithmetic, micro_batch = run["data"], run["arithmetic"], run["micro_batch"]
    held_out = 0 if run["training"]["holdout"] else data["select_size"] + data["steer_size"]
    switches = list(arithmetic["switches"])
    others = [name for name in SWITCHES if name not in switches] if arithmetic["left_out"] else []
    more = [extra for size in range(len(others) + 1) for extra in combinations(others, size)]
    return {
        "train_limit": [None, data["train_size"] - held_out],
        "train_with": [sorted([*switches, *extra]) for extra in more],
        "micro_batch": [micro_batch["asked"] if micro_batch else None],
        "sync_bn": [False, True] if run["processes"]["count"] > 1 else [False],
    }


def evaluation_fields(run: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Fields]:
    """The fields of an evaluation's job from eval.json and its run's run.json; candidates as for `training_fields`.

    Raises:
        KeyError, TypeError, AttributeError: as there.
    """
    names = ("format", "checkpoint", "attack", "norm", "eps", "seed", "block", "revision")
    fixed = {name: facts[name] for name in names} | {
        "run_key": run["key"], "dataset": run["dataset"], "model": run["model"], "settings": facts["attack_settings"],
        "device": facts["hardware"]["device"], "threads": facts["hardware"]["threads"],
        "source": facts.get("source", ""), "stop_when": facts.get("stop_when"),
    }  # fmt: skip
    subset, (_, _, searched) = facts["test_subset"], facts["implementation"].partition(", searched on: ")
    candidates = {
        "limit": [None, facts["n"]] if subset is None else [subset],
        "deterministic": [run["deterministic"]] if "deterministic" in run else [False, True],
        "prepare": [searched.split()],
    }
    return _with_candidates(fixed, facts.get("key_fields") or {}, candidates)


def _with_candidates(fixed: Fields, stated: Mapping[str, Any], candidates: Mapping[str, list[Any]]) -> Iterator[Fields]:
    """Fields with every combination of candidates for those that are not stated; lists are tuples as in a job."""
    choices = {name: [stated[name]] if name in stated else values for name, values in candidates.items()}
    for values in product(*choices.values()):
        found = dict(zip(choices, values, strict=True))
        yield fixed | {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
