"""Switches that make training faster, such as bf16: their names, and the defaults of a device. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bench.errors import UsageError

# Name -> what it does. Each can move numbers: by rounding, with bf16 by that of eight bits.
SWITCHES = {
    "bf16": "networks compute in bfloat16, but for their first and last layer, normalisations, losses and weights",
    "channels_last": "images and weights are laid out channel by channel within each pixel",
    "compile": "networks are compiled with torch.compile",
    "fold": "attacks in eval mode, and teachers, run on copies with BatchNorm folded into the convolutions before it",
    "fused": "the optimiser's step is one kernel",
}
DEVICE_DEFAULTS = {"cpu": ("channels_last", "fold", "fused"), "cuda": ("bf16", "channels_last", "fold", "fused")}
NONE = "none"


def parse(flag: str, words: Iterable[str], known: Collection[str]) -> tuple[str, ...]:
    """Switches in their registered spelling, sorted; ("none",) to switch all off, () for the defaults.

    Args:
        flag: of the command line, for messages.
        words: as given.
        known: the switches that there are.

    Raises:
        UsageError: for an unknown word, or others beside "none".
    """
    given = {word.strip().lower().replace("-", "_") for word in words}
    if given == {NONE}:
        return (NONE,)
    if not given <= set(known):
        raise UsageError(
            f"{flag}: expected some of {', '.join(known)}, or {NONE} alone; got {', '.join(sorted(given))}"
        )
    return tuple(sorted(given))


def active_switches(given: tuple[str, ...], device: str, *, deterministic: bool) -> tuple[str, ...]:
    """The switches of a run: those given, else the defaults of its device, or none if it is deterministic.

    Args:
        given: as `parse` returns them.
        device: torch device of the run, resolved.
        deterministic: whether it must be bit-reproducible.

    Raises:
        UsageError: if a deterministic run is given some.
    """
    if deterministic and given not in ((), (NONE,)):
        raise UsageError(f"--train-with {','.join(given)}: --deterministic trains without any; leave one of them out")
    if deterministic or given == (NONE,):
        return ()
    return given or DEVICE_DEFAULTS.get(device.partition(":")[0], ())
