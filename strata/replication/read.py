"""Open what stability wrote, `data/stability/<L>/`. Later stages read it through this module.

`meta.json`          layer, latents, seeds, and the hashes of the tables; or "skipped"
`latents.parquet`    a row a latent, in order: `again`, `again_cofiring`, the chance of each, and the mean over the
                     trainings of its largest cosine and of its largest correlation with a latent of the other SAE
`<seed>/`            the SAE that was trained with this seed
`pooled/`            the SAE of the latents that come again; `pooled.parquet` says where each of them is from
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from strata.run.door import BadInput
from strata.run.files import again, check_hash, read_meta

META = {"layer": int, "latents": int, "seeds": list}
LATENTS, POOLED = "latents.parquet", "pooled.parquet"
SCHEMA = pa.schema(
    {
        "latent": pa.int32(), "seeds": pa.int32(), "density": pa.float32(),
        "again": pa.float32(), "again_chance": pa.float32(), "cosine": pa.float32(),
        "again_cofiring": pa.float32(), "again_cofiring_chance": pa.float32(), "cofiring": pa.float32(),
    }
)  # fmt: skip
POOLED_SCHEMA = pa.schema(
    {"latent": pa.int32(), "seed": pa.int64(), "source": pa.int32(), "trainings": pa.int32()}
)  # latent of the pool; the latent that it is, of which training; in how many trainings it is
CERTIFICATES = ("seeds", "again", "again_chance", "again_cofiring", "again_cofiring_chance")  # columns that pages show


def replicas(folder: Path) -> dict[int, Path]:
    """List the folders of the SAEs that were trained again in ``folder``, by seed; there are none if it was skipped."""
    meta = read_meta(folder / "meta.json", META, "stability")
    return {} if meta.get("skipped") else {seed: folder / str(seed) for seed in meta["seeds"]}


def certificates(folder: Path, latents: int) -> dict[str, Any] | None:
    """Read the columns CERTIFICATES of a layer, (latent,) each, with NaN where nothing could be said; None if skipped.

    ``latents``: of the SAE. Raises BadInput where the folder is of an SAE of another size, or damaged.
    """
    meta = read_meta(folder / "meta.json", META, "stability")
    if meta.get("skipped"):
        return None
    if meta["latents"] != latents:
        raise BadInput(f"{folder} is of {meta['latents']} latents, but the SAE has {latents}; {again('stability')}")
    check_hash(folder, LATENTS, meta.get("files", {}), "stability")
    table = pq.read_table(folder / LATENTS, columns=list(CERTIFICATES))
    return {name: table[name].to_numpy() for name in CERTIFICATES}
