"""Tables as Parquet files, which take their names only when they are whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from strata.run.files import replacing

GROUP = 4096  # rows in a row group: to find the rows of one latent, whole row groups are read


def table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Make a table of ``columns``, in the order and types of ``schema``; NaN becomes null."""
    arrays = []
    for field in schema:
        column = columns[field.name]
        if isinstance(column, np.ndarray) and column.ndim == 2:
            column = list(column)  # a column of lists: pyarrow takes no matrices
        array = column if isinstance(column, pa.Array) else pa.array(column, from_pandas=True)
        arrays.append(array.cast(field.type))  # pyright: ignore[reportAttributeAccessIssue]
    return pa.Table.from_arrays(arrays, schema=schema)


@contextmanager
def writing(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Open a Parquet file, for tables that are written one after the other."""
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield writer


def write(path: Path, columns: dict[str, Any], schema: pa.Schema) -> None:
    """Write a table that fits in memory."""
    with writing(path, schema) as writer:
        writer.write_table(table(columns, schema), GROUP)
