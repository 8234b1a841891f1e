"""SIGPIPE with its default action, which would end the program if a server closed the connection during a request."""

from __future__ import annotations

import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import first_is_quick, run
from programs.connections import broken_pipe
from raw_server import RawServer, Script

if TYPE_CHECKING:
    import trustme


def closes_early(context: ssl.SSLContext | None) -> Script:
    """Reads the beginning of each request and closes: the client's next write gets a broken pipe."""

    def script(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) if context is not None else plain as sock:
            sock.recv(1000)
            # An end of stream, and then a reset, because something was not read: a client that still writes gets
            # EPIPE. (After a reset alone it would get ECONNRESET, and no signal.)
            sock.shutdown(socket.SHUT_WR)

    return script


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE here")
@first_is_quick("way", ["flush", "send", "thread"])
@first_is_quick("scheme", ["http", "https"])
def test_a_server_that_closes_during_a_body_kills_no_program_with_sigpipes_default_action(
    scheme: str, way: str, ca: trustme.CA, tmp_path: Path
) -> None:
    context = None
    if scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(context)
        ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with RawServer(closes_early(context), reads_head=False, buffer=4096) as server:
        url = f"https://localhost:{server.port}" if context else server.url
        finished = run(broken_pipe, url, tmp_path, way, SSL_CERT_FILE=str(tmp_path / "ca.pem"), PYTHONWARNINGS="ignore")
    assert finished.code == 0, finished
    assert finished.output.splitlines()[-1] == "False set()", finished
