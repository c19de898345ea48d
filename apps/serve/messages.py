"""What the server is asked and what it answers: the JSON of each request, its limits, and the refusals."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from apps.serve.explainer import Order

CHARACTERS = 20_000  # of a text
ROWS = 1024  # vectors of a request
NOT_INTERPRETED = "this server was started without what interpret wrote"
LARGEST = 1.0e18  # number in a vector: its square is still finite in float32


class Strict(BaseModel):
    """A request's JSON, which must not have unknown keys."""

    model_config = ConfigDict(extra="forbid")


class Text(Strict):
    """What to explain."""

    text: str = Field(min_length=1, max_length=CHARACTERS)
    top_n: int = Field(default=10, ge=1, le=256, description="latents in the answer")
    order: Order = Field(
        default="special",
        description="special: first those whose code is large for them and that are rare, without those that the "
        "filters of interpret dropped; strength: all, by their largest code",
    )
    html: bool = Field(default=False, description="also each latent's tokens as highlighted HTML")
    words: bool = Field(default=False, description="of a sentence model: also what each word does, by leaving it out")


class Feature(BaseModel):
    """One latent on a text."""

    latent: int
    strength: float = Field(description="its largest code")
    name: str | None = Field(description="what it stands for, in few words; null where nothing beats chance")
    explanation: str | None
    balanced_accuracy: float | None = Field(description="of the explanation, on text that it was not made from")
    chance: float | None = Field(description="the same with other latents' explanations")
    html: str | None


class Explained(BaseModel):
    """``feature_scores``: latent -> its code on each of ``tokens``.

    ``word_scores``: latent -> by how much its code falls when each of ``words`` is left out.
    """

    tokens: list[str]
    feature_scores: dict[str, list[float]]
    feature_strengths: dict[str, float]
    features: list[Feature]
    unread_tokens: int
    left_out: int = Field(
        description="active latents that the order leaves out, because the filters of interpret dropped them"
    )
    words: list[str] | None = None
    word_scores: dict[str, list[float]] | None = None


Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]


class Vectors(Strict):
    """What to encode: activations as the model gives them."""

    vectors: list[list[Number]] = Field(min_length=1, max_length=ROWS)


class Codes(BaseModel):
    """The active latents of one vector, and the code of each."""

    latents: list[int]
    values: list[float]


class Encoded(BaseModel):
    """The answer of /encode: codes for each vector, in the request's order."""

    codes: list[Codes]


class Write(Strict):
    """What to write, and what to steer with."""

    text: str = Field(min_length=1, max_length=CHARACTERS, description="the beginning, which the model goes on with")
    tokens: int = Field(default=40, ge=1, le=512, description="to write")
    steer: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default={},
        max_length=16,
        description="latent -> how often its largest code is added to its code at every token that is not special; "
        "where interpret did not run, 1 is added in place of the largest code",
    )
    temperature: float = Field(default=0.0, ge=0.0, le=10.0, description="0: always the likeliest token")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of what is drawn with a temperature")
    top_n: int = Field(default=5, ge=1, le=64, description="latents of a token, the most special first")


class Light(BaseModel):
    """A latent that is active on a token."""

    latent: int
    code: float
    share: float | None = Field(default=None, description="of its largest code; missing where interpret did not run")
    name: str | None = Field(default=None, description="missing where nothing beats chance")


class Token(BaseModel):
    """A token of the text, and the latents that are active on it."""

    token: str
    latents: list[Light]


class Line(BaseModel):
    """A line of the answer of /generate: first the prompt, then token by token, and at the end why it ends."""

    prompt: list[Token] | None = None
    token: Token | None = None
    end: str | None = Field(default=None, description="why the text ends")
    text: str | None = Field(default=None, description="with the end: all of it, prompt included")


class Question(Strict):
    """What to look for among the latents."""

    query: str = Field(min_length=1, max_length=1000, description="a meaning, in words")
    top_n: int = Field(default=20, ge=1, le=256)


class Hit(BaseModel):
    """A latent whose name or contexts are near to a query."""

    latent: int
    name: str | None
    cosine: float = Field(description="of the query and what is nearest to it: the name, or the strongest contexts")
    by: str = Field(description="which of the two that is: name or contexts")
    context: str = Field(description="the strongest one, with the token in « »")


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": why}
    for code, why in {
        400: "no JSON",
        401: "no token",
        404: "not there",
        413: "too large",
        421: "another host's name",
        422: "not usable",
        503: "too many requests wait",
    }.items()
}
