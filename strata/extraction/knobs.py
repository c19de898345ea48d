"""The section extract of params.yaml."""

from pydantic import Field

from strata.run.params import DType, Hook, Layers, Section


class Extract(Section):
    """Which activations, of how many tokens, and how the model is run. See params.yaml. ``layers``: null for those of
    the top-level ``layers``."""

    layers: Layers | None
    hook: Hook
    tokens: int = Field(gt=0, le=10**12)
    context: int = Field(gt=1, le=1048576)
    pack: bool
    batch_size: int = Field(gt=0, le=65536)
    dtype: DType
    normalize: bool
    shard_rows: int = Field(gt=0, le=2147483648)
