"""The section train of params.yaml, and the types of its values."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from strata import auto
from strata.rows.size import Size
from strata.run.door import near
from strata.run.params import EachOnce, Section, check
from strata.sae.engine.nonlinearity import Nonlinearity

RuleName = Literal["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated", "reward"]
Init = Literal["kaiming", "orthogonal", "data"]
Outliers = Literal["keep", "shorten", "skip"]
Held = Literal["encoder", "decoder", "near_decoder"]  # what stays random; see `Autoencoder.hold`
FLOAT = 4  # bytes
COPIES = 7  # of an SAE during training: weights, gradients, two moments, the best, the last and the untrained SAE
BY_BATCH = ("batchtopk", "matryoshka")  # these rules take their final threshold from the validation rows
# Why a layer whose SAE was imported has no measure that needs trainings like its own.
GIVEN = "this layer's SAE was given (train.from), so that train's knobs say nothing of it"


class Given(Section):
    """The user's encoder in an `encoder.npz` (strata/formats/npz.py), with which training begins.

    ``sha256`` pins its bytes, because DVC does not watch the file. ``frozen``: encoder and b_enc stay as they are, and
    the decoder alone learns.
    """

    file: str
    sha256: str
    frozen: bool = False


class From(Section):
    """The folder of an SAE that is used without training, as `python -m src.convert` writes it.

    ``sha256`` pins its bytes, because DVC does not watch the folder.
    """

    folder: str
    sha256: str


class Train(Section):
    """How one SAE is trained; params.yaml explains each knob. A step is one batch. Shares are shares of the whole run.

    :func:`strata.auto.train`, which knows the rows, replaces each `auto`. An `auto` that is left gets its value for
    tokens.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    from_: From | None = Field(alias="from")

    rule: RuleName
    latents: int = Field(gt=0, le=10**8)
    k: int = Field(gt=0, le=10**8)
    groups: list[float] = Field(min_length=1)
    bandwidth: float = Field(gt=0)
    l0_coefficient: float = Field(ge=0)
    penalty: Literal["l1", "kl"]
    l1_coefficient: float = Field(ge=0)
    l1_warmup: float = Field(ge=0, le=1)
    l1_delay: float = Field(ge=0, le=1)
    activity_cost: float = Field(ge=0)
    diversity: float = Field(ge=0)
    init: Init
    encoder: Given | None
    decoder_activation: Nonlinearity
    epochs: int = Field(gt=0, le=100000)
    batch_size: int = Field(gt=0, le=16777216)
    micro_batches: int = Field(gt=0)
    window_rows: int = Field(gt=0, le=10**10)
    outliers: Outliers
    lr: float = Field(gt=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    warmup: float = Field(ge=0, le=1)
    decay: Literal["cosine", "linear"]
    decay_from: float = Field(ge=0, le=1)
    clip: float = Field(gt=0)
    auxk: float = Field(ge=0)
    auxk_latents: int = Field(gt=0, le=10**8)
    dead_after: float = Field(gt=0)
    wake: float = Field(ge=0)
    resample_every: int | None = Field(gt=0)
    log_every: int = Field(gt=0, le=10**9)
    validation_rows: int = Field(gt=1, le=10**12)  # one row alone does not vary
    keep_every: int | None = Field(gt=0)
    ce_tokens: int = Field(ge=0, le=10**9)
    from_tune: Annotated[list[str], EachOnce]

    @model_validator(mode="before")
    @classmethod
    def _of_tokens(cls, section: Any) -> Any:
        return auto.train(section, auto.MANY_TOKENS) if isinstance(section, dict) else section

    @model_validator(mode="after")
    def _fits(self) -> "Train":
        if self.k > self.latents:
            raise ValueError(f"k is {self.k}, more than the {self.latents} latents of the dictionary; lower k")
        if self.groups != sorted(set(self.groups)) or self.groups[0] <= 0 or self.groups[-1] != 1:
            raise ValueError(f"groups is {self.groups}; it must rise from above 0 to 1, e.g. [0.125, 0.25, 0.5, 1]")
        if self.batch_size % self.micro_batches:
            raise ValueError(f"micro_batches is {self.micro_batches}; it must divide batch_size ({self.batch_size})")
        if self.encoder is not None and self.encoder.frozen and (self.rule == "gated" or self.resample_every):
            conflict = "rule gated scales" if self.rule == "gated" else "resample_every replaces rows of"
            raise ValueError(f"encoder.frozen is true, but {conflict} the encoder")
        if unknown := [name for name in self.from_tune if name not in Train.model_fields]:
            raise ValueError(
                f"from_tune names {unknown[0]!r}, which is no knob of train{near(unknown[0], Train.model_fields)}"
            )
        return self

    def sae_bytes(self, width: int) -> int:
        """Return the bytes of one SAE's weights in float32.

        These are encoder, decoder and their biases, and the thresholds (latent,) for all rules but top-k. An SAE whose
        decoder ends in tanh or sigmoid also keeps the mean of the training rows (width,).
        """
        thresholds = 0 if self.rule == "topk" else self.latents
        mean = width if self.decoder_activation != "identity" else 0
        return FLOAT * (2 * self.latents * width + self.latents + width + thresholds + mean)

    def training_bytes(self, width: int, rows: int) -> int:
        """Return the bytes that a training on ``rows`` rows takes, to refuse what does not fit before it is allocated.

        These are the copies of the SAE, and two windows of rows in bfloat16: the one in use and the next one.
        """
        window = min(self.window_rows, rows) * width * 2
        return COPIES * self.sae_bytes(width) + 2 * window


def knobs_of(train: dict[str, Any], tuned: dict[str, Any], override: dict[str, Any], layer: int, size: Size) -> Train:
    """Return the checked knobs of one layer's training.

    Later sources win: the section ``train``, then the values ``tuned`` that it takes from tune, then the ``override``
    that ``by_layer`` has for this layer. Each `auto` that is left becomes its value for rows of ``size``. Raises
    BadInput for a knob that does not exist, or whose value does not fit.
    """
    # An error names the sources that took part: "params.yaml: train with tune's lr and by_layer.9".
    sources = []
    if tuned:
        sources.append(f"tune's {', '.join(tuned)}")
    if override:
        sources.append(f"by_layer.{layer}")
    where = f"params.yaml: train with {' and '.join(sources)}" if sources else "params.yaml: train"
    return check(auto.train({**train, **tuned, **override}, size), Train, where)
