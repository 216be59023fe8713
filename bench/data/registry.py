"""Datasets by name: the registry, which imports nothing heavy, and the way to what `bench.data.splits` does with them.

A dataset is a function `(root, download) -> Raw`: training and test images as they are published. The suite
cuts two small parts off the training images, one to select checkpoints and one that steers methods; the cut
depends on nothing but the labels' order, so every method, seed and machine sees the same parts.

Facts of the registration, all plain literals:
    classes: number of classes.
    class_names: their names, where they are few.
    image: (channels, height, width).
    sizes: samples of "train", "select", "steer" and "test".
    class_counts: published images of each class in "train" and "test", where the classes are not balanced.
    eps: the usual radius per norm, in units of x in [0, 1]; a norm without a usual radius is left out.
    model, teacher_model, recipe: what `bench run` takes when nothing is said.
    block: test samples that are attacked together.
    augment: "none", "crop", "flip" or "crop_flip".
    any_size: whether NAME_SIZE is the set with its images at another size; its function then takes `size`.
    notes: sentences for those who run or evaluate on it.

A data set of one's own needs no registration: `folder:PATH` and `npz:FILE`, see `bench.data.user`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attacks.plugins.registry import Registry
from attacks.plugins.sketch import Sketch

if TYPE_CHECKING:
    from bench.data.raw import Raw
    from bench.data.user import Own

Dataset = Callable[[Path, bool], "Raw"]


class Datasets(Registry[Dataset]):
    """The registered data sets, those that are at hand in other sizes (`imagenette_320`), and the user's own.

    The spelling of a user's own set has the absolute path.
    """

    @property
    def forms(self) -> dict[str, str]:
        """How a set of the user's own is named, with a line on each."""
        from bench.data.user import FORMS

        return FORMS

    def __getitem__(self, name: str) -> Dataset:
        """The function that reads a set."""
        known = self.resolve(name)
        own, sized = self._own(known), self._sized(known)
        if own is not None:
            from bench.data.user import read

            return lambda root, download: read(own)
        if sized is not None:
            of_any_size: Callable[..., Raw] = super().__getitem__(sized[0])
            return partial(of_any_size, size=sized[1])
        return super().__getitem__(known)

    def sketch(self, name: str) -> Sketch:
        """What is known of a set without reading its images."""
        known = self.resolve(name)
        own, sized = self._own(known), self._sized(known)
        if own is not None:
            from bench.data.user import FORMS, facts

            form = next(form for form in FORMS if form.startswith(own.kind))
            return Sketch(self.label(known), f"{FORMS[form]}.", {}, facts(own))
        if sized is not None:
            plain = super().sketch(sized[0])
            image = (plain.facts["image"][0], sized[1], sized[1])
            return replace(plain, name=known, facts={**plain.facts, "image": image})
        return super().sketch(known)

    def notes(self, name: str) -> tuple[str, ...]:
        """What is to be said of a set to those who run or evaluate on it, a sentence each.

        Raises:
            UnknownName, UsageError, BenchError: see `sketch`.
        """
        found: tuple[str, ...] = self.sketch(name).fact("notes", ())
        return found

    def other_sizes(self, name: str) -> str:
        """How a set that is at hand in other sizes is named in these, as in `imagenette_SIZE`."""
        known = self.resolve(name)
        base, _ = self._sized(known) or (known, 0)
        return f"{base}_SIZE"

    def label(self, name: str) -> str:
        """The name of a set in results: the spelling by which it is known, or one made from the user's own set.

        Raises:
            UsageError, BenchError: if a set of the user's own is not there.
        """
        own = self._own(name)
        if own is None:
            return name
        from bench.data.user import label

        return label(own)

    def _spelling(self, name: str) -> str | None:
        known = super()._spelling(name)
        if known is not None:
            return known
        own, sized = self._own(name), self._sized(name)
        if own is not None:
            return str(own)
        if sized is None:
            return None
        base, size = sized
        return base if super().sketch(base).fact("image")[1] == size else f"{base}_{size}"

    def _own(self, name: str) -> Own | None:
        if ":" not in name:
            return None
        from bench.data.user import parse

        return parse(name)

    def _sized(self, name: str) -> tuple[str, int] | None:
        """The registered name and the size that a name is made of."""
        match = re.fullmatch(r"(.+)[-_@](\d+)", name.strip())
        base = super()._spelling(match[1]) if match and super()._spelling(name) is None else None
        if match is None or base is None or not super().sketch(base).fact("any_size"):
            return None
        return base, int(match[2])


DATASETS = Datasets(
    kind="dataset",
    group="bench.datasets",
    builtin={
        **dict.fromkeys(("digits", "cifar10", "cifar100", "svhn"), "bench.data.array_sets"),
        **dict.fromkeys(("mnist", "fashion_mnist", "stl10"), "bench.data.array_sets"),
        **dict.fromkeys(("imagenette", "tiny_imagenet", "imagenet"), "bench.data.image_sets"),
    },
)
