"""Opens what merge wrote beside the smaller SAE in `data/merged/<L>/`; the only part of this room that others import.

`groups.parquet`   a row a latent of the SAE that was merged, in the order of merged: latent, merged (the latent of the
                   smaller SAE that it counts towards; null: none), share (how much of its code counts)
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from strata.run.door import BadInput

GROUPS = "groups.parquet"
SCHEMA = pa.schema([("latent", pa.int32()), ("merged", pa.int32()), ("share", pa.float32())])


def members(folder: Path) -> list[list[int]]:
    """List the latents that each latent of the smaller SAE is made of, in rising order.

    ``folder``: `data/merged/<L>/`. Raises BadInput if the table is missing or broken.
    """
    path = folder / GROUPS
    if not path.exists():
        raise BadInput(f"{path} is missing; run merge (`dvc repro`)")
    try:
        table = pq.read_table(path, schema=SCHEMA, filters=[("merged", ">=", 0)])
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path} cannot be read ({str(error).splitlines()[0]}); run merge again") from None

    latent, merged = (table[name].to_numpy() for name in ("latent", "merged"))
    order = np.lexsort((latent, merged))
    ends = np.cumsum(np.bincount(merged))[:-1] if len(merged) else []
    return [group.tolist() for group in np.split(latent[order], ends)] if len(merged) else []
