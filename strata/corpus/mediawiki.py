"""MediaWiki XML dump -> articles, read as a stream: only one page is in memory, whatever the size of the dump."""

import xml.etree.ElementTree as ET
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from strata.corpus import wikitext
from strata.corpus.document import Document
from strata.corpus.lines import CUT, LONGEST, PACKED, unpacked
from strata.run.door import BadInput

BLOCK = 2**16  # bytes that the parser takes at a time
DEEPEST = 50  # levels of nested elements; a dump has six
FILE, MEDIA, CATEGORY = "6", "-2", "14"  # namespaces whose links show no text, by their keys


def documents(path: Path, paragraphs: bool = False) -> Generator[Document, None, None]:
    """Yield each section of each article, or each of its ``paragraphs``, as a document labelled by the article's title.

    Redirects and pages outside the article namespace are dropped. Of a page with several revisions the last one in the
    dump is used. Raises BadInput for a file that is no whole dump, and for an element that is longer or nested more
    deeply than any page of a wiki.
    """
    try:
        with unpacked(path) as file:
            for document in _documents(path, file):
                if not paragraphs:
                    yield document
                    continue
                for number, text in enumerate(document.text.split("\n"), start=1):
                    yield document._replace(title=f"{document.title} {number}", text=text)
    except ET.ParseError as error:
        raise BadInput(f"{path} is not a whole MediaWiki XML dump: {error}") from None
    except CUT as error:
        packed = path.suffix.lower() if path.suffix.lower() in PACKED else "MediaWiki"
        raise BadInput(f"{path} is not a whole {packed} file: {error}") from None


def _documents(path: Path, file: BinaryIO) -> Iterator[Document]:
    """Yield each section of each article as a document, titled `Article / Section`."""
    # Namespaces whose links show no text. These names hold in a wiki of any language, beside the names of its own.
    dropped = {"file", "image", "media", "category"}
    opened: list[ET.Element] = []  # from the root to the element that is being read

    for event, element in _events(path, file):
        if event == "start":
            opened.append(element)
            if len(opened) > DEEPEST:
                raise BadInput(f"{path} is no MediaWiki dump: {DEEPEST} elements stand one in the other")
            continue

        opened.pop()
        match _name(element):
            case "namespace" if element.get("key") in (FILE, MEDIA, CATEGORY) and element.text:
                dropped.add(element.text.lower())
            case "revision" if opened:
                for earlier in opened[-1].findall(element.tag)[:-1]:
                    opened[-1].remove(earlier)  # a dump may hold the whole history of a page
            case "page":
                title, text = _article(element)
                for heading, plain in wikitext.sections(title, text, dropped) if text else ():
                    yield Document(heading, title, plain)
                if opened:
                    opened[0].clear()  # the root: frees this page, and those before it


def _events(path: Path, file: BinaryIO) -> Iterator[tuple[str, ET.Element]]:
    """Yield ("start" or "end", element) as the file is read.

    All that lies between the ends of two revisions or pages is in memory, so it has a bound. Raises BadInput past it.
    """
    parser = ET.XMLPullParser(events=("start", "end"))
    unreleased = 0  # bytes since the last end of a revision or page
    while block := file.read(BLOCK):
        unreleased += len(block)
        parser.feed(block)
        for event, element in cast("Iterator[tuple[str, ET.Element]]", parser.read_events()):
            if event == "end" and _name(element) in ("revision", "page"):
                unreleased = 0
            yield event, element
        if unreleased > 4 * LONGEST:  # a character in UTF-8 has at the most four bytes
            raise BadInput(
                f"{path} is no MediaWiki dump: more than {4 * LONGEST:,} bytes without the end of a revision"
            )
    parser.close()


def _article(page: ET.Element) -> tuple[str, str]:
    """Return the title and the wikitext of a page; an empty text for a redirect or a page of another namespace."""
    title = text = ""
    for child in page:
        match _name(child):
            case "title":
                title = child.text or ""
            case "ns" if child.text != "0":
                return title, ""
            case "redirect":
                return title, ""
            case "revision":
                text = next((part.text or "" for part in child if _name(part) == "text"), "")
    return title, "" if text.lstrip()[:9].lower() == "#redirect" else text


def _name(element: ET.Element) -> str:
    """Return an element's name without its XML namespace, which changes with every version of the format."""
    return element.tag.rpartition("}")[2]
