"""The pytest fixture `letter_api`: a started ingestion server, closed after the test.

Loaded by pytest itself where letterapp is installed. Imports nothing of the client.
"""

from __future__ import annotations

from typing import Iterator

import pytest

from .testing import IngestionServer


@pytest.fixture
def letter_api() -> Iterator[IngestionServer]:
    """An `IngestionServer` on a free loopback port. Point a client at ``letter_api.url``."""
    with IngestionServer() as api:
        yield api
