"""Programs for which the API's host name resolves to addresses that drop packets."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Any

from letterapp import LetterError
from programs.common import API, child, main, make, work


def dropping_ports(count: int, opened: list[socket.socket]) -> list[int]:
    """Ports of 127.0.0.1 whose listeners have no room for another connection: packets are dropped, as by a firewall.

    They stay so while the sockets that are added to ``opened`` are open.
    """

    def listen() -> int:
        listener = socket.socket()
        opened.append(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        return port

    ports = [listen() for _ in range(count)]
    with_room = ports
    while with_room:
        attempts = {}
        for port in with_room:
            sock = socket.socket()
            opened.append(sock)
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            attempts[sock] = port
        with_room = []
        while attempts:
            connected = select.select([], list(attempts), [], 0.3)[1]
            if not connected:
                break
            with_room += [attempts.pop(sock) for sock in connected]
    return ports


def resolved(*ports: int) -> list[Any]:
    """What `socket.getaddrinfo` returns for a name with these ports of 127.0.0.1."""
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]


def resolve_every_name_to(*ports: int) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return resolved(*ports)

    socket.getaddrinfo = getaddrinfo


def _sockets() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            pass  # that of the directory itself
    return found


def forks_while_connecting() -> None:
    from letterapp._http import transport

    opened: list[socket.socket] = []
    resolve_every_name_to(*dropping_ports(3, opened))
    transport.load()
    before = _sockets()

    def on_error(error: LetterError) -> None:
        if error.cause != "degraded":
            print(error)

    letter = make(
        "k",
        "http://name.example",
        flush_at=1,
        max_retries=0,
        timeout=60,
        exit_timeout=0,
        on_error=on_error,
        send_on_os_exit=False,
    )
    work(letter, 1)
    deadline = time.monotonic() + 60
    while _sockets() < before + 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    print(_sockets() - before, flush=True)
    pid = child(lambda: _sockets() - before)
    print(os.WEXITSTATUS(os.waitpid(pid, 0)[1]), flush=True)
    print(_sockets() - before, flush=True)
    os._exit(0)


def under_gevent() -> None:
    from gevent import monkey

    monkey.patch_all()
    import gevent

    opened: list[socket.socket] = []
    resolve_every_name_to(*dropping_ports(2, opened), int(API.rpartition(":")[2]))
    turns: list[float] = []

    def turn() -> None:
        while True:
            turns.append(time.monotonic())
            gevent.sleep(0.01)

    gevent.spawn(turn)
    letter = make("k", "http://name.example", max_retries=0, timeout=10, on_error=lambda error: None)
    work(letter, 1)
    started = time.monotonic()
    print(letter.flush(30), letter.stats()["delivered"])
    print(sum(started < turn < started + 0.4 for turn in turns) >= 5)


main(globals())
