"""Named evaluation protocols: the attacks, with their settings, under which published tables were made.

A protocol is shorthand for settings and no part of an evaluation's key: equal settings under two protocols, or without
one, are one evaluation. Tables find the protocol of their attacks by comparing settings.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attacks.plugins.registry import canonical, suggestion
from attacks.registry import ATTACKS
from bench.errors import UsageError

NORM, CIFAR_EPS = "linf", 8 / 255


@dataclass(frozen=True)
class Protocol:
    """Attacks in Linf with their settings.

    Attributes:
        name: what `--protocol` calls it.
        summary: one line.
        eps: the radius it was made for, in units of x.
        attacks: registered name -> overrides of the attack's defaults; step sizes are for `eps`.
        checkpoint: how the published checkpoints were chosen; words only, nothing follows it.
        source: where the settings were read.
        doubts: what is not certain, or not exactly so here.
    """

    name: str
    summary: str
    eps: float
    attacks: Mapping[str, Mapping[str, Any]]
    checkpoint: str
    source: str
    doubts: tuple[str, ...] = ()

    def settings(self, attack: str, eps: float) -> dict[str, Any]:
        """The settings of an attack at a radius: step sizes keep their ratio to it."""
        settings = dict(self.attacks[attack])
        if "step_size" in settings and not math.isclose(eps, self.eps, rel_tol=1e-9):
            settings["step_size"] *= eps / self.eps
        return settings

    def attack_text(self, attack: str) -> str:
        """The settings of an attack in words."""
        stated = self.settings(attack, self.eps)
        if "steps" not in stated:
            return "standard"
        length = radius_text(step_length(attack, stated, self.eps) or 0.0)
        return f"{stated['steps']} step{'s' * (stated['steps'] > 1)} of {length}, start {stated['start']}"

    def radius(self, eps: float | None, dataset_eps: float | None) -> float:
        """The radius it is run at: `eps` if given, else the protocol's, or the data set's where that is not CIFAR's."""
        if eps is not None:
            return eps
        like_cifar = dataset_eps is None or math.isclose(dataset_eps, CIFAR_EPS, rel_tol=1e-9)
        return self.eps if like_cifar or dataset_eps is None else dataset_eps


_ARD_FAMILY = {
    "fgsm": {"steps": 1, "start": "zero"},
    "pgd": {"steps": 20, "start": "uniform"},
    "pgd-trades": {"steps": 20, "start": "uniform"},
    "cw": {"steps": 30, "start": "zero"},
    "autoattack": {},
}
_CW = "CW: the released hinge with confidence 50 is the plain margin here; iterates are clipped to [0, 1] at each step"

_ALL = (
    Protocol(
        "absld", "FGSM, PGD (2/255 and 0.003), CW of 30 steps, AutoAttack; the ARD family's", 8 / 255, _ARD_FAMILY,
        checkpoint="on the test set: highest PGD-20 accuracy, or that plus the worst class's",
        source="the evaluation script of CIARD, whose PGD with steps of 0.003 RSLAD and ABSLD run while training",
        doubts=("ABSLD's own evaluation script is not released, and its paper's settings are unread", _CW),
    ),
    Protocol(
        "rslad", "absld's, with CW of 20 steps", 8 / 255, {**_ARD_FAMILY, "cw": {"steps": 20, "start": "zero"}},
        checkpoint="on the test set: highest PGD-20 accuracy; and the last epoch",
        source="20 steps of CW as told of its published tables in a public review; the rest as absld",
        doubts=("step size and start of CW are not told: absld's are taken", _CW),
    ),
    Protocol(
        "trades", "PGD, 20 steps of 0.003 at eps 0.031", 0.031,
        {"pgd-trades": {"steps": 20, "step_size": 0.003, "start": "uniform_unclipped"}},
        checkpoint="none: every epoch is saved, no rule chooses",
        source="the released evaluation script; MART and DAFA evaluate alike",
    ),
    Protocol(
        "cfa", "PGD of 10 steps, AutoAttack", 8 / 255, {"pgd": {"steps": 10, "start": "uniform"}, "autoattack": {}},
        checkpoint="on the test set: highest sum of average and worst class; and the last epoch",
        source="AutoAttack from the paper, PGD from the released training script",
        doubts=("PGD of 10 steps chooses the checkpoints; the published tables give AutoAttack alone",),
    ),
    Protocol(
        "wat", "PGD of 100 steps and CW of 30, steps of 0.003 at eps 0.031", 0.031,
        {
            "pgd": {"steps": 100, "step_size": 0.003, "start": "uniform"},
            "cw": {"steps": 30, "step_size": 0.003, "start": "uniform"},
        },
        checkpoint="none in the code: saved every third epoch",
        source="the released training script",
        doubts=("the start of CW is unread: PGD's is taken", _CW),
    ),
    Protocol(
        "robustbench", "AutoAttack, standard", 8 / 255, {"autoattack": {}},
        checkpoint="the weights that the authors released",
        source="the leaderboard's model_info files",
        doubts=("some entries are evaluated at eps 0.031; --eps 0.031 does the same here",),
    ),
)  # fmt: skip
PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def resolve(names: Iterable[str]) -> tuple[str, ...]:
    """Names of protocols in their registered spelling, without repetitions.

    Raises:
        UsageError: for an unknown one, with the closest match and the list.
    """
    resolved = []
    for name in names:
        known = canonical(name)
        if known not in PROTOCOLS:
            hint = suggestion(name, PROTOCOLS)
            raise UsageError(f"--protocol {name}: unknown protocol{hint} available: {', '.join(PROTOCOLS)}")
        resolved.append(known)
    return tuple(dict.fromkeys(resolved))


