"""Reading a results tree: runs, evaluations, and one data frame of their metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import metrics
from bench.core.files import DONE, key_of, read_json
from bench.errors import BenchError, UsageError
from bench.results.changes import Alternatives, Record, finding_on
from bench.results.outcomes import CLEAN, Outcomes

if TYPE_CHECKING:
    import pandas as pd

ResultsFolders = Path | str | Sequence[Path | str]
# <dataset>/<model>/<method>/<key>: a run lies at most this deep below a results folder.
DEPTH = 4
PLANS = ".plans"


@dataclass(frozen=True)
class Evaluation:
    """One finished evaluation: a checkpoint under one attack."""

    path: Path
    facts: dict[str, Any]

    @property
    def attack(self) -> str:
        """Name of the attack; `clean` for an evaluation without one."""
        return str(self.facts.get("attack") or CLEAN)

    @property
    def checkpoint(self) -> str:
        """Which weights of the run were attacked: "last" or "best"."""
        return str(self.facts.get("checkpoint", "last"))

    @property
    def stopped(self) -> str | None:
        """Which rule stopped it before everything was attacked, and where; None if it is complete."""
        stop = self.facts.get("stopped")
        if not stop:
            return None
        return f"{stop['rule']}, in {stop['stage']} after block {stop['block']} of {stop['blocks']}"

    @cached_property
    def outcomes(self) -> Outcomes:
        """The per-sample table, read on first access; every class has a sample in it.

        Raises:
            BenchError: if the table is broken or lacks a class.
        """
        table = Outcomes.read(self.path)
        try:
            metrics.class_counts(table.label, table.num_classes, table.class_names)
        except ValueError as error:
            raise BenchError(f"{self.path}: {error}") from None
        return table

    @cached_property
    def samples(self) -> str:
        """Digest of positions and labels: equal for evaluations on the same test samples."""
        table = self.outcomes
        return hashlib.sha256(table.index.tobytes() + table.label.tobytes()).hexdigest()[:12]


@dataclass(frozen=True)
class Run:
    """One finished training run (or foreign checkpoint) with its finished evaluations."""

    path: Path
    facts: dict[str, Any]
    evaluations: tuple[Evaluation, ...] = field(repr=False)

    def text(self, fact: str) -> str:
        """A fact of run.json as text, empty if absent."""
        value = self.facts.get(fact)
        return "" if value is None else str(value)

    @property
    def key(self) -> str:
        """The key of the run, which is the name of its folder."""
        return self.text("key") or self.path.name

    @property
    def seed(self) -> int:
        """The training seed; 0 for a checkpoint that states none."""
        return int(self.facts.get("seed") or 0)

    @property
    def label(self) -> str:
        """Name of its row in tables."""
        return self.text("label") or self.text("method")

    @property
    def is_teacher(self) -> bool:
        """Whether the run was trained as a teacher."""
        return self.facts.get("role") == "teacher"

    @property
    def records(self) -> list[Record]:
        """Its run.json and the eval.json of its evaluations."""
        evaluations = [Record(e.path / "eval.json", e.facts, self.facts) for e in self.evaluations]
        return [Record(self.path / "run.json", self.facts, self.facts), *evaluations]

    @property
    def teacher_keys(self) -> set[str]:
        """Keys of the runs that taught this one."""
        return {teacher["key"] for teacher in (self.facts.get("teachers") or {}).values() if "key" in teacher}

    @property
    def history(self) -> list[dict[str, Any]]:
        """history.jsonl, one object per epoch; empty for a foreign checkpoint."""
        file = self.path / "history.jsonl"
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def run_folders(results: ResultsFolders) -> list[Path]:
    """Every folder below the given ones that holds a run.json, or should since it is done; in order of path, each once.

    Raises:
        UsageError: if one of the given folders does not exist.
    """
    roots = [results] if isinstance(results, (str, Path)) else list(results)
    found: dict[Path, Path] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise UsageError(f"no folder {root}; run `bench run` first, or name the folder it wrote to")
        for pattern in ("*/" * depth + name for depth in range(DEPTH + 1) for name in ("run.json", DONE)):
            for folder in (file.parent for file in root.glob(pattern)):
                if folder.resolve().parent.name != "eval":
                    found.setdefault(folder.resolve(), folder)
    return sorted(found.values())


def missing_jobs(results: Path) -> dict[str, str]:
    """Folder, below a results folder, and title of each job that was planned for it and has no folder yet.

    Raises:
        BenchError: if the file of a plan is broken or was changed; its name is a hash of its content.
    """
    plans = {plan: read_json(plan) for plan in sorted((results / PLANS).glob("*.json"))}
    for plan, content in plans.items():
        if (found := key_of(content)) != plan.stem:
            raise BenchError(f"{plan}: expected the plan of key {plan.stem}, got that of {found}; delete it")
    jobs = {job["folder"]: job["title"] for content in plans.values() for job in content["jobs"]}
    return {folder: name for folder, name in jobs.items() if not any((results / folder).glob("[!.]*"))}


def read_runs(results: ResultsFolders) -> list[Run]:
    """The finished runs below one or several folders; a folder counts only if its `done` is there.

    Raises:
        UsageError: if one of the given folders does not exist.
        BenchError: if a run.json or eval.json is broken or was changed.
    """
    runs = [
        Run(folder, read_json(folder / "run.json"), tuple(_evaluations(folder)))
        for folder in run_folders(results)
        if (folder / "done").is_file()
    ]
    others = Alternatives(record for run in runs for record in run.records)
    for record in others.records:
        if (problem := finding_on(record, others).problem) is not None:
            raise BenchError(problem)
    _fill_missing_sources([run.facts for run in runs], "model", "model_source")
    _fill_missing_sources([evaluation.facts for run in runs for evaluation in run.evaluations], "attack", "source")
    return runs


def _fill_missing_sources(entries: Sequence[dict[str, Any]], name: str, source: str) -> None:
    """Give entries that state no source, being older, the source of all others of the same name if these agree."""
    stated: dict[str, set[str]] = {}
    for facts in entries:
        if source in facts:
            stated.setdefault(facts[name], set()).add(facts[source])
    for facts in entries:
        if source not in facts and len(known := stated.get(facts.get(name, ""), set())) == 1:
            facts[source] = next(iter(known))


def _evaluations(folder: Path) -> Iterator[Evaluation]:
    for done in sorted(folder.glob("eval/*/done")):
        yield Evaluation(done.parent, read_json(done.parent / "eval.json"))


def widest_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of a checkpoint whose clean predictions cover most samples."""
    return min(evaluations, key=lambda evaluation: (-len(evaluation.outcomes), evaluation.path.name))


