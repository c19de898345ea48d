"""The tables that cluster writes."""

import pyarrow as pa

INT, LONG, REAL, WORD, SHORT = pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.float32()
LATENTS = pa.schema({"latent": INT, "cluster": INT, "medoid": pa.bool_(), "silhouette": REAL, "x": SHORT, "y": SHORT})
CLUSTERS = pa.schema(
    {
        "cluster": INT, "size": LONG, "medoid": INT, "name": WORD, "silhouette": REAL, "interest": REAL,
        "kept": LONG, "mean": REAL, "max": REAL, "sparsity": REAL, "composite": REAL,
    }
)  # fmt: skip
PROFILES = pa.schema({"cluster": INT, "document": INT, "mean": SHORT})
DOCUMENTS = pa.schema({"cluster": INT, "rank": INT, "document": INT, "title": WORD, "label": WORD, "mean": SHORT})
CORRELATED = pa.schema({"cluster": INT, "other": INT, "correlation": REAL})
DOCUMENT_MAP = pa.schema({"document": INT, "title": WORD, "label": WORD, "x": SHORT, "y": SHORT})
