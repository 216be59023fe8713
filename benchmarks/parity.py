"""Native AutoAttack against the released implementation: verdicts, minimal norms, passes and time, as markdown tables.

    python benchmarks/parity.py --samples 200 --seeds 0,1,2,3,4 results/digits/small_cnn/trades/KEY ...

Without folders a small network is trained on digits for a minute. `--masked` adds, to each model, the same model behind
an input rounded to 17 levels, where gradients are zero and only Square gets anywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.fab import minimal_norms
from attacks.objectives import cross_entropy
from attacks.reference import NORMS, fenced, reference_package, reference_version
from attacks.tables import ATTACKS
from attacks.threat import ThreatModel, distance
from bench.checkpoints import fit, load_weights
from bench.models import build
from bench.parts import Parts, limit, load, to_float
from bench.walk import Verdicts, predict, run_attack

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
SIDES = ("-native", "")
FEW = 8  # samples on which the passes of what stands are counted


class Rounded(nn.Module):
    """A model behind an input rounded to 17 levels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.model((x * 16).round() / 16)
        return logits


def main() -> None:
    options = parse()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(options.threads)
    print(f"native against {reference_version()}; {options.norm}, eps {options.eps:g}, seeds {options.seeds} for both")
    for name, model, parts in models(options):
        test = limit(parts.test, min(options.samples, len(parts.test)))
        x, y = to_float(test.x), test.y
        right = predict(model, x, "cpu", options.block) == y
        print(f"\n## {name}: {len(y)} samples, {int(right.sum())} right\n")
        ensemble(model, x, y, options)
        alone(model, x[right], y[right], options)
        if options.norms:
            norms(model, x[right][: options.norms], y[right][: options.norms], options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders of training runs")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--norms", type=int, default=100, help="samples whose minimal norms are compared; 0 for none")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2, 3, 4])
    parser.add_argument("--norm", choices=sorted(NORMS), default="linf")
    parser.add_argument("--eps", type=float, default=0.15)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--targets", type=int, default=9)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--block", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--masked", action="store_true", help="also with gradients masked")
    return parser.parse_args()


def models(options: argparse.Namespace) -> Iterator[tuple[str, nn.Module, Parts]]:
    for folder in options.folders or [None]:
        if folder is None:
            parts = load("digits")
            name, model = "digits, small_cnn, trained here", trained(parts, options)
        else:
            run = json.loads((folder / "run.json").read_text())
            parts = load(run["dataset"], options.data_dir)
            name = f"{run['dataset']}, {run['model']}, {run['label']}"
            network = build(run["model"], parts.num_classes, *parts.image[:2], seed=0)
            model = fit(network, load_weights(folder / "last.safetensors"), where=str(folder)).eval()
        yield name, model, parts
        if options.masked:
            yield f"{name}, masked", Rounded(model).eval(), parts


def trained(parts: Parts, options: argparse.Namespace) -> nn.Module:
    """A small network after twelve epochs of adversarial training."""
    model = build("small_cnn", parts.num_classes, *parts.image[:2], seed=0)
    x, y = to_float(parts.train.x), parts.train.y
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    stream = torch.Generator().manual_seed(0)
    for _ in range(12):
        for rows in torch.randperm(len(y), generator=stream).split(64):
            x_adv = ascend(
                model, x[rows], cross_entropy(y[rows]), eps=options.eps, step_size=options.eps / 4, steps=7,
                start="uniform", generator=stream, norm=options.norm,
            )  # fmt: skip
            optimiser.zero_grad()
            nn.functional.cross_entropy(model.train()(x_adv), y[rows]).backward()
            optimiser.step()
    return model.eval()


def build_attack(name: str, options: argparse.Namespace) -> Any:
    settings = {key: getattr(options, key) for key in ATTACKS.sketch(name).settings if key != "threat"}
    return ATTACKS[name](threat=ThreatModel(options.norm, options.eps), **settings)


