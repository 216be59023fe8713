"""The zoo adapter with its download alone replaced: networks, dictionaries and loader are robustbench's own."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.errors import BenchError, UsageError
from bench.models import robustbench as zoo
from bench.models.robustbench import import_robustbench, zoo_model, zoo_network
from tests.helpers.zoo import Tiny, entries, random_model

Write = Callable[[Path], None]


class TinyEnsemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.models = nn.ModuleList([Tiny(), Tiny()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([model(x) for model in self.models]).mean(0)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A small network under an id of its own, in the zoo's dictionary."""
    monkeypatch.setitem(entries("cifar10", "Linf"), "Tiny2020Net", {"model": Tiny, "gdrive_id": "the-id"})
    return random_model(Tiny, 1)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the replaced download writes, by id: weights, bytes, or an exception; `asked` lists what was fetched."""
    files: dict[str, Any] = {"asked": []}

    def fetch(gdrive_id: str, target: Path) -> None:
        files["asked"].append(gdrive_id)
        content = files.get(gdrive_id)
        if isinstance(content, Exception):
            target.write_bytes(b"half of it")
            raise content
        if isinstance(content, bytes):
            target.write_bytes(content)
        elif content is not None:
            torch.save(content, target)

    monkeypatch.setattr(zoo, "fetch", fetch)
    return files


def test_importing_leaves_no_stand_in_behind() -> None:
    code = (
        "import sys; from bench.models.robustbench import import_robustbench; "
        "assert 'torch' not in sys.modules; import_robustbench(); "
        "print([n for n in ('autoattack', 'autoattack.state', 'pkg_resources') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    installed = [n for n in ("autoattack", "pkg_resources") if importlib.util.find_spec(n)]
    assert done.stderr == ""
    assert [n for n in eval(done.stdout) if n.partition(".")[0] not in installed] == []
    import_robustbench()
    loaders = sys.modules["robustbench.loaders"]
    assert Path(loaders.pkg_resources.resource_filename("robustbench.loaders", "data.py")).is_file()


def test_a_network_of_the_zoo_computes_what_was_saved(tmp_path: Path, served: dict[str, Any]) -> None:
    make = entries("cifar10", "Linf")["Wong2020Fast"]["model"]
    original = random_model(make, 1)
    gdrive_id = entries("cifar10", "Linf")["Wong2020Fast"]["gdrive_id"]
    served[gdrive_id] = {"state_dict": {f"module.{k}": v for k, v in original.state_dict().items()}}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = zoo_model("wong2020fast", "cifar10", "linf", tmp_path, download=True)
    assert torch.equal(before, torch.get_rng_state())
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(x), original(x))
    assert not any(module.training for module in model.modules())
    found = sorted(path.name for path in (tmp_path / "cifar10" / "Linf").iterdir())
    assert found == ["Wong2020Fast.pt", "Wong2020Fast.pt.sha256"]


def test_weights_are_fetched_once_and_held_against_their_first_hash(
    tmp_path: Path, tiny: nn.Module, served: dict[str, Any]
) -> None:
    served["the-id"] = tiny.state_dict()
    for _ in range(2):
        model = zoo_model("Tiny2020Net", "cifar10", "linf", tmp_path, download=True)
        assert torch.equal(model.linear.weight, tiny.linear.weight)
    assert served["asked"] == ["the-id"]
    torch.save(random_model(Tiny, 2).state_dict(), tmp_path / "cifar10" / "Linf" / "Tiny2020Net.pt")
    with pytest.raises(BenchError, match="expected the file first used .SHA-256 .*delete it and Tiny2020Net.pt.sha256"):
        zoo_model("Tiny2020Net", "cifar10", "linf", tmp_path, download=True)


def test_a_file_put_there_by_hand_is_used(tmp_path: Path, tiny: nn.Module, served: dict[str, Any]) -> None:
    place = tmp_path / "cifar10" / "Linf" / "Tiny2020Net.pt"
    with pytest.raises(
        UsageError, match=r"Tiny2020Net\.pt: there is no such file; add --download, or fetch https://.*the-id"
    ):
        zoo_model("Tiny2020Net", "cifar10", "linf", tmp_path, download=False)
    place.parent.mkdir(parents=True)
    torch.save(tiny.state_dict(), place)
    model = zoo_model("Tiny2020Net", "cifar10", "linf", tmp_path, download=False)
    assert torch.equal(model.linear.weight, tiny.linear.weight)
    assert served["asked"] == []


def test_an_ensemble_takes_a_file_for_each_member(tmp_path: Path, served: dict[str, Any], monkeypatch) -> None:
    entry = {"model": TinyEnsemble, "gdrive_id": ["first", "second"]}
    monkeypatch.setitem(entries("cifar10", "Linf"), "Tiny2021Pair", entry)
    members = [random_model(Tiny, seed) for seed in (1, 2)]
    served |= {"first": members[0].state_dict(), "second": members[1].state_dict()}
    model = zoo_model("Tiny2021Pair", "cifar10", "linf", tmp_path, download=True)
    for loaded, member in zip(model.models, members, strict=True):
        assert torch.equal(loaded.linear.weight, member.linear.weight)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html>Virus scan warning</html>", "expected weights, got a web page"),
        (b"PK\x03\x04 cut short", "damaged or cut short"),
        ({"state_dict": Tiny()}, "pickled objects"),
        (OSError("no route to host"), "no route to host"),
        (None, "there is no such file"),
    ],
    ids=["page", "truncated", "code", "network", "nothing"],
)
@pytest.mark.usefixtures("tiny")
def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    tmp_path: Path, served: dict[str, Any], content: Any, reason: str
) -> None:
    served["the-id"] = content
    place = tmp_path / "cifar10" / "Linf"
    with pytest.raises(
        BenchError, match=rf"could not be fetched \(.*{reason}.*id=the-id and put it at .*Tiny2020Net\.pt"
    ):
        zoo_model("Tiny2020Net", "cifar10", "linf", tmp_path, download=True)
    assert list(place.iterdir()) == []


def test_what_a_killed_download_left_is_removed(tmp_path: Path, tiny: nn.Module, served: dict[str, Any]) -> None:
    served["the-id"] = tiny.state_dict()
    place = tmp_path / "cifar10" / "Linf"
    for name in (".Tiny2020Net.pt-a1b2", ".Tiny2020Net.pt-c3d4", ".Other2020Net.pt-e5f6"):
        (place / name).mkdir(parents=True)
        (place / name / "part").write_bytes(b"half of it")
    zoo_model("Tiny2020Net", "cifar10", "linf", tmp_path, download=True)
    found = sorted(path.name for path in place.iterdir())
    assert found == [".Other2020Net.pt-e5f6", "Tiny2020Net.pt", "Tiny2020Net.pt.sha256"]


@pytest.mark.usefixtures("tiny")
def test_weights_of_another_network_are_refused(tmp_path: Path, served: dict[str, Any]) -> None:
    served["the-id"] = nn.Linear(3, 3).state_dict()
    with pytest.raises(BenchError, match="robustbench:Tiny2020Net: the weights in .* do not fit its network"):
        zoo_model("Tiny2020Net", "cifar10", "linf", tmp_path, download=True)


def test_requests_that_the_zoo_cannot_meet(tmp_path: Path) -> None:
    for id, dataset, norm, message in (
        (
            "Wong2020Fats",
            "cifar10",
            "linf",
            "no such network among the .* of cifar10 Linf; did you mean 'Wong2020Fast'",
        ),
        ("Wong2020Fast", "svhn", "linf", "expected cifar10, cifar100, imagenet with linf or l2, got svhn"),
        ("Wong2020Fast", "cifar100", "l2", "no network"),
        ("Debenedetti2022Light_XCiT-S12", "cifar10", "linf", "fetched by timm"),
    ):
        with pytest.raises(UsageError, match=message):
            zoo_model(id, dataset, norm, tmp_path, download=True)


def test_a_network_of_imagenet_stands_behind_its_normalisation(
    tmp_path: Path, served: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ImageNet's networks the files hold the bare network; robustbench puts its normalisation in front."""
    normalize = import_robustbench().model_zoo.imagenet.normalize_model
    entry = {"model": lambda: normalize(Tiny(), (0.5,) * 3, (0.25,) * 3), "gdrive_id": "the-id"}
    monkeypatch.setitem(entries("imagenet", "Linf"), "Tiny2022Photo", entry)
    tiny = random_model(Tiny, 1)
    served["the-id"] = {"state_dict": {f"module.{name}": tensor for name, tensor in tiny.state_dict().items()}}
    model = zoo_model("tiny2022photo", "imagenet", "linf", tmp_path, download=True)
    x = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(x), tiny((x - 0.5) / 0.25))
    assert list(zoo.zoo_files("tiny2022photo", "imagenet", "linf", tmp_path)) == [
        tmp_path / "imagenet" / "Linf" / "Tiny2022Photo.pt"
    ]


