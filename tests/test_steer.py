"""Steering: what is not asked for does not change by a bit, what is asked for changes exactly so much, there alone."""

from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from strata.lm.model import LanguageModel, capture, edit, final_states, load
from strata.run.door import BadInput
from strata.sae.sae import SAE
from strata.steering.steer import Add, At, Change, Scale, Set, push, steer

CPU = torch.device("cpu")
LATENTS, LAYER = 48, 2
TOKENS = torch.tensor([[1, 4, 5, 6, 7, 8, 9, 10], [1, 11, 12, 4, 5, 6, 7, 8]])
RIGHT = torch.tensor([[1, 4, 5, 6, 7, 8, 9, 10], [1, 11, 12, 4, 5, 0, 0, 0]])
LEFT = torch.tensor([[1, 4, 5, 6, 7, 8, 9, 10], [0, 0, 0, 1, 11, 12, 4, 5]])


@pytest.fixture
def lm(tiny_lm: Path) -> LanguageModel:
    return load(tiny_lm, torch.float32, CPU)


@pytest.fixture(scope="module")
def one_lm(gpt2: Path) -> LanguageModel:
    """Where the family does not matter."""
    return load(gpt2, torch.float32, CPU)


def random_sae(width: int = 32, seed: int = 0) -> SAE:
    random = torch.Generator().manual_seed(seed)
    encoder, decoder = (torch.randn(LATENTS, width, generator=random) for _ in range(2))
    decoder /= decoder.norm(dim=1, keepdim=True)
    return SAE(encoder, torch.zeros(LATENTS), decoder, torch.zeros(width), threshold=torch.full((LATENTS,), 0.2))


def kinds() -> dict[str, SAE]:
    plain = random_sae()
    groups, shares = torch.arange(LATENTS) // 2, torch.full((LATENTS,), 0.5)
    bent = changed(plain, decoder_activation="tanh", mean=torch.zeros(32), scale=0.5)
    merged = changed(plain, decoder=plain.decoder[::2].contiguous(), groups=groups, shares=shares)
    return {"plain": plain, "topk": changed(plain, threshold=None, k=5), "merged": merged, "tanh": bent}


def residual(lm: LanguageModel, tokens: Tensor, **kwargs: Any) -> Tensor:
    with capture(lm, "resid_post", [LAYER]) as seen:
        lm.model.base_model(input_ids=tokens, use_cache=False, **kwargs)
    return seen[LAYER]


def outputs(lm: LanguageModel, tokens: Tensor, **kwargs: Any) -> Tensor:
    return lm.model(input_ids=tokens, **kwargs).logits


@pytest.mark.parametrize("kind", ["plain", "topk", "merged", "tanh"])
def test_what_changes_nothing_changes_no_bit(lm: LanguageModel, kind: str):
    sae, clean = kinds()[kind], outputs(lm, TOKENS)
    codes = sae.encode(residual(lm, TOKENS)[:, -1])
    assert len(codes.values) > 5
    last = codes.pattern.dense(codes.values)
    edits: list[tuple[dict[int, Change], At]] = [
        ({}, "all"),
        ({3: Add(0.0)}, "all"),
        ({latent: Scale(1.0) for latent in range(sae.latents)}, "all"),
        ({latent: Set(last[:, latent]) for latent in range(sae.latents)}, "last"),
    ]
    for changes, at in edits:
        with steer(lm, sae, changes, LAYER, at=at):
            assert torch.equal(outputs(lm, TOKENS), clean), (changes, at)


def test_a_step_is_exactly_so_far_along_the_direction_and_nowhere_else(lm: LanguageModel):
    sae, before = random_sae(), residual(lm, TOKENS)
    with steer(lm, sae, {7: Add(2.5)}, LAYER, at=[2, -1]):
        after = residual(lm, TOKENS)
    wanted = before.clone()
    wanted[:, [2, 7]] += 2.5 * sae.decoder[7]
    assert torch.equal(after, wanted)
    with push(lm, 2.5 * sae.decoder[7], LAYER, at=[2, -1]):
        assert torch.equal(residual(lm, TOKENS), wanted)


