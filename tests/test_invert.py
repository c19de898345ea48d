"""Invert: a planted token is found, each penalty does what it says, and what is reported is what the text does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import VOCABULARY, tiny_tokenizer

from src import invert as script
from stages import files, params
from stages.door import BadInput
from stages.interpret.read import Latents, check_origin, chosen, open_latents
from stages.invert import invert as room
from stages.invert import soft as softly
from stages.invert.baselines import RandomSearch
from stages.invert.front import front
from stages.invert.greedy import greedy
from stages.invert.invert import Source, invert
from stages.invert.knobs import Greedy, Invert, Soft
from stages.invert.measure import measured
from stages.invert.objective import Objective, embedded, embeddings, log_probabilities, reads, states, surprise
from stages.invert.pictures import drawable
from stages.invert.vocabulary import Vocabulary, vocabulary
from stages.lm import LanguageModel, capture, forward_until, load
from stages.params import check
from stages.sae import disk
from stages.sae.sae import SAE
from stages.seeds import generator

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
LAYER, TOKENS, LATENTS, DEAD = 1, 6, 6, 5
WORDS = range(4, len(VOCABULARY))  # what is not special
WHERE = "invert.latents"
SUN = VOCABULARY.index("sun")
KNOBS: dict[str, Any] = {
    "run": True,
    "layers": [LAYER],
    "latents": 2,
    "tokens": TOKENS,
    "keep_prefix": "",
    "dtype": "float32",
    "greedy": {
        "starts": {"corpus": 1, "random": 1, "pool": 4},
        "steps": 6,
        "candidates": 8,
        "top": 8,
        "fluency": [0.0, 0.1],
    },
    "soft": {
        "starts": 2,
        "steps": 12,
        "lr": 0.3,
        "distance": 0.1,
        "diversity": 0.0,
        "repetition": 0.0,
        "fluency": 0.0,
    },
    "templates": 3,
}


def knobs(**changes: Any) -> Invert:
    return check({**KNOBS, **changes}, Invert, "params.yaml: invert")


def no_starts(soft: int) -> Invert:
    """Of greedy search; and so many of soft search."""
    starts = {"corpus": 0, "random": 0, "pool": 4}
    return knobs(greedy={**KNOBS["greedy"], "starts": starts}, soft={**KNOBS["soft"], "starts": soft})


def soft_knobs(**changes: Any) -> Soft:
    return knobs(soft={**KNOBS["soft"], **changes}).soft


def greedy_knobs(**changes: Any) -> Greedy:
    return knobs(greedy={**KNOBS["greedy"], **changes}).greedy


def plain(folder: Path) -> LanguageModel:
    """The model of ``folder`` with blocks that add little, so that a token can be told from the stream; and with the
    tokenizer as it was made: transformers opens a folder of Qwen2 with one of bytes, whatever the files say."""
    lm = load(folder, torch.float32, CPU)
    with torch.no_grad():
        for name, parameter in lm.blocks.named_parameters():
            parameter.mul_(0.1 if parameter.dim() > 1 or "post" in name else 1.0)
    return LanguageModel(lm.model, lm.blocks, tiny_tokenizer)


def planted(lm: LanguageModel) -> SAE:
    """Latent j reads how much of a token there is in the residual stream, by least squares over random contexts: about
    10 on the token, 0 elsewhere. The first reads ``sun``."""
    prompts = torch.randint(WORDS[0], WORDS[-1] + 1, (400, TOKENS), generator=generator(0, "contexts"))
    x = states(lm, "resid_post", LAYER, embedded(lm, prompts))[:, 1:].flatten(0, 1)
    names = torch.tensor([SUN, *[word for word in WORDS if word != SUN][: LATENTS - 1]])
    there = (prompts.flatten()[:, None] == names).float()
    rows = 10 * torch.linalg.lstsq(x - x.mean(0), there - there.mean(0)).solution.T
    return SAE(rows, 10 * there.mean(0), rows.clone(), x.mean(0), threshold=torch.full((LATENTS,), 3.0))


def interpreted(folder: Path, lm: LanguageModel, sae: SAE) -> Latents:
    """What the stage reads of interpret's tables, the corpus being random tokens."""
    corpus = torch.randint(WORDS[0], WORDS[-1] + 1, (20, 12), generator=generator(0, "corpus"))
    x = states(lm, "resid_post", LAYER, embedded(lm, corpus))[:, 1:]
    codes = sae.encode(x.flatten(0, 1))
    found = codes.pattern.dense(codes.values).view(20, 12, -1)
    statistics, examples, tokens = [], [], []
    for latent in range(LATENTS):
        dead, best = latent == DEAD, found[..., latent]
        values = {"max": 0.0 if dead else float(best.max()), "importance": float(best.mean())}
        statistics.append({"latent": latent, **values, "dead": dead, "kept": latent != 1})
        for rank, row in enumerate(best.amax(1).argsort(descending=True)[:3].tolist()):
            place = {"rank": rank, "position": int(best[row].argmax()) + 1, "first": 1}
            examples.append({"latent": latent, "kind": "top", **place, "tokens": corpus[row].tolist()})
        for rank, word in enumerate(("sun", "cat", "hills", ".")):
            tokens.append({"latent": latent, "rank": rank, "piece": word})
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {"statistics": statistics, "examples": examples, "tokens": tokens}.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    meta = {"layer": LAYER, "hook": "resid_post", "latents": LATENTS, "width": lm.width, "shards": []}
    files.write_json(folder / "meta.json", {**meta, "model": FACTS, "texts": None})
    return open_latents(folder)


