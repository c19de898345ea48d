"""Steering, evaluated: what is planted is found, what is not there is not, and the numbers are those of the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import test_interpret
import torch
import yaml
from conftest import VOCABULARY
from killing import Killed, survives

from strata.interpretation.read import open_latents
from strata.lm.model import final_states, load, logits
from strata.measure.partners import Firing, firing, partners
from strata.run import params
from strata.run.door import BadInput
from strata.run.files import read_json, write_skipped
from strata.run.params import check
from strata.sae.sae import SAE
from strata.steering import steer_eval as room
from strata.steering import twins
from strata.steering.conditions import Condition, Place, conditions, difference
from strata.steering.doses import Response, TargetTokens, _Predictions, responses
from strata.steering.knobs import SteerEval
from strata.steering.steer import Add, steer
from strata.steering.summary import best, compared, drawn, monotone
from strata.steering.texts import held_out, padded
from strata.steering.write import generate, read_back, repetition

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
LAYER, LATENTS, TOKEN, PLANTED, DEAD = 3, 40, 9, 5, 6
STRENGTHS = [-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0]
PROMPTS = [[1, *np.random.default_rng(number).integers(4, len(VOCABULARY), 6 + number % 3)] for number in range(12)]


@pytest.fixture(scope="module")
def place(gpt2: Path) -> Place:
    """The last layer of a tiny model, and an SAE one of whose latents writes what makes a token likelier."""
    lm = load(gpt2, torch.float32, CPU)
    random = torch.Generator().manual_seed(3)
    decoder = torch.nn.functional.normalize(torch.randn(LATENTS, lm.width, generator=random), dim=1)
    head = lm.model.get_output_embeddings()
    assert head is not None
    direction = head.weight[TOKEN].detach().float() - head.weight.detach().float().mean(0)  # pyright: ignore[reportCallIssue, reportArgumentType, reportIndexIssue]
    decoder[PLANTED] = direction / direction.norm()
    threshold = torch.full((LATENTS,), 0.5)
    threshold[DEAD] = 1e9
    return Place(
        lm, SAE(decoder, torch.zeros(LATENTS), decoder, torch.zeros(lm.width), threshold=threshold), LAYER, "resid_post"
    )


def knobs(**changes: Any) -> SteerEval:
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["steer_eval"]
    generate = {"prompts": 2, "strengths": [-1, 0, 1], "tokens": 3}
    small = {"latents": 2, "prompts": 5, "tokens": 4, "bootstraps": 50, "generate": generate, "batch_size": 3}
    return check({**values, **small, **changes}, SteerEval, "params.yaml: steer_eval")


def judged(place: Place, latent: int, largest: float = 4.0) -> dict[str, Any]:
    """What the stage says of a latent, told to look at the planted token."""
    others = np.delete(np.arange(LATENTS), [PLANTED, DEAD])
    away = torch.randn(place.sae.width, generator=torch.Generator().manual_seed(8))
    steered = conditions(place.sae, latent, largest, others, away, torch.Generator().manual_seed(1))
    assert [one.name for one in steered] == ["latent", "random latent", "random direction", "DiffMean"]
    for one in steered:
        assert float(one.offset.norm()) == pytest.approx(largest, rel=1e-5)
    wanted = TargetTokens(torch.tensor([TOKEN]), torch.tensor([], dtype=torch.long))
    found = responses(place, padded(PROMPTS, 2), [(one, wanted) for one in steered], STRENGTHS, 5)
    return room._judged(steered, found, knobs(kl=2.0), np.random.default_rng(0))


def test_a_planted_latent_has_a_monotone_response_and_beats_all(place: Place):
    found = judged(place, PLANTED)
    assert found["monotone"] == 1.0 and found["beats_all"] and found["follows"] is None
    assert found["promoted"]["best"]["latent"]["effect"] > 0.5
    assert all(point["kl"] >= 0 for points in found["doses"].values() for point in points)
    assert found["doses"]["latent"][2] == {"strength": 0.0, "promoted": 0.0, "follows": None, "kl": 0.0}


def test_a_dead_or_random_latent_does_not(place: Place):
    """Of four directions that nothing distinguishes each is the best one time in four."""
    found = [judged(place, latent) for latent in (DEAD, *range(10, 26))]
    assert sum(one["beats_all"] for one in found) <= len(found) / 4 and not found[0]["beats_all"]
    planted = judged(place, PLANTED)["promoted"]["best"]["latent"]["effect"]
    assert max(one["promoted"]["best"]["latent"]["effect"] for one in found) < 0.7 * planted


def test_doses_are_what_the_model_says(place: Place):
    """By hand: one text at a time, without padding, the whole softmax."""
    lm, texts = place.lm, padded(PROMPTS[:4], 3)
    wanted = TargetTokens(torch.tensor([7, 8]), torch.tensor([5, 5, 6]))
    steered = conditions(place.sae, 2, 3.0, np.arange(LATENTS), None, torch.Generator())
    (dose, *_) = responses(place, texts, [(one, wanted) for one in steered], [0.0, 1.5], 3)

    def predicted(text: list[int]) -> torch.Tensor:
        return logits(lm, final_states(lm, torch.tensor([text]))[0, -3:]).log_softmax(1)

    for number, text in enumerate(PROMPTS[:4]):
        before = predicted(text)
        with steer(lm, place.sae, {2: Add(4.5)}, LAYER):
            after = predicted(text)
        moved = after - before
        assert dose.promoted[1, number] == pytest.approx(float(moved[:, [7, 8]].mean()), abs=1e-4)
        assert dose.follows[1, number] == pytest.approx(float(moved[:, [5, 5, 6]].mean()), abs=1e-4)
        assert dose.kl[1, number] == pytest.approx(float((before.exp() * -moved).sum(1).mean()), abs=1e-4)
    assert not any(values[0].any() for values in dose)


def test_batches_change_nothing(place: Place):
    steered = conditions(place.sae, 2, 3.0, np.arange(LATENTS), None, torch.Generator())
    run = [(one, TargetTokens(torch.tensor([7]), torch.tensor([5]))) for one in steered]
    one, all_ = (responses(place, padded(PROMPTS, 2), run, STRENGTHS, batch) for batch in (1, 12))
    np.testing.assert_allclose(np.array(one), np.array(all_), atol=1e-4)


def test_what_is_written_is_what_steered_generation_writes(place: Place):
    lm, sae = place.lm, place.sae
    steered = conditions(sae, PLANTED, 4.0, np.arange(LATENTS), None, torch.Generator().manual_seed(0))
    runs: list[tuple[Condition | None, float]] = [(None, 0.0), (steered[0], 50.0), (steered[2], -5.0)]
    found = generate(place, PROMPTS[:3], runs, 4)
    assert len(found) == 9 and all(len(text) == 4 for text in found)
    for number, (condition, strength) in enumerate(runs):
        for prompt, text in zip(PROMPTS[:3], found[3 * number :], strict=False):
            whole = [*prompt, *text]
            with condition.applied(place, strength) if condition else steer(lm, sae, {}, LAYER):
                states = final_states(lm, torch.tensor([whole]))
            scores = logits(lm, states[0, len(prompt) - 1 : -1])
            scores[:, 2] = -torch.inf  # no text ends early
            assert scores.argmax(1).tolist() == text
    assert TOKEN in found[3] and TOKEN not in found[0]
    back = read_back(place, PROMPTS[:3] * 3, found, PLANTED, 4.0)
    clean = final_states(lm, torch.tensor([[*PROMPTS[1], *found[4]]]))[0, len(PROMPTS[1]) - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits(lm, clean), torch.tensor(found[4]))
    assert back[4]["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)


def test_repetition_by_hand():
    assert repetition([1, 2, 1, 2]) == pytest.approx(1 / 3) and repetition([1, 2, 3]) == 0 and repetition([1]) == 0


def test_the_best_effect_is_within_the_bound():
    # Twice the strength, four times the cost: at 0.5625 the root is 0.75, half way from strength 1 to 2.
    strengths, cost = [2.0, -1.0, 1.0], np.array([[1.0, 1.0], [0.25, 0.25], [0.25, 0.25]])
    effect = np.array([[4.0, 6.0], [-1.0, -1.0], [1.0, 3.0]])
    found = [best(strengths, effect, cost, bound) for bound in (0.5625, 0.25, 0.0625, 9.0)]
    assert [[float(value[0]) for value in one] for one in found] == [
        [1.5, 2.5, 0.5625], [1.0, 1.0, 0.25], [0.5, 0.5, 0.0625], [2.0, 4.0, 1.0],
    ]  # fmt: skip
    assert best(strengths, -np.abs(effect), cost, 9.0).effect.tolist() == [0.0, 0.0], "not steering is better"
    draws = drawn(2, 200, np.random.default_rng(0))
    gained = compared(strengths, (effect, cost), (np.zeros_like(effect), cost), 0.25, draws)
    assert gained == {"difference": 2.0, "low": 1.0, "high": 3.0, "beats": True}
    assert not compared(strengths, (effect, cost), (effect, cost), 0.25, draws)["beats"]
    assert monotone([-1, 0, 1], np.array([[-2.0], [0.0], [1.0]])) == 1.0 and monotone([0, 1], np.zeros((2, 1))) is None


def test_a_twin_fires_as_counted_by_hand():
    """Latent 0 reads the first number, latent 1 the second, above 0.5; latent 2 is dead."""
    encoder = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    sae = SAE(encoder, torch.zeros(3), encoder, torch.zeros(2), threshold=torch.full((3,), 0.5))
    rows = [torch.tensor([[2.0, 0.0], [3.0, 1.0]]), torch.tensor([[0.1, 0.0], [0.2, 0.4]])]
    fires = firing(sae, rows)
    assert fires.density.tolist() == [0.5, 0.25, 0.0] and fires.largest.tolist() == [3.0, 1.0, 0.0]

    density = np.array([0.2, 0.6, 0.9])
    assert partners(density, [0, 1], fires, 0) == {0: 1, 1: 0}, "the nearest that fires as often"
    assert len(partners(density, [0, 1, 2], fires, 0)) == 2, "the dead one is no partner"


def test_twins_are_compared_as_by_hand():
    """Own effects 2 and 4, the twins' 1 and 1; of two prompts, alike, so that no draw of prompts changes anything."""

    def response(effect: float) -> Response:
        doses = np.array([[0.0, 0.0], [effect, effect]])
        return Response(doses, doses, np.array([[0.0, 0.0], [0.1, 0.1]]))

    own, other = {5: response(2.0), 7: response(4.0)}, {1: response(1.0), 2: response(1.0)}
    random = np.random.default_rng(0)
    settings = knobs(strengths=[0.0, 1.0], kl=0.5)
    found = twins.beside(own, {5: 1, 7: 2}, other, settings, drawn(2, 200, random), random)
    assert found["partners"] == [[5, 1], [7, 2]] and found["latents"] == 2
    assert (found["own"], found["effect"], found["difference"]) == (3.0, 1.0, 2.0)
    assert (found["low"], found["high"]) == (1.0, 3.0), "both draws are the first latent, or both the second"
    assert twins.beside(own, {}, other, settings, drawn(2, 200, random), random) == {"latents": 0}


