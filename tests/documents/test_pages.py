"""What the pages say is what the code does: outputs, options, causes, links to tests, and what troubles look like."""

from __future__ import annotations

from pathlib import Path

import pytest
from blocks import blocks_of
from harness import ROOT

from letterapp import Letter
from letterapp.testing import capture, no_network


def text_block(page: str, beginning: str) -> str:
    (found,) = (one.text for one in blocks_of(ROOT / "docs" / page) if one.text.startswith(beginning))
    return found.rstrip("\n")


def test_the_failure_that_the_testing_page_shows(tmp_path: Path) -> None:
    with capture(wait=0) as letter:
        letter.identify("user_42", "ada@example.com", {"plan": "pro"})
        letter.track("user_42", "Order Completed", {"amount": 98, "currency": "EUR"})
        try:
            letter.assert_tracked("Order Completed", user_id="user_42", amount=99)
        except AssertionError as failure:
            said = f"AssertionError: {failure}"
    assert said == text_block("testing.md", "AssertionError")


def test_the_report_that_the_testing_page_shows(capfd: pytest.CaptureFixture[str]) -> None:
    with no_network(), Letter("lt_live_key") as letter:
        letter.track("user_42", "Order Completed")
    printed = capfd.readouterr().err
    shown = text_block("testing.md", "letterapp: 1 event lost")
    assert shown.endswith(" ...") and printed.startswith(shown[:-4]), printed
