"""The front door: each thing that Strata does, as one call on values in memory, from any folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_tiny_lm

import strata
from strata import defaults, notebook
from strata.defaults import changed
from strata.front.activations import LayerActivations, which
from strata.sae.sae import SAE

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sits",
    "runs",
    "on",
    "mat",
    "red",
    "blue",
    "of",
    "and",
    "man",
    "house",
    "tree",
    "sea",
]


def texts(count: int = 60) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 40)) for _ in range(count)]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory):
    folder = save_tiny_lm(tmp_path_factory.mktemp("front") / "lm", "gpt2")
    return strata.load_lm(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def acts(lm) -> dict[int, LayerActivations]:
    return strata.activations(lm, texts(), layers=[1, 2], context=32, labels=["x", "y"] * 30)


@pytest.fixture(scope="module")
def sae(acts: dict[int, LayerActivations]):
    return strata.train(acts[2], rule="topk", latents=64, k=4, epochs=3)


@pytest.fixture(scope="module")
def latents(sae, acts: dict[int, LayerActivations]):
    return strata.latents(sae, acts[2])


def test_rows_are_what_the_model_has_there(lm, acts: dict[int, LayerActivations]):
    """hidden_states[L + 1] of transformers, special tokens left out, in the order of the contexts."""
    rows = acts[2]
    tokens, documents = rows.contexts.read(*rows.contexts.split("train"))
    with torch.inference_mode():
        states = lm.model(torch.from_numpy(tokens).long(), output_hidden_states=True).hidden_states[3]
    expected = states[torch.from_numpy(documents >= 0)]
    first, end = rows.split("train")
    assert torch.allclose(rows.read(first, end).float(), expected, atol=0.02 * float(expected.abs().max()))
    assert len(rows) == 60 * 40 // 2 or len(rows) == np.asarray(rows).shape[0]
    assert np.asarray(rows).shape == (len(rows), 32) and acts.keys() == {1, 2}


def test_training_beats_what_has_learned_nothing(sae):
    fvu = sae.quality.set_index("what")["fvu"]
    assert fvu["SAE"] < fvu["untrained"] < fvu["mean"] + 1e-6
    assert sae.quality["delta_ce"].notna().all() and (sae.quality["l0"][0] <= 4)
    assert {"step", "fvu", "l0"} <= set(sae.history) and sae.sae.latents == sae.final.latents == 64
    assert repr(sae.sae) == "SAE(64 latents, width 32, k 4)"


def test_the_same_call_gives_the_same_bits(sae, acts: dict[int, LayerActivations]):
    again = strata.train(acts[2], rule="topk", latents=64, k=4, epochs=3)
    assert torch.equal(again.sae.decoder, sae.sae.decoder) and again.quality.equals(sae.quality)


def test_latents_have_tables_examples_rules_and_labels(latents, acts: dict[int, LayerActivations]):
    assert len(latents.table) == 64 and {"density", "importance", "explanation", "f1"} <= set(latents.table)
    best = int(latents.table["importance"].idxmax())
    examples = latents.examples(best)
    assert (examples["value"].diff().dropna() <= 0).all() and set(examples["label"]) <= {"x", "y"}
    assert examples["value"].iloc[0] == pytest.approx(latents.table["max"][best], abs=1e-6)
    assert len(latents.logits(best)) and set(latents.enrichment()["label"]) == {"x", "y"}
    with pytest.raises(strata.BadInput, match="latent is 64; it must be a whole number from 0 to 63"):
        latents.examples(64)


def test_a_new_text_makes_latents_fire(latents, lm, sae):
    """The codes of the text's own activations; BOS counts for nothing."""
    found = latents.on("the cat sits on mat", most=3)
    tokens = torch.tensor([[lm.bos, *lm.read(["the cat sits on mat"])[0]]])
    x = lm.model(tokens, output_hidden_states=True).hidden_states[3][0, 1:]
    largest = sae.sae.encode(x).dense().amax(0)
    assert found["latent"].tolist() == largest.argsort(descending=True, stable=True)[:3].tolist()
    assert found["code"].tolist() == pytest.approx(largest[found["latent"].tolist()].tolist(), rel=1e-4)
    assert {token.strip() for token in found["token"]} <= {"the", "cat", "sits", "on", "mat"}


def test_families_and_the_smaller_dictionary(latents, sae, acts: dict[int, LayerActivations]):
    families = strata.cluster(latents, clusters=8)
    living = int((~latents.table["dead"]).sum())
    assert len(families.table) == 8 and families.table["size"].sum() == living
    members = sorted(latent for family in range(8) for latent in families.members(family))
    assert members == latents.table.index[~latents.table["dead"]].tolist()
    smaller = strata.merge(sae, acts[2], families, latents=0.5)
    fvu = smaller.quality.set_index("what")["fvu"]
    assert smaller.sae.latents == round(living / 2) and fvu["before"] < fvu["after"] < fvu["dropped"]