def test_a_code_is_set_scaled_and_ablated_and_the_error_kept(lm: LanguageModel):
    sae, before = random_sae(), residual(lm, TOKENS)
    rows = before[:, 1:].flatten(0, 1)
    codes = sae.encode(rows)
    dense = codes.pattern.dense(codes.values)
    latent = int(dense.sum(0).argmax())
    for change, wanted in (
        (Set(4.0), torch.full((14,), 4.0)),
        (Set(0.0), torch.zeros(14)),
        (Scale(3.0), 3 * dense[:, latent]),
        (Add(torch.tensor([1.0, -2.0])), dense[:, latent] + torch.tensor([1.0, -2.0]).repeat_interleave(7)),
    ):
        with steer(lm, sae, {latent: change}, LAYER):
            after = residual(lm, TOKENS)
        assert torch.equal(after[:, 0], before[:, 0]), "BOS is left alone"
        moved = rows + (wanted - dense[:, latent])[:, None] * sae.decoder[latent]
        torch.testing.assert_close(after[:, 1:].flatten(0, 1), moved, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "topk", "merged", "tanh"])
def test_the_reconstruction_may_take_the_place(lm: LanguageModel, kind: str):
    sae = kinds()[kind]
    before = residual(lm, TOKENS)[:, 1:].flatten(0, 1)
    codes = sae.encode(before)
    for changes in ({}, {5: Set(2.0), 9: Scale(0.0)}):
        dense = codes.pattern.dense(codes.values)
        for latent, value in ((5, 2.0), (9, 0.0)) if changes else ():
            dense[:, latent] = value
        with steer(lm, sae, changes, LAYER, replace=True):
            after = residual(lm, TOKENS)[:, 1:].flatten(0, 1)
        wanted = sae.bent(dense @ sae.decoder + sae.b_dec)
        torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-5)
        with steer(lm, sae, changes, LAYER):  # what the reconstruction misses stays
            after = residual(lm, TOKENS)[:, 1:].flatten(0, 1)
        torch.testing.assert_close(after, before + wanted - sae.decode(codes), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("tokens", "last"), [(RIGHT, [7, 4]), (LEFT, [7, 7])])
def test_of_a_padded_batch_the_last_real_token_is_meant(lm: LanguageModel, tokens: Tensor, last: list[int]):
    mask, sae = (tokens != 0).long(), random_sae()
    before = residual(lm, tokens, attention_mask=mask)
    where: list[tuple[At, list[int]]] = [("last", last), ([-1], last), ([0], [0, 0 if tokens is RIGHT else 3])]
    for at, place in where:
        with steer(lm, sae, {1: Add(3.0)}, LAYER, at=at):
            after = residual(lm, tokens, attention_mask=mask)
        assert (after != before).any(2).nonzero().tolist() == [[0, place[0]], [1, place[1]]]
    with steer(lm, sae, {1: Add(3.0)}, LAYER):
        moved = (residual(lm, tokens, attention_mask=mask) != before).any(2)
    assert torch.equal(moved, (tokens > 1))  # all but padding and BOS


def test_every_generated_token_is_steered_or_none(lm: LanguageModel):
    """Each step of generation with the cache is what one pass over the whole text is."""
    sae, prompt = random_sae(), TOKENS[:, :5]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "suppress_tokens": [0, 1, 2]}
    options["attention_mask"] = torch.ones_like(prompt)
    plain = lm.model.generate(prompt, **options)  # pyright: ignore[reportCallIssue]
    where: list[tuple[At, At]] = [("all", range(1, 11)), ("last", range(4, 11)), ([4], [4])]
    for at, positions in where:
        with steer(lm, sae, {1: Add(40.0)}, LAYER, at=at):
            text = lm.model.generate(prompt, **options)  # pyright: ignore[reportCallIssue]
        assert not torch.equal(text, plain)
        with steer(lm, sae, {1: Add(40.0)}, LAYER, at=positions):
            whole = outputs(lm, text)
        assert torch.equal(whole[:, 4:-1, 3:].argmax(2) + 3, text[:, 5:])


