"""The links in the documents resolve: each relative one to a file, each anchor to a heading."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator

import pytest
from harness import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")])
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of ``text``; a repeated heading's has a number."""
    found: dict[str, int] = {}
    for title in HEADING.findall(FENCED.sub("", text)):
        name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
        if found[name]:
            found[f"{name}-{found[name]}"] = 0
    return set(found)


def links(text: str) -> list[str]:
    return LINK.findall(CODE.sub("", FENCED.sub("", text)))


def broken(page: Path) -> Iterator[str]:
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            yield link


@pytest.mark.parametrize("page", DOCUMENTS, ids=[path.relative_to(ROOT).as_posix() for path in DOCUMENTS])
def test_relative_links_and_anchors_resolve(page: Path) -> None:
    assert list(broken(page)) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# `relay=True`, twice\n\n## Same\n\n```\n# no heading\n[no link](gone.md)\n```\n\n## Same\n")
    assert anchors(page.read_text()) == {"relaytrue-twice", "same", "same-1"}
    page.write_text(
        "# One\n[a](#one) [b](page.md#one) [c](https://example.com/#x) [d](gone.md) [e](#two) `[f](code.md)`\n"
        "[![g](gone.svg)](page.md)\n"
    )
    assert list(broken(page)) == ["gone.md", "#two", "gone.svg"]


def test_the_readme_leads_to_every_document() -> None:
    named = set(links((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= named
