"""Fuzzing and intruder: who knows is perfect, who guesses is at chance; a model is read, an endpoint is asked."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_explanations
import torch
from test_explanations import make_cases

from strata.interpretation import judges, marks
from strata.interpretation.explanations import Case, Example, Explanation, report
from strata.interpretation.judges import Job, by_likelihood, by_numbers, odd_by_likelihood, odd_by_number, reading
from strata.interpretation.questions import (
    MARKED_CONTENTS,
    alike_prompt,
    marks_answer_prompt,
    marks_prompt,
    odd_prompt,
    read_choice,
    with_marks,
)
from strata.interpretation.writers import Chat, Replies, endless
from strata.lm.model import load

planted = test_explanations.planted  # the fixture: latent j fires on the token w(4 + j) alone
CPU = torch.device("cpu")
LATENTS = range(6)


@pytest.fixture
def cases(planted: Any) -> list[Case]:
    return make_cases(planted, LATENTS, items=40)


@pytest.fixture
def found() -> list[Explanation]:
    return [Explanation(j, "lm", f"the word {4 + j}", name=f"the word {4 + j}") for j in LATENTS]


def marked(text: str) -> set[int]:
    return {int(word) for part in re.findall(r"<<(.*?)>>", text) for word in re.findall(r"w(\d+)", part)}


def knows(jobs: Sequence[Job]) -> list[np.ndarray]:
    """Say yes where all that is marked is the word."""
    return [np.array([float(marked(with_marks(e)) == {int(text.split()[-1])}) for e in of]) for text, of in jobs]


def test_one_who_knows_tells_the_marks_and_another_explanation_does_not(cases: list[Case], found: list[Explanation]):
    marks.add_fuzzing(found, cases, knows, 0)
    assert [one.scores["fuzzing"] for one in found] == [1.0] * len(LATENTS)
    assert [one.scores["fuzzing_chance"] for one in found] == pytest.approx([0.5] * len(LATENTS), abs=0.1)
    assert report(found, 0)["fuzzing"]["mean"] == 1.0


def test_half_of_the_marks_are_wrong_and_as_many(cases: list[Case]):
    for case in cases:
        texts = marks._half_wrong(case, np.random.default_rng(0))
        firing = [example for example in case.scored if max(example.values) > 0]
        assert len(texts.examples) == len(firing) == 20 and texts.right.sum() == 10
        for example, before, right in zip(texts.examples, firing, texts.right, strict=True):
            assert example.pieces == before.pieces
            there = [place for place, value in enumerate(example.values) if value > 0]
            own = [place for place, value in enumerate(before.values) if value > 0]
            assert len(there) == len(own) and (there == own if right else not set(there) & set(own))

    # Where the latent fires on nearly every token, marks cannot be moved; then it has no score.
    full = replace(cases[0], scored=[Example(["a", " b", " c"], [1.0, 1.0, 0.0])] * 4)
    assert marks._half_wrong(full, np.random.default_rng(0)).examples == []
    marks.add_fuzzing(unscored := [Explanation(0, "lm", "a")], [full], knows, 0)
    assert unscored[0].scores["fuzzing"] is None


def test_the_intruder_is_found_by_one_who_sees_and_by_luck_in_a_fifth(cases: list[Case], found: list[Explanation]):
    def sees(trials: Sequence[Sequence[Example]]) -> list[int | None]:
        by_trial = [[marked(with_marks(example)) for example in trial] for trial in trials]
        return [next(i for i, own in enumerate(of) if of.count(own) == 1) for of in by_trial]

    marks.add_intruder(found, cases, sees, 0)
    assert [one.scores["intruder"] for one in found] == [1.0] * len(LATENTS)
    assert {one.scores["intruder_chance"] for one in found} == {0.2}

    drawn = [
        trial for case in cases for seed in range(40) for trial in marks._trials(case, np.random.default_rng(seed))
    ]
    assert len(drawn) == len(LATENTS) * 40 * marks.TRIALS and all(len(trial.examples) == 5 for trial in drawn)
    assert np.mean([trial.odd == 0 for trial in drawn]) == pytest.approx(0.2, abs=0.04)  # the first, whatever it is

    marks.add_intruder(found, cases, lambda trials: [None, *[0] * (len(trials) - 1)], 0)
    assert found[0].unparsed == 1, "a reply that names no text is not counted as wrong"
    assert found[0].scores["intruder"] in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_what_cannot_be_scored_has_no_score(cases: list[Case], found: list[Explanation]):
    few = [replace(cases[0], scored=cases[0].scored[:3]), replace(cases[1], documents=True)]
    marks.add_intruder(found[:2], few, lambda trials: [0] * len(trials), 0)
    marks.add_fuzzing(found[1:2], few[1:], knows, 0)
    marks.add_fuzzing(silent := [Explanation(0, "lm", None)], cases[:1], knows, 0)
    for one in (*found[:2], *silent):
        assert one.scores["intruder"] is one.scores["fuzzing"] is None


def test_windows_are_cut_around_the_peak(planted: Any):
    text, columns, halves = planted
    whole = test_explanations.case(columns, 2, halves, text, 6, 4, 40, test_explanations.pieces)
    short = test_explanations.case(columns, 2, halves, text, 6, 4, 40, test_explanations.pieces, judged=5)
    assert short.active == whole.active and short.silent == whole.silent
    assert {len(example.pieces) for example in short.scored} == {5}
    assert (short.truth == whole.truth).all()
    for example, before in zip(short.scored, whole.scored, strict=True):
        assert example.text in before.text
    again = test_explanations.case(columns, 2, halves, text, 6, 4, 40, test_explanations.pieces, judged=5)
    assert again == short
    assert Example(["a"], [0.0]).around(4, np.random.default_rng(0)) == Example(["a"], [0.0])


# --- who judges -------------------------------------------------------------------------------------------------------


def test_a_model_is_read(cases: list[Case], found: list[Explanation], gpt2: Path, tmp_path: Path, monkeypatch: Any):
    """It finds the explanation likely behind texts with its marks, and a text behind texts of the same mark."""

    def reads(_: Any, questions: Sequence[Chat], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        likely = []
        for question, of in zip(questions, answers, strict=True):
            last = question[-1].rpartition("Text:")[2] if "Marked:" in question[-1] else question[-1]
            seen = marked(last)
            likely.append([-1.0 if (marked(text) or {int(text.split()[-1])}) <= seen else -9.0 for text in of])
        return likely

    lm = load(gpt2, torch.float32, CPU)
    lm.model.config.n_positions = 10**6
    monkeypatch.setattr(judges, "log_likelihoods", reads)
    read = reading(lm, "f", 4, Replies(tmp_path))
    marks.add_fuzzing(found, cases, by_likelihood(read, endless, marks_prompt), 0)
    marks.add_intruder(found, cases, odd_by_likelihood(read), 0)
    assert [one.scores["fuzzing"] for one in found] == [1.0] * len(LATENTS)
    assert [one.scores["intruder"] for one in found] == [1.0] * len(LATENTS)

    kept = {name: value for one in found for name, value in one.scores.items()}
    monkeypatch.setattr(judges, "log_likelihoods", lambda *_: pytest.fail("was asked again"))
    marks.add_fuzzing(found, cases, by_likelihood(read, endless, marks_prompt), 0)
    marks.add_intruder(found, cases, odd_by_likelihood(read), 0)
    assert kept == {name: value for one in found for name, value in one.scores.items()}


def test_likelihoods_do_not_depend_on_how_many_answers_are_read_at_once(gpt2: Path, tmp_path: Path):
    lm = load(gpt2, torch.float32, CPU)
    lm.model.config.n_positions = 10**6
    question: Chat = ("the cat sat on",)
    pairs = [(question, answer) for answer in ("a mat", "the old dog", "home", "blue hills far", "sun")]
    at_once, one = (reading(lm, "f", size, Replies(tmp_path / str(size)))(pairs) for size in (16, 1))
    assert at_once.keys() == one.keys() == set(pairs)
    assert list(at_once.values()) == pytest.approx([one[pair] for pair in at_once], abs=2e-4)


def test_an_endpoint_is_asked(cases: list[Case], found: list[Explanation]):
    asked: list[str] = []

    def answers(prompts: Sequence[Chat], limit: int) -> list[str]:
        replies = []
        for *_, prompt in prompts:
            asked.append(prompt)
            if "marked for another reason" in prompt:
                texts = re.findall(r"^\d\. (.*)$", prompt, re.M)
                words = [marked(text) for text in texts]
                replies.append(f"{1 + next(i for i, own in enumerate(words) if words.count(own) == 1)}.")
            else:
                word = int(re.findall(r"Description: the word (\d+)", prompt)[0])
                replies.append("10" if marked(prompt.rpartition("Text:")[2]) == {word} else "0")
        return replies

    marks.add_fuzzing(found, cases, by_numbers(answers, endless, marks_answer_prompt), 0)
    marks.add_intruder(found, cases, odd_by_number(answers), 0)
    assert [one.scores["fuzzing"] for one in found] == [one.scores["intruder"] for one in found] == [1.0] * 6
    assert len(asked) == 6 * (2 * 20 + marks.TRIALS)

    both, none = marks.about_tokens(cases, ["fuzzing", "intruder"]), marks.about_tokens(cases, [])
    assert none == 0 and both == marks.about_tokens(cases, ["fuzzing"]) + marks.about_tokens(cases, ["intruder"])
    assert both > sum(len(prompt) for prompt in asked) / 8


@pytest.mark.parametrize(
    ("reply", "choice"),
    [("3", 2), ("Text 5.", 4), ("**2**", 1), ("The odd one is 1", 0), ("0", None), ("6", None), ("none", None),
     ("", None), ("<think>1 or 2</think> 4", 3), ("10", None)],
)  # fmt: skip
def test_a_choice_is_read(reply: str, choice: int | None):
    assert read_choice(reply, 5) == choice


def test_the_questions():
    example = Example(["a", " b", " c"], [0.0, 1.0, 0.1])
    assert with_marks(example) == "a<< b>> c"
    assert marks_prompt(example)[-1] == "Text: a<< b>> c\nMarked:"
    assert marks_prompt(example)[1::2] == tuple(answer for _, answer in MARKED_CONTENTS)
    assert marks_answer_prompt("letters", example)[-1] == "Description: letters\nText: a<< b>> c\nNumber:"
    assert "\n- a<< b>> c\n- a<< b>> c\n" in alike_prompt([example, example])[0] and "- " not in alike_prompt([])[0]
    assert "\n2. a<< b>> c\n" in odd_prompt([example, example])[0]
