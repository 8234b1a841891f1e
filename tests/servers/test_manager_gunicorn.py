"""A `SenderManager` with gunicorn, however it, its workers and the manager end.

The application starts its manager where it is imported: one in a master that is preloaded, else one in each worker.

What was tracked must arrive, once as the API counts, however the process ended, and the server has nothing to complain
about. A manager's process is no child of a server and keeps none of its ports, and it ends soon after the last process
that it served.
"""

from __future__ import annotations

import os
import signal
from typing import Any, Callable

import pytest
from harness import DEADLINE, Program, eventually, first_is_quick, needs, suspend, whose
from managed_servers import UNUSABLE, Managers, complaints, managers_directory  # noqa: F401  (a fixture for all tests)
from services import Load, Service, closed_gate, gone, start_programs  # noqa: F401  (two fixtures)
from test_gunicorn import UVICORN

from letterapp.testing import Hold, stall, status
from stress.ports import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


class Managed(Service):
    """gunicorn and its managers."""

    def __init__(self, program: Program, api: Any, runtime: Any, port: int, own_managers: bool) -> None:
        super().__init__(program, api, runtime, port)
        self._managers: Managers = runtime
        self._own_managers = own_managers  # each of the two workers has started one

    def managers(self) -> set[int]:
        """The processes that all events are handed over to."""
        assert "local fallback" not in self.output, self.output
        return self._managers.serving(self.program, 2 if self._own_managers else 1)

    def is_settled(self) -> bool:
        """Wait until all that `prompt` has tracked has arrived; True when it has."""
        prompt = {(who, serial) for who, serial in self.tracked() if who.endswith("-prompt")}
        arrived: bool = self._api.wait_until(lambda: prompt <= self._came())
        return arrived

    def _came(self) -> set[tuple[str, int]]:
        return {(who, serial) for who, serials in whose(self._api).items() for serial in serials}

    def left_nothing(self) -> None:
        self._managers.are_gone(self.program)
        assert "letterapp manager [" not in self.output and "local fallback" not in self.output, self.output
        super().left_nothing()


@pytest.fixture
def gunicorn(serve: Any, letter_api: Any, runtime: Managers) -> Callable[..., Managed]:
    def start(worker: str, preload: bool, **env: str) -> Managed:
        port = free_port()
        flags = ["-b", f"127.0.0.1:{port}", "-k", worker, "-w", "2", "--timeout", "60"]
        flags += ["--threads", "4"] if worker == "gthread" else []  # with threads gunicorn makes the same of "sync"
        flags += ["--preload"] if preload else []
        application = "programs.managed_asgi" if worker == UVICORN else "programs.managed_wsgi"
        program = serve("", "gunicorn", application, *flags, port=port, **env).program
        service = Managed(program, letter_api, runtime, port, own_managers=not preload)
        service.put_to_work()
        return service

    return start


WORKERS = {"sync": "sync", "gthread": "gthread", "gevent": "gevent", "uvicorn worker": UVICORN}
NEEDS = {"gevent": [needs("gevent")], "uvicorn worker": [needs("uvicorn")]}


def workers(*names: str) -> pytest.MarkDecorator:
    return first_is_quick("worker", [pytest.param(WORKERS[name], marks=NEEDS.get(name, []), id=name) for name in names])


def cases(*names: str) -> pytest.MarkDecorator:
    """Some of all classes of worker, preloaded or not."""
    found = []
    for case in names:
        name, how = case.split(", ")
        found.append(pytest.param(WORKERS[name], how == "preloaded", marks=NEEDS.get(name, []), id=case))
    return pytest.mark.parametrize(("worker", "preload"), found)


preloaded_or_not = first_is_quick("preload", [True, False], ids=["preloaded", "not preloaded"])


@needs("gunicorn")
@workers(*WORKERS)
@preloaded_or_not
def test_gunicorns_graceful_stop(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    service.managers()
    with Load(service):
        service.program.signal(signal.SIGTERM)
        service.ended()


@pytest.mark.slow
@needs("gunicorn")
@workers("uvicorn worker")
@preloaded_or_not
def test_a_uvicorn_worker_with_exit_signals(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload, TEST_SIGNALS="1")
    service.managers()
    with Load(service):
        service.program.signal(signal.SIGTERM)
        service.ended()


@pytest.mark.slow
@needs("gunicorn")
@cases("sync, preloaded", "gthread, not preloaded", "gevent, not preloaded", "uvicorn worker, preloaded")
def test_gunicorns_reload(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    before, old = service.managers(), service.at_work()
    with Load(service):
        service.program.signal(signal.SIGHUP)
        assert gone(old), service.output
        service.put_to_work(old=old)
        # The master's continues. Each worker's own has left after it.
        after = service.managers()
        assert after == before if preload else not after & before
    service.program.signal(signal.SIGTERM)
    service.ended()


# Not with threads: there gunicorn's worker may hang without a client too, see test_gunicorn.py.
@pytest.mark.slow
@needs("gunicorn")
@cases("sync, preloaded", "sync, not preloaded", "gevent, preloaded", "uvicorn worker, not preloaded")
def test_ctrl_c_on_gunicorn(worker: str, preload: bool, gunicorn: Any, letter_api: Any) -> None:
    service = gunicorn(worker, preload)
    service.managers()
    # It reaches a worker twice, from the terminal and from the master: the second comes in the middle of the end.
    letter_api.rule = lambda _: stall(0.5)
    service.program.signal_group(signal.SIGINT)
    service.ended()


@pytest.mark.slow
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


@pytest.mark.slow
@needs("gunicorn")
@workers("gthread", "uvicorn worker")
def test_gunicorns_workers_are_killed_under_load_and_their_managers_end(worker: str, gunicorn: Any) -> None:
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
@cases("gthread, preloaded", "sync, not preloaded")
def test_gunicorns_master_is_killed_and_its_workers_end(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    service.managers()
    with Load(service):
        service.program.signal(signal.SIGKILL)
        service.ended(-signal.SIGKILL)


@pytest.mark.slow
@needs("gunicorn")
@preloaded_or_not
def test_a_managers_events_arrive_even_if_all_of_gunicorn_is_killed(
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
    assert runtime.serving(service.program, 1) <= managers  # the other worker's has nothing to send
    hold.release()
    runtime.are_gone(service.program)
    assert on_the_wire <= {item["messageId"] for item in letter_api.events}


@pytest.mark.slow
@needs("gunicorn")
@pytest.mark.parametrize(
    ("worker", "number"),
    [
        pytest.param("gthread", signal.SIGKILL, id="killed, gthread"),
        pytest.param("gevent", signal.SIGKILL, marks=needs("gevent"), id="killed, gevent"),
        pytest.param("gevent", signal.SIGSTOP, marks=needs("gevent"), id="stopped, gevent"),
    ],
)
def test_gunicorns_workers_send_their_events_without_their_manager(
    worker: str, number: int, gunicorn: Any, runtime: Managers
) -> None:
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
