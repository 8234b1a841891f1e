"""The code blocks of the documents and of docstrings, with what the comments above them say about running them.

Responsible for: finding blocks, the meaning of the comments; the cells of tables. Not responsible for: running them.

A comment (`<!-- ... -->`) directly above a block, invisible to readers:

    before: CODE       Python that runs first, in the same program
    after: CODE        Python that runs last, in the same program
    continues          the program begins with the previous Python block of the page
    api: STATUS        what the API answers to each request; `down`: there is none; `tls`: with an unknown certificate
    arrives: NUMBER    this many events have reached the API when the program has ended
    exits: NUMBER      the exit status, if it is not 0
    file: NAME         the page's commands find the block in this file; so do its other blocks, if it is a module
    output             what the previous block prints; ``...`` stands for any text
    checked by: TEST   the test that runs it or compares it, as PATH::FUNCTION
    with: PACKAGE      it runs in an environment of ``PACKAGE``, a peer of `stress.peers`, and not in this one
    also with: PACKAGE it runs in both
    not run: REASON    nothing runs it; a test limits how many of these there are
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Iterator

from harness import ROOT
from markdown_it import MarkdownIt

KEYS = (
    *("before", "after", "continues", "file", "api", "arrives", "exits", "output"),
    *("checked by", "not run", "with", "also with"),
)
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
_COMMANDS = re.compile(r"\s*(\(umask|([A-Z_]+=\S+ )*(pip|python3?|curl|\.venv/bin/\S+) )")


@dataclass
class Block:
    path: Path
    line: int
    language: str
    text: str
    notes: dict[str, str] = field(default_factory=dict)
    previous: Block | None = None  # in the same page

    @property
    def name(self) -> str:
        return f"{self.path.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def excerpt(self) -> bool:
        """It stands, as it is, in an example that the tests run."""
        return any(_lines(self.text) in text for text in _examples())

    def program(self) -> str:
        """The whole program of a Python block."""
        parts = [self.notes.get("before", ""), self.text, self.notes.get("after", "")]
        if "continues" in self.notes:
            before = self.previous
            while before is not None and before.language != "python":
                before = before.previous
            assert before is not None, f"{self.name} continues nothing"
            parts.insert(0, before.program())
        return "\n".join(filter(None, parts)).replace("SUPPORT", str(ROOT / "tests" / "support")) + "\n"


def documents() -> list[Path]:
    pages = [ROOT / "README.md", *(ROOT / ".github").glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(page for page in pages if page.is_file())


def blocks_of(page: Path) -> Iterator[Block]:
    notes: dict[str, str] = {}
    previous = None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            notes.update(_notes(token.content, page))
        elif token.type in ("fence", "code_block"):
            language = token.info.strip() if token.type == "fence" else _of_indented(token.content)
            line = token.map[0] + 1 if token.map else 0
            previous = Block(page, line, language, token.content, notes, previous)
            yield previous
            notes = {}
        else:
            assert not notes, f"{page}: no block follows the comment {notes}"
    assert not notes, f"{page}: no block follows the comment {notes}"


def docstring_blocks() -> Iterator[Block]:
    """Those in the docstrings of the public modules and classes, and of all that they define."""
    for path in sorted((ROOT / "letterapp").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                line = 1 if isinstance(node, ast.Module) else node.lineno
                for text in _indented(inspect.cleandoc(ast.get_docstring(node) or "")):
                    language = _of_docstring(text)
                    if language or "/_" not in path.as_posix():  # a private module's may be a drawing
                        yield Block(path, line, language, text)


def _notes(html: str, page: Path) -> dict[str, str]:
    found = {}
    for comment in _COMMENT.findall(html):
        key, _, value = comment.partition(":")
        assert key in KEYS, f"{page}: unknown comment {comment!r}"
        found[key] = value.strip("\n") if "\n" in value else value.strip()
    return found


def _of_indented(text: str) -> str:
    return "console" if _COMMANDS.match(text) else "text"


def _of_docstring(text: str) -> str:
    if text.startswith("["):
        return "ini"
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return ""
    return "python" if any(isinstance(node, (ast.Call, ast.Import, ast.ImportFrom)) for node in ast.walk(tree)) else ""


def _indented(docstring: str) -> Iterator[str]:
    """The blocks that are indented by four spaces, each after a line that is not indented and an empty one."""
    yield from (
        inspect.cleandoc("\n" + found[1]) + "\n"
        for found in re.finditer(r"^\S[^\n]*\n\n((?: {4}[^\n]*\n|\n)+)", docstring + "\n\n", re.MULTILINE)
    )


def _lines(text: str) -> str:
    return "\n" + "\n".join(line.strip() for line in text.strip().splitlines()) + "\n"


@lru_cache(maxsize=None)
def _examples() -> list[str]:
    kinds = {".py", ".toml", ".ini", ".cfg", ".yaml", ".yml", ".service", ".sh", ".txt", ".conf", ".md", ""}
    return [
        _lines(path.read_text(encoding="utf-8"))
        for path in (ROOT / "docs" / "examples").rglob("*")
        if path.is_file() and path.suffix in kinds and "__pycache__" not in path.parts
    ]


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below ``heading``, without its head."""
    section = re.split(rf"\n##+ {heading}\n", (ROOT / "docs" / page).read_text(encoding="utf-8"), maxsplit=1)[1]
    table = re.search(r"((?:^\|.*\n)+)", section, re.MULTILINE)
    assert table, heading
    lines = [re.split(r" ?(?<!\\)\| ?", line.strip())[1:-1] for line in table[1].splitlines()]
    return lines[2:]
