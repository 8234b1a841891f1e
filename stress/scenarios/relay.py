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
from typing import Any, Callable, Iterator

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
PATIENCE = 40.0
ENOUGH = 300  # events that wait in the relay


def inside() -> None:
    import desk
    import family

    signal.signal(signal.SIGINT, signal.default_int_handler)
    family.run(parent_tracks=True)
    desk.track(10)


def outside(stage: Any) -> None:
    from ..peers import RELAY
    from ..stage import Elsewhere

    if stage.peer.column != RELAY:
        raise Elsewhere(f"has no such relay: see the column {RELAY}")
    stage.may_overtake = True  # while the relay is away each process sends for itself
    {
        "relay-killed": _kill,
        "relay-stopped": _stop,
        "relay-restarted": _restart,
        "relay-spool-kill": _kill_all,
        "relay-cgroup": _stop_service,
        "relay-strangers": _annoy,
    }[stage.name](stage)


@contextlib.contextmanager
def _family(stage: Any, **options: Any) -> Iterator[Any]:
    """A parent and its children that track until the block ends."""
    program = stage.play(patience=PATIENCE, **options)
    program.hear()
    yield program
    program.close_stdin()
    stage.finish(program, seconds=PATIENCE)


def _kill(stage: Any) -> None:
    with _family(stage):
        dead = 0
        for _ in range(KILLS):
            dead = used(stage, but=dead)["pid"]
            time.sleep(stage.random.uniform(0.5, 1))  # one that falls at once is started less often
            os.kill(dead, signal.SIGKILL)
        used(stage, but=dead)


def _stop(stage: Any) -> None:
    with _family(stage):
        pid = used(stage)["pid"]
        for _ in range(STOPS):
            time.sleep(stage.random.uniform(0.05, 0.3))
            os.kill(pid, signal.SIGSTOP)
            time.sleep(stage.random.uniform(0.01, 0.8))
            os.kill(pid, signal.SIGCONT)
        _must(used(stage)["pid"] == pid, "a stopped relay was replaced")


def _restart(stage: Any) -> None:
    path, relay = _keep(stage)
    with _family(stage, relay=path):
        for _ in range(RESTARTS):
            used(stage, path)
            time.sleep(stage.random.uniform(0.05, 0.5))
            relay.signal(signal.SIGTERM)
            stage.finish(relay, seconds=START)
            path, relay = _keep(stage)
        used(stage, path)
    _end(stage, relay)


def _kill_all(stage: Any) -> None:
    for _ in range(FAMILIES):
        _kill_family(stage, "--spool", stage.folder / "spool")


def _kill_family(stage: Any, *spool: Any) -> None:
    from letterapp.testing import Hold, reset

    before = stage.calls
    silence = Hold(then=reset())  # so nothing is settled, and nothing given up
    stage.api.rule = lambda request: silence
    path, relay = _keep(stage, *spool)
    family = stage.play(patience=PATIENCE, relay=path)
    family.hear()
    used(stage, path, events=ENOUGH)
    family.signal_group(signal.SIGSTOP)
    # What a relay has not read yet is in no file, so this is waited for.
    _wait(lambda: _status(stage, path)["accepted"] >= stage.calls - before, "not all came to the relay")
    family.signal_group(signal.SIGKILL)
    relay.signal(signal.SIGKILL)
    stage.finish(family, relay)
    stage.api.rule = None
    silence.release()
    _, relay = _keep(stage, *spool)
    stage.wait_for_all(START)
    _end(stage, relay)


def _stop_service(stage: Any) -> None:
    from ..ports import free_port
    from ..visits import Visitors
    from ..watch import left_behind

    port = free_port()
    (stage.folder / "gunicorn.conf.py").write_text("control_socket_disable = True")
    server = stage.serve("-m", "gunicorn", "app:app", "--preload", "-w", WORKERS, "-b", f"127.0.0.1:{port}")
    visitors = Visitors(server, port)
    visitors.meet(WORKERS)
    relay = used(stage)["pid"]

    def stop() -> None:
        everybody = {process.pid for process in left_behind(str(stage.folder), 0)}
        _must({server.pid, relay} < everybody, "the relay is not among the processes of the service")
        for pid in everybody:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    visitors.ask(REQUESTS, halfway=stop)
    stage.finish(server, seconds=PATIENCE)


def _annoy(stage: Any) -> None:
    from letterapp._relay import protocol
    from letterapp._text import Secret

    with _family(stage), contextlib.ExitStack() as opened:
        relay = used(stage)
        hello = protocol.Caller(Secret("another key"), stage.api.url, protocol.EVENTS).hello
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
                sock.sendall(words if isinstance(words, bytes) else _greeting(sock, stage) + words[0])
            silent.append(sock)
            if len(silent) == AT_ONCE:
                silent.pop(stage.random.randrange(AT_ONCE)).close()
        _must(used(stage)["pid"] == relay["pid"], "the relay did not survive")


def _greeting(sock: socket.socket, stage: Any) -> bytes:
    """The line that ends the greeting of one that has the key."""
    from letterapp._relay import protocol
    from letterapp._text import Secret

    caller = protocol.Caller(Secret(KEY), stage.api.url, protocol.EVENTS)
    sock.sendall(caller.hello)
    with sock.makefile("rb") as file, contextlib.suppress(protocol.Refused):
        return caller.answer(file.readline())
    return b""


def _connection(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)  # waits for its turn when many are there
    sock.settimeout(0.1)
    return sock


def _keep(stage: Any, *options: Any) -> tuple[str, Any]:
    """Start a relay that nobody else starts; return its place and its program, when it serves."""
    path = str(stage.folder / "kept" / "relay.sock")
    arguments = ("-m", "letterapp", "relay", "--socket", path, "--base-url", stage.api.url, *options)
    relay = stage.serve(*arguments, env={"LETTER_API_KEY": KEY}, patience=2 * PATIENCE)
    _wait(lambda: _status(stage, path), "a relay that was started does not serve")
    return path, relay


def _end(stage: Any, relay: Any) -> None:
    relay.signal(signal.SIGTERM)
    stage.finish(relay, seconds=START)


def used(stage: Any, path: str = "", events: int = 1, but: int = 0) -> dict[str, Any]:
    """Wait until a relay, not the process ``but``, has taken so many events; return how it is then."""
    found: dict[str, Any] = {}

    def is_used() -> bool:
        found.update(_status(stage, path))
        return bool(found) and found["pid"] != but and found["accepted"] >= events

    _wait(is_used, "no relay is used")
    return found


def _status(stage: Any, path: str = "") -> dict[str, Any]:
    """What the relay at ``path``, or the one that was started for clients, says of itself; empty if none serves."""
    from letterapp._relay import launcher, protocol
    from letterapp._text import Secret

    for place in [path] if path else map(str, Path(stage.folder).glob("letterapp/*.sock")):
        with contextlib.suppress(OSError):
            sock, answer = launcher.ask(place, Secret(KEY), stage.api.url, protocol.STATUS)
            sock.close()
            welcome: dict[str, Any] = answer["welcome"]
            return welcome
    return {}


def _wait(true: Callable[[], Any], otherwise: str) -> None:
    from ..visits import until

    _must(until(true, START), otherwise)


def _must(true: object, otherwise: str) -> None:
    from ..programs import Failure

    if not true:
        raise Failure(otherwise)
