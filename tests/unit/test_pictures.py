"""The pictures of the documents load quickly and show the same with every reader's fonts."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from harness import ROOT

MOST = 175_000  # bytes, of some hundred scenarios
SVG = "{http://www.w3.org/2000/svg}"
COLUMNS = ["this client", "letterapp 0.2.0", "posthog", "segment", "rudder"]
PICTURES = (".svg", ".png", ".jpg", ".gif")
LEFT = {"lost": 1_234, "hung": 1, "orphans": 2}


def test_the_pictures_of_the_documents_are_small() -> None:
    pictures = [path for path in (ROOT / "docs").iterdir() if path.suffix in PICTURES]
    assert pictures
    assert {path.name: path.stat().st_size for path in pictures if path.stat().st_size > MOST} == {}


def test_each_picture_in_a_document_exists() -> None:
    shown = {
        line.split("](", 1)[1].split(")", 1)[0]
        for page in (ROOT / "docs").glob("*.md")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("![")
    }
    assert {name for name in shown if not (ROOT / "docs" / name).is_file()} == set()
    assert {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".svg", ".png")} == shown


def ledger(scenarios: dict[str, Any]) -> dict[str, Any]:
    """One client that loses nothing, and four that lose events and leave something behind in every scenario."""
    return {
        "kind": "ledger",
        "command": "python -m stress all",
        "date": "2026-01-01T00:00:00+00:00",
        "machine": "a machine",
        "python": "3.11",
        "versions": dict.fromkeys(COLUMNS, "1.2.3"),
        "seed": 1,
        "seconds": 15.0,
        "columns": COLUMNS,
        "scenarios": {name: scenario.title for name, scenario in scenarios.items()},
        "entries": [
            {"scenario": name, "column": column, "calls": 12_345, **(LEFT if column != COLUMNS[0] else {})}
            for name in scenarios
            for column in COLUMNS
        ],
    }


@pytest.mark.slow
def test_the_picture_of_a_whole_run_is_small() -> None:
    results = pytest.importorskip("stress.report.results")
    overview = pytest.importorskip("stress.report.overview")
    from stress.scenarios import SCENARIOS

    def size(names: list[str]) -> int:
        drawn = overview.overview(None, results.ledger(ledger({name: SCENARIOS[name] for name in names})))
        assert "1,234 of 12,345 lost" in drawn
        return len(drawn.encode())

    some = list(SCENARIOS)[::20]  # to draw all of them takes seconds
    alone = size(some[:1])
    figures = 20_000  # of what stands under the table
    assert alone + (size(some) - alone) / (len(some) - 1) * (len(SCENARIOS) - 1) + figures < MOST


@pytest.mark.slow
def test_each_text_of_a_picture_has_a_width(tmp_path: Path) -> None:
    canvas = pytest.importorskip("stress.report.canvas")
    picture = canvas.Canvas(200, 200, canvas.OVERVIEW)
    sheet = picture.sheet(0, 200)
    sheet.text(10, 20, "a & b < c", fontsize=10)
    sheet.text(10, 60, "a & b < c", fontsize=20, fontweight="bold")
    sheet.text(10, 120, "upwards", rotation=90, fontsize=10, fontstyle="italic")
    drawn = ElementTree.fromstring(picture.svg())
    small, large, turned = drawn.iter(f"{SVG}text")
    assert [text.text for text in (small, large, turned)] == ["a & b < c", "a & b < c", "upwards"]
    assert float(large.attrib["textLength"]) > 2 * float(small.attrib["textLength"]) > 80
    assert "transform" not in small.attrib
    assert "rotate(-90)" in turned.attrib["transform"]
    assert float(turned.attrib["textLength"]) > 30
    assert not list(drawn.iter(f"{SVG}use"))
