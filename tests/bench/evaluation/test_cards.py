"""Cards of teachers: what they say is what was attacked, they lie beside the weights, and measuring is done once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.threat import ThreatModel
from bench.core import device as devices
from bench.core import files
from bench.data.splits import Part, Parts, load, to_float
from bench.evaluation import cards
from bench.evaluation.cards import Conditions, card_of_run, card_text, ensure_card
from bench.evaluation.evaluate import evaluate
from bench.models import Normalized
from bench.models import robustbench as zoo
from bench.models.builders import build
from bench.models.checkpoints import save_weights, weights_hash
from tests.helpers.jobs import bench
from tests.helpers.zoo import Tiny, entries, random_model

NAMES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def fitted() -> nn.Module:
    """A linear classifier of digits with the names of layers of `small_cnn`'s last layer: fitted in one solve."""
    parts = load("digits")
    x = to_float(parts.train.x).flatten(1).double()
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1)
    targets = nn.functional.one_hot(parts.train.y, 10).double()
    solution = torch.linalg.solve(inputs.T @ inputs + 0.1 * torch.eye(65), inputs.T @ targets)
    model = linear(10, 1, 8)
    with torch.no_grad():
        model[1].weight.copy_(solution[:-1].T)
        model[1].bias.copy_(solution[-1])
    return model


def linear(num_classes: int, in_channels: int, image_size: int) -> nn.Sequential:
    """What `--model FILE.py:linear` builds."""
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))


BUILDER = f"{__file__}:linear"