def test_overlaps_of_latents_are_those_of_their_codes(latents, sae, acts: dict[int, LayerActivations]):
    fires = sae.sae.encode(acts[2].read(0, len(acts[2])).float()).dense() > 0
    expected = strata.similarity.jaccard(fires, least=0.05)
    found = strata.similarity.jaccard(latents, least=0.05)
    assert found.nnz > 64 and np.array_equal(found.toarray(), expected.toarray())


def test_steering_changes_what_the_model_writes_inside_the_block_alone(lm, sae):
    ids = lm.tokenizer("the cat", return_tensors="pt")["input_ids"]
    before = lm.model(ids).logits
    with strata.steer(lm, sae, {3: strata.Set(50.0)}, layer=2):
        inside = lm.model(ids).logits
    assert not torch.allclose(inside, before, atol=1e-3) and torch.equal(lm.model(ids).logits, before)


def test_an_sae_is_saved_and_opened(sae, tmp_path: Path):
    strata.save(sae, tmp_path / "my-sae")
    again = strata.load(tmp_path / "my-sae")
    assert torch.equal(again.decoder, sae.sae.decoder) and torch.equal(again.encoder, sae.sae.encoder)
    assert '"hook_name": "blocks.2.hook_resid_post"' in (tmp_path / "my-sae" / "cfg.json").read_text()


@pytest.mark.parametrize(
    "content",
    [b'{"name": "caf\xe9"}', b"{", b"[]", b'{"architecture": "topk"}', b'{"architecture": "strata_topk_tanh"}'],
)
def test_an_sae_with_a_broken_configuration_is_one_sentence(tmp_path: Path, content: bytes):
    rows = torch.eye(4)
    strata.save(SAE(rows, torch.zeros(4), rows, torch.zeros(4), k=2), tmp_path)
    (tmp_path / "cfg.json").write_bytes(content)
    with pytest.raises(strata.BadInput, match=r"cfg\.json") as refusal:
        strata.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_an_sae_of_an_architecture_of_our_own_is_opened(tmp_path: Path):
    rows = torch.eye(4)
    sae = SAE(rows, torch.zeros(4), rows, torch.zeros(4), k=2, decoder_activation="tanh", mean=torch.zeros(4))
    strata.save(sae, tmp_path)
    assert strata.load(tmp_path).decoder_activation == "tanh"


def test_prompts_are_searched_and_measured_again(latents):
    best = int(latents.table["importance"].idxmax())
    small = {"greedy": {"steps": 2, "candidates": 4}, "soft": {"starts": 0}, "templates": 0}
    found = strata.invert(latents, [best], tokens=4, **small)
    assert set(found.table["latent"]) == {best} and {"corpus", "random"} <= set(found.table["method"])
    assert (found.table["activation"] >= 0).all()

    # What is drawn is what was measured: the best prompt's tokens, and the best of each search by its calls.
    shares = np.asarray(strata.plots.prompts(found).axes[0].images[0].get_array())
    (row,) = found.summary.to_dict("records")
    assert (shares[0, : len(row["values"])] * row["corpus_max"]).tolist() == pytest.approx(row["values"], rel=1e-5)
    axes = strata.plots.searches(found).axes[0]
    drawn = [np.asarray(line.get_ydata())[-1] * row["corpus_max"] for line in axes.lines if line.get_alpha()]
    assert sorted(drawn) == pytest.approx(sorted(found.curves.groupby("method")["activation"].max()))
    assert len(found.positions) == found.table["tokens"].str.len().sum()


def test_vectors_go_the_same_way():
    rng = np.random.default_rng(0)
    vectors = strata.Vectors(rng.normal(size=(200, 16)), range(200), ["red dog", "blue sea"] * 100)
    sae = strata.train(vectors, latents=32, k=4, epochs=2)
    latents = strata.latents(sae, vectors)
    assert len(latents.table) == 32 and latents.rows.layer == 0
    assert strata.merge(sae, vectors, strata.cluster(latents)).sae.latents < 32


def test_vectors_of_any_encoder_go_to_numpy_and_back(tmp_path: Path):
    class Letters:
        def encode(self, texts: list[str]) -> np.ndarray:
            return np.array([[len(text), text.count("a")] for text in texts])

    vectors = strata.encode_texts(["banana", "cat"], model=Letters())
    assert vectors.x.tolist() == [[6.0, 3.0], [3.0, 1.0]] and vectors.texts == ["banana", "cat"]
    notebook.save(vectors, tmp_path / "vectors.npy")
    assert np.load(tmp_path / "vectors.npy").tolist() == vectors.x.tolist()
    again = notebook.load(tmp_path / "vectors.npy")
    assert again.x.tolist() == vectors.x.tolist() and again.ids == ["0", "1"]


