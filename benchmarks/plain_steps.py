"""Reference training steps as the released scripts write them: eager, NCHW, float32.

They are what a step of the suite is timed against. Passes that change what is learned, or that the release needs to go
on, are made as there: references recomputed at every step of the attack (TRADES, FRL), gradients of all parameters
accumulated in the attack by `backward()` (PGD-AT, HAM), a classification forward after each step (HAM), a second clean
forward (TRADES, FRL), a clean forward that nothing needs (ARD). Logging reads two numbers from the device in each step.
What only serves restarts, reports or a slow loop over samples is left out: it would flatter the comparison.

`Written(once=True)` computes references once, `Written(frozen=True)` freezes parameters in the attack: the first two
switches of the table in `benchmarks.train_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Written:
    """How a step is written.

    Attributes:
        once: what does not change during the attack is computed once.
        frozen: parameters ask for no gradient during the attack.
    """

    once: bool = False
    frozen: bool = False


AS_RELEASED = Written()


@dataclass(frozen=True)
class Scene:
    """What a step needs besides its batch.

    Attributes:
        model: in train mode.
        teacher: frozen, in eval mode; None where there is none.
        optimiser: of the model.
        method: the suite's object, for its settings and per-class state.
        generator: of the attack's start.
        how: the way it is written.
    """

    model: nn.Module
    teacher: nn.Module | None
    optimiser: torch.optim.Optimizer
    method: Any
    generator: torch.Generator
    how: Written = AS_RELEASED

    def taught(self, x: Tensor) -> Tensor:
        """The teacher's logits (N, K)."""
        assert self.teacher is not None
        with torch.no_grad():
            logits: Tensor = self.teacher(x)
        return logits


Step = Callable[[Scene, Tensor, Tensor], None]


def natural(scene: Scene, x: Tensor, y: Tensor) -> None:
    """Standard training."""
    logits = scene.model(x)
    _finish(scene, F.cross_entropy(logits, y), logits, y)


def pgd_at(scene: Scene, x: Tensor, y: Tensor) -> None:
    """Rice et al.: the perturbation is a leaf, train mode throughout."""
    m = scene.method
    delta = _uniform(x, m.eps, scene.generator)
    delta = torch.max(torch.min(delta, 1 - x), 0 - x).requires_grad_()
    with _attacking(scene):
        for _ in range(m.steps):
            loss = F.cross_entropy(scene.model(x + delta), y)
            grad = _leaf_gradient(scene, loss, delta)
            moved = torch.clamp(delta.detach() + m.step_size * grad.sign(), -m.eps, m.eps)
            delta = torch.max(torch.min(moved, 1 - x), 0 - x).requires_grad_()
    logits = scene.model(torch.clamp(x + delta.detach(), 0, 1))
    _finish(scene, F.cross_entropy(logits, y), logits, y)


def trades(scene: Scene, x: Tensor, y: Tensor) -> None:
    """Zhang et al."""
    x_adv = _against_own(scene, x, scene.method.eps, scene.method.step_size)
    clean, adv, again = _three_views(scene, x, x_adv)
    robust = F.kl_div(F.log_softmax(adv, 1), F.softmax(again, 1), reduction="batchmean")
    _finish(scene, F.cross_entropy(clean, y) + scene.method.beta * robust, clean, y)


def frl(scene: Scene, x: Tensor, y: Tensor) -> None:
    """Xu et al.: TRADES with class weights and radii."""
    m = scene.method
    scale = m.radius_scale.to(x.dtype)[y].view(-1, 1, 1, 1)
    x_adv = _against_own(scene, x, m.eps * scale, m.step_size * scale.max())
    clean, adv, again = _three_views(scene, x, x_adv)
    boundary = F.kl_div(F.log_softmax(adv, 1), F.softmax(again, 1), reduction="none").sum(1)
    on_clean, on_boundary = (weight.to(x.dtype)[y] for weight in (m.weight_clean, m.weight_boundary))
    loss = (on_clean * F.cross_entropy(clean, y, reduction="none")).sum() / on_clean.sum()
    _finish(scene, loss + m.beta * (on_boundary * boundary).sum() / on_boundary.sum(), clean, y)


def ard(scene: Scene, x: Tensor, y: Tensor) -> None:
    """Goldblum et al.: train mode throughout, a clean forward of the student in any case."""
    m = scene.method
    start = x + _uniform(x, m.eps, scene.generator)
    x_adv = _climb(scene, x, start, m.eps, m.step_size, lambda logits: F.cross_entropy(logits, y, reduction="sum"))
    taught, adv, clean = scene.taught(x), scene.model(x_adv), scene.model(x)
    soft = F.softmax(taught / m.temperature, 1)
    distilled = F.kl_div(F.log_softmax(adv / m.temperature, 1), soft, reduction="none").mean()
    loss = m.alpha * m.temperature**2 * distilled + (1 - m.alpha) * F.cross_entropy(clean, y)
    _finish(scene, loss, clean, y)


def rslad(scene: Scene, x: Tensor, y: Tensor) -> None:
    """Zi et al."""
    soft = F.softmax(scene.taught(x), 1)
    _distilled(scene, x, y, soft, soft)


