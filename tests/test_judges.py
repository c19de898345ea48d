"""Judging by likelihood: the numbers are those of whole passes, half of the windows fire, and nothing is read twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_explanations
import torch
import transformers
from conftest import VOCABULARY, tiny_tokenizer
from test_explanations import make_cases, stub

from strata.interpretation import judges
from strata.interpretation.explain import explain, open_writer
from strata.interpretation.explain_knobs import Explain
from strata.interpretation.explanations import Example
from strata.interpretation.judges import attends_only, by_likelihood, by_numbers, log_likelihoods, reading
from strata.interpretation.questions import CONTENTS, content_prompt
from strata.interpretation.writers import Replies, endless, tokens_of
from strata.lm.model import LanguageModel, load

CPU = torch.device("cpu")
TEMPLATE = "{{ bos_token }}{% for m in messages %}sun rise {{ m['content'] }} far home{% endfor %}"
ASKED = {
    "model": "lm",
    "latents": 1,
    "shown": 1,
    "silent": 1,
    "drawn": 0,
    "scores": [],
    "batch_size": 4,
    "timeout": 1.0,
    "retries": 0,
    "parallel": 1,
}
planted = test_explanations.planted  # the fixture


def whole(lm: LanguageModel, question: tuple[str, ...], answer: str, space: str) -> float:
    """log p(answer | question) by one pass over both."""
    head, tail = tokens_of(lm, question), lm.read([space + answer])[0]
    with torch.inference_mode():
        log_p = lm.model(input_ids=torch.tensor([head + tail])).logits[0].float().log_softmax(-1)
    return sum(log_p[len(head) + place - 1, token].item() for place, token in enumerate(tail))


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "chat"])
def test_likelihoods_are_those_of_whole_passes(tiny_lm: Path, template: str | None):
    """Of all families, also of those with a sliding window, and with as many answers as each question has."""
    lm = load(tiny_lm, torch.float32, CPU)
    lm.tokenizer.chat_template = template
    shots = ("the cat sat on a mat", "cat", "a dog ran far", "dog")
    texts = ("old blue hills", "sun rise home", "mat and the", "see the sun")
    asked = [(*shots, text) for text in texts]
    answers = [["cat", "the old dog ran"], ["home"], ["blue hills", "sun rise", "a mat"], ["far away from home"]]
    asked = [question for question in asked if len(tokens_of(lm, question)) == len(tokens_of(lm, asked[0]))]
    space = "" if template else " "
    for question, of, found in zip(asked, answers, log_likelihoods(lm, asked, answers[: len(asked)]), strict=False):
        assert found == pytest.approx([whole(lm, question, answer, space) for answer in of], abs=2e-4)
    alone = log_likelihoods(lm, asked[:1], answers[:1])
    assert alone[0] == pytest.approx([whole(lm, asked[0], answer, space) for answer in answers[0]], abs=2e-4)


def test_a_model_with_a_state_is_asked_for_numbers(gpt2: Path, tmp_path: Path):
    """Several questions cannot go on from the state of a Mamba layer."""
    assert attends_only(load(gpt2, torch.float32, CPU))
    sizes: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
    }
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4}
    mamba: dict[str, Any] = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4}
    config = transformers.FalconH1Config(**sizes, **heads, **mamba, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    lm = load(tmp_path / "lm", torch.float32, CPU)
    assert not attends_only(lm)
    asked = Explain(**dict.fromkeys(("layers", "range", "embedder", "budget", "window")), **ASKED)
    judge = open_writer(asked, lm, "f", tmp_path / "kept").judge
    assert len(judge([("the cat", [Example(["the", " cat"], [0.0, 1.0])])])[0]) == 1
    prompts = [json.loads(file.read_text())["request"]["prompts"] for file in (tmp_path / "kept").iterdir()]
    assert "How strongly" in prompts[0][0][0]


def test_half_of_the_windows_fire_and_no_text_is_read_twice(gpt2: Path, tmp_path: Path, monkeypatch: Any):
    lm = load(gpt2, torch.float32, CPU)
    lm.tokenizer.chat_template = TEMPLATE
    lm.model.config.n_positions = 10**6
    asked: list[Any] = []

    def counted(_: LanguageModel, questions: list[Any], answers: list[list[str]]) -> list[list[float]]:
        asked.extend(questions)
        return [
            [-float(len(question[-1]) * len(text)) for text in of]
            for question, of in zip(questions, answers, strict=True)
        ]

    monkeypatch.setattr(judges, "log_likelihoods", counted)
    windows = [Example(["w" * number], [0.0]) for number in range(1, 7)]
    jobs = [("cats", windows), ("dogs!", windows), ("cats", windows[:1]), ("none", [])]
    judge = by_likelihood(reading(lm, "f", 4, Replies(tmp_path)), endless)
    found = judge(jobs)
    assert len(asked) == len(set(asked)) == 6
    np.testing.assert_allclose(found[0], [10, 6, 2, -2, -6, -10])  # 4 letters of the answer, by letters from the median
    np.testing.assert_allclose(found[1], np.array([10, 6, 2, -2, -6, -10]) * 5 / 4)
    assert [len(one) for one in found] == [6, 6, 1, 0] and found[2][0] == 0

    monkeypatch.setattr(judges, "log_likelihoods", lambda *_: pytest.fail("was asked again"))
    again = by_likelihood(reading(lm, "f", 4, Replies(tmp_path)), endless)(jobs)
    assert all((one == other).all() for one, other in zip(found, again, strict=True))


def test_a_model_that_knows_is_perfect_and_beats_chance(planted: Any, gpt2: Path, tmp_path: Path, monkeypatch: Any):
    def knows(_: LanguageModel, questions: list[Any], answers: list[list[str]]) -> list[list[float]]:
        """The explanation is `the word 5`, and the token w5: likely where it stands."""
        return [
            [0.0 if f"w{text.rpartition(' ')[2]} " in f"{question[-1]} ".replace("\n", " ") else -9.0 for text in of]
            for question, of in zip(questions, answers, strict=True)
        ]

    lm = load(gpt2, torch.float32, CPU)
    monkeypatch.setattr(judges, "log_likelihoods", knows)
    judge = by_likelihood(reading(lm, "f", 16, Replies(tmp_path)), endless)
    found = explain(
        make_cases(planted), stub(lambda *_: pytest.fail("is not asked for a number")), "lm", 0, judge=judge
    )
    assert [one.scores["balanced_accuracy"] for one in found] == [1.0] * 6
    assert [one.unparsed for one in found] == [0] * 6
    chance = [one.scores["balanced_accuracy_chance"] or 0.0 for one in found]
    assert abs(np.mean(chance) - 0.5) < 0.12


def test_numbers_are_in_the_order_of_the_windows():
    windows = [Example([f"w{number}"], [0.0]) for number in (3, 4, 5)]
    judge = by_numbers(lambda prompts, _: [prompt[-1].split("w")[-1][0] for prompt in prompts], endless)
    found = judge([("a", windows), ("b", []), ("c", windows[:1])])
    assert [one.tolist() for one in found] == [[3, 4, 5], [], [3]]


def test_a_window_stands_on_one_line_behind_the_worked_examples():
    assert content_prompt(Example(["x"], [0]))[1::2] == tuple(answer for _, answer in CONTENTS)
    assert content_prompt(Example(["a", " b\n c"], [0, 1]))[-1] == "Text: a b c\nIn it:"
