"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from typing import Any, Iterator

import pytest

import letterapp
from letterapp import Letter, LetterError


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LETTER_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def errors() -> list[LetterError]:
    """What `make` clients report."""
    return []


@pytest.fixture
def make(letter_api: Any, errors: list[LetterError]) -> Iterator[Any]:
    """Makes clients of the test's server, and closes them after the test."""
    made: list[Letter] = []

    def new(**options: Any) -> Letter:
        options.setdefault("api_key", "test-key")
        options.setdefault("base_url", letter_api.url)
        options.setdefault("on_error", errors.append)
        letter = letterapp.Letter(**options)
        made.append(letter)
        return letter

    yield new
    for letter in made:
        letter.close(1)
