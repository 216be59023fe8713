"""Outcomes: clean and attacked predictions of every test sample, from which all metrics are computed.

An `Outcomes` holds, per test sample, its position, label and clean prediction, and per attack the prediction under
that attack and whether the sample is robust: clean and attacked prediction both right. Attacks that run in stages
also have one entry per stage, `autoattack/apgd-ce` and so on, cumulative. An attack may cover a part of the
samples only.
"""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attacks.plugins.registry import canonical
from bench import metrics
from bench.core import checksums
from bench.core.files import write_bytes
from bench.errors import BenchError, UsageError
from bench.metrics import Bools, Floats, Ints
from bench.results.validation import bools, check_length, check_range, ints, read_columns

if TYPE_CHECKING:
    import pandas as pd

NO_CLASS = -1  # the prediction where the output was not finite, as in `attacks.base`, which needs torch
CLEAN = "clean"
FILE = "outcomes.parquet"
_COLUMNS = ("index", "label", CLEAN)
_SUFFIX = "_robust"


@dataclass(frozen=True)
class Verdict:
    """One attack on the samples it covers.

    Attributes:
        rows: positions (m,) in the table of the samples that were attacked.
        prediction: (m,) prediction under the attack.
        robust: (m,) bool, clean and attacked prediction both right.
    """

    rows: Ints
    prediction: Ints
    robust: Bools


