"""The site: `python -m sphinx -W -n -b html docs build/site`. Needs the extra `docs`; fetches nothing.

The pages are Markdown that GitHub shows as well. So what only the site needs is here and not in them: the navigation,
the pages that are files elsewhere in the repository, and the pictures of mermaid's diagrams.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # autodoc imports the checkout's library, whatever is installed

if TYPE_CHECKING:
    from sphinx.application import Sphinx

import letterapp  # noqa: E402

project = "letterapp"
author = "The letterapp developers"
version = release = letterapp.__version__
html_title = f"letterapp {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "index"
exclude_patterns = ["examples", "_static"]

# Markdown, with GitHub's anchors.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]  # GitHub has no rule about it

# The API, from the docstrings.
default_role = "literal"  # a docstring writes `name`, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Names of Python itself, whose documentation is not fetched, and private types of annotations.
nitpick_ignore_regex = [
    (r"py:.*", r"(typing|types|ssl|datetime|uuid|os|multiprocessing|collections|socketserver|http|threading)\..*"),
    (r"py:.*", r"(None|True|False|bool|int|float|str|bytes|dict|list|tuple|object|Exception|TypeError|OSError)"),
    (r"py:.*", r"letterapp\._.*"),
    (
        r"py:.*",
        r"(optional|Any|Callable|Optional|Union|Sequence|Mapping|Iterable|Iterator|Dict|List|Tuple|Type|BaseManager)",
    ),
]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "default"
pygments_dark_style = "github-dark"

# The navigation. A page that does not exist is left out; all others must be here, or Sphinx warns.
NAVIGATION = {
    "Start": ["quickstart", "glossary", "choosing", "processes", "many-hosts", "migration"],
    "Frameworks": ["frameworks/index", "frameworks/*"],
    "Use": ["calls", "configuration", "errors", "commands", "testing", "inbox", "observability", "troubleshooting"],
    "Depend on it": ["production", "guarantees", "relay", "security", "benchmarks", "stress"],
    "Python API": ["api/letterapp", "api/relay", "api/testing", "api/pytest"],
    "The project": ["architecture", "contributing", "security-policy", "changelog"],
}
# Where a page's own title is too long for the navigation.
TITLES = {
    "processes": "Processes",
    "testing": "Testing",
    "inbox": "Inbox",
    "troubleshooting": "Troubleshooting",
    "relay": "Relay",
    "benchmarks": "Benchmarks",
    "api/pytest": "pytest plugin",
}
# Pages that are files elsewhere. The page itself is what GitHub shows in its place: a link.
ELSEWHERE = {
    "changelog": "CHANGELOG.md",
    "contributing": ".github/CONTRIBUTING.md",
    "security-policy": ".github/SECURITY.md",
}
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def diagram(source: str) -> str:
    """The name of a diagram's picture, which `docs/diagrams` draws; another text has another name."""
    return f"diagrams/{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"


def _navigation() -> str:
    trees = []
    for caption, pages in NAVIGATION.items():
        found = [path for page in pages for kind in (".md", ".rst") for path in sorted(HERE.glob(page + kind))]
        names = dict.fromkeys(path.relative_to(HERE).with_suffix("").as_posix() for path in found)
        lines = [f"{TITLES[name]} <{name}>" if name in TITLES else name for name in names]
        if not lines:
            continue
        trees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```"]))
    return "\n\n".join(trees)


def _from_elsewhere(path: str) -> str:
    """A file of the repository, with its links as a page in docs/ has them."""
    text = (HERE.parent / path).read_text(encoding="utf-8")
    if path.startswith(".github/"):
        text = re.sub(r"\]\(SECURITY\.md", "](security-policy.md", text)
        text = re.sub(r"\]\(\.\./(?!docs/)", "](", text)
        return re.sub(r"\]\((?:\.\./)?docs/", "](", text).replace("](CHANGELOG.md", "](changelog.md")
    return re.sub(r"\]\(docs/", "](", text)


def _as_on_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    text = _from_elsewhere(ELSEWHERE[page]) if page in ELSEWHERE else source[0]
    for name, path in ELSEWHERE.items():
        text = text.replace(f"](../{path}", f"]({name}.md")
    text = text.replace("](../letterapp/_client.py)", "](api/letterapp.rst)")
    up = "../" * page.count("/")
    text = DIAGRAM.sub(lambda found: f"![{_alternative(found[1])}]({up}{diagram(found[1])})", text)
    source[0] = f"{text}\n\n{_navigation()}\n" if page == root_doc else text


def _as_restructured_text(app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """A docstring's code is what stands indented after a paragraph; its `docs/NAME.md` is a page here."""
    result: list[str] = []
    paragraph = ""
    for number, line in enumerate(lines):
        starts = line.startswith("    ") and number > 0 and not lines[number - 1]
        if starts and paragraph and not paragraph.startswith(" "):
            result += [".. code-block:: python", ""]
        result.append(re.sub(r"docs/([a-z-]+)\.md", _page_named, line))
        paragraph = line or paragraph
    lines[:] = result


def _page_named(found: re.Match[str]) -> str:
    return f":doc:`{TITLES.get(found[1], found[1].capitalize())} </{found[1]}>`"


def _alternative(source: str) -> str:
    kind = "State diagram" if source.startswith("stateDiagram") else "Diagram"
    return f"{kind}; the text describes it"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _as_on_the_site)
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)  # before napoleon, at 500
    return {"parallel_read_safe": True}
