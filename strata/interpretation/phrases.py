"""Put token rules in few words, that people read at a glance."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

LISTED = 3  # tokens that a name lists
CONSIDERED = 200  # tokens of a rule that a name is made from, those with most hits: a rule may have thousands
MOST = 0.8  # share of a rule's tokens that have something in common, for a name that says what
SEVERAL = 4  # tokens of which this is said; of fewer all are listed
AFFIX = 2  # letters of an ending; of a beginning there is one more
LONGEST = 24  # letters of a token in a name
BEFORE = {0: "{}", -1: "after {}", -2: "two places after {}"}  # offset of a rule's tokens -> where the latent fires


def of_rule(pieces: Mapping[int, Sequence[str]], documents: bool = False) -> str | None:
    """Put a token rule in words: `the digit “1”`, `after “of”`, `words that end in “-ing”, such as “going”`.

    ``pieces``: offset -> the rule's tokens as text, those with most hits first. ``documents``: whether the latent fires
    on documents that hold one of these words. None for a rule without tokens.
    """
    if documents:
        words = list(dict.fromkeys(pieces.get(0, ())))[:CONSIDERED]
        return f"texts with {_said(words)}" if words else None
    parts = [
        BEFORE[offset].format(_said(_words(pieces[offset][:CONSIDERED]))) for offset in BEFORE if pieces.get(offset)
    ]
    return ", or ".join(parts) or None


def _said(words: list[str]) -> str:
    """Say what some words are: what they have in common, with the first few, or all if they are few."""
    first_of_case: dict[str, str] = {}
    for word in words:
        first_of_case.setdefault(word.casefold(), word)
    distinct = list(first_of_case.values())
    if len(distinct) == 1 and len(words) > 1:
        return f"{_quoted(distinct[0].casefold())} in any case"

    one, many = _kind(words)
    shown = [_quoted(word) for word in distinct[:LISTED]]
    if len(distinct) <= LISTED:
        listed = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
        return f"{one} {listed}".lstrip()
    return f"{many}, such as {', '.join(shown)}" if many else f"{', '.join(shown)} …"


def _kind(words: Sequence[str]) -> tuple[str, str]:
    """Say what ``words`` have in common: what few of them are called, `the digit`, and what many are; "": nothing."""
    if all(word.isdigit() and len(word) == 1 for word in words):
        return "the digit" if len(words) == 1 else "the digits", "digits"
    if _mostly(words, str.isdigit):
        return "the number" if len(words) == 1 else "the numbers", "numbers"
    if all(not any(letter.isalnum() for letter in word) for word in words):
        return "", "punctuation"
    if script := _script(words):
        return script, f"{script} words or letters"

    if len(words) >= SEVERAL:
        if ending := _common(words, ends=True):
            return "", f"words that end in “-{ending}”"
        if beginning := _common(words, ends=False):
            return "", f"words that begin with “{beginning}-”"
        if _mostly(words, lambda word: word.isupper() and len(word) > 1):
            return "", "words in capitals"
        if _mostly(words, lambda word: word[:1].isupper()):
            return "", "words with a capital letter"
        if _mostly(words, lambda word: word.startswith("-") and word[1:].isalpha()):
            return "", "parts of words"
    return "", ""


def _words(pieces: Sequence[str]) -> list[str]:
    """Return tokens as words, each once, in their order. A part of a word that also stands alone counts as that one."""
    words = [_word(piece) for piece in pieces]
    alone = {word.casefold() for word in words if not word.startswith("-")}
    return list(dict.fromkeys(word[1:] if word[1:].casefold() in alone else word for word in words))


def _word(piece: str) -> str:
    """Return a token as a word: without the blank before it; a part of a word, which has none, gets a hyphen.

    A line break and a run of blanks are named, since nobody would see them.
    """
    text = piece.replace("▁", " ")
    word = text.strip()
    if not word:
        return "line break" if "\n" in text else "blank"
    is_part = not text[0].isspace() and word[0].isalpha() and word[0].islower() and word.isalpha()
    return f"-{word}" if is_part else word


def _mostly(words: Sequence[str], condition: Callable[[str], bool]) -> bool:
    """Say whether nearly all ``words`` fulfil ``condition``."""
    return sum(condition(word) for word in words) >= MOST * len(words)


def _common(words: Sequence[str], ends: bool) -> str | None:
    """Return the longest ending, or beginning, that nearly all ``words`` share; None where there is none worth a name.

    A word that is nothing but the ending does not count as one that has it.
    """
    letters = [word.casefold().lstrip("-") for word in words if word.lstrip("-").isalpha()]
    if len(letters) < MOST * len(words):
        return None
    turned = [word[::-1] for word in letters] if ends else letters
    counts = Counter(word[:length] for word in turned for length in range(AFFIX + (not ends), len(word)))
    shared = [affix for affix, count in counts.items() if count >= MOST * len(turned)]
    best = max(shared, key=len, default=None)
    return best[::-1] if best and ends else best


def _script(words: Sequence[str]) -> str | None:
    """Return the script of ``words`` where nearly all are of one that is not Latin: `Greek`, `Cyrillic`, `CJK`."""
    scripts = []
    for word in words:
        letters = [letter for letter in word if letter.isalpha()]
        scripts.append(unicodedata.name(letters[0], "").split(" ")[0] if letters else "")
    first = max(set(scripts), key=scripts.count)
    if first in ("", "LATIN") or not _mostly(scripts, lambda script: script == first):
        return None
    return first if first == "CJK" else first.capitalize()


def _quoted(word: str) -> str:
    """Write a word in quotes, and shorten a very long one. Blanks and line breaks are names already."""
    if word in ("line break", "blank"):
        return f"a {word}"
    return f"“{word if len(word) <= LONGEST else word[: LONGEST - 1] + '…'}”"
