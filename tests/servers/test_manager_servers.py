"""A `SenderManager` with real servers: gunicorn, uWSGI and Celery, however they, their workers and the manager end.

Every application here starts its manager where it is imported: one in a master that is preloaded, else one in each
worker. Its clients hand batches over to that, and say when one has gone another way.

What was tracked must arrive, once as the API counts, however the process ended. The servers have nothing to complain
about. A manager's process is no child of a server and keeps none of its ports, and it is gone soon after the last
process that it served.
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
from celery_worker import Celery
from harness import DEADLINE, Program, eventually, needs, suspend, whose
from managed import Directory
from senders import lent
from test_gunicorn import UVICORN
from test_relay_servers import COMPLAINTS, Load, Service, gate, gone, serve  # noqa: F401  (two fixtures)
from uwsgi_server import INLINE_WARNING, STARTS, Uwsgi, imports_of, threadless  # noqa: F401  (a fixture)
from webapps import without_servers_own

from letterapp.testing import Hold, stall, status
from stress.ports import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")

SOON = 8.0  # seconds: less than a manager waits for clients that stay connected when its starter has gone
# Seconds that no call may take where it sends. One that waits for a stopped manager's answer takes a second, and one
# that waits for a connection to it three.
LONG = 0.9

# What an application begins with. In everything that follows `Letter` is a client of the manager.
MANAGER = """
import os, time
import letterapp
from letterapp.relay import SenderManager

manager = SenderManager("k", os.environ["TEST_API"], exit_timeout=25)
manager.start()
os.write(1, f"\\nmanager {manager.status()['pid']} of {os.getpid()}\\n".encode())

class Managed(letterapp.Letter):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, relay=manager.queue, **options)

    def track(self, *arguments):
        began = time.monotonic()
        super().track(*arguments)
        took = time.monotonic() - began
        delivered, stats = self.stats()["delivered"], self.stats()  # in this order, or a batch settles between
        own = max(0, delivered - stats["relayed"])
        if own or stats["mode"] != "relay":
            os.write(1, f"\\nown way: {own} as {stats['mode']}\\n".encode())
        os.write(1, f"\\ntook {took:.3f} s, {stats['relayed']} relayed in {os.getpid()}\\n".encode())

letterapp.Letter = Managed
"""

# For gunicorn. What `late` has waits for the end of the process, and `prompt` hands over at once. With TEST_FLUSH a
# call counts when its events are settled.
CLIENTS = (
    MANAGER
    + """
import signal, socket
from letterapp import Letter

options = {"exit_timeout": 30, "timeout": 30}
if "TEST_SIGNALS" in os.environ:
    options["exit_signals"] = (signal.SIGTERM,)
letters = {
    "late": Letter(flush_interval=600, flush_at=10_000, **options),
    "prompt": Letter(flush_interval=0.01, **options),
}

def track(who, serial):
    for name, letter in letters.items():
        letter.track(f"{who}-{name}", "Worked", {"serial": serial})
        if "TEST_FLUSH" not in os.environ or letter.flush():
            os.write(1, f"\\ntracked {who}-{name} {serial} in {os.getpid()}\\n".encode())

track("import", os.getpid())
"""
)

WSGI = (
    CLIENTS
    + """
