"""Tiny random-weight models of every supported family, made here: nothing is downloaded."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers  # its classes below, where they are used: each takes seconds to import
from tokenizers import Tokenizer, models, pre_tokenizers

gc.disable()  # while the tests are imported, like src/__init__.py
LONGEST = ("pipeline", "dashboard", "launch", "kill", "train", "cluster", "ground_truth", "tune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that neither process is left with one at the end."""
    at = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: at.get(item.path.name, len(at)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


WORDS = "the cat sat on a mat and dog ran far away from home to see sun rise over old blue hills . ,".split()  # noqa: SIM905
VOCABULARY = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS]

_plain: dict[str, Any] = {"vocab_size": len(VOCABULARY), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_deep: dict[str, Any] = {**_plain, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_llama: dict[str, Any] = {**_deep, "intermediate_size": 64, "num_key_value_heads": 2}
_opt: dict[str, Any] = {**_deep, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # the class of the config, and its values
    "gemma3": ("Gemma3TextConfig", {**_llama, "head_dim": 8, "sliding_window": 8}),
    "gemma2": ("Gemma2Config", {**_llama, "head_dim": 8, "sliding_window": 8}),
    "gpt2": ("GPT2Config", {**_plain, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}),
    "neox": ("GPTNeoXConfig", {**_deep, "intermediate_size": 64}),
    "llama": ("LlamaConfig", _llama),
    "qwen2": ("Qwen2Config", _llama),
    "qwen3": ("Qwen3Config", {**_llama, "head_dim": 8}),
    "opt": ("OPTConfig", _opt),
}


def tiny_tokenizer() -> "transformers.PreTrainedTokenizerFast":
    """One token a word, from a vocabulary of a few dozen."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )


def save_tiny_lm(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random model of ``family``, the same at every call, as transformers would."""
    kind, values = FAMILIES[family]
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**values))
        for parameter in model.parameters():  # wide enough that layers differ and nothing saturates
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=FAMILIES)
def tiny_lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, one a family."""
    return save_tiny_lm(tmp_path_factory.mktemp(request.param) / "lm", request.param)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one tiny model, where the family does not matter."""
    return save_tiny_lm(tmp_path_factory.mktemp("gpt2") / "lm", "gpt2")
