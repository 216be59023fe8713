"""Contract tests for registered methods and attacks, as small named checks.

`bench check NAME` runs them on plug-ins, the test suite on everything that is registered. A check is a function of a
case (a plug-in with a number of classes) that raises `ContractViolation` with a sentence. `exemptions` lists cheaper
settings and checks that do not apply, each with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from attacks.plugins.registry import Registry
from attacks.registry import ATTACKS
from attacks.threat import Norm
from bench.conformance.attacks import ATTACK_CHECKS, AttackCase
from bench.conformance.exemptions import CheckOptions, check_options
from bench.conformance.fixtures import ContractViolation
from bench.conformance.methods import METHOD_CHECKS, MethodCase
from methods.registry import METHODS

if TYPE_CHECKING:
    from methods.base import Method

__all__ = [
    "ATTACK_CHECKS",
    "METHOD_CHECKS",
    "AttackCase",
    "ContractViolation",
    "MethodCase",
    "attack_cases",
    "check_all",
    "fault",
    "method_cases",
    "check_options",
]

Case = TypeVar("Case", MethodCase, AttackCase)

CLASSES = (3, 11)


def method_cases(name: str) -> list[MethodCase]:
    """A registered method with few and with many classes."""
    arguments = check_options(METHODS, name).arguments
    return [MethodCase(name, cast("type[Method]", METHODS[name]), classes, arguments) for classes in CLASSES]


def attack_cases(name: str) -> list[AttackCase]:
    """A registered attack with few and with many classes and in both norms; without few where it cannot work."""
    arguments = check_options(ATTACKS, name).arguments
    settings: tuple[tuple[int, Norm], ...] = ((CLASSES[0], "linf"), (CLASSES[1], "linf"), (CLASSES[1], "l2"))
    cases = [AttackCase(name, ATTACKS[name], classes, norm, arguments) for classes, norm in settings]
    return [case for case in cases if case.left_out() is None]


def check_all(names: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Run every check on methods and attacks.

    Args:
        names: registered methods, compositions of them such as "awp:trades", and attacks; spelling as in `resolve`.

    Yields:
        A line for people, such as "ok    absld  resume_is_bitwise", and whether the check passed.

    Raises:
        UnknownName: if a name is neither a method nor an attack.
    """
    both: Registry[None] = Registry(
        kind="method or attack", group="", builtin=dict.fromkeys([*METHODS.names(), *ATTACKS.names()], "")
    )
    for name in [METHODS.resolve(name) if ":" in name else both.resolve(name) for name in names]:
        if name in METHODS:
            yield from _run(name, METHOD_CHECKS, method_cases(name), check_options(METHODS, name))
        if name in ATTACKS:
            yield from _run(name, ATTACK_CHECKS, attack_cases(name), check_options(ATTACKS, name))


def _run(
    name: str, checks: Mapping[str, Callable[[Case], None]], cases: Iterable[Case], options: CheckOptions
) -> Iterator[tuple[str, bool]]:
    for check, function in checks.items():
        if check in options.exempt:
            yield f"none  {name}  {check}: {options.exempt[check]}", True
            continue
        failure = next((failure for case in cases if (failure := fault(function, case)) is not None), None)
        yield (f"ok    {name}  {check}", True) if failure is None else (f"FAIL  {name}  {check}: {failure}", False)


def fault(check: Callable[[Case], None], case: Case) -> str | None:
    """The sentence that says how a case fails a check; None if it passes."""
    try:
        check(case)
    except ContractViolation as violation:
        return f"{violation} ({case})"
    except Exception as error:  # whatever a plug-in raises is a failed check
        return f"{type(error).__name__}: {error} ({case})"
    return None
