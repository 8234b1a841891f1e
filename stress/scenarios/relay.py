"""The relay itself is disturbed: killed, stopped, restarted, and spoken to by strangers, while 4 workers track.

For the column with relay=True alone; in the others nothing is there to be disturbed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "relay-killed": "6 SIGKILLs of the relay while a parent and its 4 children track: it is started again by itself",
    "relay-stopped": "12 SIGSTOPs of the relay, of up to 0.8 s",
    "relay-restarted": "a relay kept with --socket: 3 restarts under load, by SIGTERM",
    "relay-spool-kill": "SIGKILL to all processes and a relay kept with --spool at once, 3 times; no API until then",
    "relay-cgroup": "SIGTERM to gunicorn, its 4 workers and the relay at once under load, as a service is stopped",
    "relay-strangers": "garbage, wrong keys and 1,000 connections, while the 4 children track",
}
KEY = "key"  # that every client has
KILLS, STOPS, RESTARTS, FAMILIES = 6, 12, 3, 3
CONNECTIONS = 1_000
AT_ONCE = 200  # of them
WORKERS, REQUESTS = 4, 300
START = 20.0  # seconds for a relay to serve, and for workers to come back to it
TIMEOUT = 40.0
ENOUGH = 300  # events that wait in the relay


def inside() -> None:
    import family
    import tracker

    signal.signal(signal.SIGINT, signal.default_int_handler)
    family.run(parent_tracks=True)
    tracker.track(10)


def outside(run: ScenarioRun) -> None:
    from ..peers import RELAY
    from ..scenario_run import NotApplicable

    if run.peer.column != RELAY:
        raise NotApplicable(f"has no such relay: see the column {RELAY}")
    run.allows_overtaking = True  # while the relay is away each process sends for itself
    {
        "relay-killed": _kill,
        "relay-stopped": _stop,
        "relay-restarted": _restart,
        "relay-spool-kill": _kill_all,
        "relay-cgroup": _stop_service,
        "relay-strangers": _annoy,
    }[run.name](run)


@contextlib.contextmanager
def _family(run: ScenarioRun, **options: Any) -> Iterator[Any]:
    """A parent and its children that track until the block ends."""
    program = run.start(timeout=TIMEOUT, **options)
    program.receive()
    yield program
    program.close_stdin()
    run.finish(program, seconds=TIMEOUT)


def _kill(run: ScenarioRun) -> None:
    with _family(run):
        dead = 0
        for _ in range(KILLS):
            dead = used(run, but=dead)["pid"]
            time.sleep(run.random.uniform(0.5, 1))  # one that falls at once is started less often
            os.kill(dead, signal.SIGKILL)
        used(run, but=dead)


def _stop(run: ScenarioRun) -> None:
    with _family(run):
        pid = used(run)["pid"]
        for _ in range(STOPS):
            time.sleep(run.random.uniform(0.05, 0.3))
            os.kill(pid, signal.SIGSTOP)
            time.sleep(run.random.uniform(0.01, 0.8))
            os.kill(pid, signal.SIGCONT)
        _must(used(run)["pid"] == pid, "a stopped relay was replaced")


def _restart(run: ScenarioRun) -> None:
    path, relay = _keep(run)
    with _family(run, relay=path):
        for _ in range(RESTARTS):
            used(run, path)
            time.sleep(run.random.uniform(0.05, 0.5))
            relay.signal(signal.SIGTERM)
            run.finish(relay, seconds=START)
            path, relay = _keep(run)
        used(run, path)
    _end(run, relay)


def _kill_all(run: ScenarioRun) -> None:
    for _ in range(FAMILIES):
        _kill_family(run, "--spool", run.folder / "spool")


def _kill_family(run: ScenarioRun, *spool: Any) -> None:
    from letterapp.testing import Hold, reset

    before = run.calls
    silence = Hold(then=reset())  # so nothing is settled, and nothing given up
    run.api.rule = lambda request: silence
    path, relay = _keep(run, *spool)
    family = run.start(timeout=TIMEOUT, relay=path)
    family.receive()
    used(run, path, events=ENOUGH)
    family.signal_group(signal.SIGSTOP)
    # What a relay has not read yet is in no file, so this is waited for.
    _wait(lambda: _status(run, path)["accepted"] >= run.calls - before, "not all came to the relay")
    family.signal_group(signal.SIGKILL)
    relay.signal(signal.SIGKILL)
    run.finish(family, relay)
    run.api.rule = None
    silence.release()
    _, relay = _keep(run, *spool)
    run.wait_for_all(START)
    _end(run, relay)


def _stop_service(run: ScenarioRun) -> None:
    from ..http_load import LoadGenerator
    from ..ports import free_port
    from ..process_monitor import surviving_processes

    port = free_port()
    (run.folder / "gunicorn.conf.py").write_text("control_socket_disable = True")
    server = run.start_server("-m", "gunicorn", "app:app", "--preload", "-w", WORKERS, "-b", f"127.0.0.1:{port}")
    load = LoadGenerator(server, port)
    load.wait_for_workers(WORKERS)
    relay = used(run)["pid"]

    def stop() -> None:
        everybody = {process.pid for process in surviving_processes(str(run.folder), 0)}
        _must({server.pid, relay} < everybody, "the relay is not among the processes of the service")
        for pid in everybody:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    load.send_requests(REQUESTS, halfway=stop)
    run.finish(server, seconds=TIMEOUT)


def _annoy(run: ScenarioRun) -> None:
    from letterapp._relay import protocol
    from letterapp._text import Secret

    with _family(run), contextlib.ExitStack() as opened:
        relay = used(run)
        hello = protocol.Caller(Secret("another key"), run.api.url, protocol.EVENTS).hello
        said: list[bytes | tuple[bytes]] = [  # by one after the other
            *(b"", b"\n", b"GET / HTTP/1.1\r\n\r\n", b"[" * 3_000 + b"\n", bytes(range(256)) * 64, b"x" * 200_000),
            *(b"{}\n", hello + b'{"messageId": "x"}\n', hello, hello[:30], hello + hello, hello + b'{"proof": 1}\n'),
            *((b"no event\n",), (b"[1]\n",), (b"!\n!\n",)),  # by one who is greeted
        ]
        silent: list[socket.socket] = []
        for number in range(CONNECTIONS):
            sock = opened.enter_context(_connection(relay["socket"]))
            with contextlib.suppress(OSError):  # it has been refused before all was said
                words = said[number % len(said)]
                sock.sendall(words if isinstance(words, bytes) else _greeting(sock, run) + words[0])
            silent.append(sock)
            if len(silent) == AT_ONCE:
                silent.pop(run.random.randrange(AT_ONCE)).close()
        _must(used(run)["pid"] == relay["pid"], "the relay did not survive")


def _greeting(sock: socket.socket, run: ScenarioRun) -> bytes:
    """The line that ends the greeting of one that has the key."""
    from letterapp._relay import protocol
    from letterapp._text import Secret

    caller = protocol.Caller(Secret(KEY), run.api.url, protocol.EVENTS)
    sock.sendall(caller.hello)
    with sock.makefile("rb") as file, contextlib.suppress(protocol.Refused):
        return caller.answer(file.readline())
    return b""


def _connection(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)  # waits for its turn when many are there
    sock.settimeout(0.1)
    return sock


def _keep(run: ScenarioRun, *options: Any) -> tuple[str, Any]:
    """Start a relay that nobody else starts; return its place and its program, when it serves."""
    path = str(run.folder / "kept" / "relay.sock")
    arguments = ("-m", "letterapp", "relay", "--socket", path, "--base-url", run.api.url, *options)
    relay = run.start_server(*arguments, env={"LETTER_API_KEY": KEY}, timeout=2 * TIMEOUT)
    _wait(lambda: _status(run, path), "a relay that was started does not serve")
    return path, relay


def _end(run: ScenarioRun, relay: Any) -> None:
    relay.signal(signal.SIGTERM)
    run.finish(relay, seconds=START)


def used(run: ScenarioRun, path: str = "", events: int = 1, but: int = 0) -> dict[str, Any]:
    """Wait until a relay, not the process ``but``, has taken so many events; return how it is then."""
    found: dict[str, Any] = {}

    def is_used() -> bool:
        found.update(_status(run, path))
        return bool(found) and found["pid"] != but and found["accepted"] >= events

    _wait(is_used, "no relay is used")
    return found


def _status(run: ScenarioRun, path: str = "") -> dict[str, Any]:
    """What the relay at ``path``, or the one that was started for clients, says of itself; empty if none serves."""
    from letterapp._relay import launcher, protocol
    from letterapp._text import Secret

    for place in [path] if path else map(str, Path(run.folder).glob("letterapp/*.sock")):
        with contextlib.suppress(OSError):
            sock, answer = launcher.ask(place, Secret(KEY), run.api.url, protocol.STATUS)
            sock.close()
            welcome: dict[str, Any] = answer["welcome"]
            return welcome
    return {}


def _wait(true: Callable[[], Any], otherwise: str) -> None:
    from ..http_load import wait_until

    _must(wait_until(true, START), otherwise)


def _must(true: object, otherwise: str) -> None:
    from ..programs import Failure

    if not true:
        raise Failure(otherwise)