@pytest.fixture
def file(fitted: nn.Module, tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save({"state_dict": fitted.state_dict(), "ema": {"1.bias": torch.zeros(10)}}, folder / "teacher.pt")
    return folder / "teacher.pt"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of samples that were attacked for cards."""
    sizes: list[int] = []

    def watched(model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Any:
        sizes.append(len(y))
        return evaluate(model, x, y, **settings)

    monkeypatch.setattr(cards, "evaluate", watched)
    return sizes


def card_of(file: Path, *more: str) -> dict[str, Any]:
    """What `bench card` writes about a file."""
    result = bench("card", file, "--model", BUILDER, "--limit", "50", "--eps", "0.03", *more)
    assert result.exit_code == 0, result.output
    written: dict[str, Any] = files.read_json(file.with_name(file.name + ".card.json"))
    assert result.stdout.strip() == card_text(written).strip()
    assert file.with_name(file.name + ".card.md").read_text().strip() == card_text(written).strip()
    return written


def test_the_card_of_a_file_says_what_was_measured(file: Path, fitted: nn.Module) -> None:
    card = card_of(file)
    assert card["files"] == {"teacher.pt": files.file_hash(file)}
    assert card["weights"] == weights_hash(fitted.state_dict())
    assert (card["licence"], card["model"], card["parameters"]) == ("not stated", BUILDER, 650)
    assert (card["entry"], card["others"]) == (None, ["ema"])
    (found,) = card["measured"]
    test = load("digits", test_limit=50).test
    outcomes = evaluate(fitted, to_float(test.x), test.y, attacks=["pgd"], threat=ThreatModel("linf", 0.03), block=200)
    assert found["clean"]["by_class"] == outcomes.by_class().tolist()
    assert found["robust"]["by_class"] == outcomes.by_class("pgd").tolist()
    assert found["robust"]["average"] == outcomes.average("pgd")
    assert found["robust"]["worst_class"] == str(outcomes.by_class("pgd").argmin())
    assert 0 < found["robust"]["average"] < found["clean"]["average"]
    assert (found["n"], found["of"], found["eps"], found["attack_settings"]["steps"]) == (50, 400, 0.03, 20)
    assert len(found["date"]) == 10


def test_measuring_is_done_once_for_the_same_weights_data_and_radius(
    file: Path, fitted: nn.Module, measured: list[int]
) -> None:
    first = card_of(file)
    assert card_of(file) == first
    assert card_of(file, "--limit", "20") == first, "fewer samples say nothing new"
    assert measured == [50]
    more = card_of(file, "--limit", "60")
    assert [entry["n"] for entry in more["measured"]] == [60]
    other = card_of(file, "--eps", "0.01")
    assert [(entry["eps"], entry["n"]) for entry in other["measured"]] == [(0.03, 60), (0.01, 50)]
    assert other["measured"][0]["robust"]["average"] < other["measured"][1]["robust"]["average"]
    assert measured == [50, 60, 50]
    save_weights(file, {name: 2 * tensor for name, tensor in fitted.state_dict().items()})
    assert [entry["eps"] for entry in card_of(file)["measured"]] == [0.03], "other weights, another card"


def test_a_licence_is_found_beside_the_file_or_stated(file: Path) -> None:
    assert card_of(file, "--licence", "CC BY 4.0")["licence"] == "CC BY 4.0"
    assert card_of(file)["licence"] == "CC BY 4.0"
    (file.parent / "LICENSE.txt").write_text("Do as you please.")
    assert card_of(file)["licence"] == "see LICENSE.txt beside it"


def test_a_given_teacher_gets_its_card_before_it_teaches(file: Path, tmp_path: Path, measured: list[int]) -> None:
    arguments = [
        "run", "--methods", "rslad", "--teacher", file, "--teacher-model", BUILDER, "--attacks", "fgsm",
        "--epochs", "1", "--train-limit", "60", "--limit", "30", "--set", "rslad.steps=1", "--workers", "1",
        "--out", tmp_path / "out",
    ]  # fmt: skip
    result = bench(*arguments)
    assert result.exit_code == 0, result.output
    assert "note: teacher.pt: its card takes PGD of 20 steps on 30 test samples, once" in result.stderr
    card = files.read_json(file.parent / "teacher.pt.card.json")
    assert [entry["n"] for entry in card["measured"]] == [30]
    assert bench(*arguments, "--attacks", "pgd").exit_code == 0
    assert measured == [30]


def test_a_folder_that_is_not_ours_to_write_to(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[int]
) -> None:
    def refused(path: Path, data: bytes) -> None:
        if path.parent == file.parent:
            raise PermissionError(13, "Permission denied")
        whole(path, data)

    whole = files.write_bytes
    monkeypatch.setattr(files, "write_bytes", refused)
    arguments = ["card", file, "--model", BUILDER, "--limit", "20", "--out", tmp_path / "out"]
    for _ in range(2):
        result = bench(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr.strip().endswith(str(tmp_path / "out" / "cards" / "teacher.pt.card.json"))
    assert measured == [20]
    assert os.listdir(file.parent) == ["teacher.pt"]


def test_one_of_several_networks_has_a_card_of_its_own(file: Path, fitted: nn.Module) -> None:
    torch.save({"state_dict": {}, "ema": fitted.state_dict()}, file)
    result = bench("card", f"{file}#ema", "--model", BUILDER, "--limit", "20")
    assert result.exit_code == 0, result.output
    assert "- Entry of the file: ema" in result.stdout
    assert (file.parent / "teacher.pt#ema.card.md").is_file()


def test_another_programs_file_is_left_alone(file: Path) -> None:
    place = file.with_name("teacher.pt.card.json")
    place.write_text('{"deck": 52}')
    result = bench("card", file, "--model", BUILDER, "--limit", "20")
    assert result.exit_code == 2
    assert "expected a card of this suite, got something else; move it out of the way" in result.stderr
    assert place.read_text() == '{"deck": 52}'


def test_a_hopeless_teacher_gets_no_card(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", build("small_cnn", 10, 1, 8, seed=0).state_dict())
    result = bench("card", tmp_path / "a.safetensors", "--model", "small_cnn")
    assert result.exit_code == 1
    assert "teacher a.safetensors: expected a clean accuracy of at least 20%" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("named", [(), ("--model", "resnet18")], ids=["usual", "named"])
def test_a_teacher_of_another_architecture_is_refused_with_the_flag_of_the_command(
    file: Path, tmp_path: Path, named: tuple[str, ...]
) -> None:
    """`bench card` has --model; `bench run` has a flag for each teacher."""
    result = bench("card", file, *named)
    assert result.exit_code == 2
    assert "another network? choose it with --model, by name or as MODULE:BUILDER" in result.stderr
    for flag in ("--teacher", "--natural-teacher"):
        result = bench("run", "--methods", "mtard", "--epochs", "1", flag, file, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert f"another network? choose it with {flag}-model, by name or as MODULE:BUILDER" in result.stderr


def scaled(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """What the message about another input range advises."""
    return Normalized(linear(num_classes, in_channels, image_size), [0.0], [1 / 255])


def test_a_teacher_of_another_input_range_is_refused_with_a_remedy_that_works(
    file: Path, fitted: nn.Module, tmp_path: Path
) -> None:
    weights = fitted.state_dict()
    save_weights(file, {**weights, "1.weight": weights["1.weight"] / 255})
    run = ["run", "--methods", "rslad", "--attacks", "fgsm", "--epochs", "1", "--train-limit", "60", "--limit", "30"]
    run += ["--set", "rslad.steps=1", "--workers", "1", "--out", str(tmp_path / "out"), "--teacher", str(file)]
    for command, flag in (["card", str(file), "--limit", "20"], "--model"), (run, "--teacher-model"):
        result = bench(*command, flag, BUILDER)
        assert result.exit_code == 1
        assert "with inputs in [0, 255]); wrap the network in bench.models.Normalized with that normalisation" in (
            result.stderr
        )
        assert f"choose it with {flag} FILE.py:BUILDER" in result.stderr
        assert "--mean" not in result.stderr
        result = bench(*command, flag, f"{__file__}:scaled")
        assert result.exit_code == 0, result.output


def test_a_network_of_the_zoo_has_its_card_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(entries("cifar10", "Linf"), "Tiny2020Net", {"model": Tiny, "gdrive_id": "the-id"})
    monkeypatch.setattr(zoo, "zoo_licence", lambda *asked: "MIT License")
    tiny = random_model(Tiny, 1)
    place = tmp_path / "zoo" / "cifar10" / "Linf"
    place.mkdir(parents=True)
    torch.save(tiny.state_dict(), place / "Tiny2020Net.pt")
    x = torch.randint(0, 256, (40, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = Part(x, torch.arange(40) % 10, torch.arange(40))
    parts = Parts("cifar10", part, part, part, part, NAMES)
    source = {"zoo": "tiny2020net", "label": "robustbench:tiny2020net"}
    card, where = ensure_card(source, tiny, parts, Conditions("linf", 8 / 255), out=tmp_path / "out", data_dir=tmp_path)
    assert where == place / "Tiny2020Net.card.json"
    assert card["files"] == {"Tiny2020Net.pt": files.file_hash(place / "Tiny2020Net.pt")}
    assert card["licence"] == "MIT License"
    assert "- Address: https://drive.google.com/uc?id=the-id" in card_text(card)
    assert [entry["n"] for entry in card["measured"]] == [40]


def test_every_class_has_ten_samples_on_a_card() -> None:
    digits = load("digits")
    many = replace(digits, class_names=tuple(map(str, range(30))))
    few = Conditions("linf", 0.1)
    assert few.samples(digits) == 400
    large = replace(digits.test, y=digits.test.y.repeat(10))
    assert few.samples(replace(digits, test=large)) == 1000
    assert few.samples(replace(many, test=large, class_names=tuple(map(str, range(200))))) == 2000
    assert replace(few, limit=64).samples(digits) == 64
    assert replace(few, limit=5).samples(many) == 30, "at least one of each class"


def test_a_trained_teachers_card_comes_from_its_evaluations(tmp_path: Path) -> None:
    arguments = [
        "run", "--methods", "rslad", "--attacks", "fgsm,pgd", "--train-limit", "300", "--limit", "30", "--workers", "1",
        "--epochs", "3", "--set", "rslad.steps=1",
    ]  # fmt: skip
    result = bench(*arguments, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (folder,) = tmp_path.glob("digits/small_cnn_wide/trades/*")
    card = files.read_json(folder / "card.json")
    assert card == card_of_run(folder)
    assert card["files"] == {"last.safetensors": files.file_hash(folder / "last.safetensors")}
    assert card["source"].startswith("trained by this suite, recipe digits_teacher, seed 0")
    assert {entry["attack"] for entry in card["measured"]} == {"fgsm", "pgd"}
    for entry in card["measured"]:
        facts = json.loads((folder / "eval" / entry["evaluation"] / "eval.json").read_text())
        assert (facts["attack"], facts["n"], facts["eps"]) == (entry["attack"], 30, entry["eps"])
        assert "date" not in entry, "equal runs have equal files"
    assert list(tmp_path.rglob("card.json")) == [folder / "card.json"], "students have none"
    shown = bench("card", folder)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.strip() == card_text(card).strip()
    assert bench("verify", tmp_path).exit_code == 0


def test_a_folder_without_a_run_has_no_card(tmp_path: Path) -> None:
    result = bench("card", tmp_path)
    assert result.exit_code == 1
    assert "run.json: cannot be read" in result.stderr
    result = bench("card", tmp_path / "none.pt")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"bench: bench card {tmp_path / 'none.pt'}: expected a checkpoint file or")


def test_measuring_gives_the_memory_of_a_gpu_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch with workers measures in its first process, which then only waits."""
    done: list[str] = []

    def watched(*given: Any, **settings: Any) -> Any:
        done.append("measured")
        return evaluate(*given, **settings)

    monkeypatch.setattr(cards, "evaluate", watched)
    monkeypatch.setattr(cards.devices, "release_memory", lambda: done.append("released"))
    card_of(file)
    assert done == ["measured", "released"]


def test_what_no_tensor_holds_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        devices.release_memory()
    assert emptied == [True]