def interleaved(name: str, model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> list[list[Any]]:
    """For either side one (verdicts, seconds) per seed; the sides take turns, each going first every other time."""
    found: list[list[Any]] = [[], []]
    for turn, seed in enumerate(options.seeds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            attack = build_attack(name + SIDES[side], options)
            began = time.perf_counter()
            verdicts = run_attack(model, x, y, attack, name + SIDES[side], seed=seed, block=options.block)
            found[side].append((verdicts, time.perf_counter() - began))
    return found


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")


def compared(label: str, sides: list[list[Verdicts]], stage: int) -> list[str]:
    """Robust accuracy of each side, mean and range over seeds; their difference with its paired standard error."""
    robust = [torch.stack([list(v.stages.values())[stage][1].double() for v in side]) for side in sides]
    cells = []
    for side in robust:
        by_seed = side.mean(1) * 100
        cells.append(f"{by_seed.mean():.2f} ({by_seed.min():.2f} to {by_seed.max():.2f})")
    gap = (robust[0].mean(0) - robust[1].mean(0)) * 100
    error = gap.std().item() / len(gap) ** 0.5
    verdict = "yes" if gap.mean().item() <= 0.1 + 2 * error else "no"
    return [label, *cells, f"{gap.mean():+.2f}", f"{error:.2f}", verdict]


HEAD = ["", "native, %", "reference, %", "difference", "standard error", "at most 0.1 + 2 errors"]


def ensemble(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> None:
    found = interleaved("autoattack", model, x, y, options)
    sides = [[verdicts for verdicts, _ in side] for side in found]
    labels = list(sides[0][0].stages)
    rows = [compared(f"after {label}", sides, stage) for stage, label in enumerate(labels)]
    table("Robust accuracy of the ensemble, mean over seeds (range)", HEAD, rows)
    seconds = [statistics.median(second for _, second in side) for side in found]
    print(f"Median seconds: native {seconds[0]:.2f}, reference {seconds[1]:.2f}, ratio {seconds[1] / seconds[0]:.2f}\n")


def alone(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> None:
    verdicts, costs = [], []
    for name in STAGES:
        found = interleaved(name, model, x, y, options)
        sides = [[v for v, _ in side] for side in found]
        verdicts.append(compared(name, sides, 0))
        seconds = [statistics.median(second for _, second in side) for side in found]
        each = [passes(sides[side], len(y)) for side in (0, 1)]
        stands = torch.stack([list(v.stages.values())[0][1] for side in sides for v in side]).all(0)
        few = torch.where(stands)[0][:FEW]
        kept = ["-", "-"]
        if len(few):
            for side in (0, 1):
                attack = build_attack(name + SIDES[side], options)
                again = run_attack(model, x[few], y[few], attack, name, seed=options.seeds[0])
                kept[side] = passes([again], len(few))
        ratio = f"{seconds[1] / seconds[0]:.2f}"
        costs.append([name, *each, *kept, *(f"{second:.2f}" for second in seconds), ratio])
    table("Each alone on all samples that are right", HEAD, verdicts)
    head = ["", "native", "reference", "native, standing", "reference, standing", "native, s", "reference, s", "ratio"]
    table("Forward + input-gradient passes per sample, and median seconds", head, costs)


def passes(side: list[Verdicts], n: int) -> str:
    return " + ".join(f"{statistics.mean(v.passes[kind] for v in side) / n:.1f}" for kind in ("forward", "input_grad"))


def norms(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> None:
    settings = {"norm": options.norm, "steps": options.steps, "targets": options.targets}
    ours = minimal_norms(model, x, y, **settings)
    theirs = released_norms(model, x, y, options)
    share = (ours / theirs).nan_to_num(1.0)
    quartiles = " to ".join(f"{share.quantile(at):.4f}" for at in (0.25, 0.75))
    middle = [ours.median().item(), theirs.median().item()]
    row = [*(f"{value:.5f}" for value in middle), f"{middle[0] / middle[1]:.4f}", quartiles]
    head = ["native, median", "reference, median", "ratio", "ratio sample by sample, quartiles"]
    table(f"Minimal norms by FAB, {len(y)} samples", head, [row])


def released_norms(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> Tensor:
    package = reference_package()
    member = package.AutoAttack(model, norm=NORMS[options.norm], eps=options.eps, device="cpu", version="custom").fab
    member.n_iter = options.steps
    found = torch.full((len(x),), torch.inf)
    with fenced(model, x):
        for rank in range(2, min(options.targets, int(model(x[:1]).shape[1]) - 1) + 2):
            member.target_class = rank
            points = member.attack_single_run(x, y, is_targeted=True)
            fooled = predict(model, points, "cpu", len(x)) != y
            found = torch.where(fooled, found.minimum(distance(points, x, options.norm)), found)
    return found


if __name__ == "__main__":
    main()