def application(environ, start_response):
    track("request", int(environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
)

ASGI = (
    CLIENTS
    + """
async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if "exit_signals" not in options:
            for letter in letters.values():
                await letter.aclose()
        await send({"type": "lifespan.shutdown.complete"})
        return
    track("request", int(scope["query_string"]))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
)


class Managers(Directory):
    """The managers of one test, as a server's."""

    def serving(self, program: Program, count: int = 1) -> set[int]:
        """The managers that serve a program's processes: as many as they should be, and nobody's children."""
        found = eventually(lambda: self._detached(program), lambda found: found is not None and len(found) == count)
        assert found is not None and len(found) == count, (found, self.processes(), program.output)
        assert found <= started(program), program.output
        assert eventually(lambda: dead_children(program), lambda dead: not dead, SOON) == []
        return found

    def _detached(self, program: Program) -> set[int] | None:
        """Who they are; None while one of them is of the program's family, as at its start."""
        managers = self.processes()
        family = {program.pid, *(process.pid for process in program.descendants())}
        try:
            parents = {process.ppid() for process in managers}
        except psutil.NoSuchProcess:
            return None
        pids = {process.pid for process in managers}
        return None if family & (pids | parents) else pids

    def sockets(self) -> list[Path]:
        return list(self.path.glob("letterapp/manager-*"))

    def take_no_more(self, program: Program) -> None:
        """Wait until no manager listens any more: each that is left is about to end, and sends what it has."""
        assert not eventually(self.sockets, lambda sockets: not sockets, SOON), program.output

    def are_gone(self, program: Program) -> None:
        """They must be, soon after the last process of the program, and have left no socket."""
        assert not self.left_behind(SOON), (self.processes(), program.output)
        assert not self.sockets(), program.output


def started(program: Program) -> set[int]:
    """The managers' processes that an application has started, as it said."""
    return {int(pid) for pid in re.findall(r"^manager (\d+) of \d+$", program.output, re.M)}


def dead_children(program: Program) -> list[psutil.Process]:
    """Of the program's descendants those that nobody has waited for."""
    dead = []
    for process in program.descendants():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                dead.append(process)
        except psutil.NoSuchProcess:
            pass
    return dead


@pytest.fixture(name="runtime", autouse=True)
def own_runtime(letter_api: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Managers]:
    yield from lent(Managers(letter_api), monkeypatch)


class Managed(Service):
    """A gunicorn and its managers."""

    def __init__(self, program: Program, api: Any, runtime: Managers, port: int, own_managers: bool) -> None:
        super().__init__(program, api, runtime, port)
        self._managers = runtime
        self._own_managers = own_managers  # each of the two workers has started one

    def managers(self) -> set[int]:
        """The processes that all events go to."""
        assert "own way" not in self.output, self.output
        return self._managers.serving(self.program, 2 if self._own_managers else 1)

    def is_settled(self) -> bool:
        """Wait until all that `prompt` has tracked has arrived."""
        prompt = {(who, serial) for who, serial in self.tracked() if who.endswith("-prompt")}
        arrived: bool = self._api.wait_until(lambda: prompt <= self._came())
        return arrived

    def _came(self) -> set[tuple[str, int]]:
        return {(who, serial) for who, serials in whose(self._api).items() for serial in serials}

    def left_nothing(self) -> None:
        self._managers.are_gone(self.program)
        assert "letterapp manager [" not in self.output and "own way" not in self.output, self.output
        super().left_nothing()


# gunicorn.


@pytest.fixture
def gunicorn(serve: Any, letter_api: Any, runtime: Managers) -> Callable[..., Managed]:  # noqa: F811
    def start(worker: str, preload: bool, **env: str) -> Managed:
        port = free_port()
        flags = ["-b", f"127.0.0.1:{port}", "-k", worker, "-w", "2", "--timeout", "60"]
        flags += ["--threads", "4"] if worker == "gthread" else []  # with threads gunicorn makes the same of "sync"
        flags += ["--preload"] if preload else []
        source = ASGI if worker == UVICORN else WSGI
        program = serve(source, "gunicorn", "application", *flags, port=port, **env).program
        service = Managed(program, letter_api, runtime, port, own_managers=not preload)
        service.put_to_work()
        return service

    return start


WORKERS = {"sync": "sync", "gthread": "gthread", "gevent": "gevent", "uvicorn worker": UVICORN}
NEEDS = {"gevent": [needs("gevent")], "uvicorn worker": [needs("uvicorn")]}


def workers(*names: str) -> Any:
    return pytest.mark.parametrize(
        "worker", [pytest.param(WORKERS[name], marks=NEEDS.get(name, []), id=name) for name in names]
    )


def some(*cases: str) -> Any:
    """Of all classes of worker, preloaded or not, those that are named."""
    found = []
    for case in cases:
        name, how = case.split(", ")
        found.append(pytest.param(WORKERS[name], how == "preloaded", marks=NEEDS.get(name, []), id=case))
    return pytest.mark.parametrize(("worker", "preload"), found)


UNUSABLE = "cannot be used: "


def complaints(output: str) -> list[str]:
    """The lines that should not be there where a manager was stopped or killed, of which one line a client may tell."""
    known = re.compile(rf"letterapp: relay: .*{UNUSABLE}.* sends its events itself meanwhile")
    output = without_servers_own(output).replace(INLINE_WARNING, "")
    lines = [known.sub("", line) for line in output.splitlines()]
    return [line for line in lines if any(complaint in line for complaint in COMPLAINTS)]


preloaded_or_not = pytest.mark.parametrize("preload", [True, False], ids=["preloaded", "not preloaded"])


@needs("gunicorn")
@workers(*WORKERS)
@preloaded_or_not
def test_gunicorns_graceful_stop(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    service.managers()
    with Load(service):
        service.program.signal(signal.SIGTERM)
        service.ended()


@needs("gunicorn")
@workers("uvicorn worker")
@preloaded_or_not
def test_a_uvicorn_worker_with_exit_signals(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload, TEST_SIGNALS="1")
    service.managers()
    with Load(service):
        service.program.signal(signal.SIGTERM)
        service.ended()


@needs("gunicorn")
@some("sync, preloaded", "gthread, not preloaded", "gevent, not preloaded", "uvicorn worker, preloaded")
def test_gunicorns_reload(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    before, old = service.managers(), service.at_work()
    with Load(service):
        service.program.signal(signal.SIGHUP)
        assert gone(old), service.output
        service.put_to_work(old=old)
        # The master's goes on. Each worker's own has left after it.
        after = service.managers()
        assert after == before if preload else not after & before
    service.program.signal(signal.SIGTERM)
    service.ended()


# Not with threads: there gunicorn's worker may stand still by itself, see test_gunicorn.py.
@needs("gunicorn")
@some("sync, preloaded", "sync, not preloaded", "gevent, preloaded", "uvicorn worker, not preloaded")
def test_ctrl_c_on_gunicorn(worker: str, preload: bool, gunicorn: Any, letter_api: Any) -> None:
    service = gunicorn(worker, preload)
    service.managers()
    # It reaches a worker twice, from the terminal and from the master: the second comes in the middle of the end.
    letter_api.rule = lambda _: stall(0.5)
    service.program.signal_group(signal.SIGINT)
    service.ended()


@needs("gunicorn")
@workers("sync", "gevent")
def test_gunicorns_workers_are_killed_under_load_and_their_family_delivers(worker: str, gunicorn: Any) -> None:
    service = gunicorn(worker, preload=True)
    before, old = service.managers(), service.at_work()
    with Load(service):
        for pid in old:
            service.program.signal(signal.SIGKILL, pid)
            service.wait_for_more(10)
        service.put_to_work(old=old)
    assert service.managers() == before
    service.program.signal(signal.SIGTERM)
    service.ended()


@needs("gunicorn")
@workers("gthread", "uvicorn worker")
def test_gunicorns_workers_are_killed_under_load_and_their_managers_leave(worker: str, gunicorn: Any) -> None:
    service = gunicorn(worker, preload=False, TEST_FLUSH="1")  # such a worker has no family
    before, old = service.managers(), service.at_work()
    with Load(service):
        for pid in old:
            service.program.signal(signal.SIGKILL, pid)
            service.wait_for_more(10)
        service.put_to_work(old=old)
    assert not service.managers() & before
    service.program.signal(signal.SIGTERM)
    service.ended()


@needs("gunicorn")
@some("gthread, preloaded", "sync, not preloaded")
def test_gunicorns_master_is_killed_and_its_workers_end(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    service.managers()
    with Load(service):
        service.program.signal(signal.SIGKILL)
        service.ended(-signal.SIGKILL)


@needs("gunicorn")
@preloaded_or_not
def test_all_of_gunicorn_is_killed_and_what_a_manager_has_arrives(
    preload: bool, gunicorn: Any, letter_api: Any, runtime: Managers
) -> None:
    service = gunicorn("gthread", preload)
    managers = service.managers()
    assert service.is_settled()
    hold = Hold(then=status(503))  # what has arrived by then is not enough
    letter_api.plan(hold)
    assert service.ask()
    assert hold.arrived.wait(DEADLINE)
    on_the_wire = {item["messageId"] for item in letter_api.requests[-1].json["batch"]}
    service.program.signal_group(signal.SIGKILL)
    service.program.finish()
    assert not service.program.left_behind()
    service.port_is_free()
    runtime.take_no_more(service.program)
    assert runtime.serving(service.program, 1) <= managers  # the other worker's has nothing to wait for
    hold.release()
    runtime.are_gone(service.program)
    assert on_the_wire <= {item["messageId"] for item in letter_api.events}


@needs("gunicorn")
@pytest.mark.parametrize(
    ("worker", "number"),
    [
        pytest.param("gthread", signal.SIGKILL, id="killed, gthread"),
        pytest.param("gevent", signal.SIGKILL, marks=needs("gevent"), id="killed, gevent"),
        pytest.param("gevent", signal.SIGSTOP, marks=needs("gevent"), id="stopped, gevent"),
    ],
)
def test_without_its_manager_gunicorns_workers_send(worker: str, number: int, gunicorn: Any, runtime: Managers) -> None:
    service = gunicorn(worker, preload=True)
    (manager,) = service.managers()
    with Load(service):
        suspend(manager) if number == signal.SIGSTOP else os.kill(manager, number)
        # One line of each worker's `prompt`; `late` finds out at the end.
        assert eventually(lambda: service.output.count(UNUSABLE), lambda count: count >= 2) >= 2, service.output
        service.wait_for_more(20)
        service.program.signal(signal.SIGTERM)
        finished = service.program.finish()
    assert finished.code == 0 and not service.program.left_behind(), finished
    assert not complaints(finished.output), finished
    service.all_arrived()
    if number == signal.SIGSTOP:
        os.kill(manager, signal.SIGCONT)
        runtime.are_gone(service.program)
        service.all_arrived()


# uWSGI. It runs the exit code of idle workers alone, so each stop here waits until they are; see test_uwsgi.py.


@pytest.fixture
def uwsgi(letter_api: Any, runtime: Managers, tmp_path: Path, request: Any) -> Iterator[Callable[..., Uwsgi]]:
    running: list[Uwsgi] = []

    def start(start: str, **options: Any) -> Uwsgi:
        package = request.getfixturevalue("threadless") if start == "without threads" else ""
        flags = STARTS.get(start, ())
        running.append(Uwsgi(letter_api, tmp_path, *flags, package=package, first=MANAGER, **options))
        return running[-1]

    yield start
    letter_api.closing.set()
    for server in running:
        server.__exit__()


every_start = pytest.mark.parametrize(
    "start", ["no flags", "enable-threads", "fork hooks", "lazy-apps", "without threads"]
)


def managers_of(start: str) -> int:
    return imports_of(start)  # each import starts one


def have_worked(server: Uwsgi) -> None:
    """Have each worker track something and hand it over, as far as that needs no further call."""
    server.track_in_every_worker()
    if server.package:
        # A call gives the manager a few milliseconds, and sends by itself where a busy machine takes longer.
        relayed = eventually(lambda: server.track() and has_relayed(server), bool)
        assert relayed, server.output
    else:
        assert server.track(20)["modes"] == {"quick": "relay", "slow": "relay"}, server.output
        assert server.quick_has_arrived(), server.output


def has_relayed(server: Uwsgi) -> bool:
    """True when a worker has: at the import the master does it, which waits for the answer."""
    found = re.findall(r"^took \S+ s, [1-9]\d* relayed in (\d+)$", server.output, re.M)
    return bool({int(pid) for pid in found} - {server.pid})


def longest_call(server: Uwsgi) -> float:
    return max(float(seconds) for seconds in re.findall(r"^took (\S+) s,", server.output, re.M))


def end(server: Uwsgi, runtime: Managers) -> None:
    """Stop an idle server; all of its events must have gone over managers, but where calls have no time for that."""
    server.become_idle()
    server.signal(signal.SIGTERM)
    finished = server.finish()
    assert not server.left_behind() and not complaints(finished.output), finished
    assert server.package or ("own way" not in finished.output and UNUSABLE not in finished.output), finished
    assert "letterapp manager [" not in finished.output, finished
    runtime.are_gone(server)


def all_arrived(server: Uwsgi, imports: int, killed: bool = False) -> None:
    """The ledger. A batch travels twice when its call has no time for the manager's answer, or is killed before it."""
    came = {who: sorted(serials) for who, serials in whose(server.api).items()}
    assert len(came.pop("quick at import")) == len(came.pop("slow at import")) == imports, server.output
    assert came == {"quick": server.tracked, "slow": server.tracked}, server.output
    assert server.package or killed or server.api.repeated() == {}, server.output


@needs("pyuwsgi")
@every_start
def test_uwsgi_is_stopped(start: str, uwsgi: Any, runtime: Managers) -> None:
    server = uwsgi(start)
    runtime.serving(server, managers_of(start))
    have_worked(server)
    assert "slow" not in whose(server.api)
    end(server, runtime)
    all_arrived(server, imports_of(start))


@needs("pyuwsgi")
@every_start
def test_uwsgis_reload(start: str, uwsgi: Any, runtime: Managers) -> None:
    server = uwsgi(start)
    before = runtime.serving(server, managers_of(start))
    have_worked(server)
    old = server.become_idle()
    server.signal(signal.SIGHUP)
    server.be_replaced(old)
    assert sorted(whose(server.api)["slow"]) == server.tracked  # the old workers have sent what they held
    # The master has replaced its program, and so let go of the manager.
    assert not runtime.serving(server, managers_of(start)) & before
    have_worked(server)
    end(server, runtime)
    all_arrived(server, 2 * imports_of(start))


@needs("pyuwsgi")
@every_start
def test_uwsgis_workers_are_killed(start: str, uwsgi: Any, runtime: Managers) -> None:
    # Loaded in each worker, an application has no family there: only what has arrived is sure to be delivered.
    server = uwsgi(start, flush_at=1 if start == "lazy-apps" else 10_000)
    before = runtime.serving(server, managers_of(start))
    have_worked(server)
    if start == "lazy-apps":
        assert server.api.wait_until(lambda: sorted(whose(server.api).get("slow", [])) == server.tracked)
    old = server.become_idle()
    for pid in old:
        server.signal(signal.SIGKILL, pid)
    server.be_replaced(old)
    after = runtime.serving(server, managers_of(start))
    assert not after & before if start == "lazy-apps" else after == before
    have_worked(server)  # a worker that has not used its client does not look for what others left
    end(server, runtime)
    all_arrived(server, 2 * imports_of(start) if start == "lazy-apps" else 1, killed=True)


@needs("pyuwsgi")
@pytest.mark.parametrize("start", ["no flags", "lazy-apps"])
def test_all_of_uwsgi_is_killed_and_what_its_manager_has_arrives(start: str, uwsgi: Any, runtime: Managers) -> None:
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


@needs("pyuwsgi")
def test_without_threads_no_call_waits_for_the_api(uwsgi: Any, runtime: Managers) -> None:
    server = uwsgi("without threads", processes=1)
    hold = Hold(longest=3)
    server.api.plan(hold)
    eventually(lambda: server.track() and hold.arrived.is_set(), bool)
    assert hold.arrived.is_set(), server.output
    # For longer than a batch is waited for on a thread.
    over = time.monotonic() + 2
    eventually(server.track, lambda _: time.monotonic() > over)
    hold.release()
    # A call that finds the manager too slow sends by itself, and so waits for the API.
    assert longest_call(server) < LONG or UNUSABLE in server.output, server.output
    end(server, runtime)
    all_arrived(server, 1)


@needs("pyuwsgi")
def test_without_threads_no_call_waits_for_a_manager_that_stands_still(uwsgi: Any, runtime: Managers) -> None:
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


# Celery, whose parent imports the tasks and starts the manager.


@pytest.fixture
def celery(letter_api: Any, runtime: Managers, tmp_path: Path) -> Iterator[Callable[..., Celery]]:
    running: list[Celery] = []

    def start(*flags: str, **options: Any) -> Celery:
        running.append(Celery(letter_api, tmp_path, *flags, first=MANAGER, **options))
        return running[-1]

    yield start
    for worker in running:
        worker.hold.release()
        worker.__exit__()


@needs("celery")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["warm shutdown", "Ctrl-C"])
def test_a_shutdown_of_celery(number: int, celery: Any, runtime: Managers) -> None:
    worker = celery()
    worker.let_tasks_finish()
    runtime.serving(worker)
    assert len(set(worker.workers())) == 2
    assert "slow" not in whose(worker.api)
    output = worker.stop(number, group=number == signal.SIGINT)
    runtime.are_gone(worker)
    assert "own way" not in output and "letterapp manager [" not in output, output
    worker.all_arrived_once()


@needs("celery")
def test_children_of_celery_leave_after_their_share_of_tasks(celery: Any, runtime: Managers) -> None:
    worker = celery("--max-tasks-per-child", "3", tasks=12)
    before = eventually(lambda: started(worker), bool)
    worker.let_tasks_finish()
    # Twelve tasks in threes: each child that worked has left by itself, but for the last of each of the two places.
    assert worker.api.wait_until(lambda: len(whose(worker.api).get("slow", [])) >= 8), worker.output
    assert runtime.serving(worker) == before
    output = worker.stop(signal.SIGTERM)
    runtime.are_gone(worker)
    assert "own way" not in output and "letterapp manager [" not in output, output
    worker.all_arrived_once()


@needs("celery")
def test_the_manager_leaves_when_celery_is_killed(celery: Any, runtime: Managers) -> None:
    worker = celery()
    worker.let_tasks_finish()
    runtime.serving(worker)
    worker.signal_group(signal.SIGKILL)
    worker.finish()
    assert not worker.left_behind()
    runtime.are_gone(worker)
    assert sorted(whose(worker.api)["quick"]) == worker.tasks
