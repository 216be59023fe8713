"""Random crops and flips for a whole batch at once: index arithmetic and one gather, no loop over samples."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.draws import integers

__all__ = ["AUGMENTATIONS", "augment"]

AUGMENTATIONS = ("none", "crop", "flip", "crop_flip")


def augment(
    x: Tensor, kind: str, generator: torch.Generator, *, pad: int | None = None, padding: str = "zeros"
) -> Tensor:
    """Shift and mirror every image of a batch at random.

    Args:
        x: images (N, C, H, W), of any dtype.
        kind: "none", "crop" (a window of the padded image), "flip" (left and right, every second image) or "crop_flip".
        generator: the stream the draws come from: vertical shifts, horizontal shifts, flips, in this order.
        pad: pixels added on each side before the crop; if not given 4, and of images above 32x32 an eighth.
        padding: "zeros" or "reflect".

    Returns:
        Images like x; x itself for "none".

    Raises:
        ValueError: if `kind` or `padding` is unknown, or a reflection does not fit into the image.
    """
    if kind not in AUGMENTATIONS or padding not in ("zeros", "reflect"):
        raise ValueError(
            f"augment: expected a kind of {', '.join(AUGMENTATIONS)} with padding zeros or reflect, "
            f"got {kind!r} with {padding!r}"
        )
    if kind == "none":
        return x
    n, channels, height, width = x.shape
    pad = max(4, min(height, width) // 8) if pad is None else pad
    if padding == "reflect" and pad >= min(height, width):
        raise ValueError(f"augment: a reflection of {pad} pixels does not fit into {height}x{width}; use a smaller pad")
    rows = torch.arange(height, device=x.device).expand(n, height)
    columns = torch.arange(width, device=x.device).expand(n, width)
    if "crop" in kind:
        rows = rows + _draw(n, 2 * pad + 1, generator, x.device) - pad
        columns = columns + _draw(n, 2 * pad + 1, generator, x.device) - pad
    if "flip" in kind:
        columns = torch.where(_draw(n, 2, generator, x.device) == 1, columns.flip(1), columns)
    source_rows, source_columns = _inside(rows, height), _inside(columns, width)
    sample = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    moved = x[sample, channel, source_rows[:, None, :, None], source_columns[:, None, None, :]]
    if padding == "zeros":
        seen = (source_rows == rows)[:, :, None] & (source_columns == columns)[:, None, :]
        moved = moved * seen[:, None].to(x.dtype)
    return moved


def _draw(n: int, high: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """One integer in [0, high) per sample, (n, 1)."""
    return integers(high, n, generator=generator).to(device)


def _inside(index: Tensor, size: int) -> Tensor:
    """Positions reflected at the borders, the border pixel not repeated; zero padding masks them afterwards."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index).clamp(0, size - 1)
