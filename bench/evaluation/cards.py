"""A teacher's card: origin, hash and licence of its weights, and the accuracy of every class as measured here.

It lies beside the weights as JSON and, for people, as Markdown: `FILE.card.json` for a file, `ID.card.json` for a
network of the zoo, `card.json` in the folder of a run. The accuracies are those under PGD of 20 steps on a
stratified part of the test samples; the card of a run holds those of its evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from math import isnan
from pathlib import Path
from typing import Any

from torch import nn

from attacks.registry import ATTACKS
from attacks.threat import ThreatModel
from bench.core import checksums, files
from bench.core import device as devices
from bench.data.registry import DATASETS
from bench.data.splits import Parts, limit, to_float
from bench.errors import UsageError
from bench.evaluation.evaluate import evaluate
from bench.models.checkpoints import other_entries, weights_hash
from bench.plan.jobs import DEFAULT_BLOCK
from bench.results.outcomes import CLEAN, Outcomes

FORMAT = 1
ATTACK = "pgd"
SAMPLES = 1000
SAMPLES_PER_CLASS = 10
NOT_STATED = "not stated"
SUFFIX = ".card.json"
LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "license*", "licence*")

Card = dict[str, Any]


@dataclass(frozen=True)
class Conditions:
    """The conditions under which a teacher is measured.

    Attributes:
        norm, eps: threat model.
        limit: test samples at most, a stratified part.
        device, threads, deterministic: see `bench.config.settings.RunSettings`.
    """

    norm: str
    eps: float
    limit: int | None = None
    device: str = "cpu"
    threads: int = 1
    deterministic: bool = False

    def samples(self, parts: Parts) -> int:
        """Test samples to measure on: a thousand, or ten of each class, and no more than the limit."""
        n = max(SAMPLES, SAMPLES_PER_CLASS * parts.num_classes)
        return min(len(parts.test), n if self.limit is None else max(self.limit, parts.num_classes))


def ensure_card(
    source: Mapping[str, str],
    teacher: nn.Module,
    parts: Parts,
    conditions: Conditions,
    *,
    out: Path,
    data_dir: Path,
    licence: str | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> tuple[Card, Path]:
    """The card of a given teacher, measured now unless it was measured on as many samples before.

    Args:
        source: its origin, a file or a network of the zoo, see `TrainJob.teachers`.
        teacher: the network with its weights, left as it was but for its device.
        parts: the data to measure on.
        conditions: under which it is measured.
        out: results folder; the card lies in its folder `cards` where it cannot be written beside the weights.
        data_dir: where the zoo's weights are kept.
        licence: of the weights, where the caller knows; else what can be found out.
        note: receives a sentence before anything that takes time.

    Returns:
        The card, and where it is.
    """
    path = _card_path(source, parts.name, conditions.norm, data_dir)
    description = _description(source, teacher, parts.name, conditions.norm, data_dir)
    before = next((found for file in (path, out / "cards" / path.name) if (found := _read(file))), None)
    same = before is not None and before["weights"] == description["weights"]
    card: Card = {**description, "measured": list(before["measured"]) if before is not None and same else []}
    if licence is not None:
        card["licence"] = licence
    elif before is not None and same and card["licence"] == NOT_STATED:
        card["licence"] = before["licence"]  # somebody stated it
    asked = {"dataset": parts.name, "data": parts.hash, "norm": conditions.norm, "eps": conditions.eps}
    alike = [measured for measured in card["measured"] if asked.items() <= measured.items()]
    n = conditions.samples(parts)
    if not any(measured["n"] >= n for measured in alike):
        note(f"{card['name']}: its card takes PGD of 20 steps on {n:,} test samples, once")
        card["measured"] = [measured for measured in card["measured"] if measured not in alike]
        card["measured"].append({**asked, **_measure(teacher, parts, conditions, n)})
    return card, path if card == before and path.is_file() else _write(path, card, out / "cards")


def card_of_run(folder: Path) -> Card:
    """The card of a run of the suite, from its description and its finished evaluations.

    Raises:
        BenchError: if the folder holds no finished run, or its files were changed.
    """
    run = checksums.read_record(folder / "run.json")
    weights = folder / "last.safetensors"
    if weights.is_file():
        checksums.require(weights, run)
    origin = f"trained by this suite, recipe {run['recipe']}, seed {run['seed']}"
    card: Card = {
        "format": FORMAT, "name": run["label"] if run["role"] == "student" else f"{run['label']} on {run['model']}",
        "source": origin if run["recipe"] is not None else run["checkpoint"],
        "run": run["key"], "files": {weights.name: files.file_hash(weights)} if weights.is_file() else {},
        "licence": NOT_STATED, "model": run["model"],
        "settings": run["settings"], "train_size": run["data"]["train_size"],
    }  # fmt: skip
    finished = [path.parent for path in sorted(folder.glob("eval/*/eval.json")) if files.is_done(path.parent)]
    card["measured"] = [entry for path in finished if (entry := _from_evaluation(path, run)) is not None]
    return card


def write_teacher_cards(folders: Iterable[Path]) -> None:
    """Write the cards of those runs that trained a teacher, as far as they are finished and were evaluated."""
    for folder in folders:
        if files.is_done(folder) and checksums.read_record(folder / "run.json", ("role",))["role"] == "teacher":
            card = card_of_run(folder)
            if card["measured"]:
                write_card(folder, card)


def card_text(card: Card) -> str:
    """A card for people, in Markdown; percent with two decimals."""
    lines = [f"# {card['name']}", "", f"- Source: {card['source']}"]
    lines += [f"- Address: {address}" for address in card.get("addresses", ())]
    lines += [f"- File: {name}, SHA-256 {digest}" for name, digest in card["files"].items()]
    if card.get("entry"):
        lines.append(f"- Entry of the file: {card['entry']}")
    if card.get("others"):
        lines.append(f"- Also in the file, and not used: {', '.join(card['others'])}")
    size = f", {card['parameters']:,} parameters" if "parameters" in card else ""
    lines += [f"- Licence: {card['licence']}", f"- Network: {card['model']}{size}"]
    if not card["measured"]:
        lines += ["", "Nothing has been measured yet."]
    for measured in card["measured"]:
        lines += ["", *_table(measured)]
    return "\n".join(lines) + "\n"


def write_card(folder: Path, card: Card) -> Path:
    """Write the card of a run into its folder."""
    return _write(folder / "card.json", card, folder)


def _card_path(source: Mapping[str, str], dataset: str, norm: str, data_dir: Path) -> Path:
    if "zoo" in source:
        from bench.models.robustbench import zoo_files

        first = next(iter(zoo_files(source["zoo"], dataset, norm, data_dir / "zoo")))
        return first.with_name(first.name.partition(".pt")[0] + SUFFIX)
    file, entry = files.file_and_entry(source["file"])
    return file.with_name(file.name + (f"#{entry}" if entry else "") + SUFFIX)


def _description(source: Mapping[str, str], teacher: nn.Module, dataset: str, norm: str, data_dir: Path) -> Card:
    """The entries of a card that need no measuring."""
    card: Card = {"format": FORMAT, "name": source["label"]}
    if "zoo" in source:
        from bench.models.robustbench import zoo_files, zoo_licence

        paths = zoo_files(source["zoo"], dataset, norm, data_dir / "zoo")
        card |= {"source": f"robustbench:{source['zoo']}", "addresses": list(paths.values())}
        licence = zoo_licence(source["zoo"], dataset, norm)
    else:
        file, entry = files.file_and_entry(source["file"])
        paths = {file: ""}
        card |= {"source": str(file), "entry": entry, "others": list(other_entries(source["file"]))}
        found = sorted(path.name for pattern in LICENCES for path in file.parent.glob(pattern))
        licence = f"see {found[0]} beside it" if found else NOT_STATED
    card |= {"files": {file.name: files.file_hash(file) for file in paths}, "licence": licence}
    return card | {
        "weights": weights_hash(teacher.state_dict()),
        "model": source.get("model", f"robustbench:{source.get('zoo')}"),
        "parameters": sum(parameter.numel() for parameter in teacher.parameters()),
    }


def _measure(teacher: nn.Module, parts: Parts, conditions: Conditions, n: int) -> Card:
    devices.configure(conditions.device, conditions.threads, conditions.deterministic)
    test = limit(parts.test, n, "card")
    outcomes = evaluate(
        teacher.to(conditions.device), to_float(test.x), test.y,
        attacks=[ATTACK], threat=ThreatModel(conditions.norm, conditions.eps),  # type: ignore[arg-type]
        block=DATASETS.sketch(parts.name).fact("block", DEFAULT_BLOCK) if parts.name in DATASETS else DEFAULT_BLOCK,
        class_names=parts.class_names,
    )  # fmt: skip
    teacher.to("cpu")
    devices.release_memory()
    settings = {name: value for name, value in ATTACKS.sketch(ATTACK).settings.items() if name != "threat"}
    return {
        "attack": ATTACK, "attack_settings": settings, "seed": 0, "n": n, "of": len(parts.test),
        "date": datetime.now(timezone.utc).date().isoformat(), "class_names": list(parts.class_names),
        CLEAN: _figures(outcomes, CLEAN), "robust": _figures(outcomes, ATTACK),
        "versions": devices.versions(), "hardware": devices.hardware(conditions.device, conditions.threads),
    }  # fmt: skip


def _from_evaluation(folder: Path, run: Mapping[str, Any]) -> Card | None:
    """The figures of a finished evaluation of the last checkpoint; no date, since equal runs have equal files."""
    facts = checksums.read_record(folder / "eval.json")
    if facts["checkpoint"] != "last":
        return None
    outcomes = Outcomes.read(folder)
    kept = ("attack", "attack_settings", "norm", "eps", "seed", "n", "class_names", "versions", "hardware")
    return {
        "dataset": run["dataset"], "data": run["data"]["hash"], **{name: facts[name] for name in kept},
        "of": run["data"]["test_size"], "evaluation": facts["key"],
        CLEAN: _figures(outcomes, CLEAN), "robust": _figures(outcomes, facts["attack"]),
    }  # fmt: skip


def _figures(outcomes: Outcomes, attack: str) -> Card:
    by_class, nsd = outcomes.by_class(attack), outcomes.nsd(attack)
    return {
        "average": outcomes.average(attack), "worst": outcomes.worst(attack),
        "worst_class": outcomes.class_names[int(by_class.argmin())],
        "nsd": None if isnan(nsd) else nsd, "by_class": by_class.tolist(),
    }  # fmt: skip


def _table(measured: Mapping[str, Any]) -> list[str]:
    settings = ", ".join(f"{name} {value}" for name, value in measured["attack_settings"].items() if value is not None)
    part = "all" if measured["n"] == measured["of"] else "a stratified part of"
    when = f"; measured {measured['date']}" if "date" in measured else ""
    clean, robust = measured[CLEAN], measured["robust"]
    lines = [
        f"{measured['attack']} ({settings}), {measured['norm']}, eps {measured['eps']:.4g}, seed {measured['seed']}: "
        f"n = {measured['n']:,}, {part} the {measured['of']:,} test samples of {measured['dataset']}{when}.",
        "",
        "| class | clean | robust |",
        "| ----- | ----: | -----: |",
    ]
    by_class = zip(measured["class_names"], clean["by_class"], robust["by_class"], strict=True)
    rows = [*by_class, *((name, clean[name], robust[name]) for name in ("average", "worst"))]
    lines += [f"| {name} | {100 * before:.2f} | {100 * after:.2f} |" for name, before, after in rows]
    spread = ("-" if value is None else f"{value:.3f}" for value in (clean["nsd"], robust["nsd"]))
    return [*lines, f"| NSD | {' | '.join(spread)} |"]


def _read(file: Path) -> Card | None:
    """A card that was written before; None if there is none, or another program's file."""
    if not file.is_file():
        return None
    card = files.read_json(file)
    if card.get("format") != FORMAT or not isinstance(card.get("measured"), list):
        raise UsageError(f"{file}: expected a card of this suite, got something else; move it out of the way")
    return card


def _write(path: Path, card: Card, fallback: Path) -> Path:
    """Write a card as JSON and Markdown, into another folder if that one is not writable."""
    for target in (path, fallback / path.name):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(target.with_suffix(".md"), card_text(card))
            files.write_json(target, card)
            return target
        except OSError as error:
            refused = error
    raise UsageError(f"{path}: the card cannot be written ({refused.strerror}); make the folder writable")
