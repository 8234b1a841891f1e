"""The site builds without a warning and without the network, and has every public name. Slow: it runs Sphinx."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
from harness import DEADLINE, ROOT, environment, needs

import letterapp
from letterapp import relay, testing

pytestmark = [pytest.mark.slow, needs("sphinx"), needs("myst_parser"), needs("furo")]

ELSEWHERE = re.compile(r'<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)="((?:https?:)?//[^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-E", "-b", "html", str(ROOT / "docs"), str(folder)],
        # Were anything fetched, it would be from this proxy, which refuses every connection.
        env=environment("", http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * DEADLINE,
    )
    assert done.returncode == 0 and not done.stdout, done.stdout
    return folder


def test_a_reader_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert {page.name: found for page in pages if (found := ELSEWHERE.findall(page.read_text(encoding="utf-8")))} == {}


def test_every_page_is_in_the_search(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f'"{page.stem}"' in index, page.name
    assert "messageid" in index and "spool_max_byt" in index  # as the search stems them


def test_the_api_pages_have_every_public_name(site: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    names = [f"letterapp.{name}" for name in letterapp.__all__ if name != "__version__"]
    names += [f"{module.__name__}.{name}" for module in (relay, testing) for name in module.__all__]
    for module in (letterapp, relay, testing):
        for name in module.__all__:
            for member, value in vars(getattr(module, name)).items() if isinstance(getattr(module, name), type) else ():
                if not member.startswith("_") and isinstance(value, (FunctionType, property)) and value.__doc__:
                    names.append(f"{module.__name__}.{name}.{member}")
    assert [name for name in names if f'id="{name}"' not in pages] == []