def test_afterwards_all_is_as_before_also_after_an_error(lm: LanguageModel):
    sae, clean = random_sae(), outputs(lm, TOKENS)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())

    before = hooks()

    def fail() -> None:
        with steer(lm, sae, {1: Add(9.0)}, LAYER), push(lm, torch.ones(32), 1):
            assert hooks() > before and not torch.equal(outputs(lm, TOKENS), clean)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert hooks() == before and torch.equal(outputs(lm, TOKENS), clean)
    with pytest.raises(BadInput, match="position 99 is in no text"), steer(lm, sae, {1: Set(9.0)}, LAYER, at=[99]):
        outputs(lm, TOKENS)
    assert hooks() == before and torch.equal(outputs(lm, TOKENS), clean)


def test_a_model_of_transformers_is_taken_as_it_is(lm: LanguageModel):
    sae = random_sae()
    with steer(lm, sae, {2: Set(5.0)}, LAYER):
        ours = outputs(lm, TOKENS)
    with steer(lm.model, sae, {2: Set(5.0)}, layer=LAYER):
        assert torch.equal(lm.model(input_ids=TOKENS).logits, ours)


def test_each_text_of_a_batch_has_its_own_strength(lm: LanguageModel):
    sae = random_sae()
    with steer(lm, sae, {2: Add(torch.tensor([0.0, 5.0]))}, LAYER):
        both = residual(lm, TOKENS)
    assert torch.equal(both[0], residual(lm, TOKENS)[0])
    with steer(lm, sae, {2: Add(5.0)}, LAYER):
        assert torch.equal(both[1], residual(lm, TOKENS)[1])


def test_editing_the_same_place_twice_adds_up(lm: LanguageModel):
    sae = random_sae()
    one, other = (steer(lm, sae, {latent: Add(by)}, LAYER) for latent, by in ((1, 1.0), (2, -1.0)))
    with edit(lm, "resid_post", LAYER, torch.clone), one, other:
        twice = residual(lm, TOKENS)
    with push(lm, sae.decoder[1] - sae.decoder[2], LAYER):
        torch.testing.assert_close(twice, residual(lm, TOKENS))
    assert torch.isfinite(final_states(lm, TOKENS)).all()


@pytest.mark.parametrize("latent", [-1, LATENTS])
def test_a_latent_out_of_range_is_one_sentence(lm: LanguageModel, latent: int):
    said = rf"latent {latent} is out of range: the SAE has {LATENTS}, 0 to {LATENTS - 1}"
    with pytest.raises(BadInput, match=said), steer(lm, random_sae(), {latent: Set(1.0)}, LAYER):
        pass


NO_CALLS: list[tuple[dict[str, Any], str]] = [
    ({"layer": -1}, "layer is -1; it must be a whole number from 0 to 3"),
    ({"layer": 4}, "layer is 4; .* from 0 to 3"),
    ({"layer": 2.0}, r"layer is 2\.0; .* whole number"),
    ({"layer": True}, "layer is True"),
    ({"hook": "resid_mid"}, "hook is 'resid_mid'; it must be 'resid_post' or .*did you mean resid_p"),
    ({"hook": "hook_resid_post"}, "did you mean resid_post"),
    ({"at": "lst"}, "at is 'lst'; it must be 'all' or 'last' or a list of positions; did you mean last"),
    ({"at": 3}, "at is 3; it must be"),
    ({"at": None}, "at is None"),
    ({"at": [0.5]}, r"a position in at is 0\.5"),
    ({"at": ["last"]}, "a position in at is 'last'"),
    ({"at": [99]}, "position 99 is in no text of the batch: the longest has 8 tokens"),
    ({"at": [-9]}, "position -9 is in no text"),
    ({"replace": "yes"}, "replace is the text 'yes'"),
    ({"changes": [Add(1.0)]}, "changes is of type list; it must be a dict"),
    ({"changes": {1: 2.0}}, r"the change of latent 1 is 2\.0; it must be Set"),
    ({"changes": {"1": Add(1.0)}}, "latent '1' is out of range"),
    ({"changes": {True: Add(1.0)}}, "latent True is out of range"),
    ({"changes": {1: Add(torch.tensor([1.0, 2.0, 3.0]))}}, "3 numbers are given, one a text, but the batch has 2"),
    ({"sae": {"encoder": 1}}, "sae is of type dict; it must be an SAE"),
    ({"sae": random_sae(width=16)}, "the SAE reads vectors of 16 numbers, but the model's are of 32"),
    ({"sae": random_sae(width=1)}, "the SAE reads vectors of 1 numbers"),
    ({"lm": "gpt2"}, "lm is the text 'gpt2'; it must be a model"),
]


