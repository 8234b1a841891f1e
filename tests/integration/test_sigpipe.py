"""SIGPIPE with its default action, which would end the program if a server closed the connection during a request."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import DEADLINE, first_is_quick, run
from programs.connections import broken_pipe

if TYPE_CHECKING:
    import trustme


class ClosesEarly:
    """A server that reads the beginning of each request and closes: the client's next write gets a broken pipe."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(8)
        self._is_over = False
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while not self._is_over:
            sock, _ = self._listener.accept()
            sock.settimeout(DEADLINE)
            try:
                if self._context is not None:
                    sock = self._context.wrap_socket(sock, server_side=True)
                sock.recv(1000)
                # An end of stream, and then a reset, because something was not read: a client that still writes gets
                # EPIPE. (After a reset alone it would get ECONNRESET, and no signal.)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            sock.close()

    def __enter__(self) -> str:
        self._thread.start()
        port = self._listener.getsockname()[1]
        return f"https://localhost:{port}" if self._context else f"http://127.0.0.1:{port}"

    def __exit__(self, *_: Any) -> None:
        self._is_over = True
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join(DEADLINE)
        self._listener.close()


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
    with ClosesEarly(context) as url:
        finished = run(broken_pipe, url, tmp_path, way, SSL_CERT_FILE=str(tmp_path / "ca.pem"), PYTHONWARNINGS="ignore")
    assert finished.code == 0, finished
    assert finished.output.splitlines()[-1] == "False set()", finished
