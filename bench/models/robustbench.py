"""Networks of the RobustBench zoo, by id.

robustbench 1.1.1 does not import as it is installed today: it asks for the package `autoattack`, published as
`pyautoattack`, and for `pkg_resources`, which setuptools no longer has. Both are put into `sys.modules` while it is
imported and removed afterwards. `fetch` alone downloads; files are checked before they are moved into the cache, with
their hash beside them. robustbench itself only loads weights from the cache.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attacks.plugins.registry import canonical
from bench.core.download import download_lock, temporary_folder
from bench.core.files import file_hash, write_text
from bench.errors import BenchError, UsageError

if TYPE_CHECKING:
    from torch import nn

DATASETS = ("cifar10", "cifar100", "imagenet")
NORMS = {"linf": "Linf", "l2": "L2"}
URL = "https://drive.google.com/uc?id="
# "- CIFAR-10/CIFAR-100, Linf/L2, Gowal2021Improving*: Apache License 2.0; Copyright ..."
LICENCE_EXCEPTION = re.compile(r"- ([^,]+), ([^,]+), ([^:]+): ([^;]+)(?:;.*)?")


def zoo_model(id: str, dataset: str, norm: str, cache_dir: Path | str, download: bool) -> nn.Module:
    """A trained network of the zoo: images in [0, 1] to logits, in eval mode, on the CPU.

    Args:
        id: its id there, such as `Rice2020Overfitting`; case, `-` and `_` do not matter.
        dataset: "cifar10", "cifar100" or "imagenet".
        norm: "linf" or "l2", the threat model it was trained for.
        cache_dir: where the weights are kept, in `<dataset>/<Linf or L2>/<id>.pt`, as robustbench does.
        download: fetch weights that are not there.

    Raises:
        UsageError: for an unknown dataset, norm or id, or if the weights are not there and are not to be fetched.
        BenchError: if they cannot be fetched, or are damaged, changed or do not fit.
    """
    known, entry = _entry(id, dataset, norm)
    for gdrive_id, path in _files(known, entry.get("gdrive_id"), _folder(cache_dir, dataset, norm)):
        _ensure_file(gdrive_id, path, download)
    return _assemble(known, dataset, norm, Path(cache_dir))


def zoo_network(id: str, dataset: str, norm: str) -> nn.Module:
    """The network of an entry of the zoo with fresh weights, its normalisation included; nothing is fetched.

    Raises:
        UsageError: for an unknown dataset, norm or id, or if its network comes with weights from elsewhere.
        BenchError: if robustbench does not import.
    """
    import torch

    known, entry = _entry(id, dataset, norm)
    _files(known, entry.get("gdrive_id"), Path())
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: nn.Module = entry["model"]()
    return network


def zoo_files(id: str, dataset: str, norm: str, cache_dir: Path | str) -> dict[Path, str]:
    """Where the files of a network are kept, each with its address; see `zoo_model`."""
    known, entry = _entry(id, dataset, norm)
    return {
        path: URL + gdrive_id
        for gdrive_id, path in _files(known, entry.get("gdrive_id"), _folder(cache_dir, dataset, norm))
    }


def zoo_licence(id: str, dataset: str, norm: str) -> str:
    """The licence of a network's weights, as robustbench's own licence file says; "not stated" where it does not."""
    known, _ = _entry(id, dataset, norm)
    texts = [file for file in metadata.files("robustbench") or () if file.name.upper().startswith("LICENSE")]
    text = str(texts[0].locate().read_text(encoding="utf-8")) if texts else ""  # type: ignore[attr-defined]
    return licence_of(known, dataset, NORMS[norm], text)


def licence_of(id: str, dataset: str, threat: str, text: str) -> str:
    """Read a licence off robustbench's file: one for all weights, and a line for each of the exceptions."""
    for line in text.splitlines():
        match = LICENCE_EXCEPTION.fullmatch(line.strip())
        if match is None:
            continue
        datasets, threats, names, licence = match.groups()
        known = {canonical(name.replace("CIFAR-", "cifar")) for name in datasets.split("/")}
        if dataset in known and threat in threats.split("/") and fnmatchcase(id, names.strip()):
            return licence.strip()
    general = re.search(r"All weights .*?released under the (.+?) license", text)
    return f"{general[1]} License" if general else "not stated"


def fetch(gdrive_id: str, target: Path) -> None:
    """Write one file of the zoo to `target`; the only step that needs the network."""
    importlib.import_module("gdown").download(id=gdrive_id, output=str(target))


