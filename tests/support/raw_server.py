"""A TCP server whose responses a test writes itself: proxies, and servers that break off or say nothing.

Responsible for: the port, the thread, the heads of requests. Not responsible for: what is answered (a test's script),
an API that works (`letterapp.testing.IngestionServer`).
"""

from __future__ import annotations

import socket
import threading
from typing import Any, Callable

from harness import DEADLINE

Script = Callable[[socket.socket], object]


class RawServer:
    """Calls ``script`` with each connection, one after the other; it is closed when that returns or raises `OSError`.

    A context manager, which listens in its ``with``.

    Args:
        reads_head: Read the head of a request before the call, and keep it in `heads`.
        buffer: The size of the receive buffer, in bytes: what the client sends beyond it waits there.
    """

    def __init__(self, script: Script, reads_head: bool = True, buffer: int | None = None) -> None:
        self.heads: list[bytes] = []
        self._script = script
        self._reads_head = reads_head
        self._listener = socket.socket()
        if buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._is_over = False
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with sock:
                self._connection = sock
                if self._is_over:
                    return
                sock.settimeout(DEADLINE)
                try:
                    if self._reads_head:
                        self.heads.append(head_of(sock)[0])
                    self._script(sock)
                except OSError:
                    pass

    def __enter__(self) -> RawServer:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_over = True
        try:
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)  # which the script is waiting for
        except OSError:
            pass  # it is closed
        socket.create_connection(("127.0.0.1", self.port), DEADLINE).close()  # wakes the thread on every system
        self._thread.join(DEADLINE)
        self._listener.close()


def head_of(sock: socket.socket) -> tuple[bytes, bytes]:
    """The head of a request, and what was read of its body. As far as it has come, if the client disconnects."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(1024)
        if not piece:
            return data, b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", body
