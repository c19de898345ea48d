"""The language model's hooks: they read what transformers computes, they change only what they are told to."""

import shutil
from pathlib import Path

import pytest
import torch

from strata.lm.model import (
    LanguageModel,
    capture,
    check_layers,
    edit,
    final_states,
    forward_until,
    load,
    logits,
    shared_start,
)
from strata.run.door import BadInput

CPU = torch.device("cpu")
TOKENS = torch.tensor([[1, 4, 5, 6, 7, 8, 9, 10], [1, 11, 12, 4, 5, 0, 0, 0]])


def seen(lm: LanguageModel, hook, layers=range(4)):
    with capture(lm, hook, layers) as found:
        forward_until(lm, max(layers), tokens=TOKENS)
    return found


def test_resid_post_is_the_next_hidden_state(tiny_lm: Path):
    lm = load(tiny_lm, torch.float32, CPU)
    theirs = lm.model(input_ids=TOKENS, output_hidden_states=True).hidden_states
    ours = seen(lm, "resid_post")
    for layer in range(3):  # theirs after the last block is behind the final norm, which ours never is
        assert torch.equal(ours[layer], theirs[layer + 1])
    assert torch.equal(seen(lm, "resid_pre")[0], theirs[0])


def test_parts_add_up_to_the_residual_stream(tiny_lm: Path):
    lm = load(tiny_lm, torch.float32, CPU)
    before, attention, mlp, after = (seen(lm, hook) for hook in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    for layer in range(4):
        torch.testing.assert_close(before[layer] + attention[layer] + mlp[layer], after[layer], rtol=1e-4, atol=1e-4)


def test_padding_on_the_right_changes_nothing(tiny_lm: Path):
    lm = load(tiny_lm, torch.float32, CPU)
    with capture(lm, "resid_post", [3]) as short:
        forward_until(lm, 3, tokens=TOKENS[1:, :5])
    torch.testing.assert_close(seen(lm, "resid_post")[3][1:, :5], short[3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hook", ["resid_post", "resid_pre", "mlp_out", "attn_out"])
def test_editing_with_the_identity_is_exact_and_unhooks(tiny_lm: Path, hook):
    lm = load(tiny_lm, torch.float32, CPU)
    clean = final_states(lm, TOKENS)
    with edit(lm, hook, 2, torch.clone):
        assert torch.equal(final_states(lm, TOKENS), clean)
    with edit(lm, hook, 2, torch.square):
        assert not torch.allclose(final_states(lm, TOKENS), clean)
    with pytest.raises(ZeroDivisionError), edit(lm, hook, 2, lambda x: x / (1 // 0)):
        final_states(lm, TOKENS)
    assert torch.equal(final_states(lm, TOKENS), clean)


def test_head_of_final_states_is_the_logits(tiny_lm: Path):
    lm = load(tiny_lm, torch.float32, CPU)
    theirs = lm.model(input_ids=TOKENS).logits
    torch.testing.assert_close(logits(lm, final_states(lm, TOKENS)), theirs)


def test_layers_are_checked_at_the_door():
    check_layers([0, 17], 18)
    with pytest.raises(BadInput, match="layer 18, but the model has 18 blocks: 0 to 17"):
        check_layers([3, 18], 18)
    with pytest.raises(BadInput, match="twice"):
        check_layers([3, 3], 18)
    with pytest.raises(BadInput, match="empty"):
        check_layers([], 18)


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path):
    with pytest.raises(BadInput, match="no language model could be loaded"):
        load(tmp_path, torch.float32, CPU)


def test_a_folder_without_a_tokenizer_is_one_sentence_when_it_is_asked_for(tiny_lm: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_lm / name, tmp_path)
    lm = load(tmp_path, torch.float32, CPU)
    assert final_states(lm, TOKENS).shape[-1] == lm.width
    with pytest.raises(BadInput, match="no language model could be loaded"):
        _ = lm.bos


def test_passes_that_share_their_start_are_the_same_passes(tiny_lm: Path):
    lm = load(tiny_lm, torch.bfloat16, CPU)
    with edit(lm, "resid_post", 2, torch.square):
        squared = final_states(lm, TOKENS)
    clean, ran = final_states(lm, TOKENS), []
    watched = [block.get_submodule("mlp" if hasattr(block, "mlp") else "fc1") for block in lm.blocks]
    handles = [part.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, part in enumerate(watched)]
    with shared_start(lm, 2):
        assert torch.equal(final_states(lm, TOKENS), clean)
        with edit(lm, "resid_post", 2, torch.square):
            assert torch.equal(final_states(lm, TOKENS), squared)
    assert ran == [0, 1, 2, 3, 2, 3]
    for handle in handles:
        handle.remove()
    assert torch.equal(final_states(lm, TOKENS[:1]), final_states(lm, TOKENS)[:1])  # nothing is remembered


def test_the_head_is_given_rows_that_lie_side_by_side(tiny_lm: Path):
    """Of a slice of the states torch makes, on a CPU, as many copies of the head as there are texts."""
    lm, found = load(tiny_lm, torch.float32, CPU), []
    head = lm.model.get_output_embeddings()
    assert head is not None
    head.register_forward_pre_hook(lambda _, args: found.append(args[0].is_contiguous()))
    lm.model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=2, do_sample=False)  # pyright: ignore[reportCallIssue]
    assert found == [True, True]