def test_a_network_with_fresh_weights_fetches_nothing_and_leaves_the_stream(served: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    network = zoo_network("Wong2020Fast", "cifar10", "linf")
    assert torch.equal(before, torch.get_rng_state())
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert served["asked"] == []
    with pytest.raises(UsageError, match="did you mean 'Wong2020Fast'"):
        zoo_network("Wong2020Fats", "cifar10", "linf")


LICENCES = """
All weights of the models in the Model Zoo are released under the MIT license except the following models:
- CIFAR-10, Linf, Some2019Using: Apache License 2.0; Copyright (c) 2019, Somebody
- CIFAR-10/CIFAR-100, Linf/L2/corruptions, Other2020Many*: Attribution-NonCommercial 4.0; Copyright (c) 2021, Others
"""


@pytest.mark.parametrize(
    ("id", "dataset", "threat", "licence"),
    [
        ("Some2019Using", "cifar10", "Linf", "Apache License 2.0"),
        ("Some2019Using", "cifar10", "L2", "MIT License"),
        ("Other2020Many_28_10", "cifar100", "L2", "Attribution-NonCommercial 4.0"),
        ("Other2020Many_28_10", "imagenet", "Linf", "MIT License"),
        ("Third2021", "cifar10", "Linf", "MIT License"),
    ],
)
def test_licences_are_read_off_the_zoos_list(id: str, dataset: str, threat: str, licence: str) -> None:
    assert zoo.licence_of(id, dataset, threat, LICENCES) == licence
    assert zoo.licence_of(id, dataset, threat, "no list at all") == "not stated"


def test_the_installed_zoo_states_licences() -> None:
    assert zoo.zoo_licence("ding2020mma", "cifar10", "linf").startswith("Attribution-NonCommercial-ShareAlike 4.0")
    assert zoo.zoo_licence("Rice2020Overfitting", "cifar10", "linf") == "MIT License"
