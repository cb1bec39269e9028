#!/usr/bin/env python3
"""Turns the manuals in unpacked Debian packages into documents of plain English prose.

Reads ROOT/PACKAGE/... for every package of `SOURCES` and writes OUT/train.jsonl and
OUT/validation.jsonl, one document a line: {"text": ..., "source": "PACKAGE/file.html"}. Headings,
paragraphs and list items are kept; listings, tables and navigation are left out.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

# Package: the HTML files in it that are prose.
SOURCES = {
    "debian-faq": "usr/share/doc/debian/FAQ/*.en.html",
    "debian-handbook": "usr/share/doc/debian-handbook/html/en-US/*.html",
    "debian-policy": "usr/share/doc/debian-policy/policy.html/*.html",
    "debian-reference-en": "usr/share/debian-reference/*.en.html",
    "developers-reference": "usr/share/developers-reference/*.html",
    "harden-doc": "usr/share/doc/harden-doc/html/en-US/*.html",
    "maint-guide": "usr/share/doc/maint-guide/html/*.en.html",
    "postgresql-doc-15": "usr/share/doc/postgresql-doc-15/html/*.html",
}

VALIDATION_PERCENT = 4
SHORTEST = 1000  # characters; shorter pages are title pages, indexes and stubs

HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
BLOCKS = HEADINGS | {"p", "li", "dd", "dt", "blockquote", "div", "section", "br", "body"}
SKIPPED = {"head", "script", "style", "pre", "table", "nav", "header", "footer", "form", "svg"}
# Classes and ids of the elements in which DocBook and Sphinx put what is not prose.
SKIPPED_MARKS = {
    *("banner", "docnav", "footer", "headerlink", "highlight", "index", "indexterm"),
    *("legalnotice", "list-of-tables", "navfooter", "navheader", "producttitle", "programlisting"),
    *(
        "refsynopsisdiv",
        "related",
        "revhistory",
        "screen",
        "sphinxsidebar",
        "toc",
        "toctree-wrapper",
    ),
}
VOID = {
    "area",
    "base",
    "br",
    "col",
    "embed",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "source",
    "track",
    "wbr",
}


class Prose(HTMLParser):
    """Collects the paragraphs of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._pieces: list[str] = []
        self._skipping: list[str] = []  # open elements, from the outermost one that is left out

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        marks = {values.get("id"), *(values.get("class") or "").split()}
        if tag not in VOID and (self._skipping or tag in SKIPPED or marks & SKIPPED_MARKS):
            self._skipping.append(tag)
        elif tag in BLOCKS:
            self.end_paragraph()

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            while tag in self._skipping and self._skipping.pop() != tag:
                pass
        elif tag in BLOCKS:
            self.end_paragraph()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._pieces.append(data)

    def end_paragraph(self) -> None:
        text = " ".join("".join(self._pieces).replace("\u200b", "").split())
        self._pieces.clear()
        if re.search(r"[^\W\d_]{2}", text):
            self.paragraphs.append(text)


def prose_of(html: str) -> str:
    parser = Prose()
    parser.feed(html)
    parser.close()
    parser.end_paragraph()
    return "\n\n".join(parser.paragraphs)


def documents(root: Path) -> Iterator[tuple[str, str]]:
    """(source, text) of every page long enough to read, in the order of their names."""
    for package, pattern in SOURCES.items():
        paths = sorted((root / package).glob(pattern))
        if not paths:
            raise FileNotFoundError(
                f"{root / package} has no {pattern}: unpack the Debian package {package} there"
            )
        for path in paths:
            text = prose_of(path.read_text(encoding="utf-8", errors="replace"))
            if len(text) >= SHORTEST:
                yield f"{package}/{path.name}", text


def is_validation(source: str) -> bool:
    """Whether a document is held out: a function of its name alone."""
    return (
        int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") % 100
        < VALIDATION_PERCENT
    )


def collect(root: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    parts = {False: out / "train.jsonl", True: out / "validation.jsonl"}
    asides = {key: path.with_suffix(".partial") for key, path in parts.items()}
    files = {key: path.open("w", encoding="utf-8") for key, path in asides.items()}
    counts = {key: [0, 0] for key in parts}
    for source, text in documents(root):
        part = is_validation(source)
        files[part].write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")
        counts[part][0] += 1
        counts[part][1] += len(text)
    for key, path in parts.items():
        files[key].close()
        asides[key].rename(path)
        print(f"{path}: {counts[key][0]} documents, {counts[key][1] / 1e6:.2f} million characters")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Extract English prose from unpacked Debian packages."
    )
    parser.add_argument(
        "root", type=Path, nargs="?", help="folder with one unpacked package a folder"
    )
    parser.add_argument(
        "out", type=Path, nargs="?", help="folder for train.jsonl and validation.jsonl"
    )
    parser.add_argument(
        "--packages", action="store_true", help="print the packages' names and do nothing else"
    )
    args = parser.parse_args()
    if args.packages:
        print("\n".join(SOURCES))
        return 0
    if args.root is None or args.out is None:
        parser.error("ROOT and OUT are needed")
    try:
        collect(args.root, args.out)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