def test_a_random_twin_promotes_its_own_tokens_and_an_equal_one_is_no_worse(place: Place):
    """The planted latent beats those of a random decoder. As a twin of itself it has the same effect to the bit."""
    chosen, density = [PLANTED], np.where(np.arange(LATENTS) == DEAD, 0.0, 0.3)
    texts, settings = padded(PROMPTS, 2), knobs(kl=2.0, promoted=1, strengths=STRENGTHS)
    planted = Condition("latent", place.sae.decoder[PLANTED] * 4.0, PLANTED, 4.0)
    wanted = TargetTokens(torch.tensor([TOKEN]), torch.tensor([], dtype=torch.long))
    own = {PLANTED: responses(place, texts, [(planted, wanted)], STRENGTHS, settings.batch_size)[0]}

    same = Firing(np.where(np.arange(LATENTS) == PLANTED, 0.3, 0.0), np.full(LATENTS, 4.0, np.float32))
    partner_of = partners(density, chosen, same, 0)
    assert partner_of == {PLANTED: PLANTED}
    twin = twins.steered(place, same, [PLANTED], 1, texts, settings, None)
    np.testing.assert_array_equal(np.array(twin[PLANTED])[[0, 2]], np.array(own[PLANTED])[[0, 2]])

    random = np.random.default_rng(0)
    others = Firing(np.where(np.isin(np.arange(LATENTS), [PLANTED, DEAD]), 0.0, 0.3), same.largest)
    partner_of = partners(density, chosen, others, 0)
    twin = twins.steered(place, others, list(partner_of.values()), 1, texts, settings, None)
    found = twins.beside(own, partner_of, twin, settings, drawn(len(PROMPTS), 200, random), random)
    assert found["low"] > 0 and found["own"] > found["effect"] > 0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, gpt2: Path) -> tuple[SAE, room.Source]:
    """Latents as interpret writes them."""
    folder, sae = tmp_path_factory.mktemp("layer"), test_interpret.make_sae()
    documents, labels = test_interpret.texts()
    held_out = [[int(t) for t in np.random.default_rng(n).integers(4, 27, 12)] for n in range(8)]
    from_ = test_interpret.make_source(folder / "rows", gpt2, documents, labels, held_out)
    from_ = replace(from_, titles=[*from_.titles, *["held out"] * 8], labels=[*labels, *[None] * 8])
    (folder / "work").mkdir()
    test_interpret.interpret(sae, from_, test_interpret.knobs(), 0, folder / "latents", folder / "work")
    latents = open_latents(folder / "latents")
    chosen = dict.fromkeys([20, 3], 4.0)
    assert from_.vocabulary.lm is not None
    return sae, room.Source(from_.activations, from_.contexts, latents, chosen, from_.vocabulary.lm)


