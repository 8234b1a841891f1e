"""Applications for the tests of web servers, and the visitor that knows what was answered.

Lives here: the source of one WSGI, one ASGI and one FastAPI application that all do the same, and the ledger that every
server has to balance. Never here: how a server is started or stopped.
"""

from __future__ import annotations

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import count
from typing import Any, Iterable

from harness import DEADLINE, Finished, WebServer, eventually, whose

IMPORTED = 3  # events that each process tracks while it imports the application, with each client

# Two clients, because a server can go wrong in two ways. `late` keeps its events until the process ends, so they show
# what that end does; `prompt` sends each at once, so the parent's sender was alive at a fork, with a connection open.
_SHARED = f"""
import asyncio, os, signal, socket
from letterapp import Letter

ends = os.environ.get("TEST_ENDS", "")
options = {{"exit_timeout": 30, "timeout": 30}}
if ends.startswith("exit_signals"):
    options["exit_signals"] = [getattr(signal, name) for name in ends.split()[1:]]
late = Letter("k", os.environ["TEST_API"], flush_interval=600, flush_at=10_000, **options)
prompt = Letter("k", os.environ["TEST_API"], flush_interval=0, **options)

def note(who, serial):
    late.track(who + ", late", "Worked", {{"serial": serial}})
    prompt.track(who + ", prompt", "Worked", {{"serial": serial}})

def ready():
    os.write(1, f"ready {{os.getpid()}}\\n".encode())  # in one piece, whatever the other workers write

def gate():
    return "127.0.0.1", int(os.environ["TEST_GATE"])

for serial in range({IMPORTED}):
    note(f"import {{os.getpid()}}", serial)
"""

WSGI = (
    _SHARED
    + """
def app(environ, start_response):
    serial = int(environ["QUERY_STRING"])
    note("request", serial)
    if environ["PATH_INFO"] == "/gate":
        with socket.create_connection(gate()) as waiting:
            waiting.recv(1)
        note("after the gate", serial)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
)

ASGI = (
    _SHARED
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        ready()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if ends == "lifespan":
            await late.aclose()
            await prompt.aclose()
        await send({"type": "lifespan.shutdown.complete"})
        return
    serial = int(scope["query_string"])
    note("request", serial)
    if scope["path"] == "/gate":
        reader, writer = await asyncio.open_connection(*gate())
        await reader.read(1)
        writer.close()
        note("after the gate", serial)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""
)

# Its handlers are plain functions, which FastAPI runs on threads.
FASTAPI = (
    _SHARED
    + """
from contextlib import asynccontextmanager
from fastapi import FastAPI, Request

@asynccontextmanager
async def lifespan(app):
    ready()
    if ends == "lifespan":
        async with late, prompt:
            yield
    else:
        yield

app = FastAPI(lifespan=lifespan)

@app.get("/")
def root(request: Request):
    note("request", int(request.url.query))
    return os.getpid()

@app.get("/gate")
def wait(request: Request):
    note("request", int(request.url.query))
    with socket.create_connection(gate()) as waiting:
        waiting.recv(1)
    note("after the gate", int(request.url.query))
    return os.getpid()
"""
)


class Gate:
    """Holds requests inside an application until the test has done what it wants to do meanwhile."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(DEADLINE)
        self._waiting: list[socket.socket] = []
        self.environment = {"TEST_GATE": str(self._listener.getsockname()[1])}

    def wait_for(self, requests: int) -> None:
        while len(self._waiting) < requests:
            self._waiting.append(self._listener.accept()[0])

    def open(self) -> None:
        self._listener.close()
        for waiting in self._waiting:
            waiting.close()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: Any) -> None:
        self.open()


def without_servers_own(output: str) -> str:
    """What a server printed, without the beginnings of tracebacks of a SystemExit that met none of the client's code.

    gunicorn's workers raise one for each signal that has them leave at once, wherever they are: in the last moments of
    a request, which it logs, or under gevent in a greenlet of its own, a tenth of a second later, when the main one is
    on its way out. Both with an application that has no client, too.
    """
    is_its_own = "SystemExit: 0" in output and not re.search(r'File ".*/letterapp/', output)
    # It may come while gunicorn formats another one, and then names what formats it.
    return re.sub(r"Traceback( \(most recent call last\):|Exception)", "", output) if is_its_own else output


class Visitor:
    """Asks a server, and knows which requests were answered and by whom."""

    def __init__(self, server: WebServer, workers: int) -> None:
        self.server = server
        self.answered: dict[int, int] = {}  # serial of the request, and the process that answered
        self._asked: set[int] = set()
        self._gated: set[int] = set()
        self._serials = count()
        self.wait_until_ready(workers)

    def wait_until_ready(self, workers: int) -> None:
        """Wait until ``workers`` processes have been ready to be stopped: before that a server has no handlers yet."""
        assert len(eventually(self.ready, lambda ready: len(ready) >= workers)) >= workers, self.server.output

    def ready(self) -> set[int]:
        return {int(pid) for pid in re.findall(r"ready (\d+)", self.server.output)}

    def ask(self, path: str = "/") -> int | None:
        """One request. Returns the process that answered; None when nobody did, as while a worker is replaced."""
        serial = next(self._serials)
        self._asked.add(serial)
        try:
            pid = int(self.server.get(f"{path}?{serial}"))
        except (OSError, HTTPException):
            return None
        if path == "/gate":
            self._gated.add(serial)
        self.answered[serial] = pid
        return pid

    def ask_many(self, requests: int) -> None:
        with ThreadPoolExecutor(4) as visitors:
            assert None not in list(visitors.map(lambda _: self.ask(), range(requests))), self.server.output

    def check(self, api: Any, finished: Finished, importers: Iterable[int]) -> None:
        """The ledger: what was answered arrived, once; and the server had nothing to complain about."""
        output = without_servers_own(finished.output)
        for word in ("Traceback", "Exception ignored", "letterapp:", "SIGKILL", "TIMEOUT"):
            assert word not in output, finished
        came = whose(api)
        assert api.repeated() == {}, finished
        for kind in ("late", "prompt"):
            requests = came.pop(f"request, {kind}", [])
            assert len(set(requests)) == len(requests), finished
            assert set(self.answered) <= set(requests) <= self._asked, (kind, finished)
            assert sorted(came.pop(f"after the gate, {kind}", [])) == sorted(self._gated), (kind, finished)
            for pid in importers:
                assert came.pop(f"import {pid}, {kind}", []) == list(range(IMPORTED)), (kind, pid, finished)
        # What is left was tracked by workers that were stopped before they were ready.
        assert not {who for who in came if int(who.split()[1].strip(",")) in self.ready()}, (came, finished)
