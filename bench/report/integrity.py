"""Integrity check of a results folder: read every file, recompute every figure, hash every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.core import checksums
from bench.core.files import file_hash, is_done, read_json
from bench.errors import BenchError
from bench.report.tables.sanity import SIGNS
from bench.report.views.reports import render
from bench.results.changes import EVALUATION, RUN, Alternatives, Record, finding_on, is_key
from bench.results.outcomes import CLEAN, Outcomes
from bench.results.tree import DEPTH, ResultsFolders, missing_jobs, run_folders

RUN_FACTS = ("key", "dataset", "model", "method", "seed", "data")
EVAL_FACTS = ("key", "checkpoint", "attack", "weights", "n", "classes", "class_names")
# Tables that may lie in a results folder, with the reporter that wrote them.
TABLES = {"table.md": "markdown", "table.tex": "latex", "table.csv": "csv", "table.json": "json"}


def verify(results: ResultsFolders) -> list[str]:
    """Check one or several results folders.

    Reads run.json, eval.json, history.jsonl and the outcomes, recomputes all figures and the tables stored in the
    folder itself (`table.md`, `.tex`, `.csv`, `.json`), and compares files with the SHA-256 stored of them.

    Returns:
        One sentence per problem; empty if there is none.

    Raises:
        UsageError: if a folder does not exist.
    """
    folders, roots = run_folders(results), [results] if isinstance(results, (str, Path)) else results
    others = Alternatives(stored_records(folders))
    problems = [finding.problem for finding in (finding_on(record, others) for record in others.records)]
    problems += [problem for folder in folders for problem in _check_run(folder)]
    problems += [problem for root in roots for problem in (*_check_missing(Path(root)), *_check_tables(Path(root)))]
    if not folders:
        problems.append(f"{results}: expected at least one run, found none")
    return list(dict.fromkeys(problem for problem in problems if problem is not None))


def stored_records(folders: Iterable[Path]) -> Iterator[Record]:
    """The records of finished runs and of their finished evaluations, as far as they can be read."""
    for folder in filter(is_done, folders):
        try:
            run = read_json(folder / RUN)
        except BenchError:
            continue
        yield Record(folder / RUN, run, run)
        for evaluation in filter(is_done, sorted(folder.glob("eval/*"))):
            with suppress(BenchError):
                yield Record(evaluation / EVALUATION, read_json(evaluation / EVALUATION), run)


def _check_missing(root: Path) -> Iterator[str]:
    """Folders that lost their run.json, and evaluations of finished runs that were planned and are not there."""
    patterns = ("*.safetensors", "state.pt", "eval")
    inside = {path.parent for name in patterns for depth in range(DEPTH + 1) for path in root.glob("*/" * depth + name)}
    for folder in sorted(inside):
        if is_key(folder.name) and not (folder / RUN).is_file():
            yield f"{folder}: expected a run.json beside weights or evaluations, got none; put it back, or delete them"
    try:
        missing = missing_jobs(root)
    except BenchError as error:
        yield str(error)
        return
    for name, title in missing.items():
        if is_done((root / name).parent.parent):
            yield f"{root / name}: missing, although {title} was planned; run the same command again"


def _check_run(folder: Path) -> Iterator[str]:
    if not (folder / "done").is_file():
        failure = folder / "failed"
        reason = f"failed: {failure.read_text(encoding='utf-8').strip()}" if failure.is_file() else "not finished"
        yield f"{folder}: {reason}"
    try:
        facts = read_json(folder / "run.json")
    except BenchError as error:
        yield str(error)
        return
    yield from checksums.file_problems(folder, facts)
    yield from _missing(folder / "run.json", facts, RUN_FACTS)
    yield from _check_lines(folder / "history.jsonl")
    if facts.get("method") != "external" and (folder / "done").is_file():
        yield from _check_history(folder, facts)
    evaluations = sorted(path for path in folder.glob("eval/*") if path.is_dir())
    for evaluation in evaluations:
        yield from _check_evaluation(folder, evaluation)
    yield from _check_agreement(evaluations)


def _missing(file: Path, facts: dict[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    absent = [name for name in names if name not in facts]
    if absent:
        yield f"{file}: expected the entries {', '.join(names)}; missing: {', '.join(absent)}"


def _check_lines(file: Path) -> Iterator[str]:
    if not file.is_file():
        return
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError as error:
            yield f"{file}, line {number}: expected JSON ({error})"


def _check_history(folder: Path, facts: dict[str, Any]) -> Iterator[str]:
    file, epochs = folder / "history.jsonl", facts.get("epochs")
    if not file.is_file():
        yield f"{file}: missing, although the run is done"
        return
    lines = len(file.read_text(encoding="utf-8", errors="replace").splitlines())
    if epochs is not None and lines != epochs:
        yield f"{file}: expected {epochs} epochs, got {lines}"


def _check_evaluation(run: Path, folder: Path) -> Iterator[str]:
    if not (folder / "done").is_file():
        yield f"{folder}: not finished"
        yield from _check_blocks(folder)
        return
    try:
        facts = read_json(folder / "eval.json")
        yield from _missing(folder / "eval.json", facts, EVAL_FACTS)
        yield from _check_outcomes(folder, facts, Outcomes.read(folder))
    except (BenchError, ValueError) as error:
        yield str(error) if str(folder) in str(error) else f"{folder}: {error}"
        return
    yield from _check_weights(run, folder, facts)


def _check_blocks(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("partial/*.json")):
        try:
            checksums.read_sealed(file)
        except BenchError as error:
            yield str(error)


def _check_outcomes(folder: Path, facts: dict[str, Any], outcomes: Outcomes) -> Iterator[str]:
    if facts.get("n", len(outcomes)) != len(outcomes):
        yield f"{folder}: eval.json says n = {facts['n']}, the outcomes have {len(outcomes)} rows"
    attack = facts.get("attack") or CLEAN
    if attack not in outcomes.attacks:
        yield f"{folder}: eval.json says attack {attack!r}, the outcomes hold {', '.join(outcomes.attacks)}"
        return
    stages = [f"{attack}/{stage}" for stage in facts.get("stages") or () if stage != attack]
    absent = [stage for stage in stages if stage not in outcomes.stages(attack)]
    if absent and len(stages) > 1:
        yield f"{folder}: eval.json names stages whose outcomes are missing: {', '.join(absent)}"
    for name in (CLEAN, attack):
        outcomes.by_class(name)
    yield from _check_sanity(folder, facts.get("sanity"))


def _check_sanity(folder: Path, sanity: Any) -> Iterator[str]:
    """Check that each level follows from value and thresholds, and that the mark is the worst level."""
    if sanity is None:
        return
    try:
        levels = {finding["check"]: (finding["level"], _level(finding)) for finding in sanity["findings"]}
        wrong = [check for check, (stated, expected) in levels.items() if stated != expected]
        expected_mark = max((level for level, _ in levels.values()), key=list(SIGNS).index, default="reliable")
        mark = sanity["mark"]
    except (KeyError, TypeError, ValueError) as error:
        yield f"{folder}: the sanity checks in eval.json cannot be read ({error!r})"
        return
    if wrong:
        yield f"{folder}: levels of sanity checks do not follow from value and thresholds: {', '.join(wrong)}"
    elif mark != expected_mark:
        yield f"{folder}: eval.json says that sanity checks found it {mark!r}, the findings say {expected_mark!r}"


def _level(finding: dict[str, Any]) -> str:
    value, threshold, limit = finding["value"], finding["threshold"], finding["limit"]
    if value is None or value <= threshold:
        return "reliable"
    return "suspicious" if limit is None or value <= limit else "unreliable"


def _check_weights(run: Path, folder: Path, facts: dict[str, Any]) -> Iterator[str]:
    """Compare the checkpoint with the hash that was attacked, unless the copy holds no weights at all."""
    file = run / f"{facts.get('checkpoint', 'last')}.safetensors"
    if not file.is_file():
        if any(run.glob("*.safetensors")) or (run / "state.pt").is_file():
            yield f"{file}: missing, although {folder.name} evaluated it"
        return
    if file_hash(file) != facts.get("weights"):
        yield f"{file}: its SHA-256 is not that of the weights in {folder / 'eval.json'}; evaluate it again"


def _check_agreement(evaluations: list[Path]) -> Iterator[str]:
    """Evaluations of one checkpoint must agree on labels and clean predictions."""
    first: dict[str, tuple[Path, dict[int, tuple[int, int]]]] = {}
    for folder in evaluations:
        try:
            checkpoint = str(read_json(folder / "eval.json").get("checkpoint"))
            table = Outcomes.read(folder)
        except BenchError:
            continue
        facts = zip(table.label.tolist(), table.clean.tolist(), strict=True)
        samples = dict(zip(table.index.tolist(), facts, strict=True))
        before, known = first.setdefault(checkpoint, (folder, samples))
        if any(known.get(index, value) != value for index, value in samples.items()):
            yield f"{folder}: labels or clean predictions differ from those in {before}, though both are {checkpoint!r}"


def _check_tables(root: Path) -> Iterator[str]:
    for name, format in TABLES.items():
        file = root / name
        if not file.is_file():
            continue
        try:
            if render(root, format=format).strip() != file.read_text(encoding="utf-8").strip():
                yield f"{file}: differs from the table recomputed from the outcomes; write it again with `bench report`"
        except BenchError as error:
            yield f"{file}: cannot be recomputed ({error})"
