"""The contract of a training method: the base class `Method`, and the data that it and the trainer exchange.

A method overrides two pure functions, `perturb` (inner maximisation) and `loss` (outer minimisation); other hooks do
nothing by default. The loop that calls them is in `bench.training`; `methods.wrapper` has the contract of compositions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn

from attacks.ascent import Observer, ascend
from attacks.base import Attack
from attacks.objectives import Objective
from attacks.passes import Passes
from attacks.plugins.ranges import Count, Positive, at_least
from attacks.plugins.sketch import check_settings
from attacks.threat import Norm, Start
from methods.recipes import DEFAULT, Recipe

HIDDEN = -1


@dataclass(frozen=True)
class Batch:
    """Training samples of one forward pass.

    Attributes:
        x: (N, C, H, W) float in [0, 1].
        y: (N,) int64 labels; `HIDDEN` where the method hides them from training (`Method.visible_labels`).
        index: (N,) int64 positions in the training part.
        step_labels: (M,) labels of the whole optimiser step, of which this batch may be a part; hidden ones likewise.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    step_labels: Tensor


@dataclass(frozen=True)
class Adversarial:
    """The result of the inner maximisation.

    Attributes:
        x: (M, C, H, W) adversarial inputs to train on, one for each of `rows`.
        rows: (M,) positions in the batch that are trained on; None means all.
        extras: further tensors for `loss` and `observe`, such as a teacher's soft labels.
    """

    x: Tensor
    rows: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, values: Tensor) -> Tensor:
        """The rows (M, ...) of a per-sample tensor (N, ...) that are trained on."""
        return values if self.rows is None else values[self.rows]


@dataclass(frozen=True)
class Terms:
    """The outer loss, per sample.

    Attributes:
        loss: (M,); the trainer takes its mean over the samples of the step.
        logits: "adv" and "clean" (M, K), as far as the loss computes them.
        extras: further per-sample values for `observe`.
    """

    loss: Tensor
    logits: Mapping[str, Tensor]
    extras: Mapping[str, Tensor] = field(default_factory=dict)


Validation = tuple[Tensor, Tensor, Tensor]


@dataclass
class Context:
    """State and services of the run that the trainer passes to every hook.

    Attributes:
        epoch, epochs: current epoch, from 0, and their number.
        step, steps: optimiser step within the epoch, from 0, and their number.
        lr: current learning rate.
        device: where tensors live.
        num_classes: K.
        class_counts: (K,) training samples per class whose label is not hidden.
        generator: random stream of this step; draw every random number of `perturb` from it.
        teachers: role -> module, in eval mode and frozen.
        reduce: sums a tensor over processes.
        validator: runs an attack on held-out training samples; None where there are none.
        micro_batches: splits this process's share of a step into the micro-batches on which a loss is computed.
        retry_smaller: calls a function that goes over `micro_batches`, and again with smaller ones if memory runs out;
            as this may happen in one process alone, the function must not call `reduce`.
        watchers: observers of every iterate of `Method.ascend` that cannot stop samples; for compositions.
        for_attack: a faster equivalent of a model, on which attacks in eval mode run.
    """

    epochs: int
    steps: int
    device: torch.device
    num_classes: int
    class_counts: Tensor
    generator: torch.Generator
    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
    validator: Callable[[Attack, nn.Module | None], Validation] | None = None
    micro_batches: Callable[[Batch, Adversarial], Iterable[tuple[Batch, Adversarial]]] = lambda *whole: (whole,)
    retry_smaller: Callable[[Callable[[], list[Tensor]], Adversarial], list[Tensor]] = lambda function, adv: function()
    watchers: tuple[Observer, ...] = ()
    for_attack: Callable[[nn.Module], nn.Module] = lambda model: model

    @overload
    def teacher(self, role: str) -> nn.Module: ...
    @overload
    def teacher(self, role: str, x: Tensor) -> Tensor: ...
    def teacher(self, role: str, x: Tensor | None = None) -> nn.Module | Tensor:
        """The teacher in a role: without x the module, with x its logits.

        The module is in eval mode, frozen, and differentiable in x; for x (N, C, H, W) the logits (N, K) come without
        gradient.

        Raises:
            ValueError: if there is none.
        """
        if role not in self.teachers:
            raise ValueError(f"expected a teacher in the role {role!r}, got {sorted(self.teachers)}; pass --teacher")
        if x is None:
            return self.teachers[role]
        with torch.no_grad():
            logits: Tensor = self.teachers[role](x)
        return logits

    def validate(self, attack: Attack, model: nn.Module | None = None) -> Validation:
        """Clean and attacked logits on the steer part: held-out training samples that select no checkpoint.

        Returns:
            y (V,), clean logits (V, K), attacked logits (V, K).
        """
        if self.validator is None:
            raise ValueError("expected held-out training samples to steer by, got none; use a recipe with holdout")
        return self.validator(attack, model)