class Outcomes:
    """The per-sample table of one model.

    Args:
        index: (n,) positions in the test part, ascending.
        label: (n,) labels in 0..K-1.
        clean: (n,) predictions on the unattacked samples.
        attacks: attack (or attack/stage) -> (n,) predictions under attack.
        robust: the same names -> (n,) bool.
        num_classes: K.
        class_names: K names; the numbers if not given.

    Raises:
        BenchError: if the arrays contradict each other; one sentence says where.

    >>> label, clean = [0, 0, 1, 1], [0, 0, 1, 0]
    >>> attacks, robust = {"pgd": [0, 1, 1, 0]}, {"pgd": [True, False, True, False]}
    >>> outcomes = Outcomes(range(4), label, clean, attacks=attacks, robust=robust, num_classes=2)
    >>> outcomes.attacks, outcomes.average("pgd"), outcomes.by_class("clean").tolist()
    (['clean', 'pgd'], 0.5, [1.0, 0.5])
    >>> outcomes.worst("clean"), round(outcomes.nsd("clean"), 4), outcomes.gap("clean")
    (0.5, 0.3333, 0.5)
    """

    def __init__(
        self,
        index: npt.ArrayLike,
        label: npt.ArrayLike,
        clean: npt.ArrayLike,
        *,
        attacks: Mapping[str, npt.ArrayLike],
        robust: Mapping[str, npt.ArrayLike],
        num_classes: int,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.index, self.label, self.clean = ints("index", index), ints("label", label), ints(CLEAN, clean)
        self.num_classes = num_classes
        self.class_names = tuple(class_names) if class_names is not None else tuple(map(str, range(num_classes)))
        if set(attacks) != set(robust):
            odd = ", ".join(sorted(set(attacks) ^ set(robust)))
            raise BenchError(
                f"outcomes: expected a prediction and a verdict for every attack, one is missing for {odd}"
            )
        every = np.arange(len(self.index))
        self._verdicts = {
            name: Verdict(every, ints(name, attacks[name]), bools(name + _SUFFIX, robust[name])) for name in attacks
        }
        self._check()

    # Reading and writing

    @classmethod
    def read(cls, *folders: Path | str) -> Outcomes:
        """The outcomes of one checkpoint, from one or several of its evaluation folders.

        Attacks on a part of the samples are kept as such.

        Raises:
            BenchError: if a file is missing, broken or changed, or the folders disagree on labels or clean
                predictions.
        """
        if not folders:
            raise UsageError("outcomes: expected at least one evaluation folder, got none")
        parts = [cls._read_folder(Path(folder)) for folder in folders]
        return parts[0] if len(parts) == 1 else cls._merge(parts)

    @classmethod
    def _read_folder(cls, folder: Path) -> Outcomes:
        facts = checksums.read_record(folder / "eval.json")
        classes = facts.get("classes")
        if not isinstance(classes, int) or classes < 1:
            raise BenchError(f"{folder / 'eval.json'}: expected the number of classes under 'classes', got {classes!r}")
        checksums.require(folder / FILE, facts)
        return cls.from_parquet(folder / FILE, num_classes=classes, class_names=facts.get("class_names"))

    @classmethod
    def from_parquet(cls, file: Path | str, *, num_classes: int, class_names: Sequence[str] | None = None) -> Outcomes:
        """Read one table.

        Raises:
            BenchError: if the file cannot be read or its content is not a valid table of outcomes.
        """
        columns = read_columns(Path(file))
        absent = [name for name in _COLUMNS if name not in columns]
        if absent:
            raise BenchError(f"{file}: expected the columns {', '.join(_COLUMNS)}, {', '.join(absent)} is missing")
        rest = [name for name in columns if name not in _COLUMNS]
        names = [name for name in rest if not (name.endswith(_SUFFIX) and name[: -len(_SUFFIX)] in columns)]
        try:
            return cls(
                *(columns[name] for name in _COLUMNS),
                attacks={name: columns[name] for name in names},
                robust={name: columns[name + _SUFFIX] for name in names if name + _SUFFIX in columns},
                num_classes=num_classes,
                class_names=class_names,
            )
        except BenchError as error:
            raise BenchError(f"{file}: {error}") from None

    def write(self, file: Path | str) -> str:
        """Write the table as Parquet; equal outcomes give equal bytes.

        Returns:
            SHA-256 of the file.

        Raises:
            ValueError: if an attack covers a part of the samples only; write that attack's own table instead.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        partial = [name for name, verdict in self._verdicts.items() if len(verdict.rows) < len(self)]
        if partial:
            raise ValueError(f"outcomes: {partial[0]} covers a part of the samples; write each evaluation by itself")
        columns: dict[str, npt.NDArray[Any]] = {"index": self.index, "label": self.label, CLEAN: self.clean}
        for name, verdict in self._verdicts.items():
            columns |= {name: verdict.prediction, name + _SUFFIX: verdict.robust}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, compression="zstd", version="2.6")
        write_bytes(Path(file), buffer.getvalue())
        return hashlib.sha256(buffer.getvalue()).hexdigest()

    def frame(self) -> pd.DataFrame:
        """One row per sample; where an attack covers a part only, its columns are nullable."""
        import pandas as pd

        columns: dict[str, Any] = {"index": self.index, "label": self.label, CLEAN: self.clean}
        for name, verdict in self._verdicts.items():
            columns[name], columns[name + _SUFFIX] = verdict.prediction, verdict.robust
            if len(verdict.rows) < len(self):
                columns[name] = pd.Series(verdict.prediction, verdict.rows, "Int64").reindex(range(len(self)))
                columns[name + _SUFFIX] = pd.Series(verdict.robust, verdict.rows, "boolean").reindex(range(len(self)))
        table: pd.DataFrame = pd.DataFrame(columns)
        return table

    # Names

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"Outcomes(n={len(self)}, num_classes={self.num_classes}, attacks={self.attacks})"

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks, `clean` first, stages left out."""
        return [CLEAN, *(name for name in self._verdicts if "/" not in name)]

    def stages(self, attack: str) -> list[str]:
        """Full names of the stages of an attack, in order; empty for an attack in one piece."""
        return [name for name in self._verdicts if name.startswith(self.resolve(attack) + "/")]

    def resolve(self, name: str) -> str:
        """The stored spelling of an attack or attack/stage; `-`, `_` and case do not matter.

        Raises:
            UsageError: if there is no such attack, with the closest match and the list.
        """
        known = {canonical(n): n for n in (CLEAN, *self._verdicts)}
        if canonical(name) in known:
            return known[canonical(name)]
        close = difflib.get_close_matches(canonical(name), known, n=1)
        hint = f"did you mean {known[close[0]]!r}? " if close else ""
        raise UsageError(f"outcomes: no attack {name!r} here; {hint}available: {', '.join(known.values())}")

    # Figures

    def verdict(self, attack: str = CLEAN) -> Verdict:
        """Rows covered, predictions, and which of them are robust; for `clean`, which are right."""
        name = self.resolve(attack)
        if name == CLEAN:
            return Verdict(np.arange(len(self)), self.clean, self.clean == self.label)
        return self._verdicts[name]

    def correct(self, attack: str = CLEAN) -> tuple[Bools, Ints]:
        """Which of the covered samples are robust (m,), and their labels (m,)."""
        verdict = self.verdict(attack)
        return verdict.robust, self.label[verdict.rows]

    def by_class(self, attack: str = CLEAN) -> Floats:
        """Class accuracies (K,), fractions.

        Raises:
            ValueError: if a class has no sample.
        """
        return metrics.class_accuracy(*self.correct(attack), self.num_classes, self.class_names)

    def average(self, attack: str = CLEAN) -> float:
        """Accuracy over the samples."""
        return metrics.average(self.correct(attack)[0])

    def worst(self, attack: str = CLEAN) -> float:
        """Accuracy of the worst class."""
        return metrics.worst(self.by_class(attack))

    def nsd(self, attack: str = CLEAN, ddof: int = 0) -> float:
        """Standard deviation of the class accuracies over their mean; NaN if the mean is 0."""
        return metrics.nsd(self.by_class(attack), ddof)

    def worst10(self, attack: str = CLEAN) -> float:
        """Mean accuracy of the lowest tenth of the classes."""
        return metrics.worst10(self.by_class(attack))

    def gap(self, attack: str = CLEAN) -> float:
        """Best class minus worst class."""
        return metrics.gap(self.by_class(attack))

    def intervals(self, attack: str = CLEAN, *, seed: int = 0) -> dict[str, metrics.Interval]:
        """95 % bootstrap intervals of all statistics, samples resampled within classes."""
        generator = np.random.default_rng(seed)
        return metrics.bootstrap(*self.correct(attack), self.num_classes, generator=generator)

    def union(self, attacks: Iterable[str], name: str | None = None) -> Outcomes:
        """These outcomes with one attack more, under which a sample is robust only if robust under each of `attacks`.

        Args:
            attacks: at least one attack.
            name: of the new attack; the names joined by `+` if not given.
        """
        names = [self.resolve(attack) for attack in attacks]
        if not names:
            raise UsageError("outcomes: a union needs at least one attack, got none")
        verdicts = [self.verdict(attack) for attack in names]
        rows = verdicts[0].rows
        for verdict in verdicts[1:]:
            rows = np.intersect1d(rows, verdict.rows)
        robust, prediction = np.ones(len(rows), dtype=bool), self.clean[rows]
        for verdict in verdicts:
            here = np.searchsorted(verdict.rows, rows)
            prediction = np.where(robust, verdict.prediction[here], prediction)
            robust &= verdict.robust[here]
        return self._copy({**self._verdicts, name or "+".join(names): Verdict(rows, prediction, robust)})

    # Construction from parts, and checks

    def _copy(self, verdicts: dict[str, Verdict]) -> Outcomes:
        new = Outcomes(
            self.index,
            self.label,
            self.clean,
            attacks={},
            robust={},
            num_classes=self.num_classes,
            class_names=self.class_names,
        )
        new._verdicts = verdicts
        return new

    @classmethod
    def _merge(cls, parts: Sequence[Outcomes]) -> Outcomes:
        index, first = np.unique(np.concatenate([part.index for part in parts]), return_index=True)
        label = np.concatenate([part.label for part in parts])[first]
        clean = np.concatenate([part.clean for part in parts])[first]
        facts = {"num_classes": parts[0].num_classes, "class_names": parts[0].class_names}
        verdicts: dict[str, Verdict] = {}
        for part in parts:
            rows = np.searchsorted(index, part.index)
            if part.class_names != parts[0].class_names:
                raise BenchError("outcomes: the evaluations have different classes; read each by itself")
            if (label[rows] != part.label).any() or (clean[rows] != part.clean).any():
                raise BenchError("outcomes: the evaluations differ in labels or clean predictions; read each by itself")
            for name, verdict in part._verdicts.items():
                if name in verdicts:
                    raise BenchError(f"outcomes: two of the evaluations hold {name}; read each by itself")
                verdicts[name] = Verdict(rows[verdict.rows], verdict.prediction, verdict.robust)
        return cls(index, label, clean, attacks={}, robust={}, **facts)._copy(verdicts)  # type: ignore[arg-type]

    def _check(self) -> None:
        n, k = len(self.index), self.num_classes
        if n and (self.index[0] < 0 or (np.diff(self.index) <= 0).any()):
            raise BenchError("index: expected positions in ascending order, each once")
        if len(self.class_names) != k:
            raise BenchError(f"class_names: expected {k} names, got {len(self.class_names)}")
        check_range("label", self.label, n, k)
        check_range(CLEAN, self.clean, n, k, NO_CLASS)
        clean_right = self.clean == self.label
        for name, verdict in self._verdicts.items():
            check_range(name, verdict.prediction, n, k, NO_CLASS)
            check_length(name + _SUFFIX, verdict.robust, n)
            wrong = verdict.robust != (clean_right & (verdict.prediction == self.label))
            if wrong.any():
                raise BenchError(
                    f"{name + _SUFFIX}: expected true exactly where clean and attacked prediction are right, "
                    f"got the contrary at index {self.index[wrong][0]}"
                )
        self._check_stages()

    def _check_stages(self) -> None:
        for attack in self.attacks[1:]:
            stages = self.stages(attack)
            if not stages:
                continue
            for before, after in zip(stages, [*stages[1:], attack], strict=True):
                if (self._verdicts[after].robust & ~self._verdicts[before].robust).any():
                    raise BenchError(f"{after}: expected no sample to be robust that fell in {before}, got one that is")
            if (self._verdicts[stages[-1]].robust != self._verdicts[attack].robust).any():
                raise BenchError(f"{attack}: expected the verdicts of its last stage {stages[-1]}, got others")
