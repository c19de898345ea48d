"""What is found in models of many families: parts that add up and logits that are the model's own, or why not."""

from typing import Any

import pytest
import torch
import transformers
from conftest import VOCABULARY, tiny_tokenizer
from torch import Tensor

from strata.inversion.objective import check_embeddings
from strata.lm.anatomy import find_blocks
from strata.lm.model import Hook, LanguageModel, capture, check_hook, edit, final_states, forward_until, logits, wrapped
from strata.run.door import BadInput

TOKENS = torch.tensor([[1, 4, 5, 6, 7, 8, 9, 10, 3], [1, 4, 5, 6, 11, 12, 13, 14, 15]])

_plain: dict[str, Any] = {"vocab_size": len(VOCABULARY), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_deep: dict[str, Any] = {**_plain, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_bert: dict[str, Any] = {**_deep, "intermediate_size": 64, "max_position_embeddings": 64}
_llama: dict[str, Any] = {**_bert, "num_key_value_heads": 2}
_headed: dict[str, Any] = {**_llama, "head_dim": 8}
_sliding: dict[str, Any] = {**_headed, "sliding_window": 4}
_moe: dict[str, Any] = {**_llama, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_layered: dict[str, Any] = {**_sliding, "vocab_size_per_layer_input": len(VOCABULARY), "num_kv_shared_layers": 0}
_n_embd: dict[str, Any] = {**_plain, "n_embd": 32, "n_layer": 2, "n_head": 4}
_mla: dict[str, Any] = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4}
_global_local: dict[str, Any] = {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}
_altup: dict[str, Any] = {"hidden_size_per_layer_input": 8, "altup_num_inputs": 2, "laurel_rank": 4}
_mamba: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}

ADD_UP: dict[str, tuple[str, dict[str, Any]]] = {  # the class of the config, and its values
    # what the MLP or the attention gives is added as it is
    "llama": ("LlamaConfig", _llama),
    "mistral": ("MistralConfig", _llama),
    "gemma": ("GemmaConfig", _headed),
    "stablelm": ("StableLmConfig", _llama),
    "starcoder2": ("Starcoder2Config", _llama),
    "nemotron": ("NemotronConfig", _llama),
    "phi3": ("Phi3Config", _llama),
    "gpt_neo": (
        "GPTNeoConfig",
        {**_deep, "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    ),
    # attention and MLP side by side, in place in Falcon
    "falcon": ("FalconConfig", {**_deep, "alibi": False}),
    "falcon-alibi": ("FalconConfig", {**_deep, "alibi": True, "parallel_attn": False, "multi_query": False}),
    "phi": ("PhiConfig", _bert),
    "gptj": ("GPTJConfig", {**_n_embd, "rotary_dim": 4, "n_positions": 64}),
    "cohere": ("CohereConfig", {**_llama, "logit_scale": 0.0625}),
    "cohere2": ("Cohere2Config", {**_sliding, "logit_scale": 0.25}),
    # behind norms of many names
    "gemma2": ("Gemma2Config", _sliding),
    "gemma3": ("Gemma3TextConfig", _sliding),
    "glm4": ("Glm4Config", _headed),
    "olmo2": ("Olmo2Config", _llama),
    "olmo3": ("Olmo3Config", {**_llama, "sliding_window": 4}),
    "exaone4": ("Exaone4Config", {**_llama, "sliding_window": 4, "sliding_window_pattern": 2}),
    # times a constant
    "granite": ("GraniteConfig", {**_llama, "residual_multiplier": 0.22, "logits_scaling": 8.0}),
    "hyperclovax": ("HyperCLOVAXConfig", {**_llama, "residual_multiplier": 0.5, "logits_scaling": 0.3}),
    "minicpm3": ("MiniCPM3Config", {**_llama, **_mla, "v_head_dim": 8, "num_key_value_heads": 4, "dim_model_base": 8}),
    # the stream added inside the part
    "bloom": ("BloomConfig", {**_plain, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptConfig", {**_plain, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    # parts that return more than a tensor, or work on flattened rows
    "mixtral": ("MixtralConfig", {**_llama, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_moe, "head_dim": 8, "num_experts": 4}),
    "llama4": ("Llama4TextConfig", {**_headed, "intermediate_size_mlp": 64, "num_local_experts": 2}),
    "opt": ("OPTConfig", {**_deep, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 16}),
}
NO_PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon_h1": ("FalconH1Config", {**_headed, **_mamba, "mamba_d_ssm": 32, "lm_head_multiplier": 0.1}),  # three parts
    "gemma4": ("Gemma4TextConfig", {**_layered, "hidden_size_per_layer_input": 8}),  # three parts
    "gpt1": ("OpenAIGPTConfig", {**_n_embd, "n_positions": 64}),  # the stream itself is normed
    "roberta-decoder": ("RobertaConfig", {**_bert, "is_decoder": True}),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("BertConfig", _bert, "BertLMHeadModel attends both ways"),
    "roberta": ("RobertaConfig", _bert, "attends both ways"),
    "roformer": ("RoFormerConfig", {**_bert, "embedding_size": 32}, "attends both ways"),
    "qwen3-both-ways": ("Qwen3Config", {**_headed, "is_causal": False}, "attends both ways"),
    "gemma3-both-ways": ("Gemma3TextConfig", {**_sliding, "use_bidirectional_attention": True}, "attends both ways"),
    "gemma3n": (
        "Gemma3nTextConfig",
        {**_layered, **_altup, "intermediate_size": [64] * 2, "activation_sparsity_pattern": [0.0] * 2},
        r"no residual stream of \(context, position, width\)",
    ),
    "mamba": ("MambaConfig", {**_plain, "hidden_size": 32, "num_hidden_layers": 2}, "it has no lists of blocks"),
    "xlm": ("XLMConfig", {**_plain, "emb_dim": 32, "n_layers": 2, "n_heads": 4}, "is not a decoder-only transformer"),
}


def build(kind: str, values: dict[str, Any]) -> "transformers.PreTrainedModel":
    """A random model, the same at every call, its weights wide enough that layers differ."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**values))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def opened(kind: str, values: dict[str, Any]) -> LanguageModel:
    model = build(kind, values)
    return LanguageModel(model, find_blocks(model), tiny_tokenizer)


def at(lm: LanguageModel, hook: Hook) -> dict[int, Tensor]:
    with torch.no_grad(), capture(lm, hook, range(len(lm.blocks))) as seen:
        final_states(lm, TOKENS)
    return seen


def check_cross_entropy(lm: LanguageModel) -> None:
    with torch.no_grad():
        theirs = lm.model(input_ids=TOKENS, labels=TOKENS)
        ours = logits(lm, final_states(lm, TOKENS)[:, :-1].flatten(0, 1))
    torch.testing.assert_close(ours, theirs.logits[:, :-1].flatten(0, 1), rtol=1e-5, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(ours.float(), TOKENS[:, 1:].flatten())
    assert float(loss) == pytest.approx(float(theirs.loss), rel=1e-5)


@pytest.mark.parametrize("family", ADD_UP)
def test_parts_add_up_and_the_cross_entropy_is_the_models_own(family: str):
    lm = opened(*ADD_UP[family])
    before, attention, mlp, after = (at(lm, hook) for hook in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    for layer in range(2):
        assert before[layer].shape == (2, 9, 32)
        sum_of_parts = before[layer] + attention[layer] + mlp[layer]
        torch.testing.assert_close(sum_of_parts, after[layer], rtol=1e-5, atol=1e-5)
        assert attention[layer].norm() > 0
        assert mlp[layer].norm() > 0
    check_cross_entropy(lm)

    with torch.no_grad():
        clean = lm.model(input_ids=TOKENS).logits
        for hook in ("attn_out", "mlp_out", "resid_pre", "resid_post"):
            with edit(lm, hook, 0, torch.clone):
                assert torch.equal(lm.model(input_ids=TOKENS).logits, clean), hook
        with edit(lm, "mlp_out", 1, torch.zeros_like), capture(lm, "resid_post", [1]) as seen:
            forward_until(lm, 1, tokens=TOKENS)
    torch.testing.assert_close(seen[1], before[1] + attention[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", NO_PARTS)
def test_where_parts_do_not_add_up_these_hooks_alone_are_refused(family: str):
    lm = opened(*NO_PARTS[family])
    for hook in ("attn_out", "mlp_out"):
        with pytest.raises(BadInput, match=rf"{hook} of block 1 cannot be read \(\w+: no two of its modules"):
            check_hook(lm, hook, [1])
    assert torch.equal(at(lm, "resid_post")[0], at(lm, "resid_pre")[1])
    check_cross_entropy(lm)


def test_prompts_are_searched_for_only_where_embeddings_stand_for_tokens():
    check_embeddings(opened(*ADD_UP["gemma3"]), TOKENS[0])
    check_embeddings(opened(*ADD_UP["granite"]), TOKENS[0])
    check_embeddings(opened(*NO_PARTS["gemma4"]), TOKENS[0])
    padded = torch.tensor([4, 0, 5])  # RoBERTa does not count padding, which embeddings do not show
    with pytest.raises(BadInput, match="RobertaForCausalLM computes something else from embeddings"):
        check_embeddings(opened(*NO_PARTS["roberta-decoder"]), padded)


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_cannot_be_read_rightly_is_one_sentence(family: str):
    kind, values, sentence = REFUSED[family]
    with pytest.raises(BadInput, match=sentence):
        wrapped(build(kind, values))
