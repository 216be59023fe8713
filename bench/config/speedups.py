"""The switches that make training steps faster: their names, and which of them a device has unasked. Free of torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bench.errors import UsageError

# Each with what it does. A number can move with any of them: by rounding, with bf16 by that of eight bits.
SWITCHES = {
    "bf16": "networks compute in bfloat16, but for their first and last layer, normalisations, losses and weights",
    "channels_last": "images and weights are laid out channel by channel within each pixel",
    "compile": "networks are compiled with torch.compile",
    "fold": "attacks in eval mode, and teachers, run on copies with BatchNorm folded into the convolutions before it",
    "fused": "the optimiser's step is one kernel",
}
USUAL = {"cpu": ("channels_last", "fold", "fused"), "cuda": ("bf16", "channels_last", "fold", "fused")}
NONE = "none"


def parse(flag: str, words: Iterable[str], known: Collection[str]) -> tuple[str, ...]:
    """Switches in their own spelling and order; ("none",) for none at all, () where nothing was asked for.

    Args:
        flag: through which they were given.
        words: what was given.
        known: the switches that there are.

    Raises:
        UsageError: for anything else.
    """
    found = {word.strip().lower().replace("-", "_") for word in words}
    if found == {NONE}:
        return (NONE,)
    if not found <= set(known):
        raise UsageError(
            f"{flag}: expected some of {', '.join(known)}, or {NONE} alone; got {', '.join(sorted(found))}"
        )
    return tuple(sorted(found))


def switched_on(asked: tuple[str, ...], device: str, *, deterministic: bool) -> tuple[str, ...]:
    """The switches of a run: those asked for, else those that its device has unasked, or none if it is deterministic.

    Args:
        asked: as `parse` returns them.
        device: what the run's device has resolved to.
        deterministic: whether it must be bit-reproducible.

    Raises:
        UsageError: if a deterministic run asks for some.
    """
    if deterministic and asked not in ((), (NONE,)):
        raise UsageError(f"--train-with {','.join(asked)}: --deterministic trains without any; leave one of them out")
    if deterministic or asked == (NONE,):
        return ()
    return asked or USUAL.get(device.partition(":")[0], ())
