"""Parts of the inbox that need no process: names of processes, slices, the switches of `--troubled`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time

import pytest
from harness import DEADLINE

from letterapp._inbox import connections, query
from letterapp._inbox.changes import Changes
from letterapp._inbox.faults import Faults
from letterapp._inbox.peers import Peer, Peers, _name
from letterapp._inbox.store import Entry, Received, Store


@pytest.mark.parametrize(
    "command, name",
    [
        ("/usr/bin/python3 /srv/shop/manage.py runserver --password=x", "manage.py"),
        ("venv/bin/python your_program.py", "your_program.py"),
        ("python -X dev -u -m shop.worker --key x", "shop.worker"),
        ("/venv/bin/python3.12 /venv/bin/gunicorn shop:app", "gunicorn"),
        ("python -c print(1)", "python -c"),
        ("python -c from_multiprocessing.spawn_import_spawn_main -- x", "multiprocessing.spawn"),
        ("python", "python"),
        ("/usr/bin/node server.js", "node"),
    ],
)
def test_the_name_of_a_process_has_none_of_its_arguments(command: str, name: str) -> None:
    assert _name(command.split()) == name


def test_a_title_that_a_process_gave_itself_is_its_name() -> None:
    assert _name(["gunicorn: worker [shop]", "", ""]) == "gunicorn: worker [shop]"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_of_a_connection_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            found = Peers().find(client.getsockname()[1], port)
    assert found.pid == os.getpid() and found.name
    assert Peers().find(1, port) == Peer()


def test_troubled_requests_fail_at_fixed_intervals() -> None:
    faults = Faults(troubled=True)
    taken = [faults.take() for _ in range(23)]
    assert [number for number, fault in enumerate(taken, 1) if fault != type(fault)()] == [11, 13, 17, 19, 22, 23]


def _filled(count: int) -> Store:
    store = Store(None, 1_000_000, 1_000_000_000)
    received = Received(0.0, "/v1/batch", 200, "", 1, count, 0, None, "", {})
    store.add(
        received,
        [
            Entry("track", "u", f"E{number}", f"m{number}", {"n": number}, f'{{"n":{number}}}')
            for number in range(count)
        ],
    )
    return store


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_page_is_the_same_whatever_the_size_of_a_slice(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "SLICE", step)
    store = _filled(60)
    wanted = query.parse_filter({"q": "1"})

    async def look() -> tuple[list[str], int]:
        rows = [await query.page(store, wanted, offset, 5, lambda: False) for offset in (0, 5, 10, 15)]
        return [row["name"] for page in rows for row in page], await query.count(store, wanted, lambda: False)

    names, count = asyncio.run(look())
    assert names == [f"E{number}" for number in reversed(range(60)) if "1" in str(number)] and count == len(names)
    store.close()


def test_a_search_ends_when_its_client_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "SLICE", 10)
    store = _filled(60)
    with pytest.raises(query.Gone):
        asyncio.run(query.count(store, query.parse_filter({"q": "x"}), lambda: True))
    store.close()


def test_all_that_wait_for_a_change_are_woken() -> None:
    async def look() -> list[bool]:
        changes = Changes()
        waiting = [asyncio.ensure_future(changes.wait(60)) for _ in range(3)]
        await asyncio.sleep(0)
        changes.notify()
        return [*await asyncio.gather(*waiting), await changes.wait(0.01)]

    assert asyncio.run(look()) == [True, True, True, False]


# Clients that are too slow.


def _answers(monkeypatch: pytest.MonkeyPatch, send: bytes, *limits: str, answer: bytes = b"{}") -> bytes:
    """What a server with short time limits sends to a client that sends ``send``, and nothing after it."""
    for name in ("HEAD_TIMEOUT", "BODY_TIMEOUT", "WRITE_TIMEOUT", "IDLE_TIMEOUT"):
        monkeypatch.setattr(connections, name, 0.1 if name in limits else DEADLINE)

    handled: list[connections.Connection] = []

    async def handle(request: connections.Request) -> connections.Answer:
        handled.append(request.connection)
        return connections.Response(200, answer)

    async def run() -> bytes:
        sock = connections.listen(0)
        port = sock.getsockname()[1]
        ended = asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(connections.Connections(handle).serve(sock, ended))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(send)
        if len(answer) > 1000:  # reads nothing until the server has given up
            deadline = time.monotonic() + DEADLINE
            while not handled and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            assert handled[0].task is not None
            await asyncio.wait_for(handled[0].task, DEADLINE)
        try:
            said = await asyncio.wait_for(reader.read(-1), DEADLINE)
        except ConnectionError:
            said = b""
        writer.close()
        ended.set_result(None)
        await serving
        return said

    return asyncio.run(run())


@pytest.mark.parametrize("send", [b"", b"G", b"GET / HTTP/1.1\r\nHost: local"])
def test_a_client_that_falls_silent_is_disconnected(send: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _answers(monkeypatch, send, "HEAD_TIMEOUT", "IDLE_TIMEOUT") == b""


def test_a_body_that_does_not_come_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nx"
    assert _answers(monkeypatch, head, "BODY_TIMEOUT").startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 50_000_000
    said = _answers(monkeypatch, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "WRITE_TIMEOUT", answer=bytes(size))
    assert len(said) < size
