"""The two tables that interpret writes, and that explain writes again with what a language model said.

`explanations.parquet`   latent, source, text, name, and the scores, each beside its chance
`names.parquet`          latent, name, named_by; a latent that nothing explains better than chance is missing
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from strata.interpretation import names
from strata.interpretation.explanations import ALL_SCORES, Explanation
from strata.interpretation.read import Latents
from strata.run import files

INT, REAL, WORD = pa.int32(), pa.float64(), pa.string()
EXPLANATIONS = pa.schema(
    {
        "latent": INT, "source": WORD, "text": WORD, "name": WORD,
        **{f"{name}{end}": REAL for name in ALL_SCORES for end in ("", "_chance")},
        "items": INT, "unparsed": INT,
    }
)  # fmt: skip
NAMES = pa.schema({"latent": INT, "name": WORD, "named_by": WORD})


def write(everything: Sequence[Explanation], folder: Path) -> int:
    """Write both tables, by latent, and return how many latents have a name.

    The rule of a latent comes before its other explanations, which stay in their order.
    """
    ordered = sorted(everything, key=lambda explanation: (explanation.latent, explanation.source != "rule"))
    _write([explanation.row() for explanation in ordered], EXPLANATIONS, folder / "explanations.parquet")

    of_latent: dict[int, list[Explanation]] = {}
    for explanation in ordered:
        of_latent.setdefault(explanation.latent, []).append(explanation)
    chosen = {latent: names.chosen(explanations) for latent, explanations in of_latent.items()}
    named = [
        {"latent": latent, "name": name, "named_by": source}
        for latent, (name, source) in chosen.items()
        if name is not None
    ]
    _write(named, NAMES, folder / "names.parquet")
    return len(named)


def _write(rows: list[dict[str, object]], schema: pa.Schema, path: Path) -> None:
    """Write rows as a Parquet file."""
    with files.writing_table(path, schema) as table:
        table.write_table(pa.Table.from_pylist(rows, schema), files.ROW_GROUP)


def read(latents: Latents) -> list[Explanation]:
    """Read the explanations that `explanations.parquet` holds, in its order."""
    table = latents.table("explanations")
    return [
        Explanation(
            latent=row["latent"],
            source=row["source"],
            text=row["text"],
            items=row["items"],
            unparsed=row["unparsed"],
            name=row["name"],
            scores={f"{name}{end}": row[f"{name}{end}"] for name in ALL_SCORES for end in ("", "_chance")},
        )
        for row in ([] if table is None else table.to_pylist())
    ]
