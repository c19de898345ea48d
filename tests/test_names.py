"""Names of latents: what a rule says in few words, and which explanation may be a name."""

import numpy as np
import pytest

from strata.interpretation.explanations import Explanation
from strata.interpretation.names import chosen
from strata.interpretation.phrases import of_rule


@pytest.mark.parametrize(
    "pieces, name",
    [
        ({0: [" Paris"]}, "“Paris”"),
        ({0: [" the", " The", "the"]}, "“the” in any case"),
        ({0: [" Paris", " London"]}, "“Paris” or “London”"),
        ({0: [" on", " in", " at"]}, "“on”, “in” or “at”"),
        ({0: [" on", " in", " at", " of"]}, "“on”, “in”, “at” …"),
        ({0: [" it", " It", " would", " now", " does"]}, "“it”, “would”, “now” …"),
        ({0: ["1"]}, "the digit “1”"),
        ({0: ["1", "2"]}, "the digits “1” or “2”"),
        ({0: list("1234567")}, "digits, such as “1”, “2”, “3”"),
        ({0: [" 1998", " 2004", " 2005", " 1999"]}, "numbers, such as “1998”, “2004”, “2005”"),
        ({0: [",", ".", ";", ":"]}, "punctuation, such as “,”, “.”, “;”"),
        ({0: ["\n\n", "\n"]}, "a line break"),
        ({0: ["  ", " "]}, "a blank"),
        ({0: [" going", " making", " seeing", " doing"]},
         "words that end in “-ing”, such as “going”, “making”, “seeing”"),
        ({0: [" interact", " internal", " interest", " interim"]},
         "words that begin with “inter-”, such as “interact”, “internal”, “interest”"),
        ({0: [" NATO", " USA", " UNO", " EU"]}, "words in capitals, such as “NATO”, “USA”, “UNO”"),
        ({0: [" Rome", " Oslo", " Bern", " Kiev"]},
         "words with a capital letter, such as “Rome”, “Oslo”, “Bern”"),
        ({0: ["ness", "ful", "ly", "ous"]}, "parts of words, such as “-ness”, “-ful”, “-ly”"),
        ({0: [" мир", " дом", " год", " день"]}, "Cyrillic words or letters, such as “мир”, “дом”, “год”"),
        ({-1: [" of"]}, "after “of”"),
        ({-2: ["1", "2"]}, "two places after the digits “1” or “2”"),
        ({0: [" York"], -1: [" New"]}, "“York”, or after “New”"),
        ({0: [" " + "x" * 40]}, "“" + "x" * 23 + "…”"),
        ({}, None), ({0: []}, None),
    ],
)  # fmt: skip
def test_a_rule_in_words(pieces: dict[int, list[str]], name: str | None):
    assert of_rule(pieces) == name


def test_a_long_list_becomes_a_short_name():
    many = [f" word{chr(97 + n % 26)}{chr(97 + n // 26)}q" for n in range(107)]
    name = of_rule({0: many})
    assert name is not None and len(name) < 90 and name.startswith("words that begin with “word-”")


def test_documents_hold_words():
    assert of_rule({0: ["cat", "dog"]}, documents=True) == "texts with “cat” or “dog”"


def explanation(source: str, name: str | None, value: float | None, chance: float | None) -> Explanation:
    made = Explanation(3, source, name, items=40, name=name)
    made.scores |= {"balanced_accuracy": value, "balanced_accuracy_chance": chance}
    return made


def test_words_that_beat_chance_come_before_the_rule_and_what_does_not_is_no_name():
    rule, words = explanation("rule", "“the”", 0.95, 0.5), explanation("lm", "articles", 0.8, 0.5)
    assert chosen([rule, words]) == ("articles", "lm")
    assert chosen([rule, explanation("lm", "articles", 0.6, 0.5)]) == ("“the”", "rule"), (
        "0.1 above chance is too little"
    )
    assert chosen([rule, explanation("lm", "articles", 0.8, 0.75)]) == ("“the”", "rule"), "another's words do as well"
    assert chosen([explanation("rule", "“the”", 0.4, 0.1)]) == (None, None), "below one half"
    assert chosen([explanation("rule", "“the”", 0.7, None)]) == ("“the”", "rule"), "chance was not measured"
    assert chosen([explanation("rule", "“the”", None, None), explanation("lm", None, None, None)]) == (None, None)
    assert chosen([rule, explanation("label", "label sport", 0.9, 0.5), words]) == ("articles", "lm")


def test_what_may_be_luck_is_no_name():
    """0.5 + 2.33 standard errors: 0.68 of 40 windows, 0.76 of 20, 0.87 of 10. Of 20,000 guesses by 40 windows, one in a
    hundred passes at most."""
    for items, least in ((40, 0.7), (20, 0.8), (10, 0.9)):
        for value in (least - 0.05, least):
            luck = explanation("rule", "“the”", value, 0.5)
            luck.items = items
            assert (chosen([luck]) == ("“the”", "rule")) is (value == least), (items, value)
    luck.unparsed = 8
    assert chosen([luck]) == (None, None), "two windows say nothing"

    random = np.random.default_rng(0)
    hits, rejected = random.binomial(20, [[0.5], [0.3]], (2, 20_000)), random.binomial(20, [[0.5], [0.7]], (2, 20_000))
    values = (hits + rejected) / 40
    bar = min(v for v in np.unique(values) if chosen([explanation("rule", "x", float(v), 0.5)])[0])
    assert ((values >= bar).mean(1) < 0.012).all() and (values >= bar - 0.03).mean() > 0.012
