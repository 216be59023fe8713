"""AutoAttack, standard version (Croce and Hein, ICML 2020, arXiv:2003.01690), by the reference implementation.

Stages: APGD-CE (100 steps), targeted APGD-DLR (100 steps, 9 targets), targeted FAB (100 steps, 9 targets), Square
    (5,000 queries, p 0.8); each runs on what the ones before left standing.
Implementation: the package `pyautoattack`, or `autoattack` where that is what is installed; one adapter fences what it
    does to its surroundings: it reseeds the global generators, accumulates parameter gradients and needs
    contiguous NCHW inputs.
Departures: with K < 10 classes the targeted stages take min(9, K - 1) targets; below four classes targeted APGD-DLR
    is undefined and left out, which the result records. The package's sanity checks and its resuming are not used.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, check_inputs
from attacks.contexts import frozen, mode
from attacks.passes import Passes
from attacks.plugins.ranges import Count
from attacks.registry import ATTACKS
from attacks.threat import ThreatModel

PACKAGES = ("pyautoattack", "autoattack")
NORMS = {"linf": "Linf", "l2": "L2"}


def reference_package() -> ModuleType:
    """The installed reference implementation.

    Raises:
        ImportError: if there is none.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    raise ImportError("autoattack: no reference implementation found; pip install pyautoattack")


def reference_version() -> str:
    """Name and version of the reference implementation, for tables."""
    name = reference_package().__name__
    return f"{name} {metadata.version(name)}"


