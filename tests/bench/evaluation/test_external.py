"""Checkpoints trained elsewhere: refused for good reasons, stored once, evaluated like our own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import Result
from torch import nn

from bench.config.settings import combined
from bench.core import files
from bench.data.splits import load, to_float
from bench.errors import BenchError, UsageError
from bench.evaluation.external import add_checkpoint
from bench.models.checkpoints import save_weights
from bench.results.outcomes import Outcomes
from tests.helpers.jobs import bench, description, settings

BUILDER = f"{__file__}:linear"


def linear(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A network of nobody's registry, named on the command line by file and function."""
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))


@pytest.fixture(scope="module")
def fitted() -> dict[str, torch.Tensor]:
    """Weights of a linear classifier of digits, by ridge regression on x in [0, 1]."""
    parts = load("digits")
    x = to_float(parts.train.x).flatten(1).double()
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1)
    targets = nn.functional.one_hot(parts.train.y, 10).double()
    solution = torch.linalg.solve(inputs.T @ inputs + 0.1 * torch.eye(65), inputs.T @ targets)
    return {"1.weight": solution[:-1].T.float().contiguous(), "1.bias": solution[-1].float().contiguous()}


def evaluate(checkpoint: Path, out: Path, *more: str) -> Result:
    return bench("evaluate", "--checkpoint", checkpoint, "--model", BUILDER, "--attacks", "fgsm,pgd", "--limit", "40",
                 "--out", out, "--workers", "1", *more)  # fmt: skip


def run_of(out: Path) -> Path:
    """The one run in a results folder."""
    (file,) = out.glob("*/*/*/*/run.json")
    return file.parent


def test_wrappers_and_prefixes_of_training_scripts_are_taken_off(
    fitted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file, out = tmp_path / "theirs.pt", tmp_path / "results"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in fitted.items()}}, file)
    result = evaluate(file, out)
    assert result.exit_code == 0, result.output
    assert "| theirs.pt" in result.stdout
    folder = run_of(out)
    assert folder.parts[-4:-1] == ("digits", BUILDER.replace("/", "_").replace(":", "_"), "external")
    facts = description(folder)
    assert (facts["method"], facts["label"], facts["epochs"], facts["checkpoint"]) == (
        "external", "theirs.pt", None, str(file),
    )  # fmt: skip
    outcomes = Outcomes.read(*(path.parent for path in folder.glob("eval/*/done")))
    assert set(outcomes.attacks) == {"clean", "fgsm", "pgd"}
    x, y = to_float(load("digits", test_limit=40).test.x), load("digits", test_limit=40).test.y
    with torch.no_grad():
        expected = nn.functional.linear(x.flatten(1), fitted["1.weight"], fitted["1.bias"]).argmax(1)
    assert outcomes.clean.tolist() == expected.tolist()
    assert outcomes.average() > 0.8 > outcomes.average("pgd")
    assert outcomes.label.tolist() == y.tolist()
    assert bench("verify", out).exit_code == 0


