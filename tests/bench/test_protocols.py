"""Evaluation protocols: what they are, how they fold into jobs, and how a table's attacks are recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attacks.tables import ATTACKS
from bench import protocols
from bench.errors import UsageError
from bench.protocols import PROTOCOLS, belonging, step_length
from bench.report import render
from tests.bench.trees import Spec, write_run

NAMES = ("absld", "rslad", "trades", "cfa", "wat", "robustbench")
PGD = {"steps": 20, "step_size": None, "start": "uniform", "restarts": 1}


def resolved(name: str) -> dict[str, tuple[Any, ...]]:
    """(steps, length of a step, start) of the attacks of a protocol, AutoAttack aside."""
    protocol = PROTOCOLS[name]
    found = {}
    for attack in protocol.attacks:
        own = protocol.settings(attack, protocol.eps)
        full = {**ATTACKS.sketch(attack).settings, **own}
        if attack != "autoattack":
            found[attack] = (full["steps"], step_length(attack, own, protocol.eps), full["start"])
    return found


def test_the_six_are_there() -> None:
    assert tuple(PROTOCOLS) == NAMES
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.checkpoint and protocol.source
        for attack, settings in protocol.attacks.items():
            assert attack in ATTACKS.names()
            assert set(settings) <= set(ATTACKS.sketch(attack).settings) - {"threat"}


def test_published_settings() -> None:
    length = 2 / 255
    family = {
        "fgsm": (1, pytest.approx(8 / 255), "zero"),
        "pgd": (20, pytest.approx(length), "uniform"),
        "pgd-trades": (20, pytest.approx(0.003), "uniform"),
        "cw": (30, pytest.approx(length), "zero"),
    }
    assert resolved("absld") == family
    assert resolved("rslad") == {**family, "cw": (20, pytest.approx(length), "zero")}
    assert resolved("trades") == {"pgd-trades": (20, 0.003, "uniform_unclipped")}
    assert resolved("cfa") == {"pgd": (10, pytest.approx(length), "uniform")}
    assert resolved("wat") == {"pgd": (100, 0.003, "uniform"), "cw": (30, 0.003, "uniform")}
    assert resolved("robustbench") == {}
    assert {name for name in NAMES if "autoattack" in PROTOCOLS[name].attacks} == {
        "absld",
        "rslad",
        "cfa",
        "robustbench",
    }
    assert {name: PROTOCOLS[name].eps for name in NAMES} == {
        **dict.fromkeys(NAMES, 8 / 255),
        **{"trades": 0.031, "wat": 0.031},
    }


def test_steps_keep_their_ratio_to_the_radius() -> None:
    assert PROTOCOLS["trades"].settings("pgd-trades", 0.31)["step_size"] == pytest.approx(0.03)
    assert "step_size" not in PROTOCOLS["absld"].settings("pgd", 0.15), "the attack's own ratio, and one key with it"


def test_names_are_resolved_and_unknown_ones_refused() -> None:
    assert protocols.resolve(["RSLAD", "rslad", "cfa"]) == ("rslad", "cfa")
    with pytest.raises(UsageError, match=r"--protocol robust-bench: .*did you mean 'robustbench'\? available: absld, "):
        protocols.resolve(["robust-bench"])


@pytest.mark.parametrize(
    ("attack", "settings", "eps", "found"),
    [
        ("pgd", PGD, 8 / 255, ("absld", "rslad")),
        ("pgd", {**PGD, "step_size": 2 / 255}, 8 / 255, ("absld", "rslad")),
        ("pgd", {**PGD, "restarts": 2}, 8 / 255, ()),
        ("pgd", {**PGD, "steps": 10}, 0.15, ("cfa",)),
        ("pgd", {**PGD, "steps": 100, "step_size": 0.003}, 0.031, ("wat",)),
        ("pgd-trades", {**PGD, "start": "uniform_unclipped", "step_size": 0.003}, 0.031, ("trades",)),
        ("cw", {**PGD, "steps": 20, "start": "zero"}, 8 / 255, ("rslad",)),
        ("autoattack", {}, 8 / 255, ("absld", "rslad", "cfa", "robustbench")),
        ("autoattack-native", {}, 8 / 255, ("absld", "rslad", "cfa", "robustbench")),
        ("autoattack", {"queries": 10}, 8 / 255, ()),
        ("somebody's", {}, 8 / 255, ()),
    ],
)
def test_attacks_are_recognised_by_their_settings(
    attack: str, settings: dict[str, Any], eps: float, found: tuple[str, ...]
) -> None:
    assert belonging(attack, settings, "linf", eps) == found
    assert belonging(attack, settings, "l2", eps) == ()


# Tables


def run(folder: Path, name: str, eps: float, leave_out: tuple[str, ...] = ()) -> None:
    """A finished run under a protocol, written attack by attack as the suite stores settings."""
    protocol = PROTOCOLS[name]
    for attack in protocol.attacks:
        if attack not in leave_out:
            full = {**ATTACKS.sketch(attack).settings, **protocol.settings(attack, eps)}
            full.pop("threat", None)
            spec = Spec(eps=eps, attacks={attack: 0.5}, eval_facts={"attack_settings": full, "key": attack})
            write_run(folder / name / attack, spec)


def note(folder: Path, start: str = "Protocol") -> str:
    roots = sorted(folder.glob("*/*"))
    (found,) = [line for line in render(roots).splitlines() if line.startswith(f"- {start}")] or [""]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_table_names_its_protocol(tmp_path: Path, name: str) -> None:
    run(tmp_path, name, PROTOCOLS[name].eps)
    assert note(tmp_path) == f"- Protocol, by the attacks' settings: {name}."


def test_a_part_and_a_scaled_radius_are_said(tmp_path: Path) -> None:
    run(tmp_path, "absld", 0.15, leave_out=("pgd-trades", "autoattack"))
    said = "absld without PGD-TRADES, AutoAttack, its steps scaled from eps 8/255 to 0.15"
    assert note(tmp_path) == f"- Protocol, by the attacks' settings: {said}."


def test_attacks_of_two_protocols_are_told_apart_by_name(tmp_path: Path) -> None:
    run(tmp_path, "rslad", 8 / 255, leave_out=("pgd-trades", "autoattack", "fgsm"))
    run(tmp_path, "absld", 8 / 255, leave_out=("pgd-trades", "autoattack", "fgsm", "pgd"))
    text = render(sorted(tmp_path.glob("*/*")))
    assert "CW (rslad) Average" in text and "CW (absld) Average" in text and "PGD Average" in text
    assert note(tmp_path, "Protocols") == (
        "- Protocols, by the attacks' settings: PGD of absld and rslad; CW (rslad) of rslad; CW (absld) of absld."
    )


def test_an_attack_of_no_protocol_leaves_the_table_unnamed(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "b", Spec(attacks={"pgd": 0.5}, eval_facts={"attack_settings": {"steps": 21}}))
    assert note(tmp_path) == ""


def test_one_training_attack_for_all_is_said(tmp_path: Path) -> None:
    for method, eps in (("pgd_at", 0.1), ("trades", 0.1), ("rslad", 0.2)):
        write_run(tmp_path, Spec(method, facts={"settings": {"eps": eps, "steps": 10, "step_size": 0.025}}))
    said = "- Training attack, the same for all methods that have one: eps 0.1, 10 steps of 0.025.\n"
    assert said in render(tmp_path, methods=["pgd_at", "trades"])
    assert "Training attack" not in render(tmp_path)


# Texts


@pytest.mark.parametrize("name", NAMES)
def test_texts_say_settings_and_doubts(name: str) -> None:
    protocol, text = PROTOCOLS[name], protocols.show_text(name)
    assert all(f"\n  {attack}: " in text for attack in protocol.attacks)
    assert all(f"\nDoubtful: {doubt}." in text for doubt in protocol.doubts)
    assert f"Published checkpoints: {protocol.checkpoint}." in text
    assert [line.split()[0] for line in protocols.list_text().splitlines()] == list(NAMES)
