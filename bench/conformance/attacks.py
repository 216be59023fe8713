"""The contract checks of attacks; `ATTACK_CHECKS` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.threat import Norm, ThreatModel, starting_point
from bench.conformance.fixtures import (
    SIDE,
    freeze_first_batch_norm,
    gradients_of,
    images,
    modes_of,
    network,
    require,
    require_equal,
    require_ranges,
    rng_states,
    state_of,
)
from bench.core.pass_counter import KINDS, PassCounter

SAMPLES = 12
EPS: Mapping[Norm, float] = {"linf": 0.05, "l2": 0.25}
FEW_CLASSES = (2, 3)
RESTARTS = (1, 3)


@dataclass(frozen=True)
class AttackCase:
    """An attack in a norm, with a number of classes.

    Attributes:
        name: its name in messages.
        attack: the class, or a function that builds the attack.
        num_classes: K of the model under attack.
        norm: of the threat model.
        arguments: settings other than the defaults.
    """

    name: str
    attack: Callable[..., Attack]
    num_classes: int
    norm: Norm
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.num_classes} classes, {self.norm}"

    @property
    def eps(self) -> float:
        """The radius of the checks."""
        return EPS[self.norm]

    def build(self, **changes: Any) -> Attack:
        """The attack."""
        return self.attack(**{"threat": ThreatModel(self.norm, self.eps), **self.arguments, **changes})

    def left_out(self, num_classes: int | None = None) -> str | None:
        """Why the attack cannot work with so few classes; None if it can."""
        reason: Callable[[int], str | None] = getattr(self.build(), "left_out", lambda k: None)
        return reason(num_classes or self.num_classes)

    def model(self) -> nn.Sequential:
        """A network in eval mode."""
        return network(self.num_classes, 0).eval()

    def samples(self, model: nn.Module, n: int = SAMPLES) -> tuple[Tensor, Tensor]:
        """Images (n, 1, 8, 8), each labelled as the model in eval mode classifies it."""
        x = images(n, 0)
        with torch.no_grad():
            return x, model(x).argmax(1)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0, **changes: Any) -> Tensor:
        """Attack from a seed."""
        return self.build(**changes)(model, x, y, generator=torch.Generator().manual_seed(seed))


def settings_declare_their_ranges(case: AttackCase) -> None:
    """No setting takes any number: its annotation says which, see `attacks.plugins.ranges`."""
    require_ranges(case.attack)


def shape_dtype_device(case: AttackCase) -> None:
    """The result is like x, and detached."""
    model = case.model()
    x, y = case.samples(model)
    x_adv = case.run(model, x, y)
    expected, found = (x.shape, x.dtype, x.device), (x_adv.shape, x_adv.dtype, x_adv.device)
    require(found == expected, f"expected {expected}, got {found}")
    require(not x_adv.requires_grad, "the result still belongs to a graph: detach it")


def in_box_and_ball(case: AttackCase) -> None:
    """Every result lies in [0, 1] and within eps of its image."""
    model = case.model()
    x, y = case.samples(model)
    x_adv = case.run(model, x, y)
    outside = int((~ThreatModel(case.norm, case.eps).contains(x_adv, x)).sum())
    require(outside == 0, f"{outside} of {len(x)} results lie outside the box or the ball of radius {case.eps}")


def inputs_unchanged(case: AttackCase) -> None:
    """The inputs are not changed, and the result is no view of x."""
    model = case.model()
    x, y = case.samples(model)
    before = {"x": x.clone(), "y": y.clone()}
    case.run(model, x, y).zero_()
    require_equal(before, {"x": x, "y": y}, "an input was changed")


def weights_buffers_grads_unchanged(case: AttackCase) -> None:
    """The attack changes nothing in a model, in eval and in train mode."""
    model = case.model()
    x, y = case.samples(model)
    for train in (False, True):
        model.train(train)
        before = {**state_of(model), **gradients_of(model)}
        case.run(model, x, y)
        require_equal(before, {**state_of(model), **gradients_of(model)}, "the attack changed the model")


def submodule_modes_restored(case: AttackCase) -> None:
    """Every submodule keeps its mode, a frozen BatchNorm too."""
    model = case.model()
    x, y = case.samples(model)
    freeze_first_batch_norm(model)
    before = modes_of(model)
    case.run(model, x, y)
    require_equal(before, modes_of(model), "the attack changed a mode")


def train_and_eval_mode_agree(case: AttackCase) -> None:
    """The attack sees the model in eval mode, whatever mode it is in."""
    model = case.model()
    x, y = case.samples(model)
    expected = case.run(model, x, y)
    found = case.run(model.train(), x, y)
    require(torch.equal(expected, found), "the result depends on the mode the model is in; attack it in eval mode")


def global_rng_untouched(case: AttackCase) -> None:
    """Random numbers come from the generator alone."""
    model = case.model()
    x, y = case.samples(model)
    before = rng_states()
    case.run(model, x, y)
    require_equal(before, rng_states(), "a global random stream was moved")


def same_generator_same_result(case: AttackCase) -> None:
    """Equal seeds give equal bits, whatever the global stream."""
    model = case.model()
    x, y = case.samples(model)
    first = case.run(model, x, y)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(20)
        second = case.run(model, x, y)
    require(torch.equal(first, second), "two attacks with the same seed differ")


def eps_zero_returns_x(case: AttackCase) -> None:
    """With radius 0 the result is x."""
    model = case.model()
    x, y = case.samples(model, 4)
    x_adv = case.run(model, x, y, threat=ThreatModel(case.norm, 0.0))
    require(torch.allclose(x_adv, x, rtol=0, atol=1e-6), "with eps 0 the result is expected to be x")


def batch_of_one(case: AttackCase) -> None:
    """One sample is a batch."""
    model = case.model()
    x, y = case.samples(model, 1)
    x_adv = case.run(model, x, y)
    require(x_adv.shape == x.shape, f"expected {tuple(x.shape)}, got {tuple(x_adv.shape)}")
    require(bool(ThreatModel(case.norm, case.eps).contains(x_adv, x)), "the result lies outside box or ball")


def works_under_no_grad(case: AttackCase) -> None:
    """The result is the same under `torch.no_grad()`."""
    model = case.model()
    x, y = case.samples(model)
    expected = case.run(model, x, y)
    with torch.no_grad():
        found = case.run(model, x, y)
    require(torch.equal(expected, found), "the result differs under torch.no_grad()")


def linear_model_closed_form(case: AttackCase) -> None:
    """On a linear model the boundary lies at margin / dual norm of w: fooled at 0.9 eps, and not at 1.02 eps."""
    distance = torch.where(torch.arange(16) % 2 == 0, 0.9, 1.02) * case.eps
    model, x = _linear_problem(distance, case.norm)
    y = torch.zeros(16, dtype=torch.int64)
    require(torch.equal(_predict(model, x), y), "the samples are expected to start on their own side")
    fooled = _predict(model, case.run(model, x, y)) != y
    near = distance < case.eps
    missed, beyond = int((near & ~fooled).sum()), int((fooled & ~near).sum())
    require(missed == 0, f"{missed} of 8 samples at 0.9 eps from the boundary of a linear model were not fooled")
    require(beyond == 0, f"{beyond} of 8 samples beyond eps from the boundary of a linear model were fooled")


def rejects_x_outside_box(case: AttackCase) -> None:
    """Normalised images are refused, with a sentence."""
    model = case.model()
    x, y = case.samples(model, 2)
    _require_refused(case, model, 4 * x - 2, y, "[0, 1]")


def rejects_y_of_wrong_shape(case: AttackCase) -> None:
    """Labels of another shape are refused, with a sentence."""
    model = case.model()
    x, y = case.samples(model, 2)
    _require_refused(case, model, x, nn.functional.one_hot(y, case.num_classes), "expected y")


def fools_as_many_as_random_noise(case: AttackCase) -> None:
    """An attack is at least as strong as noise of the same size, on samples close to the boundary."""
    model = case.model()
    x, y = case.samples(model, 512)
    with torch.no_grad():
        best, second = model(x).topk(2, dim=1).values.unbind(1)
    close = (best - second).argsort()[:SAMPLES]
    x, y = x[close], y[close]
    noise = starting_point(x, "uniform", case.eps, case.norm, torch.Generator().manual_seed(0))
    attacked, by_noise = (int((_predict(model, z) != y).sum()) for z in (case.run(model, x, y), noise))
    require(attacked >= by_noise, f"{attacked} of {len(x)} were fooled, random noise fools {by_noise}")


def passes_within_the_declared(case: AttackCase) -> None:
    """No more passes per sample are made than declared."""
    model, counter = case.model(), PassCounter()
    x, y = case.samples(model)
    counter.watch(model, "model")
    case.run(model, x, y)
    declared = case.build().passes(case.num_classes).as_dict()
    for kind in KINDS:
        found = counter.counts["model"][kind] / len(x)
        require(found <= declared[kind], f"{declared[kind]:g} {kind} passes are declared, {found:g} were counted")


def few_classes(case: AttackCase) -> None:
    """Two and three classes work, or are refused with the reason that `left_out` gives."""
    for num_classes in FEW_CLASSES:
        model = network(num_classes, 0).eval()
        x, y = case.samples(model, 4)
        reason = case.left_out(num_classes)
        if reason is not None:
            _require_refused(case, model, x, y, reason)
            continue
        x_adv = case.run(model, x, y)
        inside = ThreatModel(case.norm, case.eps).contains(x_adv, x)
        require(bool(inside.all()), f"with {num_classes} classes a result lies outside box or ball")


def more_restarts_never_weaker(case: AttackCase) -> None:
    """From the same seed, a sample that fewer restarts fool is fooled by more; holds for attacks with `restarts`."""
    model = case.model()
    x, y = case.samples(model, 64)
    choices = RESTARTS if hasattr(case.build(), "restarts") else ()
    before = torch.zeros_like(y, dtype=torch.bool)
    for restarts in choices:
        fooled = _predict(model, case.run(model, x, y, restarts=restarts)) != y
        lost = int((before & ~fooled).sum())
        require(lost == 0, f"{lost} samples that fewer restarts fool stand after {restarts}; keep the worst point")
        before = fooled


def _linear_problem(distance: Tensor, norm: Norm) -> tuple[nn.Module, Tensor]:
    """A linear model of four classes, two of them out of reach, and images of class 0 at given distances to class 1."""
    weight = torch.linspace(0.5, 1.5, 64) * images(1, 1).flatten().sub(0.5).sign()
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    centred = 0.2 * (images(len(distance), 0).flatten(1) - 0.5)
    move = (distance * dual - centred @ weight) / weight.square().sum()
    x = (0.5 + centred + move[:, None] * weight).view(-1, 1, SIDE, SIDE)
    head = nn.Linear(64, 4)
    with torch.no_grad():
        head.weight.copy_(torch.stack([weight / 2, -weight / 2, 0 * weight, 0 * weight]))
        head.bias.copy_(torch.tensor([0.0, 0.0, -9.0, -9.5]) - head.weight.sum(1) / 2)
    return nn.Sequential(nn.Flatten(), head), x


def _predict(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        prediction: Tensor = model(x).argmax(1)
    return prediction


def _require_refused(case: AttackCase, model: nn.Module, x: Tensor, y: Tensor, words: str) -> None:
    try:
        case.run(model, x, y)
    except ValueError as error:
        require(words in str(error), f"expected a message with {words!r}, got {str(error)!r}")
    else:
        require(False, f"expected a ValueError that says {words!r}, got a result")


ATTACK_CHECKS: Mapping[str, Callable[[AttackCase], None]] = {
    check.__name__: check
    for check in (
        shape_dtype_device,
        settings_declare_their_ranges,
        in_box_and_ball,
        inputs_unchanged,
        weights_buffers_grads_unchanged,
        submodule_modes_restored,
        train_and_eval_mode_agree,
        global_rng_untouched,
        same_generator_same_result,
        eps_zero_returns_x,
        batch_of_one,
        works_under_no_grad,
        linear_model_closed_form,
        rejects_x_outside_box,
        rejects_y_of_wrong_shape,
        fools_as_many_as_random_noise,
        passes_within_the_declared,
        few_classes,
        more_restarts_never_weaker,
    )
}
