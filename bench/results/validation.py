"""Validation of outcome arrays and of the Parquet columns they are stored in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError
from bench.metrics import Bools, Ints


def read_columns(file: Path) -> dict[str, npt.NDArray[Any]]:
    """All columns of a Parquet file.

    Raises:
        BenchError: if it cannot be read, or a column has gaps.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # ParquetFile reads this one file; read_table would take `key=value` folders above it for columns.
        table = pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        raise BenchError(f"{file}: expected a Parquet table of outcomes, it cannot be read ({error})") from None
    gaps = [name for name in table.column_names if table[name].null_count]
    if gaps:
        raise BenchError(f"{file}: expected a value in every row, column {gaps[0]} has gaps")
    return {name: table[name].to_numpy() for name in table.column_names}


def ints(name: str, values: npt.ArrayLike) -> Ints:
    """A vector of whole numbers, or an error under that name."""
    array = np.asarray(values)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not array.size):
        raise BenchError(f"{name}: expected whole numbers of shape (n,), got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def bools(name: str, values: npt.ArrayLike) -> Bools:
    """A vector of booleans, or an error under that name."""
    array = np.asarray(values)
    if array.ndim != 1 or not (array.dtype == np.bool_ or not array.size):
        raise BenchError(f"{name}: expected booleans of shape (n,), got {array.dtype} of shape {array.shape}")
    return array.astype(np.bool_)


def check_length(name: str, values: npt.NDArray[Any], n: int) -> None:
    """Refuse a vector that has not one value per sample."""
    if len(values) != n:
        raise BenchError(f"{name}: expected {n:,} values, one per sample, got {len(values):,}")


def check_range(name: str, values: Ints, n: int, k: int, low: int = 0) -> None:
    """Refuse classes outside low..k-1."""
    check_length(name, values, n)
    if n and not (values.min() >= low and values.max() < k):
        raise BenchError(f"{name}: expected classes in {low}..{k - 1}, got {values.min()} to {values.max()}")
