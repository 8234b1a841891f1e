"""gevent, the real one: patched before the client was made or after, in a plain program and in gunicorn's worker.

Locks, sockets and TLS contexts made before the patch freeze the hub or fail every request after it; gunicorn patches
in the worker, when the application has long been imported.
"""

from __future__ import annotations

import signal
import ssl
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import DEADLINE, PRELUDE, Program, WebServer, environment, eventually, whose
from patched import beginnings, end, tracked_before

from letterapp.testing import Hold, IngestionServer
from stress.ports import free_port

pytest.importorskip("gevent")
trustme = pytest.importorskip("trustme")

PATCH = "from gevent import monkey; monkey.patch_all()\n"
MAKE = """
import ssl
def context():
    return ssl.create_default_context(cafile=os.environ["TEST_CA"])
own = os.environ.get("TEST_CONTEXT") == "own"
tls = {"ssl_context": context} if own else {}
letter = Letter("k", API, flush_interval=600, flush_at=10_000, exit_timeout=30, timeout=30, **tls)
"""
USE = """
work(letter, 5, "before the patch")
assert letter.flush() is True
"""
BEGINNINGS = {**beginnings(PATCH, MAKE), "patched after it was used": PRELUDE + MAKE + USE + PATCH}
# How the API is reached: its scheme, and the client's TLS context.
LINES = {"http": "", "https, a context made by a function": "own", "https, the default context": "default"}

each_beginning = pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS.keys())
each_line = pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())


class DeadlineSocket:
    """An ingestion server, and what a program must have in its environment to reach it."""

    def __init__(self, api: IngestionServer, env: dict[str, str]) -> None:
        self.api = api
        self.env = environment(api.url, **env)


@pytest.fixture
def reached(line: str, letter_api: Any, tmp_path: Path) -> Iterator[DeadlineSocket]:
    if not line:
        yield DeadlineSocket(letter_api, {})
        return
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    known_as = "TEST_CA" if line == "own" else "SSL_CERT_FILE"
    with IngestionServer(ssl_context=context) as api:
        yield DeadlineSocket(api, {"TEST_CONTEXT": line, known_as: str(tmp_path / "ca.pem")})


def start(code: str, reached: DeadlineSocket, tmp_path: Path) -> Program:
    (tmp_path / "program.py").write_text(code)
    return Program([sys.executable, "program.py"], reached.env, tmp_path)


@each_beginning
@each_line
def test_many_greenlets_track_at_once_and_all_arrives(
    line: str, beginning: str, reached: DeadlineSocket, tmp_path: Path
) -> None:
    code = """
    import gevent
    def many(number):
        for serial in range(20):
            work(letter, 1, f"greenlet {number}", start=serial)
            gevent.sleep(0)
            if serial % 10 == number % 10:
                assert letter.flush() is True
    gevent.joinall([gevent.spawn(many, number) for number in range(50)], raise_error=True)
    work(letter, 3, "at the end")
    """
    with start(beginning + textwrap.dedent(code), reached, tmp_path) as program:
        end(program)
    expected = {f"greenlet {number}": list(range(20)) for number in range(50)}
    assert whose(reached.api) == {**expected, **tracked_before(beginning), "at the end": [0, 1, 2]}
    assert reached.api.repeated() == {}


@each_beginning
@each_line
def test_the_hub_goes_on_while_the_client_sends(
    line: str, beginning: str, reached: DeadlineSocket, tmp_path: Path
) -> None:
    code = """
    import gevent
    work(letter, 3)
    def tick():
        while True:
            os.write(1, b"tick\\n")
            gevent.sleep(0.01)
    print("patched", flush=True)
    ticking = gevent.spawn(tick)
    assert letter.flush(30) is True
    print("settled", flush=True)
    ticking.kill()
    """
    hold = Hold()
    reached.api.rule = lambda request: hold if b'"program"' in request.body else None
    with start(beginning + textwrap.dedent(code), reached, tmp_path) as program:
        assert hold.arrived.wait(DEADLINE), program.output
        ticks = program.output.count("tick\n")
        later = eventually(lambda: program.output.count("tick\n"), lambda count: count > ticks + 10, 20)
        assert "settled" not in program.output
        hold.release()
        assert later > ticks + 10, "the hub stood still while the request was on the wire"
        end(program)
    assert whose(reached.api) == {**tracked_before(beginning), "program": [0, 1, 2]}


@pytest.mark.parametrize("line", [""], ids=["http"])
def test_exit_signals_deliver_when_the_signal_comes_while_every_greenlet_waits(
    line: str, reached: DeadlineSocket, tmp_path: Path
) -> None:
    # The handler then runs in the hub, which must not wait for anything.
    code = """
    import gevent.event
    letter = Letter("k", API, flush_interval=600, exit_timeout=30, exit_signals=[signal.SIGTERM])
    def wait():
        work(letter, 3, "greenlet")
        print("waits", flush=True)
        gevent.event.Event().wait()
    gevent.joinall([gevent.spawn(wait)])
    """
    with start(PATCH + PRELUDE + textwrap.dedent(code), reached, tmp_path) as program:
        assert eventually(lambda: program.output, lambda text: "waits" in text)
        program.signal(signal.SIGTERM)
        finished = program.finish()
    assert finished.code == -signal.SIGTERM, finished
    assert "Traceback" not in finished.output, finished
    assert whose(reached.api) == {"greenlet": [0, 1, 2]}


@each_line
def test_a_preloaded_gunicorn_serves_while_its_gevent_worker_sends(
    line: str, reached: DeadlineSocket, tmp_path: Path
) -> None:
    pytest.importorskip("gunicorn")
    app = """
    work(letter, 5, "before the patch")  # in the master: its sender runs when the worker is forked
    letter.flush(0)
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/flush":
            letter.flush(30)
        else:
            work(letter, 1, "request", start=int(environ["QUERY_STRING"]))
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]
    """
    (tmp_path / "app.py").write_text(PRELUDE + MAKE + textwrap.dedent(app))
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "app:app", "-k", "gevent", "--preload", "-b", f"127.0.0.1:{port}"]
    env = {**reached.env, "XDG_RUNTIME_DIR": str(tmp_path)}
    hold = Hold()
    reached.api.rule = lambda request: hold if b'"request"' in request.body else None
    with WebServer([*command, "--timeout", "60"], env, tmp_path, port) as server:
        server.get("/?0")
        with ThreadPoolExecutor(1) as visitor:
            flushed = visitor.submit(server.get, "/flush")
            assert hold.arrived.wait(DEADLINE), server.output
            for serial in range(1, 10):
                server.get(f"/?{serial}")  # the only worker's hub is free
            assert not flushed.done()
            reached.api.rule = None
            hold.release()
            assert flushed.result() == "ok"
        server.get("/?10")
        server.signal(signal.SIGTERM)
        end(server)
    assert whose(reached.api) == {"before the patch": list(range(5)), "request": list(range(11))}
    assert reached.api.repeated() == {}
