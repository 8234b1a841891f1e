"""The links in the documents resolve: each relative one to a file, each anchor to a heading."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator

import pytest
from harness import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
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


def test_every_document_is_reached_from_the_readme() -> None:
    """By links of the readme, or of a page that it leads to."""
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text(encoding="utf-8"))}
        ahead += [target for target in targets if target.suffix == ".md" and target.is_file() and target not in reached]
    # These stand for files elsewhere, to which the readme links itself.
    stand_ins = {ROOT / "docs" / f"{name}.md" for name in ("changelog", "contributing", "security-policy")}
    assert {page for page in (ROOT / "docs").rglob("*.md") if "examples" not in page.parts} - stand_ins <= reached
