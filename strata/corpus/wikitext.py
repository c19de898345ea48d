"""Wikitext -> sections of plain text, without any markup.

Tables, references, pictures with their captions, formulas, categories, and the sections that only list sources are
dropped. So are templates, except those that carry words of a sentence (`{{lang|el|ψ}}`, `{{convert|5|km}}`).
"""

import html
import re
from collections.abc import Iterable, Iterator

import mwparserfromhell
from mwparserfromhell import nodes

DOCUMENT_LEVEL = 3  # a heading of this level or above opens a section of its own; a deeper one stays a line of it

# Titles of sections that only list sources and links. They are dropped together with their subsections.
LISTS = {
    *("references", "external links", "see also", "further reading", "bibliography", "notes", "footnotes", "sources"),
    *("citations", "works cited", "notes and references", "references and notes", "notes and citations"),
    *("references and further reading", "further reading and external links", "external sources", "literature cited"),
    *("cited sources", "general references", "primary sources", "secondary sources", "reference", "external link"),
}

DROPPED_TAGS = {
    *("ref", "references", "table", "gallery", "math", "chem", "timeline", "score", "imagemap", "hiero", "graph"),
    *("syntaxhighlight", "source", "pre", "templatestyles", "mapframe", "style", "includeonly", "tr", "td", "th"),
}
BREAKS = {"br": " ", "hr": "\n", "dd": ": ", "li": "", "dt": ""}

# Templates whose words belong to the sentence, by the positional argument that they show, or by what they stand for.
FIRST = {
    *(
        "nowrap",
        "quote",
        "blockquote",
        "cquote",
        "nihongo",
        "smaller",
        "small",
        "vanchor",
        "visible anchor",
        "sc",
        "ill",
    ),
    *("small caps", "angbr", "val", "abbr", "em", "strong", "sup", "sub", "nobold", "noitalic"),
}
SECOND = {"lang", "script"}
LAST = {"transl", "transliteration"}
FIXED = {
    **dict.fromkeys(("mdash", "mdashb", "spaced mdash", "snd", "spnd", "ndash", "spaced ndash"), " – "),
    **dict.fromkeys(("nbsp", "thinsp", "sp"), " "),
    "'s": "'s",
}
JOINERS = {"-", "–", "to", "and", "by", "x", "×", "or", "to(-)", "and(-)"}

_TAGS = re.compile(
    r"</?(?:ref|br|small|big|sub|sup|div|span|p|i|b|u|s|center|font|nowiki|noinclude|onlyinclude|includeonly|blockquote"
    r"|table|tr|td|th|ul|ol|li|dl|dd|dt|math|gallery|references|code|tt|cite|abbr|h[1-6])\b[^<>]*>?",
    re.IGNORECASE,
)
_UNCLOSED = re.compile(r"\{\{[^{}\n]*(?:\}\}|$)|\[\[[^\[\]|\n]+\|(?:thumb|left|right|\d+px)\b.*$", re.MULTILINE)
_BRACKETS = re.compile(r"\{\{+|\}\}+|\[\[+|\]\]+|\{\||\|\}|'{2,}|__[A-Z]{3,}__")
_TABLE_LINE = re.compile(r"^\s*(?:\{\||\|\}|\|-|[|!]).*$", re.MULTILINE)
_LINE_START = re.compile(r"^[\s*#:;,]+", re.MULTILINE)
_TIDY = [
    (re.compile(r"[^\S\n]+"), " "),
    (re.compile(r"([(\[])[\s,;:]+"), r"\1"),  # what a dropped template leaves: "( ; born" -> "(born"
    (re.compile(r"[\s,;:]+([)\]])"), r"\1"),
    (re.compile(r"\(\s*(?:[–—-]|or|and)?\s*\)|\[\s*\]|\"\s*\"|“\s*”"), ""),
    (re.compile(r" +([,.;:)])"), r"\1"),
    (re.compile(r"([,;:])(?:\s*[,;:])+"), r"\1"),
    (re.compile(r" {2,}"), " "),
]


def sections(
    title: str, wikitext: str, dropped: Iterable[str] = ("file", "image", "category", "media")
) -> Iterator[tuple[str, str]]:
    """Cut an article into sections; yield (title, plain text) of each.

    The title of the lead is `Anarchism`, that of a section `Anarchism / History`.
    ``dropped``: the namespaces, in lower case, whose links show no text (pictures and categories).
    """
    namespaces = frozenset(dropped)
    headings: dict[int, str] = {}  # level -> heading, of the section that is being read and those around it
    body: list[nodes.Node] = []
    for node in mwparserfromhell.parse(wikitext).nodes:
        if isinstance(node, nodes.Heading) and node.level <= DOCUMENT_LEVEL:
            yield from _section(title, headings, body, namespaces)
            headings = {level: name for level, name in headings.items() if level < node.level}
            headings[node.level] = tidy(_text(node.title.nodes, namespaces))
            body = []
        else:
            body.append(node)
    yield from _section(title, headings, body, namespaces)