FACTS = {"name": "tiny", "revision": None, "fingerprint": "abc"}


@pytest.fixture(scope="module")
def source(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    lm = plain(gpt2)
    sae = planted(lm)
    return Source(lm, sae, interpreted(tmp_path_factory.mktemp("latents") / "1", lm, sae))


@pytest.fixture(scope="module")
def words(source: Source) -> Vocabulary:
    return vocabulary(source.lm, "", TOKENS)


def objective_of(source: Source, latent: int = 0) -> Objective:
    return Objective(source.lm, source.sae, "resid_post", LAYER, latent, 10.0)


def without_sun(words: Vocabulary, count: int, seed: int = 0) -> torch.Tensor:
    drawn = words.random(200, TOKENS, generator(seed))
    return drawn[(drawn != SUN).all(1)][:count]


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


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(source: Source, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return invert(source, chosen(source.latents, 3, [], WHERE), knobs(), 0, tmp_path_factory.mktemp("work"))


def test_what_is_reported_is_what_the_text_does(source: Source, found: list[dict[str, Any]]):
    """By transformers alone: read the text, put BOS in front, run it, encode, look."""
    lm, tokenizer = source.lm, source.lm.tokenizer
    for row in found:
        for prompt in row["prompts"]:
            tokens = tokenizer(prompt["text"], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[lm.bos, *tokens]])  # pyright: ignore[reportGeneralTypeIssues]
            with torch.no_grad():
                hidden = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[LAYER + 1][0, 1:]
            codes = source.sae.encode(hidden)
            values = codes.pattern.dense(codes.values)[:, row["latent"]]
            assert tokens == prompt["tokens"] and len(tokens) <= TOKENS
            assert prompt["values"] == pytest.approx(values.tolist(), rel=1e-4, abs=1e-4)
            assert prompt["activation"] == max(prompt["values"])
            assert "".join(prompt["pieces"]) == prompt["text"]


def test_specificity_is_over_the_mean_of_the_other_latents(source: Source, words: Vocabulary):
    again = measured(words, source.sae, "resid_post", LAYER, 0, torch.tensor([5, SUN, 7]))
    x = states(source.lm, "resid_post", LAYER, embedded(source.lm, torch.tensor([[5, SUN, 7]])))[0, 1:]
    codes = source.sae.encode(x)
    dense = codes.pattern.dense(codes.values)
    peak = dense[:, 0].argmax()
    others = (dense[peak].sum() - dense[peak, 0]) / (LATENTS - 1)
    if others > 0:
        assert again.specificity == pytest.approx(float(dense[peak, 0] / others), rel=1e-4)
    else:
        assert again.specificity is None


def test_every_method_has_its_rows(found: list[dict[str, Any]]):
    for row in found:
        methods = [(prompt["method"], prompt["start"]) for prompt in row["prompts"] if prompt["best"]]
        assert ("greedy", "corpus") in methods and ("greedy", "random") in methods
        assert methods.count(("soft", "random")) == 2
        (random,) = [prompt for prompt in row["prompts"] if prompt["method"] == "random"]
        assert random["calls"] == row["calls"] > 4
        points = [(prompt["activation"], prompt["cross_entropy"]) for prompt in row["prompts"] if prompt["front"]]
        assert points
        for activation, cost in points:
            assert not any(a > activation and c <= cost for a, c in points)
        for method in ("greedy", "soft", "random"):
            heights = [point["activation"] for point in row["curves"] if point["method"] == method]
            assert heights == sorted(heights) and len(heights) > 0


def test_a_summary_counts_what_beats_what(found: list[dict[str, Any]]):
    report = room.report(LAYER, found)
    assert [row["latent"] for row in report["latents"]] == [row["latent"] for row in found]
    for row in report["latents"]:
        assert row["ratio"] == row["activation"] / row["corpus_max"]
        assert row["beats_random"] == (row["activation"] > row["random"])
        assert row["beats_corpus"] == (row["activation"] > row["corpus_max"])
    assert report["beats_random"] == sum(row["beats_random"] for row in report["latents"]) / len(found)
    json.dumps(report, allow_nan=False)


def test_a_prefix_stays(source: Source, tmp_path: Path):
    maxima = chosen(source.latents, [0], [], WHERE)
    (row,) = invert(source, maxima, knobs(keep_prefix="the cat"), 0, tmp_path)
    for prompt in row["prompts"]:
        assert prompt["text"].startswith("the cat ") and len(prompt["tokens"]) <= TOKENS


def test_no_search_but_one(source: Source, tmp_path: Path):
    """Random starts alone; neither soft search nor templates."""
    starts = {"corpus": 0, "random": 2, "pool": 4}
    only = knobs(
        greedy={**KNOBS["greedy"], "starts": starts, "fluency": [0.0]}, soft={**KNOBS["soft"], "starts": 0}, templates=0
    )
    (row,) = invert(source, chosen(source.latents, [0], [], WHERE), only, 0, tmp_path)
    kinds = [(prompt["method"], prompt["start"]) for prompt in row["prompts"]]
    assert kinds == [("corpus", "corpus"), ("greedy", "random"), ("greedy", "random"), ("random", None)]


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage reads, in `data/` of a folder of its own."""
    root = tmp_path_factory.mktemp("project")
    lm = root / "data" / "lm"
    source.lm.model.save_pretrained(lm)
    source.lm.tokenizer.save_pretrained(lm)
    files.write_json(lm / "meta.json", {"kind": "folder", "trust_remote_code": False, **FACTS})
    interpreted(root / "data" / "latents" / "1", source.lm, source.sae)
    disk.save(root / "data" / "sae" / "1", source.sae, {})
    files.write_json(root / "data" / "clusters" / "1" / "meta.json", {"layer": 1})
    files.write_json(root / "data" / "clusters" / "1" / "selected.json", {"latents": [{"latent": 3}, {"latent": 0}]})
    return root


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the stage with changed knobs, into a folder of that name; return what is there."""
    monkeypatch.chdir(project)

    def go(target: str, seed: int = 0, **changes: Any) -> dict[str, str]:
        values = {**params.read(ROOT / "params.yaml"), "seed": seed, "invert": {**KNOBS, **changes}}
        values["machine"] |= {"device": "cpu", "threads": 1}
        (project / "params.yaml").write_text(yaml.safe_dump(values))
        sae, lm, latents, clusters = "data/sae/1", "data/lm", "data/latents/1", "data/clusters/1"
        script.main(sae, lm, latents, clusters, f"{target}/inverted", f"{target}/report.json")
        there = sorted(path for path in (project / target).rglob("*") if path.is_file())
        return {path.relative_to(project / target).as_posix(): files.sha256(path) for path in there}

    return go


def test_equal_seeds_give_equal_bytes_also_after_a_kill(run, project: Path, monkeypatch: pytest.MonkeyPatch):
    whole = run("whole")
    assert set(whole) == {
        "report.json",
        *(f"inverted/{name}.parquet" for name in ("prompts", "positions", "curves")),
        *(f"inverted/{name}" for name in ("meta.json", "summary.csv", "heatmap.png", "curves.png")),
    }
    assert run("again") == whole and not list((project / ".scratch").glob("invert-*"))
    other = run("other", seed=1)
    assert other["inverted/prompts.parquet"] != whole["inverted/prompts.parquet"]

    def killed(setting: Any, objective: Objective, sae: SAE) -> Any:
        if objective.latent == 0:
            raise KeyboardInterrupt
        return one(setting, objective, sae)

    one = room.one
    monkeypatch.setattr(room, "one", killed)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    assert not (project / "killed").exists()
    (half,) = (project / ".scratch").glob("invert-1-*/3.json")
    done: list[int] = []

    def counted(setting: Any, objective: Objective, sae: SAE) -> Any:
        done.append(objective.latent)
        return one(setting, objective, sae)

    monkeypatch.setattr(room, "one", counted)
    assert run("killed") == whole and done == [0] and not half.exists()


def test_the_tables(run, project: Path):
    run("tables")
    folder = project / "tables" / "inverted"
    report = files.read_json(project / "tables" / "report.json")
    prompts = pq.read_table(folder / "prompts.parquet").to_pylist()
    positions = pq.read_table(folder / "positions.parquet").to_pylist()
    assert [row["latent"] for row in report["latents"]] == [3, 0]  # as cluster ranked them
    assert len(positions) == sum(len(row["tokens"]) for row in prompts)
    assert all(row["piece"] for row in positions)
    soft = [row["prompt"] for row in prompts if row["method"] == "soft" and row["latent"] == 3]
    cosines = [row["cosine"] for row in positions if row["latent"] == 3 and row["prompt"] in soft]
    assert all(value is None or -1 <= value <= 1.001 for value in cosines) and any(value for value in cosines)
    summary = (folder / "summary.csv").read_text().splitlines()
    assert len(summary) == 3 and summary[0].startswith("latent,text,method,start,activation,corpus_max,ratio,random")
    assert files.read_json(folder / "meta.json")["latents"] == [3, 0]
    for name in ("heatmap", "curves"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_asked_for_is_skipped(run, project: Path):
    for target, changes in {"off": {"run": False}, "elsewhere": {"layers": [0]}}.items():
        assert set(run(target, **changes)) == {"inverted/meta.json", "report.json"}
        assert files.read_json(project / target / "report.json") == {"skipped": True}


def test_latents_are_chosen_by_rank_by_name_or_by_importance(source: Source):
    latents = source.latents
    assert list(chosen(latents, 2, [3, 0, 2], WHERE)) == [3, 0]
    assert list(chosen(latents, [4, 2], [3, 0], WHERE)) == [4, 2]
    found = list(chosen(latents, 9, [DEAD, 3], WHERE))
    assert DEAD not in found and len(found) == LATENTS - 1
    assert found[0] == 3 and found[-1] == 1, "first the ranked, last the one that filters drop"


# --- what is turned away ----------------------------------------------------------------------------------------------


def test_mistakes_are_told(source: Source, gpt2: Path):
    lm, latents = source.lm, source.latents
    with pytest.raises(BadInput, match=r"invert.latents names latent 99, but .* has 6: 0 to 5"):
        chosen(latents, [99], [], WHERE)
    with pytest.raises(BadInput, match=r"invert.latents names latent 5, which is dead"):
        chosen(latents, [DEAD], [], WHERE)
    with pytest.raises(BadInput, match=r"names latents twice: \[2, 2\]"):
        chosen(latents, [2, 2], [], WHERE)
    with pytest.raises(BadInput, match=r"keep_prefix: 'the cat sat on a mat' is 6 tokens, which leaves none of .* 6"):
        vocabulary(lm, "the cat sat on a mat", TOKENS)
    with pytest.raises(BadInput, match=r"70 tokens and BOS are more than the 64 that .* reads"):
        vocabulary(lm, "the " * 70, 6)
    with pytest.raises(BadInput, match=r"64 tokens and BOS are more than the 64"):
        vocabulary(lm, "", 64)
    with pytest.raises(BadInput, match=r"'<eos> the' holds a special token"):
        vocabulary(lm, "<eos> the", TOKENS)
    with pytest.raises(BadInput, match=r"of the model tiny, not of other"):
        check_origin(latents, (6, 32), {**FACTS, "name": "other"})
    with pytest.raises(BadInput, match=r"is of 6 latents of width 32, but the SAE has 5 of width 32"):
        check_origin(latents, (5, 32), FACTS)
    with pytest.raises(BadInput, match=r"invert.tokens is 0"):
        knobs(tokens=0)
    with pytest.raises(BadInput, match=r"invert: no search has a start; set greedy.starts.corpus"):
        no_starts(0)
    with pytest.raises(BadInput, match=r"pool is 4, but 9 starts are to be taken from it"):
        no_starts(9)
    with pytest.raises(BadInput, match=r"greedy.fluency"):
        greedy_knobs(fluency=[])


def test_a_vocabulary_without_a_token_is_refused(gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    lm = load(gpt2, torch.float32, CPU)
    monkeypatch.setattr(Vocabulary, "survive", lambda _, prompts: torch.zeros(len(prompts), dtype=torch.bool))
    with pytest.raises(BadInput, match=r"no token of .* comes back when its text is read"):
        vocabulary(lm, "", TOKENS)


def test_a_prefix_that_swallows_what_follows_is_refused(source: Source, monkeypatch: pytest.MonkeyPatch):
    words = vocabulary(source.lm, "the", TOKENS)
    monkeypatch.setattr(Vocabulary, "survive", lambda _, prompts: torch.zeros(len(prompts), dtype=torch.bool))
    with pytest.raises(BadInput, match=r"keep_prefix: 'the' and random tokens after it are other tokens"):
        words.random(2, TOKENS, generator(0))


def test_special_tokens_are_never_chosen(words: Vocabulary):
    assert words.allowed.nonzero().flatten().tolist() == list(WORDS)


def test_a_sign_that_no_font_has_is_a_box():
    assert drawable("cat 艺 ж\n") == "cat □ ж□"
