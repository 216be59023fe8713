"""The registry of data sets; it imports nothing heavy. `bench.data.splits.load` reads one and cuts it into parts.

A data set is a function `(root, download) -> Raw`: training and test images as they are published. The suite
holds out two small parts of the training images, one to select checkpoints and one that steers methods; the split
depends on nothing but the labels' order, so every method, seed and machine sees the same parts.

Facts of the registration, all plain literals:
    classes: number of classes.
    class_names: their names, where they are few.
    image: (channels, height, width).
    sizes: samples of "train", "select", "steer" and "test".
    class_counts: published images of each class in "train" and "test", where the classes are not balanced.
    eps: default radius per norm, in units of x in [0, 1]; a norm without a default is left out.
    model, teacher_model, recipe: defaults of `bench run`.
    block: test samples that are attacked together.
    augment: "none", "crop", "flip" or "crop_flip".
    any_size: whether NAME_SIZE is the set with its images at another size; its function then takes `size`.
    notes: sentences that `bench run` and `bench evaluate` print.

A user's data set needs no registration: `folder:PATH` and `npz:FILE`, see `bench.data.user`.
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
    from bench.data.user import UserDataset

Dataset = Callable[[Path, bool], "Raw"]


class Datasets(Registry[Dataset]):
    """The registered data sets, those of any size in other sizes (`imagenette_320`), and users' data sets.

    The spelling of a user's data set has the absolute path.
    """

    @property
    def forms(self) -> dict[str, str]:
        """Patterns of names of users' data sets, with a line on each."""
        from bench.data.user import FORMS

        return FORMS

    def __getitem__(self, name: str) -> Dataset:
        """The function that reads a data set."""
        known = self.resolve(name)
        user_dataset, sized = self._user_dataset(known), self._sized(known)
        if user_dataset is not None:
            from bench.data.user import read

            return lambda root, download: read(user_dataset)
        if sized is not None:
            of_any_size: Callable[..., Raw] = super().__getitem__(sized[0])
            return partial(of_any_size, size=sized[1])
        return super().__getitem__(known)

    def sketch(self, name: str) -> Sketch:
        """Name, description and facts of a data set, known without reading its images."""
        known = self.resolve(name)
        user_dataset, sized = self._user_dataset(known), self._sized(known)
        if user_dataset is not None:
            from bench.data.user import FORMS, facts

            form = next(form for form in FORMS if form.startswith(user_dataset.kind))
            return Sketch(self.label(known), f"{FORMS[form]}.", {}, facts(user_dataset))
        if sized is not None:
            plain = super().sketch(sized[0])
            image = (plain.facts["image"][0], sized[1], sized[1])
            return replace(plain, name=known, facts={**plain.facts, "image": image})
        return super().sketch(known)

    def notes(self, name: str) -> tuple[str, ...]:
        """Sentences about a data set for those who run or evaluate on it.

        Raises:
            UnknownName, UsageError, BenchError: see `sketch`.
        """
        notes: tuple[str, ...] = self.sketch(name).fact("notes", ())
        return notes

    def other_sizes(self, name: str) -> str:
        """The pattern of a data set's names in other sizes: `imagenette_SIZE`."""
        known = self.resolve(name)
        base, _ = self._sized(known) or (known, 0)
        return f"{base}_SIZE"

    def label(self, name: str) -> str:
        """The name of a data set in results: its registered spelling, or one made from a user's data set.

        Raises:
            UsageError, BenchError: if a user's data set is missing or broken.
        """
        user_dataset = self._user_dataset(name)
        if user_dataset is None:
            return name
        from bench.data.user import label

        return label(user_dataset)

    def _spelling(self, name: str) -> str | None:
        known = super()._spelling(name)
        if known is not None:
            return known
        user_dataset, sized = self._user_dataset(name), self._sized(name)
        if user_dataset is not None:
            return str(user_dataset)
        if sized is None:
            return None
        base, size = sized
        return base if super().sketch(base).fact("image")[1] == size else f"{base}_{size}"

    def _user_dataset(self, name: str) -> UserDataset | None:
        if ":" not in name:
            return None
        from bench.data.user import parse

        return parse(name)

    def _sized(self, name: str) -> tuple[str, int] | None:
        """Registered name and size of a name such as `imagenette_320`; None if it is not of that form."""
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
