"""The HTTP server: its requests, and what it answers. Bad input gets a 4xx and one sentence."""

import time
from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from apps.serve.explainer import Explainer, Read, by_row, left_out, ranked
from apps.serve.guard import Doorkeeper, Gate, problem
from apps.serve.live import Desk
from apps.serve.messages import (
    NOT_INTERPRETED,
    REFUSALS,
    Codes,
    Encoded,
    Explained,
    Feature,
    Hit,
    Line,
    Question,
    Text,
    Vectors,
    Write,
)
from apps.serve.pages import Pages, routes
from apps.serve.search import Search
from strata.pages.readable import shade
from strata.run.door import BadInput
from strata.steering.steer import columns

HERE = Path(__file__).parent
FILES = {"/": "page.html", "/live": "live.html", "/docs": "docs.html"}
FILES |= {f"/{name}": name for name in ("style.css", "common.js")}
LINES = "one for the prompt, one for each token that is written, and one for the end, as application/x-ndjson"
SHADES = 10  # of a token's colour


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
    desk, search = Desk(explainer, gate), Search(explainer, gate)
    requests = Counter("strata_requests", "requests", ["path", "status"], registry=registry)
    seconds = Histogram("strata_request_seconds", "time until an answer begins", ["path"], registry=registry)
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
        return await gate.run(lambda: explained(explainer, given))

    @app.post("/encode", **guarded)
    async def encode(given: Vectors) -> Encoded:
        return await gate.run(lambda: encoded(explainer, given.vectors))

    @app.post("/generate", response_class=Response, responses={200: {"model": Line, "description": LINES}, **REFUSALS})
    async def generate(given: Write) -> StreamingResponse:
        """The answer is a line of JSON for the prompt, one for each token that is written, and one for the end."""
        return StreamingResponse(await desk.lines(given), media_type="application/x-ndjson")

    @app.post("/search", **guarded)
    async def find(given: Question) -> list[Hit]:
        return await search.find(given)

    @app.get("/latents/{latent}", **guarded, response_model=dict[str, Any])
    def latent(latent: int) -> dict[str, Any]:
        return card(explainer, latent)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return explainer.facts | {"pages": linked, "guarded": token is not None}

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)  # the latents' pages name none, so that browsers ask for this

    for path, name in FILES.items():
        app.get(path, include_in_schema=False)(_file(name))

    if linked and pages is not None:
        known = explainer.latents
        made = {known.meta["layer"]: Pages(known, pages.parent)} if known is not None else {}
        app.router.routes[:0] = routes(pages, made.get)  # before /latents/{latent}, which is like a link of the report
    return app


def _file(name: str) -> Callable[[], FileResponse]:
    """Return what answers a request for one of FILES."""

    def answer() -> FileResponse:
        return FileResponse(HERE / name, headers={"Cache-Control": "no-cache"})  # the files belong together

    return answer


def explained(explainer: Explainer, given: Text) -> Explained:
    """Return the answer of /explain."""
    found = explainer.read(given.text)
    rows = ranked(explainer, found, given.top_n, given.order)
    words, by_word = _by_word(explainer, given, found, [latent for latent, _, _ in rows])

    features = []
    for latent, strength, codes in rows:
        explanations = explainer.explanations.get(latent) or [{}]
        best_explanation = explanations[0]
        # A sentence has one code, so its words are marked by what each does to that code.
        marked = (found.tokens, codes) if words is None else (words, by_word[latent])
        features.append(
            Feature(
                latent=latent,
                strength=strength,
                name=explainer.names.get(latent),
                explanation=best_explanation.get("text"),
                balanced_accuracy=best_explanation.get("balanced_accuracy"),
                chance=best_explanation.get("balanced_accuracy_chance"),
                html=highlighted(*marked, strength) if given.html else None,
            )
        )

    return Explained(
        tokens=found.tokens,
        feature_scores={str(latent): codes for latent, _, codes in rows},
        feature_strengths={str(latent): strength for latent, strength, _ in rows},
        features=features,
        unread_tokens=found.left,
        left_out=left_out(explainer, found) if given.order == "special" else 0,
        words=words,
        word_scores=None if words is None else {str(latent): by_word[latent] for latent, _, _ in rows},
    )


def _by_word(
    explainer: Explainer, given: Text, found: Read, latents: list[int]
) -> tuple[list[str] | None, dict[int, list[float]]]:
    """Leave each word of a text out, and return the words, and latent -> by how much its code falls without each.

    No words, where the request wants none or the model reads tokens.
    """
    if not given.words or explainer.sentence is None or not latents or not given.text.strip():
        return None, {}
    words, codes = explainer.without_words(given.text)
    chosen = torch.tensor(latents)
    falls = columns(found.codes, chosen) - columns(codes, chosen)  # (1, latent) - (word, latent)
    return words, dict(zip(latents, falls.T.tolist(), strict=True))


def highlighted(tokens: list[str], codes: list[float], strongest: float) -> str:
    """Render tokens as HTML. One with a code is marked by its share of the ``strongest`` code. Texts are escaped.

    A word may have a number below 0, where the latent is stronger without it.
    """

    def rendered(token: str, code: float) -> str:
        if not code:
            return escape(token)
        kind = f"a{shade(code, strongest, SHADES)}" if code > 0 else "less"
        word = token.lstrip(" ") or token  # the space before a word is not marked
        return f'{token[: -len(word)]}<mark class="{kind}" title="{code:.3g}">{escape(word)}</mark>'

    return "".join(map(rendered, tokens, codes))


def encoded(explainer: Explainer, vectors: list[list[float]]) -> Encoded:
    """Return the answer of /encode. Raises BadInput for a vector of another width than the SAE's."""
    width = explainer.sae.width
    if wrong_widths := {len(vector) for vector in vectors} - {width}:
        raise BadInput(f"a vector has {min(wrong_widths)} numbers, but this SAE reads {width}")

    codes = explainer.codes(torch.tensor(vectors, dtype=torch.float32))
    return Encoded(codes=[Codes(latents=latents.tolist(), values=values.tolist()) for latents, values in by_row(codes)])


def card(explainer: Explainer, latent: int) -> dict[str, Any]:
    """Return all that interpret and explain wrote of a latent. Of its examples only the strongest.

    Raises HTTPException 404 for a latent that the SAE does not have, and where nothing was interpreted.
    """
    if not 0 <= latent < explainer.sae.latents:
        raise HTTPException(404, f"there is no latent {latent}; they are 0 to {explainer.sae.latents - 1}")
    if explainer.latents is None:
        raise HTTPException(404, NOT_INTERPRETED)

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