def _section(
    title: str, headings: dict[int, str], body: list[nodes.Node], namespaces: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """Yield (title, plain text) of one section; nothing for an empty section or one that only lists sources."""
    if any(name.lower() in LISTS for name in headings.values()):
        return
    lines = tidy(_text(body, namespaces)).split("\n")
    if text := "\n".join(line for line in lines if line.lower().rstrip(":") not in LISTS):
        yield " / ".join([title, *filter(None, headings.values())]), text


def tidy(text: str) -> str:
    """Clean up after dropped markup: empty brackets, doubled spaces and commas, lines without a word.

    Example: `Aikido ( ; ) , an  art` -> `Aikido, an art`.
    """
    text = html.unescape(text).replace("\xa0", " ")
    text = _BRACKETS.sub("", _UNCLOSED.sub("", _TABLE_LINE.sub("", _TAGS.sub("", text))))
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    lines = (line.strip() for line in _LINE_START.sub("", text).split("\n"))
    return "\n".join(line for line in lines if re.search(r"\w", line))


def _text(items: Iterable[nodes.Node], namespaces: frozenset[str]) -> str:
    return "".join(_plain(node, namespaces) for node in items)


def _plain(node: nodes.Node, namespaces: frozenset[str]) -> str:
    """Return the text that a reader of the page sees of one piece of wikitext; "" for what is dropped."""
    match node:
        case nodes.Text():
            return str(node.value)
        case nodes.Wikilink():
            return _link(node, namespaces)
        case nodes.ExternalLink():
            return _text(node.title.nodes, namespaces) if node.title else ""
        case nodes.HTMLEntity():
            return node.normalize() or ""
        case nodes.Heading():
            return f"\n{_text(node.title.nodes, namespaces)}\n"
        case nodes.Template():
            return _template(node, namespaces)
        case nodes.Tag():
            tag = str(node.tag).strip().lower()
            if tag in DROPPED_TAGS:
                return ""
            return BREAKS[tag] if tag in BREAKS and not node.contents else _text(_contents(node), namespaces)
        case _:  # comments, arguments of templates
            return ""


def _contents(tag: nodes.Tag) -> list[nodes.Node]:
    return tag.contents.nodes if tag.contents else []


def _link(link: nodes.Wikilink, namespaces: frozenset[str]) -> str:
    """Return the text of a link: its label or its target; "" for pictures, categories and links to other languages."""
    target = str(link.title).strip()
    prefix, colon, _ = target.partition(":")
    if colon and (
        prefix.strip().lower() in namespaces or (re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", prefix) and not link.text)
    ):
        return ""  # a picture, a category, or a link to the article in another language
    if link.text is not None:
        return _text(link.text.nodes, namespaces)
    return target.lstrip(":")


def _template(template: nodes.Template, namespaces: frozenset[str]) -> str:
    """Return the words that a template adds to its sentence; "" for the templates that are dropped."""
    name = " ".join(str(template.name).lower().replace("_", " ").split())
    if name in FIXED:
        return FIXED[name]

    shown = [_text(argument.value.nodes, namespaces).strip() for argument in template.params if not argument.showkey]
    match name:
        case "convert" | "cvt":
            return _quantity(shown)
        case "chem" | "chem2":
            return "".join(shown)
        case "frac" | "sfrac":
            return "/".join(shown)
        case "circa" | "as of":
            return " ".join([{"circa": "c."}.get(name, "As of"), *shown[:1]])
        case _ if name in FIRST or name.startswith("lang-"):
            return "".join(shown[:1])
        case _ if name in SECOND:
            return "".join(shown[1:2])
        case _ if name in LAST:
            return "".join(shown[-1:])
    return ""


def _quantity(arguments: list[str]) -> str:
    """Join the numbers, the words between them and the first unit: `5, to, 10, km, mi` -> `5 to 10 km`."""
    for place, word in enumerate(arguments):
        if word not in JOINERS and not re.match(r"[-−+]?[\d.,]", word):
            return " ".join(arguments[: place + 1])
    return " ".join(arguments)
