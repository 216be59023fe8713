"""Speed of the stages on a ResNet-18, where bare passes are nearly everything; it is trained here, on CIFAR-10.

    python -m benchmarks.resnet --data-dir DIR              a CPU: a tenth of the steps, 3 interleaved runs
    python -m benchmarks.resnet --data-dir DIR --device cuda    a GPU: all steps

The model is trained by the suite itself, adversarially at 2/255, just enough that some images are robust there. There
are two pages: one searches in float32, the other in bfloat16 with verdicts in float32, unless --prepare says what to
search. The rest of the options are those of `benchmarks.speed`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.data.splits import load
from bench.errors import UsageError
from benchmarks import speed
from benchmarks.subjects import trained
from benchmarks.tables import guarded

EPS = "2/255"
TRAINING = [
    "--train-limit", "3000", "--epochs", "4", "--eps", EPS, "--select", "last", "--batch-size", "64", "--limit", "64",
    "--set", "pgd_at.steps=2", "--set", "pgd_at.step_size=0.006", "--set", "pgd_at.recipe.lr=0.05",
]  # fmt: skip
ON_A_CPU = ["--steps", "10", "--queries", "500", "--rounds", "3", "--goal", "1.5", "--samples", "64", "--standing", "8"]
ON_A_GPU = ["--rounds", "3", "--goal", "4", "--samples", "1000"]
MEASURED = ["--eps", EPS, "--parts", "stages,switches"]
FORMS = {"resnet18": [], "resnet18-bf16": ["--prepare", "bf16", "--parts", "stages"]}  # name of the page -> options


def main(arguments: Sequence[str] | None = None) -> None:
    """Train if need be, then measure; options that are given outrank those that are usual here."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = speed.parser().parse_args(given)
    usual = [*MEASURED, *(ON_A_CPU if options.device == "cpu" else ON_A_GPU)]
    if not options.folders:
        check_data(options.data_dir)
        extra = ["--data-dir", options.data_dir, "--device", options.device, "--threads", str(options.threads)]
        folder = trained(options.runs, "pgd_at", *TRAINING, *extra, dataset="cifar10", model="resnet18")
        given = [*given, str(folder)]
    for name, form in FORMS.items() if not options.prepare else [("resnet18", [])]:
        speed.main([*usual, "--name", name, *form, *given])


def check_data(data_dir: str) -> None:
    """Refuse to begin without CIFAR-10.

    Raises:
        UsageError: saying where it was looked for, and what to do.
    """
    try:
        load("cifar10", data_dir)
    except UsageError as error:
        raise UsageError(f"{error}; then: python -m benchmarks.resnet --data-dir DIR") from None


if __name__ == "__main__":
    guarded(main)
