"""Networks of other packages by name, `torchvision:resnet50` and `timm:vit_small_patch16_224`, for larger images.

They have fresh weights and are wrapped in the normalisation that their package trains them with, so that they take
images in [0, 1]. Their names are read from the package's files: nothing is imported before a network is built.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attacks.plugins.registry import UnknownName, canonical
from attacks.plugins.sketch import Sketch
from bench.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

FORMS = {
    "torchvision:NAME": "A classifier of torchvision, such as torchvision:resnet50, for images of three channels",
    "timm:NAME": "A classifier of timm, such as timm:convnext_nano; pip install timm",
}
PACKAGES = ("torchvision", "timm")
REGISTERED = re.compile(r"^@register_model\b.*?^def (\w+)", re.MULTILINE | re.DOTALL)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# In train mode their auxiliary logits would make a tuple; init_weights silences a warning about its default.
SINGLE_OUTPUT = {"aux_logits": False, "init_weights": True}


def parse(name: str) -> tuple[str, str] | None:
    """Package and network of a name such as `timm:NAME`; None if it is not of that form."""
    package, colon, network = name.partition(":")
    package = package.strip().lower()
    return (package, network.strip()) if colon and package in PACKAGES else None


def spelling(package: str, network: str) -> str:
    """The name by which a network is known.

    Raises:
        UsageError: if the package is not installed.
        UnknownName: with the closest match.
    """
    known = {canonical(name): name for name in names(package)}
    base, dot, tag = network.partition(".")  # timm names weights after a dot; what they were normalised by stays
    if canonical(base) in known:
        return f"{package}:{known[canonical(base)]}{dot}{tag}"
    close = difflib.get_close_matches(canonical(base), known, n=1)
    hint = f"did you mean '{package}:{known[close[0]]}'?" if close else f"see the documentation of {package}"
    raise UnknownName(f"unknown model '{package}:{network}' among the {len(known)} of {package}; {hint}")


@lru_cache
def names(package: str) -> tuple[str, ...]:
    """All classifiers of an installed package, in order.

    Raises:
        UsageError: if it is not installed.
    """
    texts = (path.read_text(encoding="utf-8") for path in sorted(_models_folder(package).glob("*.py")))
    return tuple(sorted({name for text in texts for name in REGISTERED.findall(text)}))


def sketch(package: str, network: str) -> Sketch:
    """Name, description and facts of a network, known without building it."""
    name = spelling(package, network)
    doc = f"{name.partition(':')[2]} of {package}, from scratch, behind the normalisation it is trained with there."
    return Sketch(name, doc, {}, {"package": package}, _models_folder(package))


def build(package: str, network: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A network with fresh weights, behind its normalisation.

    Raises:
        UsageError: if the package is not installed, or cannot build it for these numbers.
    """
    name = f"{package}:{network}"
    module = _import_package(package)
    make = _timm if package == "timm" else _torchvision
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, mean, std = make(module, network, num_classes, in_channels, image_size)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"model {name!r}: {package} cannot build it for {num_classes} classes, {in_channels} channels and images "
            f"of {image_size}x{image_size} ({reason})"
        ) from error
    from bench.models.normalized import Normalized

    return Normalized(model, _per_channel(mean, in_channels), _per_channel(std, in_channels))


def _torchvision(
    package: Any, network: str, num_classes: int, in_channels: int, image_size: int
) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    if in_channels != 3:
        raise ValueError("its networks take three channels; those of timm take any number")
    more: dict[str, Any] = SINGLE_OUTPUT if network in ("googlenet", "inception_v3") else {}
    if network.startswith("vit_"):
        more = {"image_size": image_size}
    elif network.startswith("maxvit_"):
        more = {"input_size": (image_size, image_size)}
    return package.models.get_model(network, weights=None, num_classes=num_classes, **more), *IMAGENET


def _timm(
    package: Any, network: str, num_classes: int, in_channels: int, image_size: int
) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    made_for = package.get_pretrained_cfg(network)
    more = {"img_size": image_size} if made_for is not None and made_for.fixed_input_size else {}
    model = package.create_model(network, pretrained=False, num_classes=num_classes, in_chans=in_channels, **more)
    return model, *(IMAGENET if made_for is None else (made_for.mean, made_for.std))


def _per_channel(values: Sequence[float], channels: int) -> Sequence[float]:
    """One value for each channel: those of the package, or their mean where it has another number of channels."""
    return values if len(values) == channels else [sum(values) / len(values)] * channels


def _import_package(package: str) -> ModuleType:
    _models_folder(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(package)


def _models_folder(package: str) -> Path:
    """The folder with the files that define a package's networks."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise UsageError(f"{package} is not installed, which models named {package}:NAME need; `pip install {package}`")
    return Path(found.origin).parent / "models"
