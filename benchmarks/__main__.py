"""All benchmarks, one after the other; what `make benchmark` runs. The pages lie in results/benchmarks.

python -m benchmarks                    training steps; digits: speed, attacks against other libraries, parity
python -m benchmarks --data-dir DIR     with CIFAR-10 there: the attacks on a ResNet-18 as well
python -m benchmarks --toy              the same at toy size, to see that it runs; its figures mean nothing
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.errors import UsageError
from benchmarks import libraries, parity, resnet, speed, train_step
from benchmarks.subjects import trained
from benchmarks.tables import guarded

FOREIGN = (
    "checkpoints trained elsewhere: python -m benchmarks.parity --checkpoint FILE --model FILE.py:BUILDER "
    "--mean A,B,C --std D,E,F --data-dir DIR"
)
TOY_EFFORT = ["--steps", "5", "--targets", "2", "--queries", "20", "--samples", "40"]
TOY_RESNET = ["--steps", "1", "--targets", "1", "--queries", "2", "--samples", "10", "--standing", "1", "--rounds", "1"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Speed first, while nothing else runs; parity last, which fills all jobs."""
    options = parser().parse_args(arguments)
    out = ["--out", str(options.out)]
    toy = ["--rounds", "1", "--grounds", "digits", "--switches", "fold"] if options.toy else []
    train_step.main([*out, *toy, "--device", options.device])
    folders = [str(trained(options.runs, method)) for method in ("pgd_at", "trades")]
    effort = [*TOY_EFFORT, "--switches", "fold"] if options.toy else []
    speed.main([*out, *effort, *(["--rounds", "1"] if options.toy else []), folders[0]])
    left_out = []
    try:
        libraries.main([*out, *(["--samples", "40", "--rounds", "1"] if options.toy else []), folders[0]])
    except UsageError as error:
        left_out.append(f"simple attacks against other libraries: {error}")
    try:
        toy = [*TOY_RESNET, "--switches", "fold"] if options.toy else []
        resnet.main(
            [*out, *toy, "--data-dir", options.data_dir, "--runs", str(options.runs), "--device", options.device]
        )
    except UsageError as error:
        left_out.append(f"ResNet-18: {error}")
    toy = [*TOY_EFFORT, "--norms", "10", "--seeds", "0,1"] if options.toy else []
    cache = str(options.out / "cache")
    parity.main([*out, *toy, "--masked", "first", "--jobs", str(options.jobs), "--cache", cache, *folders])
    print("\nLeft out:\n" + "\n".join(f"- {what}" for what in [*left_out, FOREIGN]))


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data-dir", default="data", help="folder of CIFAR-10 (%(default)s)")
    made.add_argument("--device", default="cpu", help="of training steps and the ResNet-18 (%(default)s)")
    made.add_argument("--jobs", type=int, default=2, help="processes of the parity benchmark (%(default)s)")
    made.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the pages (%(default)s)")
    made.add_argument(
        "--runs", type=Path, default=Path("results/benchmarks/runs"), help="what is trained (%(default)s)"
    )
    made.add_argument("--toy", action="store_true", help="toy size")
    return made


if __name__ == "__main__":
    guarded(main)
