"""The order of classes: read from files of every kind, hinted at, kept with the weights."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.data.splits import Part, load
from bench.errors import UsageError
from bench.evaluation.external import add_checkpoint
from bench.models.checkpoints import fit, load_weights, save_weights
from bench.models.class_order import ClassOrder, read_class_order
from bench.models.normalized import Normalized
from bench.models.teachers import _is_better, check_model
from bench.results.outcomes import Outcomes
from tests.bench.evaluation.test_external import BUILDER, evaluate, fitted, linear, run_of, standardised
from tests.helpers.jobs import bench, description, settings

__all__ = ["fitted"]

Weights = dict[str, torch.Tensor]
NAMES = [str(k) for k in range(10)]
OUTPUTS = ["0", "1", "8", "9", "2", "3", "4", "5", "6", "7"]  # of the permuted network
TEXTS = {
    "lines": "\n".join(OUTPUTS) + "\n",
    "lines of another system": "\ufeff" + "\r\n".join(OUTPUTS) + "\r\n\r\n",
    "list": json.dumps(OUTPUTS),
    "list of numbers": json.dumps([int(name) for name in OUTPUTS]),
    "class_to_idx": json.dumps({name: OUTPUTS.index(name) for name in NAMES}),
    "names by index": json.dumps({str(i): name for i, name in enumerate(OUTPUTS)}),
}


def permuted(weights: Weights) -> Weights:
    """Weights of the same network with its outputs in the order of OUTPUTS."""
    rows = torch.tensor([int(name) for name in OUTPUTS])
    return {name: tensor[rows] for name, tensor in weights.items()}


@pytest.mark.parametrize("kind", TEXTS)
def test_every_kind_of_file_gives_the_order(tmp_path: Path, kind: str) -> None:
    (tmp_path / "order").write_bytes(TEXTS[kind].encode())
    assert read_class_order(tmp_path / "order", NAMES).tolist() == [OUTPUTS.index(name) for name in NAMES]


def test_names_may_begin_with_a_bracket(tmp_path: Path) -> None:
    (tmp_path / "order").write_text("[b]\n{a}\n")
    assert read_class_order(tmp_path / "order", ["{a}", "[b]"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\nb\n", "expected the names of the 3 classes of the data set, each once, .*; missing: c$"),
        ("a\nb\nd\n", "missing: c; unknown: d$"),
        ("a\nb\nc\nb\n", "twice: b$"),
        ('{"a": 0, "b": 1, "c": 3}', "expected an index from 0 to 2 for each class, each once"),
        ('{"a": 0, "b": 1, "c": 1}', "expected an index from 0 to 2"),
        ('{"a": 0, "b": 1, "c": null}', "expected an index from 0 to 2"),
        ("", "missing: a, b, c$"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_order_is_refused(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "order").write_text(text)
    with pytest.raises(UsageError, match=f"^--class-order .*order: .*{told}"):
        read_class_order(tmp_path / "order", ["a", "b", "c"])


def test_a_permuted_network_is_hinted_at_and_put_in_order(fitted: Weights, tmp_path: Path) -> None:
    save_weights(tmp_path / "plain.safetensors", fitted)
    save_weights(tmp_path / "theirs.safetensors", permuted(fitted))
    (tmp_path / "order.txt").write_text(TEXTS["lines"])
    refused = evaluate(tmp_path / "theirs.safetensors", tmp_path / "refused")
    assert refused.exit_code == 0, "two of ten classes are in place, just as many as a network has to have"
    assert "if its outputs follow another order of classes; give the order with --class-order FILE" in refused.stderr
    plain, theirs = tmp_path / "plain", tmp_path / "theirs"
    result = evaluate(tmp_path / "plain.safetensors", plain)
    assert "note:" not in result.stderr
    result = evaluate(tmp_path / "theirs.safetensors", theirs, "--class-order", str(tmp_path / "order.txt"))
    assert result.exit_code == 0, result.output
    assert "note:" not in result.stderr
    outcomes = [Outcomes.read(*(path.parent for path in run_of(out).glob("eval/*/done"))) for out in (plain, theirs)]
    assert outcomes[0].clean.tolist() == outcomes[1].clean.tolist()
    assert outcomes[1].average("pgd") == pytest.approx(outcomes[0].average("pgd"), abs=0.03)
    keys = {description(run_of(tmp_path / name))["key"] for name in ("plain", "refused", "theirs")}
    assert len(keys) == 3


def test_the_order_of_the_data_set_itself_changes_no_key(fitted: Weights, tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", fitted)
    (tmp_path / "order").write_text("\n".join(NAMES))
    run = settings(out=str(tmp_path / "results"), attacks=("fgsm",))
    first, _ = add_checkpoint(run, BUILDER, tmp_path / "a.safetensors")
    assert add_checkpoint(run, BUILDER, tmp_path / "a.safetensors", class_order=tmp_path / "order")[0] == first


@pytest.mark.parametrize("normalised", [False, True])
def test_the_order_is_stored_with_the_weights(fitted: Weights, tmp_path: Path, normalised: bool) -> None:
    model = fit(linear(10, 1, 8), fitted, **({"mean": (0.5,), "std": (0.25,)} if normalised else {}))  # type: ignore[arg-type]
    ordered = ClassOrder(model, torch.tensor([OUTPUTS.index(name) for name in NAMES]))
    save_weights(tmp_path / "o.safetensors", ordered.state_dict())
    again = fit(linear(10, 1, 8), load_weights(tmp_path / "o.safetensors"), channels=1)
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), ordered(x))
    assert again.state_dict().keys() == ordered.state_dict().keys()
    assert isinstance(again, ClassOrder)
    assert isinstance(again.model, Normalized) == normalised


@pytest.mark.parametrize(
    ("mean", "std", "best"),
    [(0.3, 0.5, "standardised inputs"), (0.5, 0.5, "inputs in [-1, 1]"), (0.3, 0.8, "inputs in [0, 255]"), (0, 1, "")],
)
def test_inputs_that_are_better_by_more_than_chance_are_noted(
    fitted: Weights, mean: float, std: float, best: str
) -> None:
    said: list[str] = []
    model = fit(linear(10, 1, 8), standardised(fitted, mean, std))
    check_model(model, load("digits"), "m", note=said.append)
    assert len(said) == bool(best)
    if best:
        remedy = "put that normalisation inside the model or pass --mean and --std"
        assert re.fullmatch(rf"m: \d+\.\d% of 100 .* are right, and \d+\.\d% with {re.escape(best)}; {remedy}", said[0])


@pytest.mark.parametrize(("wins", "losses", "better"), [(11, 0, False), (12, 0, True), (60, 40, False), (80, 40, True)])
def test_the_sign_test_asks_for_more_than_chance(wins: int, losses: int, better: bool) -> None:
    first = torch.tensor([True] * wins + [False] * losses + [True] * 50)
    assert _is_better(first, torch.tensor([False] * wins + [True] * losses + [True] * 50)) == better


def test_held_out_images_are_of_every_class_where_they_are_sorted(fitted: Weights) -> None:
    parts = load("digits")
    rows = torch.sort(parts.train.y, stable=True).indices
    select = Part(parts.train.x[rows], parts.train.y[rows], parts.train.index[rows])
    seen: list[torch.Tensor] = []
    model = fit(linear(10, 1, 8), fitted)
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.argmax(1)))
    check_model(model, replace(parts, select=select), "m")
    assert torch.bincount(torch.cat(seen), minlength=10).min() > 30


def test_the_network_of_a_card_is_compared_as_well(fitted: Weights, tmp_path: Path) -> None:
    for name, weights in (
        ("scaled", standardised(fitted, 0.3, 0.5)),
        ("permuted", permuted(fitted)),
        ("plain", fitted),
    ):
        save_weights(tmp_path / f"{name}.safetensors", weights)
        result = bench("card", tmp_path / f"{name}.safetensors", "--model", BUILDER, "--limit", "20", "--out", tmp_path)
        assert result.exit_code == 0, result.output
        assert ("with standardised inputs; wrap the network in bench.models.Normalized" in result.stderr) == (
            name == "scaled"
        )
        assert ("another order of classes; put its outputs into the order" in result.stderr) == (name == "permuted")
