"""The pytest fixture `letter_api`: a running ingestion server, closed after the test.

pytest loads this module if letterapp is installed. It imports nothing from the client.
"""

from __future__ import annotations

from typing import Iterator

import pytest

from .testing import IngestionServer


@pytest.fixture
def letter_api() -> Iterator[IngestionServer]:
    """A running `letterapp.testing.IngestionServer` on a free loopback port; ``letter_api.url`` is its base URL.

    One per test, closed after it. Use it in the process of the test; other processes connect to its URL.
    """
    with IngestionServer() as api:
        yield api