def test_difference_is_the_mean_on_minus_the_mean_off(source: tuple[SAE, room.Source]):
    sae, from_ = source
    first, end = from_.activations.split("train")
    x = from_.activations.read(first, end).float()
    codes = sae.encode(x)
    on = codes.pattern.dense(codes.values)[:, 20] > 0
    rows = replace(from_.activations, meta={**from_.activations.meta, "mean": x.double().mean(0).tolist()})
    found = difference(rows, from_.latents, 20)
    assert found is not None
    torch.testing.assert_close(found, x[on].mean(0) - x[~on].mean(0), rtol=1e-3, atol=1e-4)
    assert difference(rows, from_.latents, test_interpret.DEAD) is None


def test_the_stage_writes_all_and_repeats(source: tuple[SAE, room.Source], tmp_path: Path):
    sae, from_ = source
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    found = room.steer_eval(sae, from_, knobs(texts=["the cat sat"]), 0, tmp_path / "a")
    assert room.steer_eval(sae, from_, knobs(texts=["the cat sat"]), 0, tmp_path / "b") == found
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    json.dumps(found, allow_nan=False)
    assert [row["latent"] for row in found["latents"]] == [20, 3] and found["prompts"] == 6
    table = pq.read_table(tmp_path / "a" / "doses.parquet").to_pylist()
    assert len(table) == 2 * 4 * 7 * 6 and not any(row["kl"] for row in table if row["strength"] == 0)
    for row in found["latents"]:
        assert list(row["promoted"]["best"]) == ["latent", "random latent", "random direction", "DiffMean"]
        assert len(row["written"]) == 3 * (1 + 4 * 2) and len(row["promoted_tokens"]) == 10
        key = row["latent"], "latent", 1.0
        mine = [one["promoted"] for one in table if (one["latent"], one["condition"], one["strength"]) == key]
        assert row["doses"]["latent"][5]["promoted"] == pytest.approx(np.mean(mine))
    beside = room.steer_eval(
        sae, replace(from_, twins={"itself": sae}), knobs(texts=["the cat sat"]), 0, tmp_path / "b"
    )
    assert found["twins"] == {} and {**beside, "twins": {}} == found, "twins change nothing else"
    assert beside["twins"]["itself"]["latents"] == 2
    alone = room.steer_eval(sae, replace(from_, chosen={3: 4.0}), knobs(texts=["the cat sat"]), 0, tmp_path / "b")
    assert alone["latents"][0]["doses"] == found["latents"][1]["doses"], "a latent's numbers are its own"


