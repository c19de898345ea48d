"""Check what a recipe and the words of `-S` ask for, against the whole of params.yaml, before anything runs.

A recipe and words may name several values, so they may ask for several experiments (a sweep). A message names what is
wrong: the line of the recipe, or the word.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from apps.plan.words import changed
from apps.recipes.layers import written_out
from apps.recipes.recipe import Key, Recipe, leaves, over
from apps.recipes.words import alike, applied, is_sweep, swept, words
from stages.select.whole import SECTIONS, whole
from strata.corpus.knobs import LM
from strata.run.door import BadInput, near

Values = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is asked for. ``words``: for `dvc exp run -S`. ``values``: those of params.yaml in each experiment."""

    words: list[str]
    values: list[Values]


def asked(base: Values, recipe: Recipe, user_words: Sequence[str], depth: Callable[[LM], int]) -> Asked:
    """Put ``recipe`` and then ``user_words``, the user's words of `-S`, over ``base``, the values of params.yaml.

    ``depth``: how many blocks a model has. Raises BadInput, with the line of the recipe or the word that is wrong.
    """
    for name in recipe.values:
        if name not in SECTIONS:
            sentence = f"{name} is no section of params.yaml{near(str(name), SECTIONS)}"
            raise _refusal(recipe, [(str(name),)], [], sentence)

    for word in user_words:
        try:
            swept([word])
        except BadInput as refusal:
            raise _refusal(recipe, [], [word], str(refusal)) from None

    recipe = _without_replaced(recipe, [tuple(_key(word).split(".")) for word in user_words])
    recipe, user_words = _with_layer_numbers(base, recipe, user_words, depth)

    # Check each experiment: each combination of the recipe's and of the user's several values.
    variants: list[Values] = []
    for fixed in _combinations(recipe):
        for changes in swept(user_words):
            values = _applied(base, fixed, changes)
            if sentence := _complaint(values):
                raise _blamed(base, fixed, changes, sentence)
            variants.append(values)

    all_words = [*words(base, over(base, recipe.values)), *user_words]
    _check_reading(base, all_words, variants)
    return Asked(all_words, variants)


def _without_replaced(recipe: Recipe, keys: Sequence[Key]) -> Recipe:
    """Return the recipe without the values at ``keys``, which the user's words replace."""
    for key in keys:
        if key in recipe.leaves():
            recipe = replace(recipe, values=recipe.without(key))
    return recipe


def differences(experiments: Sequence[Values]) -> list[str]:
    """Say in which values each experiment differs from the others: `train.k=32 train.latents=2048`."""
    lines = [words({}, {".".join(key): value for key, value in leaves(values)}) for values in experiments]
    common = set(lines[0]).intersection(*lines)
    return [" ".join(word.removeprefix("+") for word in line if word not in common) for line in lines]


def _with_layer_numbers(
    base: Values, recipe: Recipe, user_words: Sequence[str], depth: Callable[[LM], int]
) -> tuple[Recipe, list[str]]:
    """Return the recipe and the words, with numbers where they name layers by a word, such as `layers: all`."""
    values = _applied(base, recipe, swept(user_words)[0])
    try:
        numbers = written_out(values, depth)
    except BadInput as refusal:
        raise _blamed(
            base, recipe, list(user_words), str(refusal), lambda values: _layer_complaint(values, depth)
        ) from None
    if not numbers:
        return recipe, list(user_words)

    spelled = [f"{_key(word)}={_listed(numbers[_key(word)])}" if _key(word) in numbers else word for word in user_words]
    changes = recipe.values
    for key, listed in numbers.items():
        path = tuple(key.split("."))
        if path in recipe.leaves():
            changes = over(changes, _nested(path, listed))
    return replace(recipe, values=changes), spelled


def _layer_complaint(values: Values, depth: Callable[[LM], int]) -> str | None:
    """Return the message for layers of ``values`` that are named by a wrong word; None if nothing is wrong."""
    try:
        written_out(values, depth)
    except BadInput as refusal:
        return str(refusal)
    return None


def _combinations(recipe: Recipe) -> Iterator[Recipe]:
    """Yield the recipe with one value in place of each sweep, such as `k: choice(32, 64)`, in all combinations."""
    sweeps = {key: text for key, text in leaves(recipe.values) if is_sweep(text)}

    # DVC's own code says which values a sweep has, by what it would put into a key x.
    try:
        options = [[applied({"x": None}, line)["x"] for line in swept([f"x={text}"])] for text in sweeps.values()]
    except BadInput as refusal:
        raise _refusal(recipe, list(sweeps), [], str(refusal)) from None

    for combination in product(*options):
        values = recipe.values
        for key, value in zip(sweeps, combination, strict=True):
            values = over(values, _nested(key, value))
        yield replace(recipe, values=values)


