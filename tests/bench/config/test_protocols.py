"""Evaluation protocols: their settings, the jobs they become, and how tables recognise them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from attacks.registry import ATTACKS
from bench.catalog.pages import page
from bench.config import protocols
from bench.config.config_file import from_file
from bench.config.protocols import PROTOCOLS, matching_protocols, step_length
from bench.config.settings import combined
from bench.errors import UsageError
from bench.report import render
from tests.helpers.jobs import bench, output_of, plan, settings
from tests.helpers.trees import Spec, write_run

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
        for attack, said in protocol.attacks.items():
            assert attack in ATTACKS.names()
            assert set(said) <= set(ATTACKS.sketch(attack).settings) - {"threat"}


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
        ("autoattack-reference", {}, 8 / 255, ("absld", "rslad", "cfa", "robustbench")),
        ("autoattack", {"queries": 10}, 8 / 255, ()),
        ("somebody's", {}, 8 / 255, ()),
    ],
)
def test_attacks_are_recognised_by_their_settings(
    attack: str, settings: dict[str, Any], eps: float, found: tuple[str, ...]
) -> None:
    assert matching_protocols(attack, settings, "linf", eps) == found
    assert matching_protocols(attack, settings, "l2", eps) == ()


# Plans


def evaluations(**changes: Any) -> dict[str, tuple[str, float, dict[str, Any], str]]:
    """Key -> attack, eps, settings and title of the evaluations of a CIFAR-10 plan."""
    found = plan(**{"methods": ("pgd_at",), "dataset": "cifar10", "select": "last", **changes}).evaluate
    return {job.key: (job.attack, job.eps, dict(job.settings), job.title) for job in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_sets_attacks_settings_and_radius_and_leaves_training_alone(name: str) -> None:
    protocol = PROTOCOLS[name]
    found = evaluations(protocols=(name,)).values()
    assert [(attack, eps) for attack, eps, _, _ in found] == [(attack, protocol.eps) for attack in protocol.attacks]
    for attack, _, said, _ in found:
        assert protocol.attacks[attack].items() <= said.items()
    without, own = (plan(methods=("trades",), dataset="cifar10", select="best", protocols=p) for p in ((), (name,)))
    assert [job.key for job in own.train] == [job.key for job in without.train]


def test_equal_settings_are_one_evaluation_whatever_asks_for_them() -> None:
    usual, absld, rslad = evaluations(), evaluations(protocols=("absld",)), evaluations(protocols=("rslad",))
    assert usual.keys() < absld.keys()
    assert {absld[key][0] for key in absld.keys() - usual.keys()} == {"pgd-trades"}
    assert {absld[key][0] for key in absld.keys() - rslad.keys()} == {"cw"}
    both = evaluations(protocols=("absld", "rslad"))
    assert both.keys() == absld.keys() | rslad.keys()
    assert sorted(title for attack, _, _, title in both.values() if attack == "cw") == [
        "pgd_at seed 0, last, absld", "pgd_at seed 0, last, rslad",
    ]  # fmt: skip
    assert {title for attack, _, _, title in both.values() if attack != "cw"} == {"pgd_at seed 0, last"}


def test_attacks_take_a_part_and_eps_outranks() -> None:
    (found,) = evaluations(protocols=("trades", "cfa"), attacks=("pgd-trades",), eps=8 / 255).values()
    assert found[:2] == ("pgd-trades", 8 / 255)
    assert found[2]["step_size"] == pytest.approx(0.003 * 8 / 255 / 0.031)


def test_other_data_keep_their_radius_and_the_steps_their_ratio() -> None:
    found = plan(methods=("pgd_at",), protocols=("rslad", "wat"))
    assert {job.eps for job in found.evaluate} == {0.15}
    (job,) = [job for job in found.evaluate if (job.attack, job.settings.get("steps")) == ("pgd", 100)]
    assert job.settings["step_size"] == pytest.approx(0.15 * 0.003 / 0.031)
    assert "protocol rslad: made for eps 8/255, its steps are scaled to eps 0.15" in found.notes
    assert not any(
        "protocol" in said for said in plan(methods=("pgd_at",), dataset="cifar10", protocols=("rslad",)).notes
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attacks": ("cw",)}, "--attacks cw: expected attacks of cfa, robustbench: pgd, autoattack"),
        ({"norm": "l2"}, "--norm l2: the protocols are made for linf; leave out --norm or --protocol"),
        (
            {"overrides": {"pgd.steps": 5}},
            "--set pgd.steps: fixed by --protocol cfa, robustbench; leave out one of the two",
        ),
    ],
)
def test_what_contradicts_a_protocol_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(protocols=("cfa", "robustbench"), **change)
    assert str(caught.value) == message
    free = {**change, "overrides": {"cw.steps": 5}} if "overrides" in change else {}
    settings(protocols=("cfa", "robustbench"), **free)


def test_a_file_names_protocols_as_flags_do(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('protocols = ["cfa"]\nattacks = ["pgd"]\nuniform-threat = true\n')
    run = combined(from_file(file))
    assert (run.protocols, run.attacks, run.uniform_threat) == (("cfa",), ("pgd",), True)


# One training attack for all


def test_uniform_threat_gives_all_methods_one_attack_and_its_own_keys() -> None:
    methods = ("natural", "pgd_at", "trades", "frl", "ham", "absld")
    own, uniform = (plan(methods=methods, dataset="cifar10", uniform_threat=flag) for flag in (False, True))
    attack = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 10}
    assert [job.role for job in uniform.train if job.role == "teacher"] == ["teacher"]
    assert all(attack.items() <= dict(job.settings).items() for job in uniform.train), "teachers and starts as well"
    before, after = ({job.method: job.key for job in found.train if job.role == "student"} for found in (own, uniform))
    assert before["pgd_at"] == after["pgd_at"], "its own attack is that one"
    assert all(before[name] != after[name] for name in ("trades", "ham", "absld")), "absld has another teacher"
    assert "every method trains against eps 0.03137 in 10 steps of 0.007843" in uniform.notes


def test_uniform_threat_follows_eps_and_refuses_what_contradicts_it() -> None:
    (job,) = plan(methods=("trades",), uniform_threat=True, eps=0.1).train
    assert (job.settings["eps"], job.settings["step_size"], job.settings["steps"]) == (0.1, 0.025, 10)
    with pytest.raises(UsageError, match=r"^--set trades.steps: --uniform-threat sets it for all; leave out one"):
        plan(methods=("trades",), uniform_threat=True, overrides={"trades.steps": 7})


# Tables


def run(folder: Path, name: str, eps: float, leave_out: tuple[str, ...] = ()) -> None:
    """A finished run under a protocol, written attack by attack as the suite stores settings."""
    protocol = PROTOCOLS[name]
    for attack in protocol.attacks:
        if attack not in leave_out:
            full = {**ATTACKS.sketch(attack).settings, **protocol.settings(attack, eps)}
            full.pop("threat", None)
            spec = Spec(eps=eps, per_class=4, attacks={attack: 0.5}, eval_facts={"attack_settings": full})
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


# Texts and flags


def test_the_command_lists_shows_and_takes_them() -> None:
    assert [line.split()[0] for line in output_of("list", "protocols").splitlines()] == list(NAMES)
    assert output_of("show", "robustbench") == page("protocols", "robustbench", terminal=True) + "\n"
    shown, protocol = output_of("show", "absld"), page("protocols", "absld", terminal=True)
    assert shown.startswith("# absld (method)\n") and shown.endswith("\n\n" + protocol + "\n")
    planned = output_of(
        "run", "--dry-run", "--methods", "pgd_at", "--protocol", "cfa", "--protocols", "robustbench,wat"
    )
    assert re.findall("^([a-z-]+) on ", planned, flags=re.MULTILINE) == ["pgd", "autoattack", "pgd", "cw"]


def test_evaluate_takes_them_too() -> None:
    refused = bench("evaluate", "--checkpoint", "x", "--model", "small_cnn", "--protocol", "cfb")
    assert (refused.exit_code, refused.stderr.startswith("bench: --protocol cfb: unknown protocol")) == (2, True)


@pytest.mark.parametrize("name", NAMES)
def test_texts_say_settings_and_doubts(name: str) -> None:
    protocol, text = PROTOCOLS[name], page("protocols", name)
    assert all(f"\n| `{attack}` | " in text for attack in protocol.attacks)
    assert all(f"\n- Doubtful: {doubt}." in text for doubt in protocol.doubts)
    assert f"\n- Published checkpoints: {protocol.checkpoint}." in text
