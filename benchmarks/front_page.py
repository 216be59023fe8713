"""The picture of the README: accuracy by class of the reference results under PGD, methods down, classes across.

`python -m benchmarks.front_page` draws `docs/classes.png` anew from the outcomes in `results/reference/cifar10`.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from bench.metrics import Floats
from bench.report import by_class

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "results" / "reference" / "cifar10"
METHODS = ("natural", "pgd_at", "trades", "frl_remargin", "dafa", "faal", "rslad", "absld")
ATTACK = "pgd"
TOP = 60  # percent at the bright end of the colours


def accuracies() -> tuple[list[str], Floats]:
    """Heads (1 + K), "average" and the classes, and accuracies in percent by method and head (M, 1 + K)."""
    text = by_class(REFERENCE, methods=METHODS, attacks=[ATTACK], format="csv")
    lines = [line for line in csv.DictReader(text.splitlines()) if line["attack"] == ATTACK]
    known = {(line["row"], line["class_name"]): 100 * float(line["accuracy"]) for line in lines}
    counts = {line["class_name"]: int(line["n"]) for line in lines}
    accuracy = np.asarray([[known[method, name] for name in counts] for method in METHODS])
    average = np.average(accuracy, axis=1, weights=list(counts.values()))
    return ["average", *counts], np.column_stack([average, accuracy])


def draw(file: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.figure import Figure

    heads, accuracy = accuracies()
    figure = Figure(figsize=(8.0, 3.4), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[1, len(heads) - 1])
    for axes, values, names, digits in (
        (left, accuracy[:, :1], heads[:1], ".2f"),
        (right, accuracy[:, 1:], heads[1:], "g"),
    ):
        axes.imshow(values, vmin=0, vmax=TOP, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_yticks(range(len(METHODS)), METHODS if axes is left else [], fontsize=9)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value < 0.6 * TOP else "black"
            axes.text(column, row, f"{value:{digits}}", ha="center", va="center", color=colour, fontsize=8)
    figure.suptitle("CIFAR-10 test images classified correctly under PGD, in percent", x=0.01, ha="left", fontsize=10)
    figure.savefig(file, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "classes.png")