def load_results(results: ResultsFolders = "results", *, stages: bool = False) -> pd.DataFrame:
    """One tidy table: a row per run, checkpoint and attack (`clean` included), figures as fractions.

    Every figure is computed from the stored outcomes. A row is one training seed; nothing is averaged.

    Args:
        results: a results folder, or several.
        stages: also a row for every stage of an attack, such as `autoattack/apgd-ce`.

    Returns:
        Columns: dataset, model, method, label, key, seed, role, recipe, epochs, selection, revision, train_size,
        checkpoint, epoch, attack, norm, eps, n, test_subset, block, implementation, attack_revision, evaluation_seed,
        classes, sanity, average, worst, nsd, worst10, gap, stopped, path (of the evaluation the row comes from).
        `sanity` is the mark of the sanity checks, None without. `stopped` says which rule ended an evaluation early,
        and where; its outcomes bound the figures from above, so these are left empty.

    Raises:
        UsageError: if a folder does not exist.
        BenchError: if a file in it is broken.

    >>> table = load_results("results/reference/digits")
    >>> chosen = table[(table.label == "trades") & (table.role == "student") & (table.attack == "autoattack")]
    >>> print(chosen.sort_values("seed")[["seed", "n", "average", "worst"]].to_string(index=False))
     seed   n  average    worst
        0 400   0.8050 0.650000
        1 400   0.8125 0.634146
        2 400   0.7975 0.675000
    """
    import pandas as pd

    rows = [row for run in read_runs(results) for row in _run_rows(run, stages)]
    columns = [*_RUN_FACTS, "train_size", *_EVAL_FACTS, *metrics.STATISTICS, "stopped", "path"]
    table: pd.DataFrame = pd.DataFrame(rows, columns=columns)
    return table


_RUN_FACTS = (
    *("dataset", "model", "method", "label", "key", "seed", "role", "recipe", "epochs", "selection", "revision"),
)
_EVAL_FACTS = (
    *("checkpoint", "epoch", "attack", "norm", "eps", "n", "test_subset", "block"),
    *("implementation", "attack_revision", "evaluation_seed", "classes", "sanity"),
)


def _run_rows(run: Run, stages: bool) -> Iterator[dict[str, Any]]:
    common = {fact: run.facts.get(fact) for fact in _RUN_FACTS}
    common |= {"label": run.label, "key": run.key, "train_size": (run.facts.get("data") or {}).get("train_size")}
    for checkpoint in sorted({evaluation.checkpoint for evaluation in run.evaluations}):
        here = [evaluation for evaluation in run.evaluations if evaluation.checkpoint == checkpoint]
        yield common | _row(widest_evaluation(here), CLEAN)
        for evaluation in here:
            if evaluation.attack != CLEAN:
                parts = evaluation.outcomes.stages(evaluation.attack) if stages else []
                for attack in (evaluation.attack, *parts):
                    yield common | _row(evaluation, attack)


def _row(evaluation: Evaluation, attack: str) -> dict[str, Any]:
    facts, outcomes = evaluation.facts, evaluation.outcomes
    row = {name: facts.get(name) for name in _EVAL_FACTS} | {"checkpoint": evaluation.checkpoint, "attack": attack}
    row |= {
        "evaluation_seed": facts.get("seed"),
        "attack_revision": facts.get("revision"),
        "sanity": (facts.get("sanity") or {}).get("mark"),
    }
    if attack == CLEAN:
        row |= dict.fromkeys(("norm", "eps", "implementation", "attack_revision", "block", "evaluation_seed", "sanity"))
    correct, labels = outcomes.correct(attack)
    accuracy, counts = outcomes.by_class(attack), metrics.class_counts(labels, outcomes.num_classes)
    row |= {name: float(statistic(accuracy, counts)) for name, statistic in metrics.STATISTICS.items()}
    row |= {"average": metrics.average(correct), "n": len(labels), "path": str(evaluation.path), "stopped": None}
    if attack != CLEAN and evaluation.stopped:
        row |= dict.fromkeys(metrics.STATISTICS, float("nan")) | {"stopped": evaluation.stopped}
    return row
