"""A `SenderManager` with uWSGI, however it, its workers and the manager end.

The application starts its manager where it is imported: one in the master, with lazy-apps one in each worker. uWSGI
runs the exit handlers of idle workers only, so each stop here waits until they are idle; see test_uwsgi.py.

What was tracked must arrive, once as the API counts, however the process ended, and the server has nothing to complain
about. A manager's process is no child of a server and keeps none of its ports, and it ends soon after the last process
that it served.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pytest
from harness import DEADLINE, eventually, first_is_quick, needs, whose
from managed_servers import FIRST, UNUSABLE, Managers, complaints, managers_directory  # noqa: F401  (a fixture)
from services import Service
from uwsgi_server import STARTS, Uwsgi, imports_of

from letterapp.testing import Hold, status

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")

# Seconds that no call may take where it sends. With `PATIENT`, one that waits for a stopped manager takes 6 at least.
LONG = 5.0
PATIENT = "from letterapp._relay import handover; handover.PATIENCE = 6.0\n"


@pytest.fixture
def uwsgi(letter_api: Any, runtime: Managers, tmp_path: Path, request: Any) -> Iterator[Callable[..., Uwsgi]]:
    running: list[Uwsgi] = []

    def start(start: str, **options: Any) -> Uwsgi:
        package = request.getfixturevalue("threadless") if start == "without threads" else ""
        flags = STARTS.get(start, ())
        # A call that sends waits for the manager for a few milliseconds, whatever `PATIENT` says.
        first = FIRST + PATIENT if start == "without threads" else FIRST
        running.append(Uwsgi(letter_api, tmp_path, *flags, package=package, first=first, **options))
        return running[-1]

    yield start
    letter_api.closing.set()
    for server in running:
        server.__exit__()


every_start = first_is_quick("start", ["no flags", "enable-threads", "fork hooks", "lazy-apps", "without threads"])


def have_worked(server: Uwsgi) -> None:
    """Have each worker track something and hand it over."""
    server.track_in_every_worker()
    if server.package:
        # A call waits a few milliseconds for the manager, and then sends directly, as it may on a busy machine.
        relayed = eventually(lambda: server.track() and has_relayed(server), bool)
        assert relayed, server.output
    else:
        assert server.track(20)["modes"] == {"quick": "relay", "slow": "relay"}, server.output
        assert server.quick_has_arrived(), server.output


def has_relayed(server: Uwsgi) -> bool:
    """True when a worker has handed something over. The master does at the import, where it waits for the answer."""
    found = re.findall(r"^took \S+ s, [1-9]\d* relayed in (\d+)$", server.output, re.M)
    return bool({int(pid) for pid in found} - {server.pid})


def longest_call(server: Uwsgi) -> float:
    return max(float(seconds) for seconds in re.findall(r"^took (\S+) s,", server.output, re.M))


def end(server: Uwsgi, runtime: Managers) -> None:
    """Stop an idle server. With threads all of its events must have been handed over."""
    server.become_idle()
    server.signal(signal.SIGTERM)
    finished = server.finish()
    assert not server.left_behind() and not complaints(finished.output), finished
    assert server.package or ("local fallback" not in finished.output and UNUSABLE not in finished.output), finished
    assert "letterapp manager [" not in finished.output, finished
    runtime.are_gone(server)


def all_arrived(server: Uwsgi, imports: int, killed: bool = False) -> None:
    """All has arrived: once, unless a worker was killed, or its calls had no time for the manager's answer."""
    came = {who: sorted(serials) for who, serials in whose(server.api).items()}
    assert len(came.pop("quick at import")) == len(came.pop("slow at import")) == imports, server.output
    assert came == {"quick": server.tracked, "slow": server.tracked}, server.output
    assert server.package or killed or server.api.repeated() == {}, server.output


@needs("pyuwsgi")
@every_start
def test_uwsgi_is_stopped(start: str, uwsgi: Any, runtime: Managers) -> None:
    server = uwsgi(start)
    runtime.serving(server, imports_of(start))
    have_worked(server)
    assert "slow" not in whose(server.api)
    end(server, runtime)
    all_arrived(server, imports_of(start))