@pytest.mark.parametrize(("given", "said"), NO_CALLS)
def test_a_call_that_means_nothing_is_one_sentence(one_lm: LanguageModel, given: dict[str, Any], said: str):
    values = {"lm": one_lm, "sae": random_sae(), "changes": {1: Add(1.0)}, "layer": LAYER, **given}
    with pytest.raises(BadInput, match=said), steer(**values):
        outputs(one_lm, TOKENS)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Add(float("nan")), r"Add\.strength is nan; it must be a finite number"),
        (lambda: Set(float("-inf")), r"Set\.value is -inf"),
        (lambda: Scale("2"), r"Scale\.factor is '2'"),  # pyright: ignore[reportArgumentType]
        (lambda: Add(torch.tensor([1.0, float("nan")])), r"Add\.strength is a tensor of \(2,\); it must hold finite"),
        (lambda: Add(torch.ones(2, 2)), r"a tensor of \(2, 2\)"),
    ],
)
def test_a_change_is_by_a_finite_number(make: Callable[[], object], said: str):
    with pytest.raises(BadInput, match=said):
        make()


@pytest.mark.parametrize(
    ("offset", "said"),
    [
        (torch.ones(1), r"a tensor of \(1,\); it must be \(32,\)"),
        (torch.ones(3, 2, 32), r"a tensor of \(3, 2, 32\)"),
        (torch.full((32,), float("nan")), "finite numbers"),
        (torch.ones(32, dtype=torch.long), "finite numbers"),
        (torch.ones(3, 32), "3 numbers are given, one a text, but the batch has 2 texts"),
        ([1.0] * 32, "offset is of type list"),
    ],
)
def test_an_offset_is_a_vector_of_the_models_width(one_lm: LanguageModel, offset: Any, said: str):
    with pytest.raises(BadInput, match=said), push(one_lm, offset, LAYER):
        outputs(one_lm, TOKENS)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.ones((2, 32), np.float32), "x is of type ndarray; it must be a tensor"),
        ([[1.0] * 32], "x is of type list"),
        (torch.ones(32), r"x is a tensor of \(32,\); this SAE reads \(row, 32\)"),
        (torch.ones(1, 2, 32), r"\(1, 2, 32\)"),
        (torch.ones(2, 31), r"\(2, 31\)"),
        (torch.ones(2, 1), r"\(2, 1\)"),
        (torch.ones(2, 32, dtype=torch.long), "a tensor of int64; activations are floats"),
        (torch.ones(2, 32, dtype=torch.complex64), "a tensor of complex64"),
        (torch.full((2, 32), float("nan")), "NaN or infinity"),
        (torch.full((2, 32), float("inf")), "NaN or infinity"),
        (torch.ones(2, 32, device="meta"), "x is on meta, but the SAE on cpu"),
    ],
)
def test_an_sae_says_what_it_reads(x: Any, said: str):
    with pytest.raises(BadInput, match=said):
        random_sae().encode(x)
    assert len(random_sae().encode(torch.ones(0, 32)).values) == 0
    with pytest.raises(BadInput, match="the codes are of 48 latents, but this SAE has 47"):
        sae = random_sae()
        changed(sae, decoder=sae.decoder[:-1]).decode(sae.encode(torch.ones(1, 32)))


@pytest.mark.parametrize(("hook", "layer"), [("resid_mid", 1), ("resid_post", -1), ("resid_post", 4), ("", 0)])
def test_no_activations_are_read_or_changed_where_there_are_none(one_lm: LanguageModel, hook: Any, layer: int):
    with pytest.raises(BadInput, match=r"hook is '|layer (is )?(-1|4)"), capture(one_lm, hook, [layer]):
        pass
    with pytest.raises(BadInput, match=r"hook is '|layer is (-1|4)"), edit(one_lm, hook, layer, torch.clone):
        pass