class Method(nn.Module):
    """A training method; a module only so that its per-class state is in buffers, and so in checkpoints.

    Args:
        num_classes: K.
        norm: norm of the inner problem.
        eps: its radius, in the units of x.
        step_size: length of its steps.
        steps: their number.
    """

    recipes: ClassVar[Mapping[str, Recipe]] = DEFAULT
    teachers: ClassVar[tuple[str, ...]] = ()
    warm_start: ClassVar[str | None] = None
    epoch_settings: ClassVar[tuple[str, ...]] = ()  # settings counted in epochs of the "paper" recipe
    reported: ClassVar[tuple[str, ...]] = ()  # state recorded in the history, (K,) or a scalar
    drops_rows: ClassVar[bool] = False  # whether fewer passes than declared may be made
    averages_weights: ClassVar[bool] = False  # whether it evaluates a weight average; replaces that of a recipe
    couples_batch: ClassVar[bool] = False  # whether the loss of a sample depends on others beyond step_labels
    revision: ClassVar[int] = 2
    option_revisions: ClassVar[Mapping[str, Any]] = {}  # setting -> its value with which the revision is one higher

    def __new__(cls, **settings: Any) -> Method:
        """A method whose settings, as far as they are given, lie in their ranges."""
        check_settings(cls.__name__, cls, settings)
        return super().__new__(cls)

    def __init__(
        self,
        *,
        num_classes: Annotated[int, at_least(2)] = 10,
        norm: Norm = "linf",
        eps: Positive = 8 / 255,
        step_size: Positive = 2 / 255,
        steps: Count = 10,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.norm: Norm = norm
        self.eps = eps
        self.step_size = step_size
        self.steps = steps

    def passes(self) -> Passes:
        """Upper bound on the passes per training sample and step; by default those of plain adversarial training."""
        return Passes(forward=self.steps + 1, input_grad=self.steps, backward=1)

    def loss_overhead(self) -> Passes:
        """Passes of `loss` without a backward pass to the weights; its other forward passes number `backward`."""
        return Passes()

    def visible_labels(self, y: Tensor) -> Tensor:
        """The labels (N,) of the training part with `HIDDEN` in place of those that training may not use.

        Called once, before `setup`, and with the same result in a resumed run. Batches, class counts and the accuracies
        of the history are all made from these labels.
        """
        return y

    def setup(self, model: nn.Module, ctx: Context) -> None:
        """Before the first epoch: allocate what depends on the model or the data; a ValueError refuses the run.

        A launch also calls it on a separate object before any run starts, on the CPU and without teachers.
        """

    def begin_epoch(self, model: nn.Module, ctx: Context) -> None:
        """Before an epoch; in a resumed run, after its state has been restored."""

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """The inner maximisation; it may read the method's state and must not write it."""
        raise NotImplementedError(f"{type(self).__name__} defines no inner problem: override perturb")

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """The outer loss per sample, with the model in train mode; it may read state and must not write it."""
        raise NotImplementedError(f"{type(self).__name__} defines no outer problem: override loss")

    @contextmanager
    def around_step(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Iterator[None]:
        """A context entered after `perturb` and left after the optimiser's step."""
        yield

    def observe(self, batch: Batch, adv: Adversarial, terms: Terms, ctx: Context) -> None:
        """Before each optimiser step: add values of the step to per-class sums.

        A process that has none of the step's samples skips this hook, so it must not call `ctx.reduce`; every process
        runs the hooks before and after it.
        """

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """After the optimiser's step: update weight averages."""

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        """After an epoch: update the per-class state."""

    def evaluation_model(self, model: nn.Module) -> nn.Module:
        """The model that is selected, saved and evaluated."""
        return model

    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this object."""
        names: dict[str, None] = {}
        for base in reversed(type(self).__mro__):
            if issubclass(base, Method) and "__init__" in vars(base):
                parameters = inspect.signature(base.__init__).parameters.values()
                names.update({p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY})
        return {name: getattr(self, name) for name in names}

    def ascend(
        self,
        model: nn.Module,
        x: Tensor,
        objective: Objective,
        ctx: Context,
        *,
        start: Start | Tensor,
        eps: float | Tensor | None = None,
        step_size: float | Tensor | None = None,
        observe: Observer | None = None,
        bn: Literal["eval", "train"] = "eval",
    ) -> Tensor:
        """The shared inner loop (`attacks.ascend`) with this method's norm, radius, step size and steps."""
        return ascend(
            ctx.for_attack(model) if bn == "eval" else model, x, objective,
            eps=self.eps if eps is None else eps,
            step_size=self.step_size if step_size is None else step_size,
            steps=self.steps, start=start, norm=self.norm, generator=ctx.generator,
            observe=_joint_observer(observe, ctx.watchers), bn=bn,
        )  # fmt: skip


def _joint_observer(observe: Observer | None, watchers: tuple[Observer, ...]) -> Observer | None:
    """One observer that calls the watchers, then the method's observer, which alone may stop samples."""
    if not watchers:
        return observe

    def see(step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> Tensor | None:
        for watch in watchers:
            watch(step, x_adv, logits, rows)
        return None if observe is None else observe(step, x_adv, logits, rows)

    return see
