"""The pytest plugin: the fixtures `letter` and `letter_api`, and no test sends by accident.

pytest loads this module if letterapp is installed. From then on, to the end of the process, clients send nothing to
another machine (`letterapp.testing.no_network`), in this process and in those that it starts. This setting of pytest
allows it:

    [pytest]
    letterapp_allow_network = true
"""

from __future__ import annotations

from typing import Iterator

import pytest

from ._testing.active import TestRun, tidy
from ._testing.client import has_clients
from .testing import CapturedLetter, IngestionServer, capture

_ALLOW = "letterapp_allow_network"


@pytest.fixture
def letter() -> Iterator[CapturedLetter]:
    """A `letterapp.testing.CapturedLetter`: a client that sends nothing and shows what all clients have tracked.

    One per test: it shows what was tracked since the fixture was set up. See `letterapp.testing.capture`.
    """
    with capture() as captured:
        yield captured


@pytest.fixture
def letter_api() -> Iterator[IngestionServer]:
    """A running `letterapp.testing.IngestionServer` on a free loopback port; ``letter_api.url`` is its base URL.

    One per test, closed after it. Use it in the process of the test; other processes connect to its URL.
    """
    with IngestionServer() as api:
        yield api


class _Guard:
    """Keeps one pytest run from sending: the plugin's state."""

    def __init__(self) -> None:
        # A program that uses its clients and calls `pytest.main` sends again afterwards. In any other process, which
        # ends now, nothing is sent by exit handlers either.
        self._restore = has_clients()
        self._run = TestRun()

    def end(self) -> None:
        self._run.end(self._restore)


_guards: dict[int, _Guard] = {}  # by the `id` of the run's `Config`


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "Let tests send events to another machine: letterapp's clients with no loopback base_url."
    parser.addini(_ALLOW, text, type="bool", default=False)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    _begin(early_config)  # before a conftest imports the application


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    _begin(config)  # if this module is a plugin of a conftest


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    guard = _guards.pop(id(config), None)
    if guard is not None:
        guard.end()
    tidy()


def _begin(config: pytest.Config) -> None:
    if id(config) not in _guards and not config.getini(_ALLOW):
        _guards[id(config)] = _Guard()
