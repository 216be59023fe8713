"""FlexMatch's curriculum pseudo-labels (Zhang et al., NeurIPS 2021, arXiv:2110.08263) in adversarial training.

The combination is this suite's own: no paper proposes it, and no published figure belongs to it.

Inner problem:  the host's, with the pseudo-label q where the label is hidden: PGD-AT maximises CE(S(x'), y or q),
                TRADES KL(p(x) || p(x')), which needs no label. The attack is the strong view of FlexMatch; the weak one
                is the batch as the recipe augments it.
Outer problem:  minimise  mean of the host's loss over the labelled samples + weight x mean of 1[c > T_q] CE(S(x'), q)
                over the others; q and c are the class and the value of the largest probability that the weights'
                average gives the weak view. T_k = tau M(beta_k), M(b) = b / (2 - b), beta_k = sigma_k / max(max
                sigma, n - sum sigma), for n unlabelled samples of which sigma_k were last seen with c > tau and q = k.
                A class that is learnt late has a low threshold, so its samples are let in earlier.
State:          per unlabelled sample the class last seen with c > tau (changes of this epoch are kept separately),
                sigma (K,), and the average. Reported: threshold (K,) after the epoch; used_share (K,), what was trained
                on of the samples that were given the pseudo-label k in the epoch, 0 where none was.
Defaults:       labelled_fraction 0.1 of each class and at least one sample, the same ones for every seed of a run; tau
                0.95, weight 1, decay 0.999 with warm-up. Schedule, radius and step are those of PGD-AT, with the host
                TRADES as well (whose paper has 0.031 and 0.007). On digits tau 0.5: in 30 epochs robust training is
                seldom surer than 0.95, so that next to nothing is held back and the first guesses can take over; of the
                two 0.5 is the better on held-out digits over three seeds.
Departures:     from FlexMatch, beside the attack [paper and release as remembered, not read for this]: labelled and
                unlabelled samples come in one batch as they are drawn, not 7 unlabelled to each labelled one; the
                student's own weights are evaluated. Its algorithm and its release keep the last class that passed tau
                (`memory="kept"`), and the release takes pseudo-labels from the student (`labeller="student"`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn

from attacks.contexts import mode
from attacks.passes import Passes
from attacks.plugins.ranges import Decay, Index, NonNegative, between
from methods.averaging import frozen_copy, update_average, warm_decay
from methods.base import HIDDEN, Adversarial, Batch, Context, Method, Terms
from methods.losses import class_sums, cross_entropy
from methods.pgd_at import PGDAT
from methods.recipes import DEFAULT, digits
from methods.registry import register
from methods.trades import TRADES

CHOICES = {
    "host": ("pgd_at", "trades"), "unlabelled": ("pseudo", "ignore"), "mapping": ("convex", "linear"),
    "memory": ("latest", "kept"), "labeller": ("average", "student"),
}  # fmt: skip


@register("flexmatch_at")
class FlexMatchAT(Method):
    """Adversarial training with few labels; the other samples train on predictions above a threshold of their class.

    Args:
        host: "pgd_at" or "trades", the method of the labelled part.
        labelled_fraction: share of each class whose labels are used; at 1 this is the host.
        unlabelled: "pseudo" trains on pseudo-labels, "ignore" leaves the unlabelled samples out.
        tau: confidence above which a sample counts as learnt, and the highest threshold.
        weight: of the pseudo-labelled part.
        mapping: M, "convex" b / (2 - b) or "linear" b.
        warm_up: whether samples that were not confident yet hold the thresholds down.
        memory: "latest" forgets a sample whose confidence fell to tau or below, "kept" does not.
        labeller: "average" of the weights, or the "student" itself.
        decay: of that average.
        label_seed: which labels are hidden; those of a smaller fraction are among those of a larger one.
        beta: of the host TRADES.
        bn: of the host PGD-AT, "train" or "eval".
    """

    recipes = {**DEFAULT, "digits": digits(settings={"tau": 0.5})}
    reported = ("threshold", "used_share")
    drops_rows = True  # the unlabelled ones, where they are ignored

    average: nn.Module
    latest: Tensor
    moved: Tensor
    sigma: Tensor
    change: Tensor
    counts: Tensor
    used_share: Tensor

    def __init__(
        self,
        *,
        host: Literal["pgd_at", "trades"] = "pgd_at",
        labelled_fraction: Annotated[float, between(0, 1, open_low=True)] = 0.1,
        unlabelled: Literal["pseudo", "ignore"] = "pseudo",
        tau: Annotated[float, between(0, 1, open_low=True, open_high=True)] = 0.95,
        weight: NonNegative = 1.0,
        mapping: Literal["convex", "linear"] = "convex",
        warm_up: bool = True,
        memory: Literal["latest", "kept"] = "latest",
        labeller: Literal["average", "student"] = "average",
        decay: Decay = 0.999,
        label_seed: Index = 0,
        beta: NonNegative = 6.0,
        bn: Literal["train", "eval"] = "train",
        **inner: Any,
    ) -> None:
        super().__init__(**inner)
        self.host, self.unlabelled, self.mapping, self.memory, self.labeller = (
            host,
            unlabelled,
            mapping,
            memory,
            labeller,
        )
        self.labelled_fraction, self.tau, self.weight, self.warm_up = labelled_fraction, tau, weight, warm_up
        self.decay, self.label_seed, self.beta, self.bn = decay, label_seed, beta, bn
        options: dict[str, Any] = {"bn": bn} if host == "pgd_at" else {"beta": beta}
        shared = {name: getattr(self, name) for name in ("num_classes", "norm", "eps", "step_size", "steps")}
        self.host_method: Method = {"pgd_at": PGDAT, "trades": TRADES}[host](**shared, **options)
        self.unlabelled_size = 0
        for name in ("sigma", "change", "used_share"):  # change: of sigma, within a step
            self.register_buffer(name, torch.zeros(self.num_classes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(2, self.num_classes, dtype=torch.float64))  # used, given

    def passes(self) -> Passes:
        """The host's passes, and the forward pass that gives pseudo-labels."""
        trades, labels = self.host == "trades", self.labelled_fraction < 1 and self.unlabelled == "pseudo"
        return Passes(forward=self.steps + 1 + 2 * trades + labels, input_grad=self.steps, backward=1 + trades)

    @property
    def threshold(self) -> Tensor:
        """T (K,)."""
        unused = self.unlabelled_size - self.sigma.sum() if self.warm_up else torch.zeros_like(self.sigma[0])
        beta = self.sigma / torch.maximum(self.sigma.max(), unused).clamp_min(1)
        return self.tau * (beta / (2 - beta) if self.mapping == "convex" else beta)

    def visible_labels(self, y: Tensor) -> Tensor:
        """A stratified share of the labels; the others are hidden."""
        seen = (
            y
            if self.labelled_fraction == 1
            else y.where(stratified(y, self.labelled_fraction, self.label_seed), HIDDEN)
        )
        self.unlabelled_size = int((seen == HIDDEN).sum())
        for name, value in (("latest", HIDDEN), ("moved", 0)):
            self.register_buffer(name, torch.full_like(y, value))
        return seen

    def setup(self, model: nn.Module, ctx: Context) -> None:
        """Start the average of the weights."""
        if self.unlabelled_size and self.unlabelled == "pseudo" and self.labeller == "average":
            self.average = frozen_copy(model)

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """The host's attack, on pseudo-labels where labels are hidden."""
        if not self.unlabelled_size:
            return self.host_method.perturb(model, batch, ctx)
        hidden = batch.y == HIDDEN
        if self.unlabelled == "ignore":
            rows = (~hidden).nonzero().flatten()
            part = _select(batch, rows)
            return Adversarial(self.host_method.perturb(model, part, ctx).x if len(rows) > 1 else part.x, rows)
        confidence, guess = self._predict(model, batch.x).softmax(1).max(1)
        target = guess.where(hidden, batch.y)
        adv = self.host_method.perturb(model, replace(batch, y=target), ctx)
        extras = {"target": target, "use": confidence > self.threshold[guess]}
        return replace(adv, extras=extras | {"learnt": guess.where(hidden & (confidence > self.tau), HIDDEN)})

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """The host's loss of the labelled samples and the cross-entropy of the used ones, each a mean of its own."""
        if not self.unlabelled_size or self.unlabelled == "ignore":
            part = batch if adv.rows is None else _select(batch, adv.rows)
            return self.host_method.loss(model, part, Adversarial(adv.x), ctx)
        target, hidden = adv.extras["target"], batch.y == HIDDEN
        terms = self.host_method.loss(model, replace(batch, y=target), adv, ctx)
        guessed = self.weight * (adv.extras["use"] * cross_entropy(terms.logits["adv"], target))
        of_step = batch.step_labels == HIDDEN
        size = torch.where(hidden, of_step.sum(), (~of_step).sum())
        return Terms(guessed.where(hidden, terms.loss) * (len(of_step) / size.to(terms.loss.dtype)), terms.logits)

    def observe(self, batch: Batch, adv: Adversarial, terms: Terms, ctx: Context) -> None:
        """Note what each sample was last learnt as, and which pseudo-labels were used."""
        if "target" not in adv.extras:
            return
        before, now = self.latest[batch.index] + self.moved[batch.index], adv.extras["learnt"]
        if self.memory == "kept":
            now = now.where(now != HIDDEN, before)
        after, earlier = (class_sums(torch.ones_like(k), k, self.num_classes) for k in (now, before))
        self.change.copy_(after - earlier)
        self.moved[batch.index] += now - before
        guess = adv.extras["target"].where(batch.y == HIDDEN, HIDDEN)
        for row, values in enumerate((adv.extras["use"], torch.ones_like(guess))):
            self.counts[row] += class_sums(values, guess, self.num_classes)

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """Update sigma, with the counts of the step over all processes, and the average."""
        self.sigma += ctx.reduce(self.change)
        self.change.zero_()
        if hasattr(self, "average"):
            step = ctx.epoch * ctx.steps + ctx.step
            update_average(self.average, model, 1 - warm_decay(self.decay, step))

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        """Record the used shares, and add the changes of all processes to `latest`."""
        self.latest += ctx.reduce(self.moved)
        self.moved.zero_()
        used, given = ctx.reduce(self.counts)
        self.used_share.copy_(used / given.clamp_min(1))
        self.counts.zero_()

    def _predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits (N, K) of the labeller."""
        labeller = self.average if hasattr(self, "average") else model
        with mode(labeller, train=False), torch.no_grad():
            return cast(Tensor, labeller(x))


def stratified(y: Tensor, fraction: float, seed: int) -> Tensor:
    """Mask (N,) of a fraction of the labels y (N,) of each class, at least one sample of each.

    The samples of a class come in an order fixed by the seed, so a smaller fraction is part of a larger one.
    """
    labels = y.cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    quota = (fraction * sizes).round().clamp_min(1).repeat_interleave(sizes)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order] = rank < quota
    return chosen.to(y.device)


def _select(batch: Batch, rows: Tensor) -> Batch:
    return replace(batch, x=batch.x[rows], y=batch.y[rows], index=batch.index[rows])
