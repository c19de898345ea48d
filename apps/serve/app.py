"""The HTTP server: what it accepts, how much of it, and what it answers. Bad input gets a 4xx and one sentence."""

import asyncio
import hmac
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from apps.serve.explainer import Explainer, Read, strongest
from apps.serve.listening import is_loopback
from strata.pages.readable import shade
from strata.run.door import BadInput

PAGE, DOCS = (Path(__file__).with_name(name) for name in ("page.html", "docs.html"))
OPEN = {"/", "/docs", "/openapi.json", "/health", "/metrics"}  # paths that need no token
HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")
CHARACTERS = 20_000  # of a text
ROWS = 1024  # vectors of a request
BODY = 2**24  # bytes: ROWS vectors of 1024 numbers as text
BODIES = 2**28  # bytes that the bodies of all requests may take in memory together
WAITING = 64  # requests that may wait for the model; any more get a 503
SECONDS = 30.0  # that a body may take to arrive
SHADES = 10  # of a token's colour
LARGEST = 1.0e18  # number in a vector: its square is still finite in float32


class Strict(BaseModel):
    """A request's JSON, which must not have unknown keys."""

    model_config = ConfigDict(extra="forbid")


class Text(Strict):
    """What to explain."""

    text: str = Field(min_length=1, max_length=CHARACTERS)
    top_n: int = Field(default=10, ge=1, le=256, description="latents in the answer, the strongest first")
    html: bool = Field(default=False, description="also each latent's tokens as highlighted HTML")


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
    """``feature_scores``: latent -> its code on each of ``tokens``."""

    tokens: list[str]
    feature_scores: dict[str, list[float]]
    feature_strengths: dict[str, float]
    features: list[Feature]
    unread_tokens: int


T = TypeVar("T")
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


class Gate:
    """Let one request at a time use the model. Others wait; a request beyond WAITING is refused.

    The model has a thread of its own. Each thread that calls torch gets its own team of workers, and several teams on
    the same cores slow each other down: an answer then took half as long again (benchmarks/serving.py).
    """

    def __init__(self) -> None:
        self._inside, self.model = 0, ThreadPoolExecutor(1, "model")

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work()`` in the model's thread when its turn comes.

        Raises HTTPException: 503 where too many wait, 422 with the sentence of a BadInput.
        """
        if self._inside >= WAITING:
            raise HTTPException(503, "too many requests wait; try again soon", {"Retry-After": "1"})
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.model, work)
        except BadInput as refusal:
            raise HTTPException(422, str(refusal)) from None
        finally:
            self._inside -= 1


class Doorkeeper:
    """Check a request before anything is done for it: its Host, its token, and the size of its body.

    A body must arrive within SECONDS and have at most BODY bytes, even if it does not say how long it is. All bodies in
    memory together have at most BODIES bytes. ``hosts``: names by which the server may be called, beside those of this
    machine; None: any name.
    """

    def __init__(self, app: Any, token: str | None, hosts: frozenset[str] | None) -> None:
        self.app, self.token, self.hosts = app, token, hosts
        self.held = 0  # bytes of all bodies in memory

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        request, parts = Request(scope), []
        refusal = self._wrong_host(request) or self._wrong_token(request)
        try:
            if refusal is None:
                refusal = await asyncio.wait_for(self._take(receive, parts), SECONDS)
        except TimeoutError:
            refusal = problem(408, f"the body did not come within {SECONDS} s")

        try:
            if refusal is not None:
                await refusal(scope, receive, send)
            else:
                await self.app(scope, _replayed(b"".join(parts), receive), send)
        finally:
            self.held -= sum(map(len, parts))

    def _wrong_host(self, request: Request) -> JSONResponse | None:
        """Refuse a Host that is not this server's.

        A page elsewhere can let its own name point to this machine, and so read answers in a visitor's browser. The
        browser then sends that name as the Host.
        """
        host = request.headers.get("host", "")
        match = HOST.fullmatch(host)
        name = match[1].rstrip(".").lower() if match else ""
        if self.hosts is None or name in self.hosts or is_loopback(name):
            return None
        return problem(421, f"this server is not {host[:100]!r}; to let it go by that name, put it in STRATA_HOSTS")

    def _wrong_token(self, request: Request) -> JSONResponse | None:
        """Refuse a request without the server's token, except for the OPEN paths."""
        if self.token is None or request.scope["path"] in OPEN:
            return None

        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(token.strip().encode("latin-1"), self.token.encode())  # headers come as latin-1
        if scheme.lower() == "bearer" and same:
            return None
        challenge = {"WWW-Authenticate": "Bearer"}
        return problem(401, "this server asks for its token as Authorization: Bearer", challenge)

    async def _take(self, receive: Any, parts: list[bytes]) -> JSONResponse | None:
        """Read a request's body into ``parts``, until it ends or exceeds a limit. Return the refusal, or None."""
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return problem(400, "the client has gone")  # nobody reads this answer
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            self.held += len(parts[-1])

            if size > BODY:
                return problem(413, f"the body is larger than {BODY} bytes")
            if self.held > BODIES:
                return problem(503, "too many bodies wait; try again soon", {"Retry-After": "1"})
        return None


