"""docs/frameworks: code that a page shows stands in the examples that it links to, and tests that it names exist.

That the examples work is tested in tests/frameworks.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import ROOT

PAGES = sorted((ROOT / "docs" / "frameworks").glob("*.md"))
EXAMPLES = ROOT / "docs" / "examples" / "frameworks"
# Not below a comment, which says how a block runs that is in no example.
BLOCK = re.compile(r"(?<!-->\n)^```(?:python|ini|apache)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\.\./examples/frameworks/([^)#]+)\)")
TEST = re.compile(r"`((?:tests/\w+/)?test_\w+\.py)`")


def lines(text: str) -> str:
    return "\n" + "\n".join(line.strip() for line in text.strip().splitlines()) + "\n"


def missing(page: str) -> list[str]:
    """The blocks of a page that stand in none of the examples that it links to."""
    linked = [lines((EXAMPLES / name).read_text(encoding="utf-8")) for name in LINK.findall(page)]
    return [block for block in BLOCK.findall(page) if not any(lines(block) in text for text in linked)]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_code_is_that_of_the_examples(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_tests_that_it_names_exist(page: Path) -> None:
    names = TEST.findall(page.read_text(encoding="utf-8"))
    assert names or page.stem == "jobs"  # it leaves that to the pages that it links to
    for name in names:
        assert (ROOT / (name if "/" in name else f"tests/frameworks/{name}")).is_file(), name


def test_each_example_is_on_a_page() -> None:
    linked = {name.split("/")[0] for page in PAGES for name in LINK.findall(page.read_text(encoding="utf-8"))}
    assert {path.name for path in EXAMPLES.iterdir()} == linked


def test_code_that_differs_is_found() -> None:
    page = "[a](../examples/frameworks/flask/shop.py)\n\n```python\n{}\n```\n"
    assert missing(page.format("app = Flask(__name__)")) == []
    assert missing(page.format("app = Flask()")) == ["app = Flask()\n"]
