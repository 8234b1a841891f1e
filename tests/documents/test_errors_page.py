"""The page of errors has what the library reports, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from blocks import rows
from harness import ROOT
from reported_texts import OF_RELAY, Text, Texts

from letterapp import LetterError

SOURCES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "letterapp").rglob("*.py"))]
CAUSES = re.compile(r'cause="(\w+)"|GiveUp\("(\w+)"|_give_up\(\s*"(\w+)"|refuse\("(\w+)"')
INSERTED = ("reported by the relay: {}", "{} lost: {}", OF_RELAY)  # texts whose rest is found as a text of its own
# Of outcomes of a request, which are inserted into "{} lost: {}".
LOST = ("the API ", "the request ")


def test_the_errors_page_has_each_cause() -> None:
    causes = {"".join(found) for source in SOURCES for found in CAUSES.findall(source)}
    assert {"invalid", "rejected", "degraded"} <= causes
    assert {row[0].strip("`") for row in rows("errors.md", "Causes")} == causes
    assert all(meaning and action for _, meaning, action in rows("errors.md", "Causes"))


def texts_of(found: Texts) -> dict[str, list[Text]]:
    """What each table of the page is about."""
    reported = [
        text._replace(text=f"{{}} lost: {text.text}") if text.text.startswith(LOST) else text
        for text in found.reported()
        if text.text not in INSERTED
    ]
    return {
        "Degraded": [text for text in reported if text.cause == "degraded"],
        "What the reports of losses say": [text for text in reported if text.cause != "degraded"],
        "Warnings": list(found.warned()),
    }


def quotes_of(table: str) -> dict[str, str]:
    """The quoted parts of texts in a table, with what the next cell says."""
    return {quote: row[1] for row in rows("errors.md", table) for quote in re.findall(r"`([^`]+)`", row[0])}


def is_in(quote: str, text: str) -> bool:
    """True if ``quote`` is a part of ``text``; ``...`` stands for anything."""
    return re.search(".*".join(map(re.escape, quote.split("..."))), text) is not None


def missing(found: Texts) -> list[Text]:
    """The texts that the page does not have."""
    return [
        text
        for table, texts in texts_of(found).items()
        for text in texts
        if not any(is_in(quote, text.text) for quote in quotes_of(table))
    ]


@pytest.fixture(scope="module")
def library() -> Texts:
    return Texts()


@pytest.mark.parametrize("table", ["Degraded", "What the reports of losses say", "Warnings"])
def test_the_errors_page_has_each_text_that_is_reported_and_no_other(table: str, library: Texts) -> None:
    texts = texts_of(library)[table]
    assert texts and [text for text in missing(library) if text in texts] == []
    for quote in quotes_of(table):
        assert any(is_in(quote, text.text) for text in texts), f"nothing reports: {quote}"
        assert len(quote.split()) > 2 or quote in ("is left alone", "cannot be run"), f"matches too much: {quote}"


def test_the_errors_page_names_the_cause_of_each_loss(library: Texts) -> None:
    quotes = quotes_of("What the reports of losses say")
    for text in texts_of(library)["What the reports of losses say"]:
        named = [cause for quote, cause in quotes.items() if is_in(quote, text.text)]
        assert not text.cause or any(text.cause in cause for cause in named), text


NEW = """
class Sender:
    def lose(self, events):
        why = "a first reason" if events else f"a second reason ({events})"
        self._give_up("exit", why)

    def _give_up(self, cause, why):
        self._report(LetterError(f"{len(events)} given up: {why}", cause=cause))

    def weaken(self):
        self._report(LetterError("a " "third" + " reason", cause="degraded"))
        warnings.warn(FOURTH.format(5), RuntimeWarning)
        raise LetterError("not reported")

FOURTH = "a {} reason, the fourth"
"""


def test_a_new_text_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(NEW)
    assert {text.text for text in missing(Texts(tmp_path))} == {
        "{} given up: a first reason",
        "{} given up: a second reason ({})",
        "a third reason",
        "a {} reason, the fourth",
    }


def test_the_errors_page_has_each_attribute_of_an_error() -> None:
    error = LetterError("said")
    named = set(re.findall(r"`error\.(\w+)`", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")))
    assert {name for name in dir(error) if not name.startswith("_")} - {"args", "with_traceback", "add_note"} == named