def _replayed(body: bytes, receive: Any) -> Callable[[], Awaitable[Any]]:
    """Return an ASGI ``receive`` that gives the whole ``body`` once, and after that what ``receive`` gives."""
    unread: bytes | None = body

    async def receive_again() -> Any:
        nonlocal unread
        if unread is None:
            return await receive()
        message, unread = {"type": "http.request", "body": unread, "more_body": False}, None
        return message

    return receive_again


def problem(status: int, why: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Answer with a ``status`` and one sentence that says ``why``."""
    return JSONResponse({"detail": why}, status, headers)


def make_app(
    explainer: Explainer,
    token: str | None = None,
    pages: Path | None = None,
    gate: Gate | None = None,
    hosts: frozenset[str] | None = None,
) -> FastAPI:
    """Make the application.

    ``token``: the bearer token that requests must carry. ``pages``: the folder of the latents' pages. ``hosts``: names
    by which a request may call the server, beside those of this machine; None: any name.
    """
    registry, gate = CollectorRegistry(), gate or Gate()
    requests = Counter("strata_requests", "requests", ["path", "status"], registry=registry)
    seconds = Histogram("strata_request_seconds", "time to answer", ["path"], registry=registry)
    linked = pages is not None and pages.is_dir() and token is None  # a browser sends no token when it follows a link

    about = "Which latents of a sparse autoencoder a text activates."
    app = FastAPI(title="Strata", description=about, docs_url=None, redoc_url=None)  # FastAPI's pages need a CDN
    guarded: dict[str, Any] = {"responses": REFUSALS}

    @app.middleware("http")
    async def counted(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        response = await answer(request)
        path = getattr(request.scope.get("route"), "path", "other")
        requests.labels(path, response.status_code).inc()
        seconds.labels(path).observe(time.perf_counter() - started)
        return response

    app.add_middleware(Doorkeeper, token=token, hosts=hosts)

    @app.exception_handler(RequestValidationError)
    async def refused(request: Request, error: RequestValidationError) -> JSONResponse:
        first_error = error.errors()[0]
        place = ".".join(str(part) for part in first_error["loc"] if part != "body") or "the body"
        return JSONResponse({"detail": f"{place}: {first_error['msg']}"}, 422)

    @app.exception_handler(BadInput)
    async def damaged(request: Request, refusal: BadInput) -> JSONResponse:
        return problem(503, str(refusal))  # interpret's files were damaged or replaced after the server started

    @app.post("/explain", **guarded)
    async def explain(given: Text) -> Explained:
        return await gate.run(lambda: explained(explainer, explainer.read(given.text), given))

    @app.post("/encode", **guarded)
    async def encode(given: Vectors) -> Encoded:
        return await gate.run(lambda: encoded(explainer, given.vectors))

    @app.get("/latents/{latent}", **guarded, response_model=dict[str, Any])
    def latent(latent: int) -> dict[str, Any]:
        return card(explainer, latent)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return explainer.facts | {"pages": linked}

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return PAGE.read_text(encoding="utf-8")

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> str:
        return DOCS.read_text(encoding="utf-8")

    if linked:
        app.mount("/pages", StaticFiles(directory=str(pages), html=True))
    return app


def explained(explainer: Explainer, found: Read, given: Text) -> Explained:
    """Return the answer of /explain. ``found``: the codes of the text of ``given``, the request."""
    rows = strongest(found, given.top_n)
    features = []
    for latent, strength, codes in rows:
        explanations = explainer.explanations.get(latent) or [{}]
        best_explanation = explanations[0]
        features.append(
            Feature(
                latent=latent,
                strength=strength,
                name=explainer.names.get(latent),
                explanation=best_explanation.get("text"),
                balanced_accuracy=best_explanation.get("balanced_accuracy"),
                chance=best_explanation.get("balanced_accuracy_chance"),
                html=highlighted(found.tokens, codes, strength) if given.html else None,
            )
        )

    return Explained(
        tokens=found.tokens,
        feature_scores={str(latent): codes for latent, _, codes in rows},
        feature_strengths={str(latent): strength for latent, strength, _ in rows},
        features=features,
        unread_tokens=found.left,
    )


def highlighted(tokens: list[str], codes: list[float], strongest: float) -> str:
    """Render tokens as HTML. One with a code is marked by its share of the ``strongest`` code. Texts are escaped."""
    return "".join(
        f'<mark class="a{shade(code, strongest, SHADES)}" title="{code:.3g}">{escape(token)}</mark>'
        if code > 0
        else escape(token)
        for token, code in zip(tokens, codes, strict=True)
    )


def encoded(explainer: Explainer, vectors: list[list[float]]) -> Encoded:
    """Return the answer of /encode. Raises BadInput for a vector of another width than the SAE's."""
    width = explainer.sae.width
    if wrong_widths := {len(vector) for vector in vectors} - {width}:
        raise BadInput(f"a vector has {min(wrong_widths)} numbers, but this SAE reads {width}")

    # The codes of all vectors stand in one list, row after row.
    codes = explainer.codes(torch.tensor(vectors, dtype=torch.float32))
    active = codes.active().tolist()
    rows = zip(codes.pattern.latents.split(active), codes.values.split(active), strict=True)
    return Encoded(codes=[Codes(latents=latents.tolist(), values=values.tolist()) for latents, values in rows])


def card(explainer: Explainer, latent: int) -> dict[str, Any]:
    """Return all that interpret and explain wrote of a latent. Of its examples only the strongest.

    Raises HTTPException 404 for a latent that the SAE does not have, and where nothing was interpreted.
    """
    if not 0 <= latent < explainer.sae.latents:
        raise HTTPException(404, f"there is no latent {latent}; they are 0 to {explainer.sae.latents - 1}")
    if explainer.latents is None:
        raise HTTPException(404, "this server was started without what interpret wrote")

    known: dict[str, Any] = {"latent": latent}
    for name in ("statistics", "explanations", "tokens", "logits", "enrichment", "neighbours", "examples"):
        rows = explainer.latents.rows(name, latent)
        known[name] = [finite({key: row[key] for key in row if key != "latent"}) for row in rows]
    known["statistics"] = known["statistics"][0]
    known["examples"] = [row for row in known["examples"] if row["kind"] == "top"]
    return known


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not have, by null."""
    return {
        name: None if isinstance(value, float) and not abs(value) < float("inf") else value
        for name, value in row.items()
    }
