"""Explanations and their scores: what is known beforehand comes out, and nothing scored was shown."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from strata.interpretation import rules, scoring
from strata.interpretation.explain import explain
from strata.interpretation.explanations import Case, Example, Halves, by_rules, case, report
from strata.interpretation.explanations import split as split_text
from strata.interpretation.questions import (
    SOLVED,
    answer_prompt,
    explanation_prompt,
    read_explanation,
    read_strength,
    without_echoes,
)
from strata.interpretation.read import Columns
from strata.interpretation.text import Text
from strata.interpretation.writers import Chat, Writer

CPU = torch.device("cpu")
BOS, WINDOW, VOCABULARY = 1, 16, 40
PLANTED = 12  # latents


def make_text(documents: int = 60, seed: int = 0) -> Text:
    """Documents of two contexts each, of random words."""
    random = np.random.default_rng(seed)
    length = np.repeat(random.integers(3, 9, documents) * WINDOW, 2)
    starts = np.concatenate([[0], np.cumsum(length)])
    segments = len(length)
    return Text(
        token=random.integers(4, VOCABULARY, starts[-1]).astype(np.int32),
        segment=np.repeat(np.arange(segments), length).astype(np.int32),
        starts=starts,
        context=np.arange(segments, dtype=np.int32),
        position=np.ones(segments, np.int32),
        document=(np.arange(segments) // 2).astype(np.int32),
        window=WINDOW,
    )


def make_columns(active: np.ndarray) -> Columns:
    """The codes of (row, latent) activations."""
    latents, rows = active.T.nonzero()
    counts = np.bincount(latents, minlength=active.shape[1])
    starts = np.concatenate([[0], np.cumsum(counts)])
    return Columns(0, starts, rows.astype(np.int64), active[rows, latents].astype(np.float32))


def piece(token: int) -> str:
    return f" w{token}"


def pieces(tokens: Sequence[int]) -> list[str]:
    return [piece(token) for token in tokens]


@pytest.fixture(scope="module")
def planted() -> tuple[Text, Columns, Halves]:
    """Latent j fires on token 4 + j and on nothing else, always by 2."""
    text = make_text()
    columns = make_columns(2.0 * (text.token[:, None] == 4 + np.arange(PLANTED)))
    return text, columns, split_text(text, BOS, seed=0)


def make_cases(planted: tuple[Text, Columns, Halves], latents: Sequence[int] = range(6), items: int = 20) -> list[Case]:
    text, columns, halves = planted
    return [case(columns, j, halves, text, 6, 4, items, pieces) for j in latents]


# --- scores ---------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_scipy_and_sklearn():
    random = np.random.default_rng(0)
    for _ in range(50):
        truth = np.maximum(random.normal(size=20), 0)
        said = np.maximum(truth + random.normal(size=20), 0)
        found = scoring.score(truth, said)
        assert found["f1"] == pytest.approx(f1_score(truth > 0, said > 0))
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth > 0, said > 0))
        assert found["pearson"] == pytest.approx(pearsonr(truth, said)[0])
        assert found["spearman"] == pytest.approx(spearmanr(truth, said)[0])
        assert scoring.auc(truth > 0, said) == pytest.approx(roc_auc_score(truth > 0, said))


GRADED = np.array([3.0, 1.0, 2.5, 0.5, 0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "said, f1, accuracy, r",
    [
        (GRADED, 1.0, 1.0, 1.0),
        (-GRADED, 0.0, 0.5, -1.0),
        (np.where(GRADED > 0, 0.0, 1.0), 0.0, 0.0, "negative"),
        (np.ones(8), 2 / 3, 0.5, None),
        (np.zeros(8), 0.0, 0.5, None),
    ],
    ids=["oracle", "inverted", "contrary", "always", "never"],
)
def test_scores_of_known_answers(said, f1, accuracy, r):
    found = scoring.score(GRADED, said)
    assert (found["f1"], found["balanced_accuracy"]) == (pytest.approx(f1), accuracy)
    if r == "negative":
        assert found["pearson"] is not None and found["pearson"] < -0.7
    else:
        assert found["pearson"] == found["spearman"] == (r if r is None else pytest.approx(r))


def test_answers_that_are_missing_are_left_out():
    said = GRADED.copy()
    said[[0, 5]] = np.nan
    assert scoring.score(GRADED, said) == scoring.score(np.delete(GRADED, [0, 5]), np.delete(GRADED, [0, 5]))
    nothing = scoring.score(GRADED, np.full(8, np.nan))
    assert set(nothing.values()) == {None}
    assert scoring.score(np.zeros(3), np.zeros(3))["f1"] is None
    assert scoring.auc(np.ones(3, bool), np.arange(3.0)) is None


def test_items_are_half_active_over_all_strengths_and_half_silent():
    strengths = np.concatenate([np.arange(1, 101), np.zeros(300)]).astype(np.float32)
    chosen = scoring.draw(strengths, 20, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 20
    assert ((strengths[chosen[:10]] - 1) // 10).tolist() == list(range(10)) and not strengths[chosen[10:]].any()
    assert len(scoring.draw(strengths[97:103], 20, np.random.default_rng(0))) == 6
    assert len(scoring.draw(np.zeros(9, np.float32), 20, np.random.default_rng(0))) == 0
    assert len(scoring.draw(np.ones(9, np.float32), 20, np.random.default_rng(0))) == 0


def test_the_summary_has_an_interval_and_skips_what_is_undefined():
    found = scoring.summary([0.9, 0.8, None, 0.7], [0.5, 0.4, 0.1, None], seed=0)
    assert found["latents"] == 2 and found["difference"] == pytest.approx(0.4)
    assert found["low"] == pytest.approx(0.4) and found["high"] == pytest.approx(0.4)
    assert scoring.summary([None], [0.5], 0) == {
        "latents": 0, "mean": None, "chance": None, "difference": None, "low": None, "high": None
    }  # fmt: skip


# --- halves and windows ---------------------------------------------------------------------------------------------


def test_shown_and_scored_never_overlap(planted):
    text, columns, halves = planted
    shown, scored = set(halves.shown.document.tolist()), set(halves.scored.document.tolist())
    assert len(shown) == len(scored) == 30 and not shown & scored
    learned = set(text.document_of(np.flatnonzero(halves.visible)).tolist())
    assert learned == shown
    for windows in (halves.shown, halves.scored):
        for number, (first, end, document) in enumerate(zip(windows.first, windows.end, windows.document, strict=True)):
            assert set(text.document_of(np.arange(first, end)).tolist()) == {document}
            assert (windows.of_row[first:end] == number).all()
        assert (windows.of_row >= 0).sum() == (windows.end - windows.first).sum()
    one = case(columns, 3, halves, text, 6, 4, 20, pieces)
    texts = {example.text for example in (*one.active, *one.silent)}
    assert len(one.active) == 6 and len(one.silent) == 4 and not texts & {example.text for example in one.scored}


def test_what_is_shown_is_strongest_first_one_a_document_and_silent_is_silent():
    text = make_text()
    random = np.random.default_rng(5)
    active = np.where(text.token == 9, random.random(text.rows) + 0.1, 0)[:, None]
    halves = split_text(text, BOS, 0)
    one = case(make_columns(active), 0, halves, text, 8, 5, 10, pieces)
    peaks = [max(example.values) for example in one.active]
    largest = sorted((active[:, 0][text.document_of(np.arange(text.rows)) == d].max() for d in set(halves.shown.document.tolist())), reverse=True)  # fmt: skip  # noqa: E501
    np.testing.assert_allclose(peaks, largest[:8], rtol=1e-6)
    assert all(not any(example.values) for example in one.silent)
    assert one.truth.tolist() == [max(example.values) for example in one.scored]
    assert (one.truth[:5] > 0).all() and not one.truth[5:].any()


# --- token rules ----------------------------------------------------------------------------------------------------


def test_a_planted_token_is_found_and_explains_everything(planted):
    _, columns, halves = planted
    table, found = by_rules(columns, halves, 20, piece)
    for j, (row, explanation) in enumerate(zip(table, found, strict=True)):
        assert row == {"latent": j, "offset": 0, "tokens": [4 + j], "pieces": [f" w{4 + j}"], "values": [2.0]}
        assert explanation.text == f'" w{4 + j}" (100 %)'
        assert [explanation.scores[name] for name in ("f1", "balanced_accuracy")] == [1.0, 1.0]
        assert explanation.scores["pearson"] == explanation.scores["spearman"] == pytest.approx(1.0)
    numbers = report(found, 0)
    assert numbers["f1"]["mean"] == 1.0 and numbers["f1"]["low"] > 0.3
    assert abs(numbers["balanced_accuracy"]["chance"] - 0.5) < 0.1 and abs(numbers["pearson"]["chance"]) < 0.2


def test_a_planted_token_before_is_found():
    text = make_text()
    first = np.zeros(text.rows, bool)
    first[text.starts[:-1]] = True
    before = np.where(first, -1, np.roll(text.token, 1))
    second = np.roll(first, 1) | first
    two_before = np.where(second, -1, np.roll(text.token, 2))
    either = (text.token == 5) | (before == 9)
    active = np.stack([before == 7, two_before == 8, either, first, before == 99], 1).astype(float)
    halves = split_text(text, BOS, 0)
    table, found = by_rules(make_columns(active), halves, 20, piece)
    facts = [(row["latent"], row["offset"], row["tokens"]) for row in table]
    assert facts == [(0, -1, [7]), (1, -2, [8]), (2, 0, [5]), (2, -1, [9]), (3, -1, [BOS])]
    assert found[0].text == 'the token before is " w7" (100 %)'
    assert found[2].text == '" w5" (100 %); or the token before is " w9" (100 %)'
    for explanation in found[:3]:
        assert explanation.scores["f1"] == 1.0
    assert found[4].text is None and set(found[4].scores.values()) == {None}  # a dead latent


def test_the_best_prefix_is_the_best_of_all_sets():
    """The search over prefixes finds the F1 of the best of all 2^6 sets of tokens."""
    random = np.random.default_rng(3)
    tokens = random.integers(0, 6, 400).astype(np.int32)
    chance = np.array([0.9, 0.7, 0.5, 0.3, 0.1, 0.0])
    active = (random.random(400) < chance[tokens])[:, None]
    columns = make_columns(active.astype(float))
    near = rules.neighbours(tokens, np.arange(400), BOS)  # no row has another before it
    found = rules.learn(columns.starts, columns.rows, columns.values, near, np.ones(400, bool))

    def f1(chosen: Sequence[int]) -> float:
        return float(f1_score(active[:, 0], np.isin(tokens, chosen)))

    best = max(f1([t for t in range(6) if number >> t & 1]) for number in range(1, 64))
    assert f1(near.tokens[found.number].tolist()) == pytest.approx(best)
    for number, share, value, hits in zip(found.number, found.share, found.value, found.hits, strict=True):
        mine = tokens == near.tokens[number]
        assert hits == active[mine].sum() and [share, value] == pytest.approx([active[mine].mean()] * 2)


def test_rules_do_not_depend_on_what_they_may_not_see(planted):
    text, _, halves = planted
    changed = make_columns(3.0 * ((text.token == 30) & ~halves.visible)[:, None])
    assert by_rules(changed, halves, 20, piece)[0] == []
    active = 2.0 * (text.token[:, None] == 4 + np.arange(3))
    noisy = np.where(halves.visible[:, None], active, np.random.default_rng(0).random(active.shape))
    assert by_rules(make_columns(noisy), halves, 20, piece)[0] == by_rules(make_columns(active), halves, 20, piece)[0]


def test_rules_are_the_same_in_blocks(planted, monkeypatch):
    _, columns, halves = planted
    whole, _ = by_rules(columns, halves, 20, piece)
    monkeypatch.setattr(rules, "CELLS", 2 * VOCABULARY)
    assert by_rules(columns, halves, 20, piece)[0] == whole


def test_one_document_is_no_error():
    text = make_text(documents=1)
    columns = make_columns((text.token == 4)[:, None].astype(float))
    halves = split_text(text, BOS, 0)
    _, found = by_rules(columns, halves, 20, piece)
    assert set(found[0].scores.values()) == {None}
    json.dumps(report(found, 0), allow_nan=False)


# --- language models, stubbed by functions that know ----------------------------------------------------------------


def stub(answer: Callable[[int, set[int]], str], explanation: str = "the word {}") -> Writer:
    """A writer that finds the marked word, and answers by it and the words of a window."""

    def write(prompts: Sequence[Chat], limit: int) -> list[str]:
        replies = []
        for *_, prompt in prompts:
            if "In common:" in prompt:
                replies.append(explanation.format(re.findall(r"<<\s?w(\d+)", prompt)[0]))
            else:
                word = int(re.findall(r"Unit: the word (\d+)", prompt)[0])
                replies.append(answer(word, set(map(int, re.findall(r"w(\d+)", prompt.rpartition("Text:")[2])))))
        return replies

    return write


def scores_of(planted, answer) -> dict[str, Any]:
    found = explain(make_cases(planted), stub(answer), "lm", seed=0)
    rows = [explanation.row() for explanation in found]
    json.dumps([rows, report(found, 0)], allow_nan=False)
    assert [row["text"] for row in rows] == [f"the word {4 + j}" for j in range(6)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_an_oracle_is_perfect_and_beats_chance(planted):
    found = scores_of(planted, lambda word, words: "10" if word in words else "0")
    assert found["f1"] == found["balanced_accuracy"] == [1.0] * 6
    assert found["pearson"] == found["spearman"] == [pytest.approx(1.0)] * 6
    assert found["items"] == [20] * 6 and found["unparsed"] == [0] * 6
    assert abs(np.mean(found["balanced_accuracy_chance"]) - 0.5) < 0.12


def test_an_inverted_oracle_is_perfectly_wrong(planted):
    found = scores_of(planted, lambda word, words: "no" if word in words else "Yes.")
    assert found["f1"] == found["balanced_accuracy"] == [0.0] * 6
    assert found["pearson"] == found["spearman"] == [pytest.approx(-1.0)] * 6


def test_always_yes_scores_as_arithmetic_says(planted):
    found = scores_of(planted, lambda word, words: "10")
    assert found["f1"] == found["f1_chance"] == [pytest.approx(2 / 3)] * 6
    assert found["balanced_accuracy"] == [0.5] * 6
    assert found["pearson"] == found["spearman"] == found["pearson_chance"] == [None] * 6


def test_garbage_is_counted_and_left_out(planted):
    found = scores_of(planted, lambda word, words: "I think so" if min(words) % 2 else "10" if word in words else "0")
    assert all(0 < count < 20 for count in found["unparsed"]) and found["items"] == [20] * 6
    assert found["f1"] == [1.0] * 6
    found = scores_of(planted, lambda word, words: "")
    assert found["unparsed"] == [20] * 6 and found["f1"] == found["pearson"] == [None] * 6


def test_an_explanation_that_cannot_be_read_is_counted_and_not_scored(planted):
    cases = make_cases(planted)
    found = explain(cases, stub(lambda *_: "10", explanation="word {} and so on and on and on and on"), "lm", 0)
    assert [explanation.text for explanation in found] == [None] * 6
    assert report(found, 0)["unparsed"] == 6 and report(found, 0)["explained"] == 0
    assert {value for explanation in found for value in explanation.scores.values()} == {None}
    found = explain(cases[:1], stub(lambda word, words: "10" if word in words else "0"), "lm", 0)
    assert found[0].scores["f1"] == 1.0 and found[0].scores["f1_chance"] is None  # nobody to be permuted with


@pytest.mark.parametrize(
    "reply, text",
    [
        ("names of cities", "names of cities"),
        (' "Names of cities."\nBecause …', "Names of cities"),
        ('names of cities" and so on', "names of cities"),  # the prompt ends in a quote, which a base model closes
        ('the word "and"', 'the word "and"'),
        ('"and" as a conjunction', '"and" as a conjunction'),
        ("\n1. They are names.\n2. They are", "They are names"),
        ("Explanation: **dates**", "dates"),
        ("<think>maybe dates?</think>\n months", "months"),
        ("one two three four five six seven eight", "one two three four five six seven eight"),
        ("one two three four five six seven eight nine", None),
        ("'s possessive endings\"", "'s possessive endings"),
        ("'names of cities'", "names of cities"),
        ('.py file names"', ".py file names"),
        ('"of" before names"', '"of" before names'),
        ('"months', "months"),
        ('<br> and <div>"', "<br> and <div>"),
        ("月の名前", "月の名前"),
        ("Namen von Monaten", "Namen von Monaten"),
        ("أسماء الشهور", "أسماء الشهور"),
        ("不" * 121, None),
        ("a" * 100_000, None),
        ("word " * 20_000, None),
        ("\n" * 100_000 + "months", "months"),
        ("I'm sorry, but I cannot help.", None),
        ("I am unable to say.", None),
        ("I can\u2019t tell", None),
        ("As an AI, I cannot", None),
        ("Es tut mir leid.", None),
        ("申し訳ありません", None),
        ("Nothing in common", None),
        ("There is no clear pattern", None),
        ("None", None),
        ("N/A", None),
        ("none of the above, as a phrase", "none of the above, as a phrase"),
        ("sorrow and regret", "sorrow and regret"),
        ("apologies such as I'm sorry", "apologies such as I'm sorry"),
        ("<!DOCTYPE html>\n<title>502</title>", None),
        ("<html><body>Bad gateway</body></html>", None),
        ("<html> tags", "<html> tags"),
        ("[explanation]", None),
        ("<1-8 words>", None),
        ("...", None),
        ("", None),
    ],
)
def test_explanations_are_read(reply, text):
    assert read_explanation(reply) == text


@pytest.mark.parametrize(
    "reply, number",
    [
        ("7", 7), (" 10\n", 10), ("0.", 0), ("3.5 or so", 3.5), ("yes", 10), ("No, it is not", 0), ("**8**", 8),
        ("8/10", 8), ("11", None), ("-3", None), ("nothing", None), ("not 3", None), ("", None), ("NaN", None),
        ("1e9", None), ("5,000", None), ("\u22125", None), ("5, I think", 5), ("5.", 5),
    ],
)  # fmt: skip
def test_answers_are_read(reply, number):
    found = read_strength(reply)
    assert np.isnan(found) if number is None else found == number


def test_prompts_of_documents_say_how_much():
    active = [Example(["A cat\nsleeps."], [4.0]), Example(["Dogs."], [1.0])]
    prompt = explanation_prompt(Case(3, active, [Example(["Bread."], [0.0])], [], documents=True))
    assert prompt[-1] == "Active:\n1. A cat sleeps. (10)\n2. Dogs. (2)\nSilent:\n1. Bread.\nIn common:"
    assert "<<" not in "".join(prompt) and "embedding model" in prompt[0] and "1 to 8 words" in prompt[0]


def test_a_window_of_one_token_is_no_document():
    prompt = explanation_prompt(Case(3, [Example([" York"], [4.0])], [], []))
    assert "<< York>>" in prompt[-1] and "embedding model" not in prompt[0]


def test_prompts_mark_what_is_active():
    active = [Example([" in", " New", " York", " today"], [0.0, 4.0, 2.0, 0.1]), Example([" York"], [1.3])]
    silent = Example([" nothing\n", " here"], [0.0, 0.0])
    prompt = explanation_prompt(Case(3, active, [silent], []))
    assert prompt[-1] == (
        "Active:\n1. in<< New York>> today\n2. << York>>\nSilent:\n1. nothing here\n"
        'Strongest on: " New", " York"\nIn common:'
    )
    assert len(prompt) % 2 == 1 and len(prompt) > 5 and "1 to 8 words" in prompt[0]
    assert answer_prompt("cities", silent)[-1] == "Unit: cities\nText: nothing here\nNumber:"


# --- echoes ---------------------------------------------------------------------------------------------------------


def test_no_worked_example_is_like_another():
    """So no kind of answer is suggested, and each has the form of the question."""
    assert len({answer for _, answer in SOLVED}) == len(SOLVED) == 3
    assert all(re.search("<<.*>>.*\nSilent:\n.*\nStrongest on: ", asked, re.S) for asked, _ in SOLVED)


@pytest.mark.parametrize(
    "reply, kept",
    [
        ("musical instruments", False), ('The word "nevertheless".', False), ("questions about cheese", False),
        ("tokens of a text", False), ("the marked tokens have in common", False), ("the river rose again", False),
        ("rivers that rise", True), ("river", True), ("again", True),
    ],
)  # fmt: skip
def test_a_reply_that_repeats_the_prompt_is_no_explanation(reply, kept):
    case_ = Case(3, [Example([" The", " river", " rose", " again", "."], [0.0, 4.0, 0.0, 0.0, 0.0])], [], [])
    assert without_echoes([reply], [case_]) == [reply if kept else None]


def test_what_most_latents_get_is_no_explanation():
    nothing = [Case(j, [], [], []) for j in range(4)]
    assert without_echoes(["names", "Names.", "names", "digits"], nothing) == [None, None, None, "digits"]
    assert without_echoes(["names", "Names.", "dates", "digits"], nothing) == ["names", "Names.", "dates", "digits"]
    assert without_echoes(["names", "names", "names", None], nothing)[0] == "names", "of three nothing can be said"


def test_echoes_are_counted_and_chance_is_of_other_words(planted):
    cases = make_cases(planted)
    found = explain(cases, stub(lambda *_: "10", explanation="musical instruments"), "lm", 0)
    summed = report(found, 0)
    assert [one.text for one in found] == [None] * 6
    assert (summed["echoed"], summed["unparsed"], summed["explained"], summed["items"]) == (6, 6, 0, 0)

    random = np.random.default_rng(0)
    for _ in range(20):
        drawn = scoring.strangers(["Names", "names!", "dates", "digits"], random)
        assert drawn[0] in (2, 3) and drawn[1] in (2, 3) and drawn[2] in (0, 1, 3)
    assert scoring.strangers(["names", "Names"], random) == [None, None] and scoring.strangers([], random) == []