def _applied(base: Values, recipe: Recipe, user_words: Sequence[str]) -> Values:
    """Put the recipe and the user's words over ``base``. Raises BadInput for a word that DVC would refuse."""
    values = over(base, recipe.values)
    for number, word in enumerate(user_words):
        try:
            key = word.partition("=")[0]
            if not key.startswith("~"):
                changed(values, {key: 0})  # is there such a key?
            values = applied(values, [word])
        except BadInput as refusal:
            # Before the first word, ``values`` are the recipe's alone. If they are wrong, the recipe is to blame.
            if number == 0 and (sentence := _complaint(values)):
                raise _blamed(base, recipe, [], sentence) from None
            raise _refusal(recipe, [], [word], str(refusal)) from None
    return values


def _complaint(values: Values) -> str | None:
    """Return the message for the first thing that is wrong with ``values``; None if nothing is."""
    try:
        whole(values)
    except BadInput as refusal:
        return str(refusal).removeprefix("params.yaml: ").removeprefix("params.yaml ")
    return None


def _blamed(
    base: Values,
    recipe: Recipe,
    user_words: Sequence[str],
    sentence: str,
    complaint: Callable[[Values], str | None] = _complaint,
) -> BadInput:
    """Make the refusal that names the lines of the recipe, and the words, that are to blame for ``sentence``.

    Each line and word is left out in turn. It is to blame if the complaint is then another one, or none. ``complaint``:
    what finds the message of some values.
    """

    def cures(values: Mapping[str, Any], changes: Sequence[str]) -> bool:
        try:
            return complaint(_applied(base, replace(recipe, values=dict(values)), changes)) != sentence
        except BadInput:
            return False  # without it, the words do not even apply

    words_without = [[*user_words[:place], *user_words[place + 1 :]] for place in range(len(user_words))]
    wrong_words = [word for word, others in zip(user_words, words_without, strict=True) if cures(recipe.values, others)]
    keys = [key for key in recipe.leaves() if cures(recipe.without(key), user_words)]

    # Where no value alone is to blame, several are together: name the smallest section that holds them.
    if not keys and not wrong_words:
        sections = {key[:length] for key in recipe.leaves() for length in range(1, len(key))}
        keys = [key for key in sorted(sections, key=len, reverse=True) if cures(recipe.without(key), user_words)][:1]
    return _refusal(recipe, [_named(recipe, key, sentence) for key in keys], wrong_words, sentence)


def _named(recipe: Recipe, key: Key, sentence: str) -> Key:
    """Return the key of a line that the sentence names, if it is inside or around ``key``; else ``key`` itself.

    A key that the sentence names is nearer to the mistake.
    """
    quoted = re.findall(r"'(\w+)'", sentence)
    for token in re.findall(r"\w+(?:\.\w+)+", sentence):
        parts = tuple(token.split("."))
        for length in range(len(parts), 1, -1):
            candidate = parts[:length]
            if candidate in recipe.lines and (candidate[: len(key)] == key or key[:length] == candidate):
                return next((inner for name in quoted if (inner := (*candidate, name)) in recipe.lines), candidate)
    return key


def _refusal(recipe: Recipe, keys: Sequence[Key], user_words: Sequence[str], sentence: str) -> BadInput:
    """Make the refusal: `recipes/mine.yaml:7: train.k is …`, or `-S train.k=0: train.k is …`."""
    places = [f"-S {word}" for word in user_words]
    if numbers := sorted({recipe.lines[key] for key in keys}):
        places.append(f"{recipe.path}:{', '.join(map(str, numbers))}")
    if not places:
        places = [f"{recipe.path} over params.yaml" if recipe.values else "params.yaml"]
    return BadInput(f"{' and '.join(places)}: {sentence}")


def _check_reading(base: Values, changes: Sequence[str], values: Sequence[Values]) -> None:
    """Refuse words that DVC would read as other values than the ``values`` that were checked."""
    read = [applied(base, line) for line in swept(changes)]
    if sorted(map(alike, read)) != sorted(map(alike, values)):
        raise BadInput(f"dvc exp run would not read these words as they are meant: {' '.join(changes)}")


def _key(word: str) -> str:
    """Return the key of a word: train.k=32 -> train.k."""
    return word.partition("=")[0]


def _nested(path: Key, value: Any) -> dict[Any, Any]:
    """Return a mapping with ``value`` at ``path``: (train, k), 8 -> {train: {k: 8}}."""
    for part in reversed(path):
        value = {part: value}
    return value


def _listed(numbers: Sequence[int]) -> str:
    """Write a list without spaces, as a word of -S has it: [3,6]."""
    return f"[{','.join(map(str, numbers))}]"