def test_the_same_weights_are_the_same_run_whatever_file_they_come_from(
    fitted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run = settings(out=str(tmp_path / "results"), attacks=("fgsm",))
    torch.save({"model": fitted}, tmp_path / "a.pt")
    save_weights(tmp_path / "b.safetensors", fitted)
    first, jobs = add_checkpoint(run, BUILDER, tmp_path / "a.pt")
    written = (tmp_path / "results" / first / "run.json").stat().st_mtime_ns
    second, again = add_checkpoint(run, BUILDER, tmp_path / "b.safetensors")
    assert first == second
    assert [job.key for job in jobs] == [job.key for job in again]
    assert (tmp_path / "results" / first / "run.json").stat().st_mtime_ns == written
    other = {name: tensor * 2 for name, tensor in fitted.items()}
    save_weights(tmp_path / "c.safetensors", other)
    assert add_checkpoint(run, BUILDER, tmp_path / "c.safetensors")[0] != first


def test_an_attack_more_evaluates_that_attack_alone(fitted: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", fitted)
    out = tmp_path / "results"
    assert evaluate(tmp_path / "a.safetensors", out).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    result = evaluate(tmp_path / "a.safetensors", out, "--attacks", "cw")
    assert "done: cw on a.safetensors, last" in result.stderr
    assert "fgsm on" not in result.stderr
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert len(after) == 3
    assert before.items() <= after.items()


def test_weights_of_another_number_of_classes_are_refused_with_the_keys(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", {"1.weight": torch.zeros(7, 64), "1.bias": torch.zeros(7)})
    result = evaluate(tmp_path / "a.safetensors", tmp_path / "results")
    assert result.exit_code == 2
    assert "a.safetensors: the weights do not fit the model (2 of another shape: 1.weight (7, 64) for (10, 64), " in (
        result.stderr
    )
    assert "another number of classes" in result.stderr
    assert not (tmp_path / "results").exists()


def standardised(fitted: dict[str, torch.Tensor], mean: float, std: float) -> dict[str, torch.Tensor]:
    """The weights that do on (x - mean) / std what the given ones do on x."""
    weight = fitted["1.weight"] * std
    return {"1.weight": weight, "1.bias": fitted["1.bias"] + mean * fitted["1.weight"].sum(1)}


def test_a_model_of_another_input_range_is_refused_with_the_remedy(
    fitted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_weights(tmp_path / "a.safetensors", standardised(fitted, 0.0, 1 / 255))
    result = evaluate(tmp_path / "a.safetensors", tmp_path / "results")
    assert result.exit_code == 1
    assert "a.safetensors: expected a clean accuracy of at least 20% on held-out digits, got " in result.stderr
    assert re.search(
        r"\(and \d+\.\d% with inputs in \[0, 255\]\); put that normalisation inside the model or pass --mean",
        result.stderr,
    )


def test_mean_and_std_put_the_normalisation_in_front(fitted: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_weights(tmp_path / "plain.safetensors", fitted)
    save_weights(tmp_path / "theirs.safetensors", standardised(fitted, 3.0, 1 / 255))
    run = settings(out=str(tmp_path / "plain"), attacks=("pgd",), limit=40)
    assert evaluate(tmp_path / "plain.safetensors", tmp_path / "plain").exit_code == 0
    result = evaluate(tmp_path / "theirs.safetensors", tmp_path / "theirs", "--mean", "3", "--std", str(1 / 255))
    assert result.exit_code == 0, result.output
    folders = [sorted(path.parent for path in (tmp_path / name).rglob("eval/*/done")) for name in ("plain", "theirs")]
    plain, theirs = (Outcomes.read(*each) for each in folders)
    assert theirs.clean.tolist() == plain.clean.tolist()
    assert theirs.average("pgd") == pytest.approx(plain.average("pgd"), abs=0.051)
    with pytest.raises(UsageError, match="expected --mean and --std together, got one of them"):
        add_checkpoint(run, BUILDER, tmp_path / "theirs.safetensors", mean=(3.0,))


@pytest.mark.parametrize(("mean", "std", "flag"), [("0.5,0.5", "0.2,0.2", "--mean"), ("0.5", "0.2,0.2,0.2", "--std")])
def test_a_normalisation_of_other_channels_is_refused(
    fitted: dict[str, torch.Tensor], tmp_path: Path, mean: str, std: str, flag: str
) -> None:
    save_weights(tmp_path / "a.safetensors", fitted)
    result = evaluate(tmp_path / "a.safetensors", tmp_path / "out", "--mean", mean, "--std", std)
    assert result.exit_code == 2
    assert f"{flag}: expected a number for each channel of digits, which has 1, or one for all, got " in result.stderr


def test_an_untrained_model_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(tmp_path / "a.safetensors", linear(10, 1, 8).state_dict())
    with pytest.raises(BenchError, match=r"^mine: expected a clean accuracy of at least 20% .*; check the file"):
        add_checkpoint(combined({"out": str(tmp_path)}), BUILDER, tmp_path / "a.safetensors", label="mine")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "bench evaluate: expected --checkpoint and --model, or --robustbench"),
        (["--checkpoint", "a.pt"], "bench evaluate: expected --checkpoint and --model, or --robustbench"),
        (["--checkpoint", "none.pt", "--model", "small_cnn"], "none.pt: there is no such file"),
        (["--checkpoint", "none.pt", "--model", "smal_cnn"], "unknown model 'smal_cnn'; did you mean 'small_cnn'?"),
        (["--robustbench", "X", "--model", "small_cnn"], "--robustbench: takes the place of --checkpoint, --model"),
        (
            ["--robustbench", "X", "--mean", "0.5", "--std", "0.2"],
            "--robustbench: takes the place of --checkpoint, --model",
        ),
    ],
)
def test_what_is_missing_is_said(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    result = bench("evaluate", *arguments, "--out", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"bench: {sentence}")


def test_a_foreign_teacher_file_teaches(fitted: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_weights(tmp_path / "teacher.safetensors", fitted)
    result = bench(
        "run", "--methods", "rslad", "--teacher", tmp_path / "teacher.safetensors", "--teacher-model", BUILDER,
        "--attacks", "fgsm", "--epochs", "1", "--train-limit", "150", "--limit", "20", "--workers", "1",
        "--out", tmp_path / "results",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = description(run_of(tmp_path / "results"))
    assert facts["teachers"]["robust"]["label"] == "teacher.safetensors"
    assert facts["teachers"]["robust"]["sha256"] == files.file_hash(tmp_path / "teacher.safetensors")
    assert facts["passes"]["teacher"]["forward"] == 150
