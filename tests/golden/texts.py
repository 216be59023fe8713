"""Every text that a golden test holds: help pages, catalogue pages, planned keys, and the reference tables.

`python -m tests.golden.texts DIR` writes them to a folder, so that two versions of the code can be compared with diff;
`python -m tests.golden.texts --accept` takes today's texts as the right ones.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from bench.cli.app import main
from bench.config.settings import combined
from bench.plan.planner import make_plan
from bench.report import against, by_class, compare, gains, render
from methods import METHODS

HERE = Path(__file__).parent
REFERENCE = HERE.parents[1] / "results" / "reference"
HELP, DIGESTS = HERE / "help.txt", HERE / "digests.json"
FORMATS = ("markdown", "latex", "csv", "json")
KINDS = ("methods", "compositions", "attacks", "datasets", "models", "reporters", "protocols")
COMPOSED = ("awp:trades", "ema:trades", "swa:trades", "fawa:cfa", "awp:absld", "fair_weight:absld")

# One run each of the command, whose plans make up the reference results of a data set.
REFERENCE_RUNS: dict[str, list[dict[str, Any]]] = {
    "digits": [{"seeds": (0, 1, 2)}]
    + [
        {"seeds": (0, 1, 2), "methods": (method,), "overrides": {f"{method}.{name}": value}}
        for method, name, value in (
            ("cfa", "host", "trades"),
            ("dafa", "host", "at"),
            ("faal", "host", "trades"),
            ("flexmatch_at", "labelled_fraction", 1.0),
            ("flexmatch_at", "unlabelled", "ignore"),
        )
    ]
    + [{"seeds": (0, 1, 2), "methods": COMPOSED}],
    "cifar10": [
        {
            "methods": methods,
            "dataset": "cifar10",
            "model": "small_resnet",
            "teacher_model": "small_resnet_wide",
            "recipe": "short",
            "epochs": 15,
            "batch_size": 64,
            "eps": 4 / 255,
            "uniform_threat": True,
            "train_limit": 5000,
            "limit": 2000,
            "autoattack_limit": 400,
        }
        for methods in ((), ("awp:trades", "awp:absld", "fair_weight:absld", "fawa:cfa"))
    ],
}
# Settings that reach other parts of a key.
PLANS: dict[str, dict[str, Any]] = {
    "paper": {"dataset": "cifar10", "recipe": "paper"},
    "svhn": {"dataset": "svhn"},
    "cifar100": {"dataset": "cifar100", "recipe": "short"},
    "l2": {"norm": "l2", "eps": 0.5},
    "best": {"select": "best"},
    "test": {"select": "test"},
    "protocols": {"protocols": ("absld", "trades"), "dataset": "cifar10"},
    "epochs": {"epochs": 12},
    "uniform": {"uniform_threat": True},
    "limits": {"limit": 100, "train_limit": 300, "autoattack_limit": 50},
    "fast": {"prepare": ("bf16",), "train_with": ("bf16", "compile")},
    "plain": {"train_with": ("none",), "deterministic": True, "threads": 2},
    "stop": {"stop_when": "worst<20%"},
    "parts": {"micro_batch": 16, "sync_bn": True, "shard": "2/3"},
}


def help_text() -> str:
    """The help of the command and of each of its commands."""
    pages = [["--help"], *([name, "--help"] for name in sorted(main.commands))]
    return "\n".join(f"$ bench {' '.join(words)}\n{_printed(*words)}" for words in pages)


def catalogue() -> Iterator[tuple[str, str]]:
    """`bench list` of every kind and `bench show` of every name, in both formats."""
    for form in ("text", "markdown"):
        for kind in KINDS:
            yield f"list {kind} {form}", _printed("list", kind, "--format", form)
            for name in re.findall(r"^([a-z][\w-]*)  ", _printed("list", kind), re.MULTILINE):
                if kind != "reporters":
                    yield f"show {name} {form}", _printed("show", name, "--format", form)


def plans() -> Iterator[tuple[str, str]]:
    """Folders, keys, titles and notes of planned jobs."""
    for name, settings in PLANS.items():
        plan = make_plan(combined({"methods": (*METHODS.builtin, *COMPOSED, "awp:ema:ham"), **settings}), "cpu")
        jobs = [f"{job.folder} {job.key} {job.title}" for job in plan.jobs]
        yield f"plan {name}", "\n".join([*jobs, *plan.notes])


def tables(name: str, form: str) -> Iterator[tuple[str, str]]:
    """Every view of a data set's reference results in a format."""
    folder = REFERENCE / name
    yield f"{name} table {form}", render(folder, format=form)
    yield f"{name} intervals {form}", render(folder, format=form, intervals=True)
    yield f"{name} by_class {form}", by_class(folder, format=form)
    yield f"{name} over {form}", gains(folder, "trades", format=form, attacks=["pgd", "autoattack"])
    yield f"{name} compare {form}", compare(folder, "trades", "absld", format=form)
    yield f"{name} against {form}", against(folder, "rslad", format=form)


def everything() -> Iterator[tuple[str, str]]:
    """All texts but the help, by name."""
    yield from catalogue()
    yield from plans()
    for name in REFERENCE_RUNS:
        for form in FORMATS:
            yield from tables(name, form)


def digest(text: str) -> str:
    """Of a text, with long decimals cut to twelve digits: the last bits of a sum are the processor's."""
    cut = re.sub(r"-?\d+\.\d{10,}(?:e-?\d+)?", lambda number: f"{float(number[0]):.12g}", text)
    return hashlib.sha256(cut.encode()).hexdigest()[:16]


def committed() -> dict[str, str]:
    """The digests that are held."""
    stored: dict[str, str] = json.loads(DIGESTS.read_text(encoding="utf-8"))
    return stored


def _printed(*words: str) -> str:
    """What a command prints, but for where the source lies; a refusal is a text as well."""
    printed = CliRunner().invoke(main, words, terminal_width=110, env={"COLUMNS": "110"}).output
    return re.sub(r"^Source: [^,\n]*", "Source", printed, flags=re.MULTILINE)


if __name__ == "__main__":
    if sys.argv[1] == "--accept":
        HELP.write_text(help_text(), encoding="utf-8")
        DIGESTS.write_text(json.dumps({name: digest(text) for name, text in everything()}, indent=1) + "\n")
    else:
        target = Path(sys.argv[1])
        target.mkdir(parents=True, exist_ok=True)
        for name, text in [("help", help_text()), *everything()]:
            (target / name.replace(" ", "_").replace("/", "_")).write_text(text, encoding="utf-8")