@dataclass(frozen=True)
class AttackRequest:
    """One attack to run.

    Attributes:
        attack: registered name.
        settings: overrides of the attack's defaults.
        eps: radius in units of x.
        protocol: the first that has it, if another has the same attack with other settings; else empty.
    """

    attack: str
    settings: Mapping[str, Any]
    eps: float
    protocol: str = ""


def attack_requests(
    names: Sequence[str], attacks: Sequence[str] | None, eps: float | None, dataset_eps: float | None
) -> list[AttackRequest]:
    """The attacks of some protocols, each once where they agree in its settings.

    Args:
        names: protocols.
        attacks: only these; None means all.
        eps: the radius of `--eps`.
        dataset_eps: that of the data set.
    """
    requests: list[AttackRequest] = []
    for protocol in (PROTOCOLS[name] for name in names):
        radius = protocol.radius(eps, dataset_eps)
        for attack in protocol.attacks:
            new = AttackRequest(attack, protocol.settings(attack, radius), radius, protocol.name)
            known = [replace(request, protocol=protocol.name) for request in requests]
            if (attacks is None or attack in attacks) and new not in known:
                requests.append(new)
    counts = Counter(request.attack for request in requests)
    return [request if counts[request.attack] > 1 else replace(request, protocol="") for request in requests]


def scaling_notes(names: Sequence[str], eps: float | None, dataset_eps: float | None) -> list[str]:
    """A sentence for each protocol that runs at another radius than its own."""
    pairs = [(protocol, protocol.radius(eps, dataset_eps)) for protocol in (PROTOCOLS[name] for name in names)]
    return [
        f"protocol {protocol.name}: made for eps {radius_text(protocol.eps)}, "
        f"its steps are scaled to eps {radius_text(radius)}"
        for protocol, radius in pairs
        if not math.isclose(radius, protocol.eps, rel_tol=1e-9)
    ]


def check_conflicts(names: Sequence[str], attacks: Sequence[str] | None, norm: str, overrides: Iterable[str]) -> None:
    """Check that no other setting of the run contradicts the protocols.

    Raises:
        UsageError: for another norm, an attack that none of them has, or a setting that they fix.
    """
    if not names:
        return
    known = list(dict.fromkeys(attack for name in names for attack in PROTOCOLS[name].attacks))
    if norm != NORM:
        raise UsageError(f"--norm {norm}: the protocols are made for {NORM}; leave out --norm or --protocol")
    for attack in attacks or ():
        if attack not in known:
            raise UsageError(f"--attacks {attack}: expected attacks of {', '.join(names)}: {', '.join(known)}")
    for dotted in overrides:
        if canonical(dotted.partition(".")[0]) in map(canonical, known):
            raise UsageError(f"--set {dotted}: fixed by --protocol {', '.join(names)}; leave out one of the two")


def matching_protocols(attack: str, settings: Mapping[str, Any], norm: str, eps: float | None) -> tuple[str, ...]:
    """Names of the protocols that have an attack with exactly these settings, step sizes in proportion to eps.

    Args:
        attack: name as stored; our own AutoAttack counts as AutoAttack.
        settings: as stored; the rest are the attack's defaults.
        norm: of its threat model.
        eps: its radius.
    """
    name = canonical(attack).removesuffix("_reference").replace("_", "-")
    if norm != NORM or eps is None or name not in ATTACKS.builtin:
        return ()
    stored = _comparable(name, settings, eps)
    return tuple(
        protocol.name
        for protocol in _ALL
        if name in protocol.attacks and _equal(stored, _comparable(name, protocol.settings(name, eps), eps))
    )


def step_length(attack: str, settings: Mapping[str, Any], eps: float) -> float | None:
    """How long the steps of an attack are, in units of x; None for one that has no such setting."""
    sketch = ATTACKS.sketch(attack)
    if "step_size" not in sketch.settings:
        return None
    stated = settings.get("step_size")
    return float(sketch.fact("step_ratio")) * eps if stated is None else float(stated)


def _comparable(attack: str, settings: Mapping[str, Any], eps: float) -> dict[str, Any]:
    full = {**ATTACKS.sketch(attack).settings, **settings}
    full.pop("threat", None)
    if "step_size" in full:
        full["step_size"] = step_length(attack, settings, eps)
    return full


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    def same(x: Any, y: Any) -> bool:
        return math.isclose(x, y, rel_tol=1e-6) if isinstance(x, float) and isinstance(y, float) else bool(x == y)

    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


def radius_text(value: float) -> str:
    """A radius as people write it: 8/255, or a decimal number."""
    whole = value * 255
    return f"{round(whole)}/255" if math.isclose(whole, round(whole), rel_tol=1e-9) else f"{value:g}"
