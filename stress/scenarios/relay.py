"""Faults of the relay itself: killed, stopped, restarted, and sent invalid requests, while 4 workers track.

Only for the column with relay=True.
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
    "relay-killed": "6 SIGKILLs of the relay while a parent and its 4 children track: it is restarted automatically",
    "relay-stopped": "12 SIGSTOPs of the relay, of up to 0.8 s",
    "relay-restarted": "a relay started with --socket: 3 restarts under load, by SIGTERM",
    "relay-spool-kill": "SIGKILL to all processes and a relay with --spool at once, 3 times; no API until then",
    "relay-cgroup": "SIGTERM to gunicorn, its 4 workers and the relay at once under load, as when a service is stopped",
    "relay-strangers": "invalid requests, wrong keys and 1,000 connections, while the 4 children track",
}
KEY = "key"  # of every client
KILLS, STOPS, RESTARTS, FAMILIES = 6, 12, 3, 3
CONNECTIONS = 1_000
AT_ONCE = 200  # open connections
WORKERS, REQUESTS = 4, 300
START = 20.0  # seconds until a relay accepts connections, and until workers are connected again
TIMEOUT = 40.0
WAITING = 300  # events in the relay before the kill


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
        raise NotApplicable(f"this client has no relay; see the column {RELAY}")
    run.allows_overtaking = True  # while there is no relay, each process sends its own events
    {
        "relay-killed": _kill,
        "relay-stopped": _stop,
        "relay-restarted": _restart,
        "relay-spool-kill": _kill_all,
        "relay-cgroup": _stop_service,
        "relay-strangers": _send_invalid_requests,
    }[run.name](run)


@contextlib.contextmanager
def _family(run: ScenarioRun, **options: Any) -> Iterator[Any]:
    """A parent and its children, which track until the block ends."""
    program = run.start(timeout=TIMEOUT, **options)
    program.receive()
    yield program
    program.close_stdin()
    run.finish(program, seconds=TIMEOUT)


def _kill(run: ScenarioRun) -> None:
    with _family(run):
        previous = 0
        for _ in range(KILLS):
            previous = used(run, but=previous)["pid"]
            time.sleep(run.random.uniform(0.5, 1))  # a relay that ends at once is restarted less often
            os.kill(previous, signal.SIGKILL)
        used(run, but=previous)


def _stop(run: ScenarioRun) -> None:
    with _family(run):
        pid = used(run)["pid"]
        for _ in range(STOPS):
            time.sleep(run.random.uniform(0.05, 0.3))
            os.kill(pid, signal.SIGSTOP)
            time.sleep(run.random.uniform(0.01, 0.8))
            os.kill(pid, signal.SIGCONT)
        _require(used(run)["pid"] == pid, "a stopped relay was replaced")


def _restart(run: ScenarioRun) -> None:
    path, relay = _start_relay(run)
    with _family(run, relay=path):
        for _ in range(RESTARTS):
            used(run, path)
            time.sleep(run.random.uniform(0.05, 0.5))
            relay.signal(signal.SIGTERM)
            run.finish(relay, seconds=START)
            path, relay = _start_relay(run)
        used(run, path)
    _end(run, relay)


def _kill_all(run: ScenarioRun) -> None:
    for _ in range(FAMILIES):
        _kill_family(run, "--spool", run.folder / "spool")


def _kill_family(run: ScenarioRun, *spool: Any) -> None:
    from letterapp.testing import Hold, reset

    before = run.calls
    silence = Hold(then=reset())  # so that no event is settled
    run.api.rule = lambda request: silence
    path, relay = _start_relay(run, *spool)
    family = run.start(timeout=TIMEOUT, relay=path)
    family.receive()
    used(run, path, events=WAITING)
    family.signal_group(signal.SIGSTOP)
    # Wait, because events that the relay has not read yet are in no file.
    _wait(lambda: _status(run, path)["accepted"] >= run.calls - before, "not all events reached the relay")
    family.signal_group(signal.SIGKILL)
    relay.signal(signal.SIGKILL)
    run.finish(family, relay)
    run.api.rule = None
    silence.release()
    _, relay = _start_relay(run, *spool)
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
        processes = {each.pid for each in surviving_processes(str(run.folder), 0)}
        _require({server.pid, relay} < processes, "the relay is not among the processes of the service")
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    load.send_requests(REQUESTS, halfway=stop)
    run.finish(server, seconds=TIMEOUT)


def _send_invalid_requests(run: ScenarioRun) -> None:
    from letterapp._relay import protocol
    from letterapp._text import Secret

    with _family(run), contextlib.ExitStack() as opened:
        relay = used(run)
        hello = protocol.Caller(Secret("another key"), run.api.url, protocol.EVENTS).hello
        requests: list[bytes | tuple[bytes]] = [  # one for each connection
            *(b"", b"\n", b"GET / HTTP/1.1\r\n\r\n", b"[" * 3_000 + b"\n", bytes(range(256)) * 64, b"x" * 200_000),
            *(b"{}\n", hello + b'{"messageId": "x"}\n', hello, hello[:30], hello + hello, hello + b'{"proof": 1}\n'),
            *((b"no event\n",), (b"[1]\n",), (b"!\n!\n",)),  # after the handshake
        ]
        connections: list[socket.socket] = []
        for number in range(CONNECTIONS):
            sock = opened.enter_context(_connection(relay["socket"]))
            with contextlib.suppress(OSError):  # refused before everything was sent
                request = requests[number % len(requests)]
                sock.sendall(request if isinstance(request, bytes) else _last_of_handshake(sock, run) + request[0])
            connections.append(sock)
            if len(connections) == AT_ONCE:
                connections.pop(run.random.randrange(AT_ONCE)).close()
        _require(used(run)["pid"] == relay["pid"], "the relay did not survive")


def _last_of_handshake(sock: socket.socket, run: ScenarioRun) -> bytes:
    """Shake hands with the right key, up to the last line, which is returned."""
    from letterapp._relay import protocol
    from letterapp._text import Secret

    caller = protocol.Caller(Secret(KEY), run.api.url, protocol.EVENTS)
    sock.sendall(caller.hello)
    with sock.makefile("rb") as file, contextlib.suppress(protocol.Refused):
        return caller.answer(file.readline())
    return b""


def _connection(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)  # waits if the backlog is full
    sock.settimeout(0.1)
    return sock


def _start_relay(run: ScenarioRun, *options: Any) -> tuple[str, Any]:
    """Start a relay independently of any client; return its path and its program once it accepts connections."""
    path = str(run.folder / "standalone" / "relay.sock")
    arguments = ("-m", "letterapp", "relay", "--socket", path, "--base-url", run.api.url, *options)
    relay = run.start_server(*arguments, env={"LETTER_API_KEY": KEY}, timeout=2 * TIMEOUT)
    _wait(lambda: _status(run, path), "a relay does not accept connections")
    return path, relay


def _end(run: ScenarioRun, relay: Any) -> None:
    relay.signal(signal.SIGTERM)
    run.finish(relay, seconds=START)


def used(run: ScenarioRun, path: str = "", events: int = 1, but: int = 0) -> dict[str, Any]:
    """Wait until a relay, other than the process ``but``, has accepted this number of events; return its status."""
    found: dict[str, Any] = {}

    def is_used() -> bool:
        found.update(_status(run, path))
        return bool(found) and found["pid"] != but and found["accepted"] >= events

    _wait(is_used, "no relay is used")
    return found


def _status(run: ScenarioRun, path: str = "") -> dict[str, Any]:
    """The status of the relay at ``path``, or of the one that a client has started; empty if there is none."""
    from letterapp._relay import launcher, protocol
    from letterapp._text import Secret

    for place in [path] if path else map(str, Path(run.folder).glob("letterapp/*.sock")):
        with contextlib.suppress(OSError):
            sock, answer = launcher.ask(place, Secret(KEY), run.api.url, protocol.STATUS)
            sock.close()
            welcome: dict[str, Any] = answer["welcome"]
            return welcome
    return {}


def _wait(condition: Callable[[], Any], message: str) -> None:
    from ..http_load import wait_until

    _require(wait_until(condition, START), message)


def _require(condition: object, message: str) -> None:
    from ..programs import Failure

    if not condition:
        raise Failure(message)
