"""PGD, FGSM and CW of this suite against torchattacks and foolbox: same model, samples, steps, step sizes and starts.

    python -m benchmarks.libraries --samples 500 --rounds 5 results/digits/small_cnn/pgd_at/KEY ...

A run is the attack on one batch of all samples and its verdicts by the model as it is. Everybody starts at the image
itself. CW is the margin's ascent within the ball, which neither library has: foolbox lets its loss be replaced,
torchattacks gets a model with two logits, the label's and the best other, whose cross-entropy has the margin's
gradient but for a positive factor. Their own CW, an L2 attack by Adam, is another attack; it gets a table of its own
with the seconds of a pass. `make benchmark` installs both libraries.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks.fast.prepared import Prepared
from attacks.registry import ATTACKS
from bench.core.device import keep_freed_memory
from bench.core.pass_counter import PassCounter
from bench.errors import UsageError
from benchmarks import timing
from benchmarks.subjects import Subject, add_subject_options, subjects
from benchmarks.tables import Page, guarded, spread, yes

STEPS = {"fgsm": 1, "pgd": 20, "cw": 30}
LIBRARIES = ("torchattacks", "foolbox")
OURS, ROUGH = "suite, prepared", "suite, prepared in bfloat16"
GOAL = 1.5  # times faster than either library

Perturb = Callable[[Tensor, Tensor], Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print every table."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    kept = options.memory == "kept" and keep_freed_memory()
    libraries = {name: library(name) for name in LIBRARIES}
    page = Page("Simple attacks against torchattacks and foolbox", options.out, "libraries")
    page.surroundings("cpu", options.threads)
    page.line(", ".join(f"{name} {version(module)}" for name, module in libraries.items()) + "\n")
    page.line(
        f"Medians of {options.rounds} interleaved runs, with their range, in milliseconds, verdicts included and "
        f"preparation apart; the goal is {GOAL:g} times. Memory that is freed is {'kept' if kept else 'given back'} "
        "by everybody. Not made equal: torchattacks projects a difference that it "
        "adds to the image again, which rounds differently from clamping the point; foolbox checks bounds and measures "
        "every perturbation, as a user gets it."
    )
    for subject in subjects(options):
        page.line(f"\n## {subject.name}\n")
        measure(page, subject, options)


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject_options(made)
    made.add_argument("--samples", type=int, default=500, help="of each model, in one batch (%(default)s)")
    made.add_argument("--rounds", type=int, default=7, help="interleaved runs (%(default)s)")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--memory", choices=("kept", "usual"), default="kept", help="what tensors free (%(default)s)")
    made.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the page")
    return made


def library(name: str) -> Any:
    """The library.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed ({error}); `make benchmark` has an environment with it") from None


def version(module: Any) -> str:
    """Its version, as far as it tells it."""
    from importlib import metadata

    return str(getattr(module, "__version__", None) or metadata.version(module.__name__))


def measure(page: Page, subject: Subject, options: argparse.Namespace) -> None:
    """Both tables of a model."""
    model, (x, y) = subject.load(), subject.samples(options.samples)
    made: list[Prepared] = []
    preparing = timing.clock(lambda: made.append(Prepared(model, x)))
    rough = Prepared(model, x, bf16=True)
    page.line(f"linf, eps {subject.eps:.6g}; {len(y)} samples in one batch; preparation {preparing * 1e3:.0f} ms.\n")
    rows = []
    for name, steps in STEPS.items():
        step_size = subject.eps if steps == 1 else subject.eps / 4
        attacks: dict[str, tuple[nn.Module, Perturb]] = {
            OURS: (made[0], suite(made[0], name, subject, steps, step_size)),
            ROUGH: (rough, suite(rough, name, subject, steps, step_size)),
            "suite": (model, suite(model, name, subject, steps, step_size)),
            "torchattacks": (model, by_torchattacks(model, name, subject.eps, steps, step_size)),
            "foolbox": (model, by_foolbox(model, name, subject.eps, steps, step_size)),
        }
        rows += compared(f"{name}, {steps} step{'s' * (steps > 1)}", attacks, model, x, y, options.rounds)
    head = [
        "",
        "",
        "ms",
        "passes per sample",
        "robust, %",
        "other verdicts",
        *(f"{ours}, faster" for ours in (OURS, ROUGH)),
    ]
    head.append("goal reached")
    page.table("The same attack by everybody", head, rows)
    own: dict[str, tuple[nn.Module, Perturb]] = {
        "torchattacks": (model, library("torchattacks").CW(model, c=1, kappa=0, steps=STEPS["cw"], lr=0.01)),
        "foolbox": (model, foolbox_cw(model, STEPS["cw"])),
        OURS: (made[0], suite(made[0], "cw", subject, STEPS["cw"], subject.eps / 4)),
    }
    head = ["", "ms", "passes per sample", "microseconds per forward and input gradient"]
    page.table(
        "Their own CW, in L2 by Adam, 30 steps, one constant, beside ours in the ball: another attack, so no verdicts",
        head, per_pass(own, x, y, options.rounds),
    )  # fmt: skip


def suite(model: nn.Module, name: str, subject: Subject, steps: int, step_size: float) -> Perturb:
    """Ours, from the image itself."""
    attack = ATTACKS[name](threat=subject.threat, steps=steps, step_size=step_size, start="zero")
    return lambda x, y: attack(model, x, y, generator=torch.Generator())


