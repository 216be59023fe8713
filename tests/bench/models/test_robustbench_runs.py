"""A network of the zoo as a teacher and under `bench evaluate`: the real command, the download step alone replaced.

The images are 200 patterns repeated to the size of CIFAR-10, labelled by the network itself, so that it is plausible.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from bench.cli.app import main
from bench.models import robustbench as zoo
from bench.models import teachers
from bench.models.robustbench import import_robustbench
from bench.report import load_results

ID = "Wong2020Fast"
PATTERNS = 200


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The zoo's own architecture for that id, with random weights; its logits are centred so that classes are many."""
    dicts = import_robustbench().model_zoo.model_dicts
    entries = next(e for d, t in dicts.items() if d.value == "cifar10" for k, e in t.items() if k.value == "Linf")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = entries[ID]["model"]().eval()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        logits = model(patterns())
        last.weight /= logits.std(0)[:, None]
        last.bias.copy_((last.bias - logits.mean(0)) / logits.std(0))
    return model


def patterns() -> Tensor:
    noise = torch.rand(PATTERNS, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(noise, size=32, mode="bilinear") * 255).round() / 255


@pytest.fixture(scope="module")
def data(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    x = (patterns() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    with torch.no_grad():
        y = network(patterns()).argmax(1).numpy()
    assert len(set(y.tolist())) == 10
    repeat = {"train": 50_000 // PATTERNS, "test": 10_000 // PATTERNS}
    arrays = {f"x_{part}": np.tile(x, (n, 1, 1, 1)) for part, n in repeat.items()}
    np.savez(folder / "cifar10.npz", **arrays, **{f"y_{part}": np.tile(y, n) for part, n in repeat.items()})
    return folder


@pytest.fixture(autouse=True)
def download(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "fetch", lambda gdrive_id, target: torch.save(network.state_dict(), target))
    monkeypatch.setattr(teachers, "PROBE", 40)


def bench(data: Path, out: Path, *arguments: str) -> Result:
    common = ["--dataset", "cifar10", "--data-dir", str(data), "--download", "--out", str(out), "--workers", "1"]
    return CliRunner().invoke(main, [*arguments, *common, "--limit", "20", "--attacks", "fgsm", "--eps", "1/255"])


@pytest.mark.slow
def test_a_zoo_network_teaches(data: Path, tmp_path: Path) -> None:
    result = bench(
        data, tmp_path, "run", "--methods", "rslad", "--teacher", f"robustbench:{ID}", "--model", "small_cnn",
        "--epochs", "1", "--train-limit", "40", "--select", "last", "--set", "rslad.steps=1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (row,) = load_results(tmp_path).query("attack == 'fgsm'").to_dict("records")
    assert (row["method"], row["n"]) == ("rslad", 20)


@pytest.mark.slow
def test_a_zoo_network_is_evaluated(data: Path, tmp_path: Path) -> None:
    result = bench(data, tmp_path, "evaluate", "--robustbench", ID)
    assert result.exit_code == 0, result.output
    frame = load_results(tmp_path).set_index("attack")
    assert frame.loc["clean", "average"] == 1.0, "it labelled the images itself"
    assert frame.loc["fgsm", "average"] < 1.0
    assert set(frame["label"]) == {ID}


def test_without_download_the_sentence_says_where_to_put_the_file(data: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--robustbench", "Rice2020Overfitting", "--dataset", "cifar10", "--data-dir", str(data)]
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code != 0
    assert str(data / "zoo") in result.stderr
    assert "--download" in result.stderr
