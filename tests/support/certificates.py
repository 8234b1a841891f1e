"""A certificate authority for the tests, and servers with its certificates.

Responsible for: the fixtures for TLS, which skip where trustme is not installed. Not responsible for: what a client
makes of a certificate.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

import pytest

from letterapp.testing import IngestionServer

if TYPE_CHECKING:
    import trustme


def serving(authority: trustme.CA, *names: str) -> IngestionServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return IngestionServer(ssl_context=context)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    pytest.importorskip("trustme")
    import trustme

    return trustme.CA()


@pytest.fixture
def tls_api(ca: trustme.CA) -> Iterator[IngestionServer]:
    with serving(ca, "localhost") as api:
        yield api


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def trusting(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context