def import_robustbench() -> Any:
    """The package robustbench, imported with stand-ins for the modules that it lacks.

    Raises:
        BenchError: if it still does not import.
    """
    if "robustbench" in sys.modules:
        return sys.modules["robustbench"]
    try:
        with _lend_modules(_stand_ins()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("robustbench")
    except ImportError as error:
        raise BenchError(f"robustbench: cannot be imported ({error}); expected robustbench 1.1.1 or later") from error


def _stand_ins() -> dict[str, ModuleType]:
    """Modules that robustbench needs and that are not installed."""
    missing: dict[str, ModuleType] = {}
    if importlib.util.find_spec("autoattack") is None:
        for name in ("", ".state"):
            missing[f"autoattack{name}"] = importlib.import_module(f"pyautoattack{name}")
    if importlib.util.find_spec("pkg_resources") is None:
        resources = ModuleType("pkg_resources")
        resources.resource_filename = _resource_filename  # type: ignore[attr-defined]
        missing["pkg_resources"] = resources
    return missing


def _resource_filename(module: str, name: str) -> str:
    """The path of a file beside a module."""
    return str(Path(str(sys.modules[module].__file__)).parent / name)


@contextmanager
def _lend_modules(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)


def _entry(id: str, dataset: str, norm: str) -> tuple[str, Mapping[str, Any]]:
    """Spelling of an id, and its entry in robustbench's dictionaries."""
    if dataset not in DATASETS or norm not in NORMS:
        raise UsageError(
            f"robustbench:{id}: expected {', '.join(DATASETS)} with {' or '.join(NORMS)}, got {dataset} with {norm}; "
            "its zoo has no others"
        )
    zoo = _entries(import_robustbench(), dataset, NORMS[norm])
    known = _resolve(id, list(zoo), f"{dataset} {NORMS[norm]}")
    return known, zoo[known]


def _folder(cache_dir: Path | str, dataset: str, norm: str) -> Path:
    return Path(cache_dir) / dataset / NORMS[norm]


def _entries(robustbench: Any, dataset: str, threat: str) -> Mapping[str, Any]:
    """The zoo's networks for a dataset and a threat model, by id; none where it has none."""
    threats: Mapping[Any, Any] = next(
        held for benchmark, held in robustbench.model_zoo.model_dicts.items() if benchmark.value == dataset
    )
    return next((entries for kind, entries in threats.items() if kind.value == threat), {})


def _resolve(id: str, names: list[str], where: str) -> str:
    known = {canonical(name): name for name in names}
    if not known:
        raise UsageError(f"robustbench:{id}: its zoo has no network for {where}")
    if canonical(id) not in known:
        close = difflib.get_close_matches(canonical(id), known, n=1, cutoff=0.4)
        hint = f"did you mean {known[close[0]]!r}?" if close else "see https://robustbench.github.io"
        raise UsageError(f"robustbench:{id}: no such network among the {len(names)} of {where}; {hint}")
    return known[canonical(id)]


def _files(id: str, gdrive_id: str | list[str] | None, folder: Path) -> list[tuple[str, Path]]:
    """Google Drive id and path of every file of a network, with the names that robustbench expects."""
    if isinstance(gdrive_id, str) and gdrive_id:
        return [(gdrive_id, folder / f"{id}.pt")]
    if not gdrive_id:
        raise UsageError(
            f"robustbench:{id}: its weights are fetched by timm or torchvision, not from the zoo; choose another"
        )
    return [(one, folder / f"{id}.pt_m{i}.pt") for i, one in enumerate(gdrive_id)]


def _ensure_file(gdrive_id: str, path: Path, download: bool) -> None:
    """Check that a file is read without running code and is the one first used; download it if it is missing."""
    from bench.models.checkpoints import read_file

    if not path.is_file():
        _download(gdrive_id, path, download)
    found = file_hash(path)
    record = path.with_name(path.name + ".sha256")
    if not record.is_file():
        read_file(path)
        write_text(record, f"{found}  {path.name}\n")
    first = record.read_text(encoding="utf-8").split(maxsplit=1)[0]
    if found != first:
        raise BenchError(
            f"{path}: expected the file first used (SHA-256 {first[:12]}), got another ({found[:12]}); "
            f"delete it and {record.name} to fetch it anew"
        )


def _download(gdrive_id: str, path: Path, download: bool) -> None:
    from bench.models.checkpoints import read_file

    url = URL + gdrive_id
    if not download:
        raise UsageError(f"{path}: there is no such file; add --download, or fetch {url} and put it there")
    with download_lock(path.name, path.parent), temporary_folder(path.parent, f".{path.name}-") as folder:
        if path.is_file():
            return  # another process has fetched it meanwhile
        part = folder / path.name
        try:
            fetch(gdrive_id, part)
            read_file(part)
        except Exception as error:  # gdown and the network raise many kinds
            reason = str(error).strip().partition("\n")[0].replace(str(part), path.name) or type(error).__name__
            raise BenchError(
                f"{path.name}: could not be fetched ({reason}); fetch {url} and put it at {path}"
            ) from error
        os.replace(part, path)


def _assemble(id: str, dataset: str, norm: str, cache_dir: Path) -> nn.Module:
    """Have robustbench load the files of the cache into its network; the global random streams are restored."""
    import torch

    from bench.models.checkpoints import allow_plain_types

    try:
        with torch.random.fork_rng(devices=[]), allow_plain_types(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = import_robustbench().load_model(id, cache_dir, dataset, NORMS[norm])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BenchError(f"robustbench:{id}: the weights in {cache_dir} do not fit its network ({reason})") from error
    return model.eval()