def test_importance_by_hand():
    """density × mean code where active × norm of the decoder's row: 2 of 4 rows, mean 3, norm 5."""
    eye = torch.eye(2)
    sae = strata.SAE(eye, torch.zeros(2), 5 * eye, torch.zeros(2), threshold=torch.zeros(2))
    vectors = strata.Vectors([[2, 0], [4, 0], [0, 1], [0, 0.5]], range(4), [""] * 4)
    assert notebook.features(sae, vectors)["importance"].tolist() == pytest.approx([7.5, 1.875])


def test_figures(latents, sae):
    best = int(latents.table["importance"].idxmax())
    for figure in (strata.plots.histogram(latents, best), strata.plots.importance(latents, 5)):
        assert figure.axes and figure.axes[0].patches


@pytest.mark.parametrize(
    ("layers", "chosen"), [(5, [5]), ([2, 4], [2, 4]), ("all", list(range(12))), ("every 3", [0, 3, 6, 9])]
)
def test_layers_are_named(layers: object, chosen: list[int]):
    assert which(layers, 12) == chosen  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("layers", ["every 0", "every", "some", [12], 1.5, [True]])
def test_layers_that_there_are_not(layers: object):
    with pytest.raises(strata.BadInput, match="layer"):
        which(layers, 12)  # pyright: ignore[reportArgumentType]


def test_knobs_are_changed_key_by_key():
    assert changed({"k": 8, "map": {"of": "a", "spread": 0.1}}, {"map": {"spread": 0.5}, "k": 1}) == {
        "k": 1,
        "map": {"of": "a", "spread": 0.5},
    }


def test_knobs_of_a_section_are_changed_in_memory():
    before, change = strata.knobs("interpret"), {"filters": {"entropy": {"min": 0.5}}}
    mine = strata.knobs("interpret", change, {"examples": {"top": 3}})
    assert mine["filters"]["entropy"] == {**before["filters"]["entropy"], "min": 0.5}
    assert mine["filters"]["firing"] == before["filters"]["firing"] and mine["examples"]["top"] == 3
    assert change == {"filters": {"entropy": {"min": 0.5}}} and strata.knobs("interpret") == before
    assert before == defaults.section("interpret")
    for section, changes, said in (
        ("clustr", {}, "section is 'clustr'; it must be .*did you mean cluster"),
        ("cluster", {"map": {"spred": 1.0}}, "cluster.map.spred is not a known key"),
        ("cluster", {"map": {"spread": "wide"}}, "cluster.map.spread is the text"),
        ("train", {"lr": "much"}, "train.lr is the text"),
        ("train", 3, "changes is 3; it must be a dict of knobs"),
    ):
        with pytest.raises(strata.BadInput, match=said):
            strata.knobs(section, changes)  # pyright: ignore[reportArgumentType]


def test_knobs_of_a_section_go_into_its_call(sae, acts: dict[int, LayerActivations], latents):
    mine = strata.knobs("train", {"rule": "topk", "latents": 64, "k": 4, "epochs": 1, "batch_size": 64})
    trained = strata.train(acts[2], **mine)
    assert isinstance(trained, strata.Fitted) and trained.knobs.batch_size == 64
    families = strata.cluster(latents, **strata.knobs("cluster", {"clusters": 4, "stability": {"bootstraps": 0}}))
    assert len(families.table) == 4


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda acts, sae, latents: strata.train([1, 2]),  # pyright: ignore[reportArgumentType]
            r"source\[0\] is 1; it must be \(rows, numbers\)",
        ),
        (
            lambda acts, sae, latents: strata.train(acts[2], ruel="topk"),
            "train.ruel is not a known key; did you mean train.rule",
        ),
        (lambda acts, sae, latents: strata.train(acts[2], rule="topkk"), "train.rule is 'topkk'"),
        (lambda acts, sae, latents: strata.latents("x", acts[2]), "sae is the text 'x'; it must be an SAE"),
        (
            lambda acts, sae, latents: strata.latents(sae, acts[2], windw=3),
            "interpret.windw is not a known key; did you",
        ),
        (lambda acts, sae, latents: strata.cluster(sae), "it must be what strata.latents gives"),
        (
            lambda acts, sae, latents: strata.merge(sae, acts[2], latents),
            "families is of type Latents; it must be what strata.cluster",
        ),
        (lambda acts, sae, latents: strata.load("nowhere"), "nowhere is missing"),
        (lambda acts, sae, latents: strata.load_lm("package:nothing"), "package:nothing is not a known model"),
        (lambda acts, sae, latents: strata.activations("package:x", "a text"), "package:x is not a known model"),
    ],
)
def test_bad_calls_are_one_sentence(call, said: str, acts, sae, latents):
    with pytest.raises(strata.BadInput, match=said):
        call(acts, sae, latents)


def test_texts_that_are_none(lm):
    for wrong, said in (
        ("one text", "texts is the text"),
        ([1, 2, 3], r"texts\[0\] is 1"),
        (["a"], "1 texts are too few"),
    ):
        with pytest.raises(strata.BadInput, match=said):
            strata.activations(lm, wrong, layers=[1])  # pyright: ignore[reportArgumentType]