class TwoLogits(nn.Module):
    """A model that tells the label from the best of the others: cross-entropy on class 0 rises with the margin.

    Args:
        model: x -> logits (N, K).
        y: (N,) labels of the one batch it is made for.
    """

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y = model, y[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        logits = self.model(x)
        other = logits.scatter(1, self.y, -torch.inf).amax(1)
        return torch.stack([logits.gather(1, self.y).squeeze(1), other], 1)


def by_torchattacks(model: nn.Module, name: str, eps: float, steps: int, step_size: float) -> Perturb:
    """Its FGSM, or its PGD; CW through two logits."""
    package = library("torchattacks")
    if name == "fgsm":
        attack: Perturb = package.FGSM(model, eps=eps)
        return attack
    chosen = {"eps": eps, "alpha": step_size, "steps": steps, "random_start": False}
    if name == "cw":
        return lambda x, y: torch.as_tensor(package.PGD(TwoLogits(model, y).eval(), **chosen)(x, torch.zeros_like(y)))
    attack = package.PGD(model, **chosen)
    return attack


def by_foolbox(model: nn.Module, name: str, eps: float, steps: int, step_size: float) -> Perturb:
    """Its FGSM, or its PGD; CW with the loss replaced, as its class offers."""
    package = library("foolbox")
    wrapped = package.PyTorchModel(model, bounds=(0, 1), device="cpu")
    if name == "fgsm":
        attack = package.attacks.LinfFastGradientAttack()
    else:
        attack = package.attacks.LinfPGD(abs_stepsize=step_size, steps=steps, random_start=False)
    if name == "cw":
        attack.get_loss_fn = margin_loss
    return lambda x, y: attack(wrapped, x, y, epsilons=eps)[1]


def margin_loss(model: Any, labels: Any) -> Callable[[Any], Any]:
    """The sum of margins, in foolbox's tensors."""
    eagerpy = importlib.import_module("eagerpy")

    def loss(inputs: Any) -> Any:
        logits = model(inputs)
        rows = range(len(labels))
        others = (logits - eagerpy.onehot_like(logits, labels, value=eagerpy.inf)).max(axis=-1)
        return (others - logits[rows, labels]).sum()

    return loss


def foolbox_cw(model: nn.Module, steps: int) -> Perturb:
    """Its CW with a single constant."""
    package = library("foolbox")
    wrapped = package.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = package.attacks.L2CarliniWagnerAttack(binary_search_steps=1, steps=steps, initial_const=1)
    return lambda x, y: attack(wrapped, x, y, epsilons=None)[1]


def compared(
    label: str, attacks: Mapping[str, tuple[nn.Module, Perturb]], model: nn.Module, x: Tensor, y: Tensor, rounds: int
) -> list[list[str]]:
    """One row per library, the first of `attacks` being the one that the others are held against."""
    passes = {who: counted(network, perturb, x, y) for who, (network, perturb) in attacks.items()}
    stands: dict[str, Tensor] = {}

    def task(who: str) -> timing.Task:
        def attack() -> None:
            stands[who] = timing.forward(model, attacks[who][1](x, y)).argmax(1) == y

        return attack

    seconds = timing.interleave({who: task(who) for who in attacks}, rounds)
    rows = []
    for who in attacks:
        faster = [statistics.median(seconds[who]) / statistics.median(seconds[ours]) for ours in (OURS, ROUGH)]
        others = int((stands[who] != stands[OURS]).sum())
        rows.append([
            label, who, spread([each * 1e3 for each in seconds[who]], 1), passes[who],
            f"{stands[who].double().mean().item() * 100:.2f}", str(others),
            *(f"{each:.2f}" if who in LIBRARIES else "" for each in faster),
            yes(faster[0] >= GOAL) if who in LIBRARIES else "",
        ])  # fmt: skip
    return rows


def per_pass(attacks: Mapping[str, tuple[nn.Module, Perturb]], x: Tensor, y: Tensor, rounds: int) -> list[list[str]]:
    """One row per library: seconds of an attack over its passes."""
    counts = {who: counts_of(network, perturb, x, y) for who, (network, perturb) in attacks.items()}
    tasks = {who: (lambda perturb=perturb: perturb(x, y)) for who, (_, perturb) in attacks.items()}
    seconds = timing.interleave(tasks, rounds)
    return [
        [
            who, spread([each * 1e3 for each in seconds[who]], 1), written(counts[who], len(x)),
            f"{statistics.median(seconds[who]) * 1e6 / max(1, counts[who]['input_grad']):.1f}",
        ]
        for who in attacks
    ]  # fmt: skip


def counts_of(network: nn.Module, perturb: Perturb, x: Tensor, y: Tensor) -> dict[str, int]:
    """The passes of one attack through a network, in samples."""
    counter = PassCounter()
    watch = counter.watch(network, "attack")
    perturb(x, y)
    watch.remove()
    return counter.counts["attack"]


def counted(network: nn.Module, perturb: Perturb, x: Tensor, y: Tensor) -> str:
    """Likewise per sample, as it is written."""
    return written(counts_of(network, perturb, x, y), len(x))


def written(counts: Mapping[str, int], n: int) -> str:
    """Forward + input gradient, per sample; passes to the weights count as such gradients do."""
    return f"{counts['forward'] / n:.0f} + {(counts['input_grad'] + counts['backward']) / n:.0f}"


if __name__ == "__main__":
    guarded(main)