@dataclass(frozen=True)
class Stage(ABC):
    """One member of the ensemble, run on its own.

    Args:
        threat: norm and radius.
    """

    threat: ThreatModel = ThreatModel()

    revision = 1
    name: ClassVar[str]
    member_name: ClassVar[str]
    min_classes: ClassVar[int] = 2

    @property
    def stages(self) -> tuple[Attack, ...]:
        """() - one stage, itself."""
        return ()

    @property
    def implementation(self) -> str:
        """The package behind it, with its version."""
        return reference_version()

    def left_out(self, num_classes: int) -> str | None:
        """Why the stage cannot run with so few classes; None if it can."""
        if num_classes < self.min_classes:
            return f"needs at least {self.min_classes} classes, the model has {num_classes}"
        return None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Adversarial inputs like x (N, C, H, W); x itself where the attack failed.

        Raises:
            ValueError: if the model has too few classes for this stage.
        """
        check_inputs(self.name, x, y)
        if len(x) == 0:
            return x.detach().clone()
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        with fenced(model, x), torch.no_grad():
            num_classes = model(x[:1]).shape[1]
            reason = self.left_out(num_classes)
            if reason is not None:
                raise ValueError(f"{self.name}: {reason}")
            package = reference_package()
            member = self.member(self._ensemble(package, model, x, seed), num_classes)
            member.seed = seed
            x_adv: Tensor = member.perturb(x.detach().float().contiguous(), y)
        return self.threat.project(x_adv.to(x.dtype), x).detach()

    @abstractmethod
    def passes(self, num_classes: int) -> Passes:
        """Passes per attacked sample, at most."""

    @abstractmethod
    def member(self, ensemble: Any, num_classes: int) -> Any:
        """The configured sub-attack of the reference object."""

    def _ensemble(self, package: ModuleType, model: nn.Module, x: Tensor, seed: int) -> Any:
        chosen = "attacks" if package.__name__ == "pyautoattack" else "attacks_to_run"
        selection = {chosen: [self.member_name]}
        norm, eps = NORMS[self.threat.norm], self.threat.eps
        return package.AutoAttack(model, norm=norm, eps=eps, seed=seed, device=x.device, version="custom", **selection)


@dataclass(frozen=True)
class APGDCE(Stage):
    """APGD on cross-entropy: momentum steps whose length halves when progress stalls.

    Args:
        threat: norm and radius.
        steps: number of steps.
    """

    steps: Count = 100
    name = "apgd-ce-reference"
    member_name = "apgd-ce"

    def passes(self, num_classes: int) -> Passes:
        """A forward and input gradient per step and for the start, and two forwards for classes and labels."""
        return Passes(forward=self.steps + 3, input_grad=self.steps + 1)

    def member(self, ensemble: Any, num_classes: int) -> Any:
        """APGD with cross-entropy, one restart."""
        ensemble.apgd.loss, ensemble.apgd.n_restarts, ensemble.apgd.n_iter = "ce", 1, self.steps
        return ensemble.apgd


@dataclass(frozen=True)
class _Targeted(Stage):
    steps: Count = 100
    targets: Count = 9

    def _targets(self, num_classes: int) -> int:
        return min(self.targets, num_classes - 1)


@dataclass(frozen=True)
class APGDT(_Targeted):
    """APGD on the targeted difference-of-logits ratio, once per target class.

    Args:
        threat: norm and radius.
        steps: number of steps per target.
        targets: number of target classes, the most likely wrong ones first; at most K - 1.
    """

    name = "apgd-t-reference"
    member_name = "apgd-t"
    min_classes = 4

    def passes(self, num_classes: int) -> Passes:
        """Per target: a forward and input gradient per step and for the start, and one forward for the target."""
        per_target = Passes(forward=self.steps + 2, input_grad=self.steps + 1)
        return per_target * min(self.targets, num_classes - 1) + Passes(forward=2)

    def member(self, ensemble: Any, num_classes: int) -> Any:
        """Targeted APGD, one restart per target."""
        attack = ensemble.apgd_targeted
        attack.n_target_classes, attack.n_restarts, attack.n_iter = self._targets(num_classes), 1, self.steps
        return attack


@dataclass(frozen=True)
class FABT(_Targeted):
    """FAB (Croce and Hein, ICML 2020, arXiv:1907.02044): the nearest point beyond a target class's boundary.

    Args:
        threat: norm and radius.
        steps: number of steps per target.
        targets: number of target classes; at most K - 1.
    """

    name = "fab-t-reference"
    member_name = "fab-t"

    def passes(self, num_classes: int) -> Passes:
        """Per target: a gradient and a check per step, two forwards to start, final search included, one verdict."""
        per_target = Passes(forward=2 * self.steps + 6, input_grad=self.steps)
        return per_target * min(self.targets, num_classes - 1) + Passes(forward=1)

    def member(self, ensemble: Any, num_classes: int) -> Any:
        """Targeted FAB, one restart per target."""
        attack = ensemble.fab
        attack.targeted, attack.n_restarts = True, 1
        attack.n_target_classes, attack.n_iter = self._targets(num_classes), self.steps
        return attack


@dataclass(frozen=True)
class Square(Stage):
    """Square (Andriushchenko et al., ECCV 2020, arXiv:1912.00049): random search with square updates, no gradient.

    Args:
        threat: norm and radius.
        queries: forward passes per sample.
    """

    queries: Count = 5000
    name = "square-reference"
    member_name = "square"

    def passes(self, num_classes: int) -> Passes:
        """One forward per query, and four for classes, labels, start and verdict."""
        return Passes(forward=self.queries + 4)

    def member(self, ensemble: Any, num_classes: int) -> Any:
        """Square with p_init 0.8."""
        ensemble.square.n_queries = self.queries
        return ensemble.square


@ATTACKS.register("autoattack-reference")
@dataclass(frozen=True)
class AutoAttack:
    """The standard ensemble: apgd-ce, apgd-t, fab-t, square.

    Args:
        threat: norm and radius.
        steps: steps of the gradient stages.
        targets: targets of the targeted stages.
        queries: queries of Square.
    """

    threat: ThreatModel = ThreatModel()
    steps: Count = 100
    targets: Count = 9
    queries: Count = 5000

    revision = 1
    name = "autoattack-reference"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The four members, in order."""
        return (
            APGDCE(self.threat, self.steps),
            APGDT(self.threat, self.steps, self.targets),
            FABT(self.threat, self.steps, self.targets),
            Square(self.threat, self.queries),
        )

    @property
    def implementation(self) -> str:
        """The package behind it, with its version."""
        return reference_version()

    def passes(self, num_classes: int) -> Passes:
        """Those of a sample that every stage attacks in full, with five forwards for labels and verdicts."""
        apgd = Passes(forward=self.steps + 3, input_grad=self.steps + 1)
        targeted = Passes(forward=3 * self.steps + 8, input_grad=2 * self.steps + 1)
        return apgd + targeted * min(self.targets, num_classes - 1) + Passes(forward=self.queries + 12)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Adversarial inputs like x (N, C, H, W): the first stage's that fools the model, else x."""
        check_inputs(self.name, x, y)
        x_adv = x.detach().clone()
        with mode(model, train=False), torch.no_grad():
            logits = model(x)
            for stage in self.stages:
                if stage.left_out(logits.shape[1]) is not None:
                    continue
                (left,) = torch.where(logits.argmax(1) == y)
                if len(left) == 0:
                    break
                x_adv[left] = stage(model, x[left], y[left], generator=generator)
                logits = logits.index_copy(0, left, model(x_adv[left]))
        return x_adv


@contextmanager
def fenced(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Eval mode, parameters without gradients, and global generators that are put back afterwards."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), mode(model, train=False), frozen(model):
        yield
