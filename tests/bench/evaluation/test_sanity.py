"""Sanity checks as a part of evaluations: in eval.json, from Python, beside the rows of tables, and verified."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bench
from attacks.autoattack.square import Square
from attacks.fgsm import FGSM
from attacks.pgd import PGD
from attacks.threat import ThreatModel
from bench.core.progress import Progress
from bench.data.splits import load, to_float
from bench.evaluation.sanity import sanity_entry
from bench.evaluation.stages import Verdicts, predict, run_attack
from bench.models.builders import build
from bench.report import by_class, compare, load_results, render, verify
from tests.helpers.masked import HugeLogits, QuantisedInput, Softmax
from tests.helpers.trees import Spec, write_run

THREAT = ThreatModel("linf", 0.1)


class Lines(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def material() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """An untrained network, samples, and its own predictions as labels: so it gets everything right."""
    x = to_float(load("digits").test.x)[:40]
    model = build("small_cnn", 10, 1, 8, seed=0).eval()
    return model, x, predict(model, x, "cpu", 40)


def finding(check: str, level: str) -> dict[str, Any]:
    value = {"reliable": 0.0, "suspicious": 0.3, "unreliable": 0.9}[level]
    reason = f"{check} is {level}"
    return {"check": check, "level": level, "value": value, "threshold": 0.1, "limit": 0.5, "reason": reason}


def entry(mark: str, *findings: dict[str, Any]) -> dict[str, Any]:
    return {"mark": mark, "samples": 9, "passes": {"forward": 1, "input_grad": 1}, "findings": list(findings)}


RELIABLE = entry("reliable", finding("noise", "reliable"))
SUSPICIOUS = entry("suspicious", finding("noise", "suspicious"), finding("box", "reliable"))
UNRELIABLE = entry("unreliable", finding("noise", "suspicious"), finding("search_x", "unreliable"))


def tree(root: Path, **marks: dict[str, Any] | None) -> Path:
    for method, sanity in marks.items():
        facts = {} if sanity is None else {"sanity": sanity}
        write_run(root, Spec(method=method, attacks={"pgd": 0.6}, eval_facts=facts))
    return root


# In evaluations


def test_an_evaluation_holds_the_findings(material: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, x, y = material
    masked = QuantisedInput(model).eval()
    attack = PGD(THREAT, steps=10)
    y = predict(masked, x, "cpu", 40)
    verdicts = run_attack(masked, x, y, attack, "pgd", block=20)
    log = Lines()
    (found,) = sanity_entry(masked, x, attack, verdicts, classes=10, seed=0, block=20, progress=log).values()
    assert (found["mark"], found["samples"]) == ("unreliable", 20)
    assert json.loads(json.dumps(found)) == found
    (line,) = log.lines
    assert line.startswith("sanity checks: unreliable; the input gradient is zero or not finite for 100% of")
    again = sanity_entry(masked, x, PGD(THREAT, steps=20), verdicts, classes=10, seed=0, block=20)["sanity"]
    assert again == found, "all attacks on a model come to the same findings"
    assert sanity_entry(masked, x, FGSM(THREAT), verdicts, classes=10, seed=0, block=20) == {}


def test_stages_are_looked_at(material: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, x, y = material
    standing = torch.ones(40, dtype=torch.bool)
    fallen = torch.arange(40) >= 10
    verdicts = Verdicts(y, y.clone(), stages={"apgd-ce": (y, standing), "square": (y, fallen)})
    found = sanity_entry(model, x, Square(THREAT, 10), verdicts, classes=10, seed=0, block=5)["sanity"]
    (overall,) = (f for f in found["findings"] if f["check"] == "black_box")
    assert (overall["level"], overall["value"], found["mark"]) == ("unreliable", 0.25, "unreliable")


def test_from_python(material: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, x, y = material
    assert bench.examine(model, x, y, threat=THREAT).mark == "reliable"
    found = bench.examine(Softmax(model).eval(), x, y, threat=THREAT, seed=1)
    assert (found.mark, len(found.reasons)) == ("suspicious", 1)
    assert "return logits" in found.reasons[0]
    huge = HugeLogits(HugeLogits(model)).eval()
    assert "divide them by a constant" in "".join(bench.examine(huge, x, y, threat=THREAT).reasons)
    stages = {"a/apgd-ce": y.numpy(), "a/square": (y + 1).numpy() % 10, "a": (y + 1).numpy() % 10}
    outcomes = bench.Outcomes(
        range(40), y.numpy(), y.numpy(), attacks=stages,
        robust={name: prediction == y.numpy() for name, prediction in stages.items()}, num_classes=10,
    )  # fmt: skip
    found = bench.examine(model, x, y, threat=THREAT, outcomes=outcomes)
    assert "square alone finds 40 of 40 samples, which the white-box stages before it had not" in found.reasons[0]


# In tables


def test_a_sign_stands_behind_the_name_and_the_reasons_below(tmp_path: Path) -> None:
    table = render(tree(tmp_path, natural=RELIABLE, pgd_at=SUSPICIOUS, trades=UNRELIABLE, ard=None))
    for name in ("| natural ", "| pgd_at † ", "| trades ‡ ", "| ard "):
        assert name in table
    assert "† suspicious, ‡ unreliable; rows without a sign passed all." in table
    assert "- pgd_at † (last): noise is suspicious." in table
    assert "- trades ‡ (last): search_x is unreliable; noise is suspicious." in table
    assert "- Without sanity checks: ard (last)." in table


def test_rows_that_passed_have_no_sign(tmp_path: Path) -> None:
    table = render(tree(tmp_path, natural=RELIABLE, pgd_at=RELIABLE))
    assert "- Sanity checks: no row shows signs of masked gradients." in table
    assert "†" not in table and "Without sanity" not in table


def test_tables_of_before_are_as_they_were(tmp_path: Path) -> None:
    tree(tmp_path, natural=None, pgd_at=None)
    for format in ("markdown", "latex", "csv", "json"):
        assert "anity" not in render(tmp_path, format=format)
    assert load_results(tmp_path).sanity.isna().all()
    assert verify(tmp_path) == []


def test_the_worst_of_all_evaluations_and_seeds_counts(tmp_path: Path) -> None:
    attacks = {"pgd": 0.6}
    write_run(tmp_path, Spec(attacks=attacks, eval_facts={"sanity": RELIABLE}))
    write_run(tmp_path, Spec(attacks=attacks, eval_facts={"sanity": SUSPICIOUS}, seed=1))
    write_run(tmp_path, Spec(attacks=attacks, eval_facts={"sanity": UNRELIABLE}, seed=1, eps=0.3, noise=1))
    tables = render(tmp_path).split("###")
    assert "pgd_at †" in tables[1] and "‡ (" not in tables[1]
    assert "pgd_at ‡" in tables[2]


def test_every_format_says_it(tmp_path: Path) -> None:
    tree(tmp_path, natural=RELIABLE, pgd_at=SUSPICIOUS, trades=UNRELIABLE)
    latex = render(tmp_path, format="latex")
    assert r"pgd\_at $\dagger$ &" in latex and r"trades $\ddagger$ &" in latex
    records = list(csv.DictReader(io.StringIO(render(tmp_path, format="csv"))))
    marks = {record["row"]: record["sanity"] for record in records}
    assert marks == {"natural": "reliable", "pgd_at": "suspicious", "trades": "unreliable"}
    (sheet,) = json.loads(render(tmp_path, format="json"))
    assert {record["row"]: record["sanity"] for record in sheet["records"]} == marks
    assert "pgd_at †" in by_class(tmp_path) and "- trades ‡ (last)" in by_class(tmp_path)
    assert "- trades ‡ (last): search_x is unreliable" in compare(tmp_path, "natural", "trades")
    frame = load_results(tmp_path).set_index(["label", "attack"]).sanity
    assert frame["trades", "pgd"] == "unreliable"
    assert frame.isna()["trades", "clean"]


# Verified


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ({**UNRELIABLE, "mark": "reliable"}, "says that sanity checks found it 'reliable', the findings say 'unreli"),
        (entry("reliable", {**finding("noise", "unreliable"), "level": "reliable"}), "do not follow .*: noise"),
        ({"mark": "reliable"}, "the sanity checks in eval.json cannot be read"),
        ([1], "the sanity checks in eval.json cannot be read"),
        (entry("strange", {**finding("noise", "reliable"), "level": "strange"}), "cannot be read"),
    ],
)
def test_findings_that_contradict_themselves_are_found(planted: Any, message: str, tmp_path: Path) -> None:
    tree(tmp_path, natural=planted, pgd_at=UNRELIABLE)
    (problem,) = verify(tmp_path)
    assert "natural" in problem
    assert re.search(message, problem)
