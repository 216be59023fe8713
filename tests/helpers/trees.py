"""Synthetic results trees in the layout that a run writes: outcomes drawn from stated class accuracies."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.results.outcomes import Outcomes

METHODS = ("natural", "pgd_at", "trades", "frl", "ard", "rslad", "absld", "ham")
ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {"steps": 1},
    "pgd": {"steps": 20, "step_size": 0.0375, "restarts": 1},
    "cw": {"steps": 30, "step_size": 0.0375},
    "autoattack": {"version": "standard"},
}
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass
class Spec:
    """One run to write; the defaults are those of the digits default."""

    method: str = "pgd_at"
    seed: int = 0
    dataset: str = "digits"
    model: str = "small_cnn"
    label: str | None = None
    role: str = "student"
    classes: int = 10
    per_class: int = 40
    clean: float | Sequence[float] = 0.97
    attacks: Mapping[str, float | Sequence[float]] = field(
        default_factory=lambda: {"fgsm": 0.8, "pgd": 0.7, "cw": 0.68, "autoattack": 0.65}
    )
    checkpoints: tuple[str, ...] = ("last",)
    epochs: int = 30
    state: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    eval_facts: Mapping[str, Any] = field(default_factory=dict)
    subset: Mapping[str, int] = field(default_factory=dict)
    eps: float = 0.15
    noise: int = 0

    @property
    def key(self) -> str:
        text = f"{self.method}{self.seed}{self.dataset}{self.model}{self.label}{self.role}{self.noise}{self.facts}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def names(self) -> list[str]:
        return [f"class {k}" if self.classes > 12 else str(k) for k in range(self.classes)]


def draw(spec: Spec, attack: str, accuracy: float | Sequence[float], checkpoint: str) -> Outcomes:
    """Outcomes under one attack; all attacks of a checkpoint share the clean predictions."""
    subset = spec.subset.get(attack, spec.per_class)
    label = np.tile(np.arange(spec.classes), spec.per_class)
    rng = np.random.default_rng(zlib.crc32(f"{spec.key}{checkpoint}".encode()))
    uniform = rng.random(len(label))
    chance = np.broadcast_to(np.asarray(spec.clean, dtype=float), spec.classes)[label]
    clean = np.where(uniform < chance, label, (label + 1) % spec.classes)
    kept = slice(0, subset * spec.classes)
    attacked = np.broadcast_to(np.asarray(accuracy, dtype=float), spec.classes)[label]
    robust = (uniform < attacked) & (clean == label)
    prediction = np.where(robust, label, np.where(clean == label, (label + 2) % spec.classes, clean))
    attacks, verdicts = {attack: prediction[kept]}, {attack: robust[kept]}
    if attack == "autoattack":
        for stage in STAGES:
            attacks[f"{attack}/{stage}"], verdicts[f"{attack}/{stage}"] = attacks[attack], verdicts[attack]
    return Outcomes(
        np.arange(len(label))[kept],
        label[kept],
        clean[kept],
        attacks=attacks,
        robust=verdicts,
        num_classes=spec.classes,
        class_names=spec.names,
    )


def write_run(root: Path, spec: Spec) -> Path:
    """Write one finished run with its evaluations; returns its folder."""
    folder = root / spec.dataset / spec.model / spec.method / spec.key
    folder.mkdir(parents=True)
    _write_json(folder / "run.json", run_facts(spec))
    if spec.method != "external":
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history(spec)))
    for checkpoint in spec.checkpoints:
        weights = f"weights of {spec.key} {checkpoint}".encode()
        (folder / f"{checkpoint}.safetensors").write_bytes(weights)
        for attack, accuracy in spec.attacks.items():
            outcomes = draw(spec, attack, accuracy, checkpoint)
            write_evaluation(folder, spec, checkpoint, attack, outcomes, hashlib.sha256(weights).hexdigest())
    (folder / "done").touch()
    return folder


def write_evaluation(folder: Path, spec: Spec, checkpoint: str, attack: str, outcomes: Outcomes, weights: str) -> Path:
    """Write one finished evaluation of a run."""
    key = hashlib.sha256(f"{checkpoint}{attack}{spec.eps}{spec.eval_facts}{len(outcomes)}".encode()).hexdigest()[:16]
    where = folder / "eval" / key
    where.mkdir(parents=True)
    outcomes.write(where / "outcomes.parquet")
    facts = {
        **{"format": 1, "key": key, "checkpoint": checkpoint, "epoch": spec.epochs - 1, "weights": weights},
        **{"attack": attack, "attack_settings": ATTACKS.get(attack, {}), "norm": "linf", "eps": spec.eps},
        "implementation": "pyautoattack 0.2.0" if attack == "autoattack" else "native",
        **{"seed": spec.seed, "n": len(outcomes), "block": 100, "classes": spec.classes, "class_names": spec.names},
        "test_subset": len(outcomes) if attack in spec.subset else None,
        "stages": list(STAGES) if attack == "autoattack" else [attack],
        **{"left_out": {}, "passes": {"forward": 1, "input_grad": 1}, "versions": {}, "hardware": {"device": "cpu"}},
        **spec.eval_facts,
    }
    _write_json(where / "eval.json", facts)
    (where / "done").touch()
    return where


def run_facts(spec: Spec) -> dict[str, Any]:
    """The content of run.json."""
    test_size = spec.classes * spec.per_class
    return {
        **{"format": 1, "key": spec.key, "dataset": spec.dataset, "model": spec.model, "method": spec.method},
        **{"label": spec.label or spec.method, "seed": spec.seed, "recipe": "digits", "epochs": spec.epochs},
        **{"epoch_best": 20 if "best" in spec.checkpoints else None},
        "selection": "best" if "best" in spec.checkpoints else "last",
        **{"settings": {}, "training": {"lr": 0.1, "batch_size": 128}, "teachers": {}, "warm_start": None},
        "data": {
            **{"classes": spec.classes, "class_names": spec.names, "train_size": 1197, "select_size": 100},
            **{"steer_size": 100, "test_size": test_size, "hash": "d1"},
        },
        **{"role": spec.role, "passes": {}, "versions": {}, "hardware": {"device": "cpu", "threads": 1}},
        **spec.facts,
    }


def history(spec: Spec) -> list[dict[str, Any]]:
    """Plausible training curves, with per-class state that drifts apart from its initial value."""
    rng = np.random.default_rng(zlib.crc32(spec.key.encode()))
    drift = np.cumsum(rng.normal(0, 0.05, size=(spec.epochs, spec.classes)), axis=0)
    lines = []
    for epoch in range(spec.epochs):
        rise = 0.7 * (1 - np.exp(-(epoch + 1) / 6))
        classes = np.clip(rise + rng.normal(0, 0.08, spec.classes), 0, 1)
        line = {
            **{"epoch": epoch, "lr": 0.1, "loss": 2.3 - 1.5 * rise, "skipped_steps": 0},
            "train": {
                "clean" if spec.method == "natural" else "adv": {
                    "accuracy": float(classes.mean()),
                    "class_accuracy": classes.tolist(),
                }
            },
            "state": {name: (start + drift[epoch]).tolist() for name, start in spec.state.items()},
        }
        if "best" in spec.checkpoints:
            line["validation"] = {"clean": 0.9, "pgd": rise, "worst": rise - 0.2, "score": 2 * rise - 0.2}
        lines.append(line)
    return lines


def demo(root: Path, seeds: Sequence[int] = (0,), **common: Any) -> Path:
    """A whole plan: every method on every seed, and the teacher of the distilled ones."""
    wide = f"{common.get('model', 'small_cnn')}_wide"
    teacher = Spec(**{**common, "method": "trades", "model": wide, "role": "teacher"})
    write_run(root, teacher)
    taught = {"robust": {"key": teacher.key, "label": f"trades on {wide}"}}
    state = {"frl": {"weight": 1.0}, "absld": {"temperature_adv": 1.0, "temperature_clean": 1.0}, "ham": {"kept": 0.8}}
    classes = common.get("classes", 10)
    for place, method in enumerate(METHODS):
        base = np.linspace(0.75, 0.95, classes) - 0.02 * (place % 3)
        attacks = {name: base - cut for name, cut in zip(ATTACKS, (0.1, 0.2, 0.22, 0.25), strict=True)}
        for seed in seeds:
            facts = {"teachers": taught} if method in ("ard", "rslad", "absld") else {}
            spec = Spec(
                method=method, seed=seed, state=state.get(method, {}), facts=facts, **{"attacks": attacks, **common}
            )
            write_run(root, spec)
    return root


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
