"""Units of the parity benchmark: one attack, one model, one seed; each is stored when it is finished."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import attacks
from attacks.autoattack.fab import minimal_norms
from attacks.autoattack.reference import NORMS, fenced, reference_package, reference_version
from attacks.threat import distance
from bench.core.files import Timer, file_hash, key_of, read_json, write_json
from benchmarks.attacked import SUFFIXES, Effort, predict, run
from benchmarks.subjects import Subject

Kind = Literal["all", "right", "rows", "norms"]


@dataclass(frozen=True)
class Unit:
    """What one process does in one go.

    Attributes:
        kind: which samples are attacked: all, those that are right, or `rows`; "norms" measures the minimal norms
            that FAB finds for `rows` of those that are right.
        subject: the model.
        attack: stage or ensemble.
        side: "native", "reference" or "quick".
        seed: of the draws.
        samples: how many the subject provides.
        effort: steps, targets and queries.
        rows: positions among all samples.
        prepare: switches of the prepared model besides the usual ones.
    """

    kind: Kind
    subject: Subject
    attack: str
    side: str
    seed: int
    samples: int
    effort: Effort
    rows: tuple[int, ...] = ()
    prepare: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For the progress line."""
        return f"{self.subject.name}: {self.attack}, {self.side}, {self.kind}, seed {self.seed}"

    @property
    def key(self) -> str:
        """A hash of all that the result follows from, the code of the attack included."""
        facts = {name: value for name, value in asdict(self).items() if name != "prepare" or value}
        facts["subject"] = {
            **facts["subject"],
            "name": "",
            "data_dir": "",
            "weights": file_hash(Path(self.subject.weights)),
        }
        return key_of({**facts, "code": code(self.side), "torch": torch.__version__})


@lru_cache
def code(side: str) -> str:
    """What stands for the implementation of a side: the hash of our sources, or the name of the released package."""
    sources = sorted(Path(next(iter(attacks.__path__))).rglob("*.py"))
    adapter = [path for path in sources if path.name == "reference.py"]
    chosen = [path for path in sources if path not in adapter] if side != "reference" else adapter
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in chosen)).hexdigest()
    return digest if side != "reference" else f"{reference_version()} {digest}"


def measured(units: Sequence[Unit], *, jobs: int, cache: Path) -> list[dict[str, Any]]:
    """The results of units, in their order; what is not in the cache is run by worker processes of one thread each.

    Args:
        units: what is wanted.
        jobs: processes side by side; 1 runs everything here.
        cache: folder of the results, a JSON file per unit. A file appears whole or not at all.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [unit for unit in dict.fromkeys(units) if not _file(cache, unit).is_file()]
    timer = Timer()
    for count, unit in enumerate(_finished(missing, jobs, cache), 1):
        print(f"{count}/{len(missing)} after {timer.seconds:.0f} s: {unit.label}", file=sys.stderr, flush=True)
    return [read_json(_file(cache, unit)) for unit in units]


def _finished(units: Sequence[Unit], jobs: int, cache: Path) -> Iterable[Unit]:
    if jobs == 1 or len(units) < 2:
        for unit in units:
            _run_and_store(unit, cache)
            yield unit
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_run_and_store, unit, cache): unit for unit in units}
        try:
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _file(cache: Path, unit: Unit) -> Path:
    return cache / f"{unit.key}.json"


def _run_and_store(unit: Unit, cache: Path) -> None:
    torch.set_num_threads(1)
    timer = Timer()
    found = measure(unit)
    write_json(_file(cache, unit), {"unit": unit.label, "seconds": timer.seconds, **found})


def measure(unit: Unit) -> dict[str, Any]:
    """Run a unit.

    Returns:
        "rows": positions of the samples among all; "right": how many of all are right; then "stages": per stage the
        verdict of each sample, "1" where it stands, and "passes" of them all; or "norms", None where none was found.
    """
    subject = unit.subject
    model, (x, y) = subject.load(), subject.samples(unit.samples)
    right = torch.where(predict(model, x, "cpu", subject.block) == y)[0]
    rows = {"all": torch.arange(len(y)), "right": right}.get(unit.kind, torch.tensor(unit.rows, dtype=torch.int64))
    found: dict[str, Any] = {"rows": rows.tolist(), "right": len(right)}
    if unit.kind == "norms":
        chosen = right[rows[rows < len(right)]]
        sizes = fab_norms(model, x[chosen], y[chosen], unit)
        return {**found, "norms": [None if size == float("inf") else size for size in sizes.tolist()]}
    verdicts = run(
        model, x[rows], y[rows], unit.attack, unit.side, subject.threat, unit.effort,
        seed=unit.seed, block=subject.block, prepare=unit.prepare,
    )  # fmt: skip
    stages = {
        _plain(stage): "".join("01"[int(stands)] for stands in robust.tolist())
        for stage, (_, robust) in verdicts.stages.items()
    }
    return {**found, "stages": stages, "passes": verdicts.passes}


def _plain(stage: str) -> str:
    """The name of a stage without its side."""
    for suffix in SUFFIXES.values():
        stage = stage.removesuffix(suffix) if suffix else stage
    return stage


def fab_norms(model: nn.Module, x: Tensor, y: Tensor, unit: Unit) -> Tensor:
    """The least distance (n,) at which FAB of a side fools the model, every step run; infinite where it does not."""
    steps, targets, norm = unit.effort.steps, unit.effort.targets, unit.subject.threat.norm
    if unit.side == "native":
        return minimal_norms(model, x, y, norm=norm, steps=steps, targets=targets)
    package = reference_package()
    threat = unit.subject.threat
    member = package.AutoAttack(model, norm=NORMS[norm], eps=threat.eps, device="cpu", version="custom").fab
    member.n_iter = steps
    found = torch.full((len(x),), torch.inf)
    with fenced(model, x):
        for rank in range(2, min(targets, int(model(x[:1]).shape[1]) - 1) + 2):
            member.target_class = rank
            points = member.attack_single_run(x, y, is_targeted=True)
            fooled = predict(model, points, "cpu", len(x)) != y
            found = torch.where(fooled, found.minimum(distance(points, x, norm)), found)
    return found
