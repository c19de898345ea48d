"""The tables that cluster writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.files import replacing

INT, LONG, REAL, WORD, SHORT = pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.float32()
LATENTS = pa.schema({"latent": INT, "cluster": INT, "medoid": pa.bool_(), "silhouette": REAL, "x": SHORT, "y": SHORT})
CLUSTERS = pa.schema(
    {
        "cluster": INT, "size": LONG, "medoid": INT, "name": WORD, "silhouette": REAL, "kept": LONG, "mean": REAL,
        "max": REAL, "sparsity": REAL, "composite": REAL,
    }
)  # fmt: skip
PROFILES = pa.schema({"cluster": INT, "document": INT, "mean": SHORT})
DOCUMENTS = pa.schema({"cluster": INT, "rank": INT, "document": INT, "title": WORD, "label": WORD, "mean": SHORT})
CORRELATED = pa.schema({"cluster": INT, "other": INT, "correlation": REAL})
DOCUMENT_MAP = pa.schema({"document": INT, "title": WORD, "label": WORD, "x": SHORT, "y": SHORT})


def write_table(path: Path, columns: dict[str, Any], schema: pa.Schema) -> None:
    """``columns`` in the order and types of ``schema``, NaN as null, as a Parquet file."""
    arrays = [pa.array(columns[field.name], from_pandas=True).cast(field.type) for field in schema]
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), temporary, compression="zstd")


def write_array(path: Path, array: np.ndarray) -> None:
    """An array as `.npy`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
