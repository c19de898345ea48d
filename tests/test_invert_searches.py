"""The searches of invert: what is planted is found, and every penalty does what it says."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inverting import (
    CPU,
    LAYER,
    SUN,
    TOKENS,
    greedy_knobs,
    objective_of,
    plain,
    planted,
    soft_knobs,
    source_of,
    without_sun,
)

from strata.inversion import soft as softly
from strata.inversion.baselines import RandomSearch
from strata.inversion.front import front
from strata.inversion.greedy import greedy
from strata.inversion.invert import Source
from strata.inversion.measure import measured
from strata.inversion.objective import Objective, embedded, embeddings, log_probabilities, reads, states, surprise
from strata.inversion.vocabulary import Vocabulary, vocabulary
from strata.lm.model import capture, forward_until, load
from strata.sae.sae import SAE
from strata.seeds import generator


@pytest.fixture(scope="module")
def source(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source_of(gpt2, tmp_path_factory.mktemp("latents") / "1")


@pytest.fixture(scope="module")
def words(source: Source) -> Vocabulary:
    return vocabulary(source.lm, "", TOKENS)


# --- the objective ----------------------------------------------------------------------------------------------------


def test_embeddings_of_tokens_are_what_the_model_makes_of_them(tiny_lm: Path):
    """In every family, the scaled table of Gemma and the added positions of GPT-2 and OPT included."""
    lm = load(tiny_lm, torch.float32, CPU)
    prompts = torch.tensor([[5, 6, 7], [8, 9, 10]])
    ids = torch.cat([torch.full((2, 1), lm.bos), prompts], 1)
    for hook in ("resid_post", "mlp_out"):
        with capture(lm, hook, [2]) as seen:
            forward_until(lm, 2, tokens=ids)
        torch.testing.assert_close(states(lm, hook, 2, embedded(lm, prompts)), seen[2])
    rows, stretch = embeddings(lm)
    torch.testing.assert_close(rows[ids] * stretch, embedded(lm, prompts))
    assert not any(block._forward_hooks for block in lm.blocks)


def test_the_slope_is_that_of_the_last_token(tiny_lm: Path):
    """Against finite differences, in float64."""
    lm = load(tiny_lm, torch.float64, CPU)
    sae = SAE(torch.eye(32), torch.zeros(32), torch.eye(32), torch.zeros(32), threshold=torch.zeros(32))
    objective = Objective(lm, sae, "resid_post", LAYER, 3, 1.0)
    prompt = torch.tensor([5, 6, 7, 8])
    slope = objective.slope(prompt)
    assert objective.calls == 3 and (slope.abs().sum(1) > 0).all()
    start = embedded(lm, prompt[None])
    for place in (0, 3):
        step = torch.zeros_like(start)
        step[0, 1 + place, 0] = 1e-3
        above, below = (float(objective.preactivations(start + sign * step)) for sign in (1, -1))
        assert slope[place, 0].item() == pytest.approx((above - below) / 2e-3, rel=1e-2, abs=1e-3)


def test_h_is_the_saes_own_before_its_rule(source: Source):
    objective, prompts = objective_of(source, 2), torch.tensor([[5, 6, 7]])
    x = states(source.lm, "resid_post", LAYER, embedded(source.lm, prompts))[0, 1:]
    h = source.sae.preactivations(x)[:, 2]
    torch.testing.assert_close(objective.heights(prompts)[0], h[-1])
    torch.testing.assert_close(objective.highest(prompts)[0], h.max())
    assert objective.calls == 2


def test_a_merged_latent_reads_the_sum_of_its_parts(source: Source):
    groups, shares = torch.tensor([0, 0, 1, 1, 2, -1]), torch.tensor([1.0, 0.5, 1, 1, 1, 1])
    merged = replace(source.sae, decoder=source.sae.decoder[:3], b_enc=torch.arange(6.0), groups=groups, shares=shares)
    directions, biases = reads(merged, [0, 2])
    torch.testing.assert_close(directions, merged.directions_read()[[0, 2]])
    assert biases.tolist() == [0.5, 4.0]
    assert reads(source.sae, [3])[0].tolist() == source.sae.encoder[[3]].tolist()


# --- the searches -----------------------------------------------------------------------------------------------------


def test_greedy_search_finds_the_planted_token(tiny_lm: Path):
    lm = plain(tiny_lm)
    words, sae = vocabulary(lm, "", TOKENS), planted(lm)
    objective = Objective(lm, sae, "resid_post", LAYER, 0, 10.0)
    (start,) = without_sun(words, 1)
    climb = greedy(objective, words, start, greedy_knobs(steps=20), 0.0, generator(0))
    again = measured(words, sae, "resid_post", LAYER, 0, climb.prompt)
    peak = max(range(TOKENS), key=lambda place: again.values[place])
    assert again.pieces[peak].strip() == "sun" and again.activation > 0
    assert climb.h > float(objective.highest(start[None]))


def test_soft_search_finds_the_planted_token(source: Source, words: Vocabulary):
    starts = without_sun(words, 3)
    drifts = softly.soft(objective_of(source), softly.table_of(words), starts, soft_knobs(steps=40))
    for drift, start in zip(drifts, starts, strict=True):
        assert SUN in drift.prompt and not torch.equal(drift.prompt, start)
    assert max(drift.h for drift in drifts) > float(objective_of(source).highest(starts).max())


def test_fluency_makes_greedy_search_write_what_the_model_expects(source: Source, words: Vocabulary):
    starts = without_sun(words, 4)

    def found(weight: float) -> tuple[float, float]:
        climbs = [
            greedy(objective_of(source), words, start, greedy_knobs(steps=10), weight, generator(0)) for start in starts
        ]
        costs = [surprise(log_probabilities(source.lm, climb.prompt), climb.prompt) for climb in climbs]
        return sum(climb.h for climb in climbs) / 4, sum(costs) / 4

    (free_h, free_cost), (h, cost) = found(0.0), found(0.5)
    assert cost < free_cost - 0.3 and h < free_h


def test_cross_entropy_is_that_of_transformers(tiny_lm: Path):
    lm = load(tiny_lm, torch.float32, CPU)
    prompt = torch.tensor([5, 6, 7, 8])
    ids = torch.cat([torch.tensor([lm.bos]), prompt])[None]
    with torch.no_grad():
        theirs = float(lm.model(input_ids=ids, labels=ids).loss)
    assert surprise(log_probabilities(lm, prompt), prompt) == pytest.approx(theirs, rel=1e-5)


def penalty(source: Source, words: Vocabulary, name: str, weight: float) -> float:
    """Where soft search ends with a weight of one penalty, by that penalty: the mean over three starts."""
    table, starts = softly.table_of(words), without_sun(words, 3)
    none = dict.fromkeys(("distance", "diversity", "repetition", "fluency"), 0.0)
    objective = objective_of(source)
    drifts = softly.soft(objective, table, starts, soft_knobs(steps=25, lr=0.2, **{**none, name: weight}))
    p = torch.stack([drift.end for drift in drifts])
    _, near = table.near(p, softly.NEAR)
    if name == "distance":
        return float(softly.distance(table, p, near).mean())
    if name == "diversity":
        return float(softly.diversity(p).mean())
    if name == "repetition":
        tokens = near[..., 0]
        return sum(TOKENS - len(row.unique()) for row in tokens) / len(tokens)
    opening = embedded(source.lm, starts)[:, :1]
    _, predicting = objective.with_predictions(torch.cat([opening, p], 1))
    return float(softly.fluency(objective, table, p, near, predicting).mean())


@pytest.mark.parametrize(
    "name, weight", [("distance", 2.0), ("diversity", 5.0), ("repetition", 20.0), ("fluency", 2.0)]
)
def test_a_penalty_lowers_what_it_is_of(source: Source, words: Vocabulary, name: str, weight: float):
    assert penalty(source, words, name, weight) < 0.8 * penalty(source, words, name, 0.0)


@pytest.mark.parametrize("name", ["distance", "diversity", "repetition", "fluency"])
def test_a_penalty_has_a_gradient(source: Source, words: Vocabulary, name: str):
    table, starts = softly.table_of(words), without_sun(words, 2)
    opening, p = embedded(source.lm, starts).split([1, TOKENS], 1)
    p = (p + 0.1 * torch.randn(p.shape, generator=generator(0))).requires_grad_()
    _, near = table.near(p.detach(), softly.NEAR)
    match name:
        case "distance":
            found = softly.distance(table, p, near)
        case "diversity":
            found = softly.diversity(p)
        case "repetition":
            found = softly.repetition(table, p, near)
        case _:
            objective = objective_of(source)
            _, predicting = objective.with_predictions(torch.cat([opening, p], 1))
            found = softly.fluency(objective, table, p, near, predicting)
    (gradient,) = torch.autograd.grad(found.sum(), p)
    assert found.shape == (2,) and (gradient.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", ["repetition", "fluency"])
def test_a_penalty_of_a_start_does_not_depend_on_the_others(source: Source, words: Vocabulary, name: str):
    table, starts = softly.table_of(words), without_sun(words, 3)
    opening, p = embedded(source.lm, starts).split([1, TOKENS], 1)
    p = p + 0.1 * torch.randn(p.shape, generator=generator(0))

    def penalties(several: slice) -> torch.Tensor:
        _, near = table.near(p[several], softly.NEAR)
        if name == "repetition":
            return softly.repetition(table, p[several], near)
        objective = objective_of(source)
        _, predicting = objective.with_predictions(torch.cat([opening[several], p[several]], 1))
        return softly.fluency(objective, table, p[several], near, predicting)

    torch.testing.assert_close(penalties(slice(1)), penalties(slice(3))[:1])


def test_soft_tokens_count_each_token_once(words: Vocabulary):
    """Two positions, near to the tokens 1 and 2 and to 2 and 3: q is a distribution over three tokens."""
    table = softly.table_of(words)
    near = torch.tensor([[[1, 2], [2, 3]]])
    q, choices = softly.soft_tokens(table, table.rows(near[..., 0]), near)
    assert choices.tolist() == [[1, 2, 2, 3]] and q[..., 2].tolist() == [[0, 0]]
    cosines = torch.nn.functional.cosine_similarity(table.rows(torch.tensor([1, 2])), table.rows(torch.tensor([3, 3])))
    torch.testing.assert_close(q.sum(-1), torch.ones(1, 2))
    logits = (q[0, :, 3] / q[0, torch.arange(2), torch.arange(2)]).log()  # of token 3 against the position's own
    torch.testing.assert_close(logits, (cosines - 1) / softly.TEMPERATURE, rtol=1e-4, atol=1e-4)


def test_only_allowed_tokens_are_near(words: Vocabulary):
    table = softly.table_of(words)
    allowed = torch.zeros_like(words.allowed)
    allowed[[1, 2, 3]] = True
    few = dataclasses.replace(table, vocabulary=dataclasses.replace(words, allowed=allowed))
    _, near = few.near(table.rows(torch.tensor([[5, 6]])), softly.NEAR)
    assert near.shape == (1, 2, 3) and set(near.flatten().tolist()) == {1, 2, 3}


def test_random_search_has_as_many_calls_and_one_stream(source: Source, words: Vocabulary):
    def stream(latents: list[int]) -> RandomSearch:
        return RandomSearch(words, source.sae, "resid_post", LAYER, latents, TOKENS, generator(0, "random"))

    first, heights = stream([0, 2]).upto(70, 2)
    again, same = stream([2]).upto(70, 2)
    assert first.shape == (70, TOKENS) and torch.equal(first, again)
    torch.testing.assert_close(heights, same)
    torch.testing.assert_close(heights, objective_of(source, 2).highest(first))
    few, _ = stream([0]).upto(10, 0)
    assert torch.equal(few, first[:10])
    starts = stream([2]).starts(70, 2, 3)  # turned about: the peak is last
    best = heights.topk(3)
    assert [sorted(row) for row in starts.tolist()] == [sorted(row) for row in first[best.indices].tolist()]
    for start, prompt in zip(starts, first[best.indices], strict=True):
        x = states(source.lm, "resid_post", LAYER, embedded(source.lm, prompt[None]))[0, 1:]
        assert start[-1] == prompt[source.sae.preactivations(x)[:, 2].argmax()]


def test_the_front_by_hand():
    assert front([3, 2, 2, 1], [5, 4, 6, 4]) == [True, True, False, False]
    assert front([1, 1], [2, 2]) == [True, False] and front([], []) == []
