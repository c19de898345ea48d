"""MediaWiki XML dump -> articles, read as a stream: memory stays at one page, whatever the dump's size."""

import bz2
import xml.etree.ElementTree as ET
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from stages.door import BadInput
from stages.fetch import wikitext
from stages.fetch.document import Document

FILE, MEDIA, CATEGORY = "6", "-2", "14"  # namespaces whose links show no text, by their keys


def documents(path: Path, paragraphs: bool = False) -> Generator[Document, None, None]:
    """Each section of each article, or each of its ``paragraphs``, is a document; its label is the article's title.

    Redirects and pages outside the article namespace are dropped. A page's last revision in the dump counts.
    """
    with cast(BinaryIO, bz2.open(path) if path.suffix == ".bz2" else path.open("rb")) as file:
        try:
            for document in _documents(file):
                if not paragraphs:
                    yield document
                    continue
                for number, text in enumerate(document.text.split("\n"), start=1):
                    yield document._replace(title=f"{document.title} {number}", text=text)
        except ET.ParseError as error:
            raise BadInput(f"{path} is not a whole MediaWiki XML dump: {error}") from None
        except (EOFError, OSError) as error:
            raise BadInput(f"{path} is not a whole .bz2 file: {error}") from None


def _documents(file: BinaryIO) -> Iterator[Document]:
    dropped = {"file", "image", "media", "category"}  # understood on a wiki of any language, beside its own names
    events = ET.iterparse(file, events=("start", "end"))
    _, root = next(events)
    for event, element in events:
        if event == "start":
            continue
        match _name(element):
            case "namespace" if element.get("key") in (FILE, MEDIA, CATEGORY) and element.text:
                dropped.add(element.text.lower())
            case "page":
                title, text = _article(element)
                for heading, plain in wikitext.sections(title, text, dropped) if text else ():
                    yield Document(heading, title, plain)
                root.clear()  # forgets the pages before this one, too


def _article(page: ET.Element) -> tuple[str, str]:
    """Title and wikitext; no text for a redirect or a page of another namespace."""
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
    return element.tag.rpartition("}")[2]  # the XML namespace changes with every version of the format