def absld(scene: Scene, x: Tensor, y: Tensor) -> None:
    """ABSLD: the same at the temperatures of each class, and class sums of cross-entropy for the next ones."""
    m, taught = scene.method, scene.taught(x)
    adv, clean = (tau.to(x.dtype)[y, None] for tau in (m.temperature_adv, m.temperature_clean))
    for row, logits in enumerate(_distilled(scene, x, y, F.softmax(taught / adv, 1), F.softmax(taught / clean, 1))):
        m.sums[row].index_add_(0, y, F.cross_entropy(logits.detach(), y, reduction="none").double())
    m.sums[2].index_add_(0, y, torch.ones_like(y, dtype=torch.float64))


def ham(scene: Scene, x: Tensor, y: Tensor) -> None:
    """Lin et al.: eval mode, a forward more after each step for the classification; the easy leave after some."""
    m, model = scene.method, scene.model
    model.eval()
    x_adv, original, labels = (x + _uniform(x, m.eps, scene.generator)).clamp(0, 1), x, y
    with _attacking(scene):
        for step in range(m.steps):
            x_adv = x_adv.detach().requires_grad_()
            grad = _leaf_gradient(scene, F.cross_entropy(model(x_adv), labels), x_adv)
            x_adv = _into_ball(x_adv.detach() + m.step_size * grad.sign(), original, m.eps)
            with torch.no_grad():
                wrong = model(x_adv).argmax(1) != labels
            if step + 1 == m.mining_step:
                x_adv, original, labels = x_adv[wrong], original[wrong], labels[wrong]
    model.train()
    if len(labels) > 1:
        logits = model(x_adv)
        _finish(scene, F.cross_entropy(logits, labels), logits, labels)


STEPS: Mapping[str, Step] = {
    "natural": natural, "pgd_at": pgd_at, "trades": trades, "frl": frl, "frl_remargin": frl, "ard": ard, "rslad": rslad,
    "absld": absld, "ham": ham,
}  # fmt: skip


def _against_own(scene: Scene, x: Tensor, eps: float | Tensor, step_size: float | Tensor) -> Tensor:
    """TRADES' attack: away from the model's own clean prediction, which is recomputed at every step."""
    scene.model.eval()
    known = F.softmax(scene.model(x), 1).detach() if scene.how.once else None

    def divergence(logits: Tensor) -> Tensor:
        target = F.softmax(scene.model(x), 1) if known is None else known
        return F.kl_div(F.log_softmax(logits, 1), target, reduction="sum")

    x_adv = _climb(scene, x, _near(x, scene.generator), eps, step_size, divergence)
    scene.model.train()
    return x_adv


def _three_views(scene: Scene, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clean, adversarial and clean logits once more; the third is the first where references are computed once."""
    clean, adv = scene.model(x), scene.model(x_adv)
    return clean, adv, clean if scene.how.once else scene.model(x)


def _distilled(scene: Scene, x: Tensor, y: Tensor, soft_adv: Tensor, soft_clean: Tensor) -> tuple[Tensor, Tensor]:
    """RSLAD's attack, loss and step; adversarial and clean logits."""
    m, model = scene.method, scene.model
    model.eval()
    start = _near(x, scene.generator)
    away = lambda logits: F.kl_div(F.log_softmax(logits, 1), soft_adv, reduction="sum")  # noqa: E731
    x_adv = _climb(scene, x, start, m.eps, m.step_size, away)
    model.train()
    adv, clean = model(x_adv), model(x)
    loss = m.adv_weight * F.kl_div(F.log_softmax(adv, 1), soft_adv, reduction="batchmean")
    loss = loss + (1 - m.adv_weight) * F.kl_div(F.log_softmax(clean, 1), soft_clean, reduction="batchmean")
    _finish(scene, m.scale * loss, adv, y)
    return adv, clean


def _climb(
    scene: Scene, x: Tensor, x_adv: Tensor, eps: float | Tensor, step_size: float | Tensor,
    objective: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Sign steps with gradients of the input alone."""
    with _attacking(scene):
        for _ in range(scene.method.steps):
            x_adv = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(objective(scene.model(x_adv)), [x_adv])
            x_adv = _into_ball(x_adv.detach() + step_size * torch.sign(grad.detach()), x, eps)
    return x_adv.detach()


def _leaf_gradient(scene: Scene, loss: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of a leaf by `backward`, which adds to those of the parameters as well, unless they are frozen."""
    loss.backward()
    assert leaf.grad is not None
    return leaf.grad.detach()


def _into_ball(x_adv: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
    return torch.clamp(torch.min(torch.max(x_adv, x - eps), x + eps), 0.0, 1.0)


def _uniform(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) - 1) * eps


def _near(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.001 * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


@contextmanager
def _attacking(scene: Scene) -> Iterator[None]:
    """Parameters are frozen meanwhile, where the step is written so."""
    for parameter in scene.model.parameters():
        parameter.requires_grad_(not scene.how.frozen)
    try:
        yield
    finally:
        for parameter in scene.model.parameters():
            parameter.requires_grad_(True)


def _finish(scene: Scene, loss: Tensor, logits: Tensor, y: Tensor) -> None:
    """The optimiser's step, and what a script logs."""
    scene.optimiser.zero_grad()
    loss.backward()
    scene.optimiser.step()
    loss.item()
    (logits.argmax(1) == y).sum().item()