@pytest.mark.slow
@needs("pyuwsgi")
@every_start
def test_uwsgis_reload(start: str, uwsgi: Any, runtime: Managers) -> None:
    server = uwsgi(start)
    before = runtime.serving(server, imports_of(start))
    have_worked(server)
    old = server.become_idle()
    server.signal(signal.SIGHUP)
    server.be_replaced(old)
    assert sorted(whose(server.api)["slow"]) == server.tracked  # the old workers have sent what they held
    # The master has replaced its program, and so let go of the manager.
    assert not runtime.serving(server, imports_of(start)) & before
    have_worked(server)
    end(server, runtime)
    all_arrived(server, 2 * imports_of(start))


@pytest.mark.slow
@needs("pyuwsgi")
@every_start
def test_uwsgis_workers_are_killed(start: str, uwsgi: Any, runtime: Managers) -> None:
    # Loaded in each worker, an application has no family there: only what has arrived is sure to be delivered.
    server = uwsgi(start, flush_at=1 if start == "lazy-apps" else 10_000)
    before = runtime.serving(server, imports_of(start))
    have_worked(server)
    if start == "lazy-apps":
        assert server.api.wait_until(lambda: sorted(whose(server.api).get("slow", [])) == server.tracked)
    old = server.become_idle()
    for pid in old:
        server.signal(signal.SIGKILL, pid)
    server.be_replaced(old)
    after = runtime.serving(server, imports_of(start))
    assert not after & before if start == "lazy-apps" else after == before
    have_worked(server)  # a worker that has not used its client does not look for what others left
    end(server, runtime)
    all_arrived(server, 2 * imports_of(start) if start == "lazy-apps" else 1, killed=True)


@needs("pyuwsgi")
@pytest.mark.parametrize("start", ["no flags", "lazy-apps"])
def test_a_managers_events_arrive_even_if_all_of_uwsgi_is_killed(start: str, uwsgi: Any, runtime: Any) -> None:
    server = uwsgi(start, processes=1)
    before = runtime.serving(server)
    assert server.quick_has_arrived()
    hold = Hold(then=status(503))  # what has arrived by then is not enough
    server.api.plan(hold)
    server.track()
    assert hold.arrived.wait(DEADLINE), server.output
    on_the_wire = {item["messageId"] for item in server.api.requests[-1].json["batch"]}
    server.signal_group(signal.SIGKILL)
    server.finish()
    assert not server.left_behind()
    Service(server, server.api, runtime, server.port).port_is_free()
    runtime.take_no_more(server)
    assert runtime.serving(server) == before
    hold.release()
    runtime.are_gone(server)
    assert on_the_wire <= {item["messageId"] for item in server.api.events}


@pytest.mark.slow
@needs("pyuwsgi")
def test_without_threads_no_call_waits_for_the_api(uwsgi: Any, runtime: Managers) -> None:
    server = uwsgi("without threads", processes=1)
    hold = Hold(longest=8)  # which a call that waits for it takes then
    server.api.plan(hold)
    eventually(lambda: server.track() and hold.arrived.is_set(), bool)
    assert hold.arrived.is_set(), server.output
    # For longer than a batch is waited for on a thread.
    over = time.monotonic() + 2
    eventually(server.track, lambda _: time.monotonic() > over)
    hold.release()
    # A call that finds the manager too slow sends directly, and so waits for the API.
    assert longest_call(server) < LONG or UNUSABLE in server.output, server.output
    end(server, runtime)
    all_arrived(server, 1)


@pytest.mark.slow
@needs("pyuwsgi")
def test_without_threads_no_call_waits_for_a_stopped_manager(uwsgi: Any, runtime: Managers) -> None:
    server = uwsgi("without threads", processes=1)
    (pid,) = runtime.serving(server)
    manager = psutil.Process(pid)
    server.track(5)
    manager.suspend()
    try:
        # For as long as it takes to try it again, with a connection that is not answered.
        over = time.monotonic() + 2
        eventually(server.track, lambda _: time.monotonic() > over)
        assert UNUSABLE in server.output
        tracked = server.tracked[-1]
        came = eventually(lambda: server.track() and whose(server.api).get("quick", []), lambda came: tracked in came)
        assert tracked in came, server.output
        assert longest_call(server) < LONG, server.output
    finally:
        manager.resume()
    modes = eventually(lambda: server.track()["modes"], lambda modes: modes["quick"] == "relay")
    assert modes["quick"] == "relay", server.output
    end(server, runtime)
    all_arrived(server, imports=1)