def test_after_a_kill_it_goes_on_at_the_latent_where_it_was(
    source: tuple[SAE, room.Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed in a latent's doses, then while the second latent's text is written: 3 batches of prompts, of 2 latents
    with 4 conditions each, at 6 strengths."""
    sae, from_ = source
    text = knobs(texts=["the cat sat"])
    for name in ("whole", "pieces", "work"):
        (tmp_path / name).mkdir()
    whole = room.steer_eval(sae, from_, text, 0, tmp_path / "whole")

    def again() -> Any:
        return room.steer_eval(sae, from_, text, 0, tmp_path / "pieces", tmp_path / "work")

    with monkeypatch.context() as killing, pytest.raises(Killed):
        survives(killing, _Predictions, "compared", 6 * 5 + 1)
        again()
    with monkeypatch.context() as killing, pytest.raises(Killed):
        compared_again = survives(killing, _Predictions, "compared", 1000)
        survives(killing, room, "read_back", 1)
        again()
    assert len(compared_again) == 6 * (2 * 8 - 5), "five conditions were kept"
    with monkeypatch.context() as killing:
        survives(killing, _Predictions, "compared", 0)
        written = survives(killing, room, "read_back", 1)
        assert again() == whole
    assert len(written) == 1
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "pieces" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"texts": [" "]}, "one of texts is empty"),
        ({"texts": ["the " * 70]}, "has 71 tokens, and 3 are written behind it; the model reads 64"),
        ({"tokens": 16}, "steer_eval.tokens is 16, but a context has 16 tokens, BOS included"),
        ({"prompts": 9}, "steer_eval.prompts is 9, but 8 test contexts begin with 4 tokens of one document"),
        ({"strengths": []}, "strengths"),
    ],
)
def test_bad_input_is_one_sentence(
    source: tuple[SAE, room.Source], tmp_path: Path, changes: dict[str, Any], sentence: str
):
    sae, from_ = source
    with pytest.raises(BadInput, match=sentence) as refusal:
        room.steer_eval(sae, from_, knobs(**changes), 0, tmp_path)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_texts_without_a_test_split_are_held_out_as_a_whole(source: tuple[SAE, room.Source]):
    contexts = source[1].contexts
    _, end = contexts.split("test")
    unsplit = replace(contexts, meta={**contexts.meta, "contexts": {"train": [0, end], "test": [end, end]}})
    ids, documents = contexts.read(0, end)
    beginnings = zip(ids[:, :5].tolist(), documents[:, 1:5].tolist(), strict=True)
    usable = [tokens for tokens, owners in beginnings if len({*owners}) == 1 and owners[0] >= 0]
    assert held_out(unsplit, len(usable), 4) == usable
    assert [len(part) for part in unsplit.read(end, end)] == [0, 0]


def test_where_nothing_is_promoted_it_does_not_apply(
    source: tuple[SAE, room.Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    latents = source[1].latents
    files = {name: sha256 for name, sha256 in latents.meta["files"].items() if name != "logits.parquet"}
    untold = replace(latents, folder=tmp_path, meta={**latents.meta, "files": files})
    assert room.applicable(latents) and not room.applicable(untold)
    write_skipped(tmp_path / "steered", tmp_path / "steer_eval" / "9.json", "not applicable: no head")
    found = read_json(tmp_path / "steer_eval" / "9.json")
    assert found == read_json(tmp_path / "steered" / "meta.json") == {"skipped": True, "why": "not applicable: no head"}
    assert capsys.readouterr().err == "steer_eval: skipped, not applicable: no head\n"


def test_the_defaults_are_well_formed():
    assert params.load("steer_eval", SteerEval, ROOT / "params.yaml").strengths.count(0) == 1
