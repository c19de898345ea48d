"""The parts of params.yaml that costs depend on; each stage checks its own section whole."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.lm import Hook
from stages.params import check
from stages.sae.knobs import Train


class Part(BaseModel):
    """Some keys of a section: strict types, the other keys are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class LM(Part):
    kind: Literal["language", "sentence", "vectors"]
    source: str | None
    revision: str | None


class Corpus(Part):
    documents: int | None
    validation: float = Field(ge=0, lt=1)
    test: float = Field(ge=0, lt=1)


class Fetch(Part):
    lm: LM
    corpus: Corpus


class Extract(Part):
    hook: Hook
    tokens: int = Field(gt=0)
    context: int = Field(gt=1)
    pack: bool
    batch_size: int = Field(gt=0)
    dtype: Literal["bfloat16", "float16", "float32"]
    shard_rows: int = Field(gt=0)


class Tune(Part):
    run: bool
    calls: int = Field(gt=0)
    rows: int | None
    epochs: int = Field(gt=0)


class Examples(Part):
    top: int
    decile: int
    random: int
    zero: int
    near: int


class Explain(Part):
    model: str | None
    layers: list[int]
    latents: int
    range: list[int] | None


class Interpret(Part):
    run: bool
    window: int
    examples: Examples
    exports: list[str]
    explain: Explain


class Run(Part):
    run: bool


class Merge(Run):
    latents: float | None
    encoder: str
    curve: list[float]
    ce_tokens: int


class Starts(Part):
    corpus: int
    random: int
    pool: int


class Greedy(Part):
    starts: Starts
    steps: int
    candidates: int


class Soft(Part):
    starts: int
    steps: int


class Invert(Run):
    layers: list[int]
    latents: int | list[int]
    tokens: int
    greedy: Greedy
    soft: Soft


class Generate(Part):
    prompts: int
    strengths: list[float]
    tokens: int


class SteerEval(Run):
    layers: list[int]
    latents: int | list[int]
    strengths: list[float]
    prompts: int
    tokens: int
    texts: list[str]
    generate: Generate


class Evaluate(Run):
    meta: int
    stability: int
    absorption: int


class Machine(Part):
    threads: int


class Params(Part):
    """params.yaml, as far as a plan looks at it."""

    seed: int
    layers: list[int] = Field(min_length=1)
    by_layer: dict[int | str, dict[str, Any]]  # DVC writes a number that `-S` adds as text
    fetch: Fetch
    extract: Extract
    tune: Tune
    train: Train
    interpret: Interpret
    cluster: Run
    merge: Merge
    invert: Invert
    steer_eval: SteerEval
    evaluate: Evaluate

    def knobs(self, layer: int) -> Train:
        """The section train with what ``by_layer`` says of a layer; what tune will find is not known yet."""
        own = self.by_layer.get(layer) or self.by_layer.get(str(layer)) or {}
        where = f"params.yaml: train with by_layer.{layer}"
        return check({**self.train.model_dump(), **own}, Train, where) if own else self.train
