"""uWSGI: the application's events arrive once, with and without threads, preloaded or not, however a worker ends.

uWSGI forks without Python's hooks, its master stands still once the import is over, and before 2.0.27 a thread of a
worker gets one step a request. It runs a worker's exit handlers only when that worker is between two requests, so
each stop here waits until uWSGI itself calls the workers idle. What a stop in the middle of a request costs has a
test of its own.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Iterator, Sequence

import pytest
from harness import eventually, first_is_quick, needs, whose
from uwsgi_server import APPLICATION, INLINE_WARNING, STARTS, Uwsgi, imports_of

from letterapp.testing import Hold, status

pytestmark = needs("pyuwsgi")

every_start = first_is_quick("start", STARTS.keys())


@pytest.fixture
def uwsgi(letter_api: Any, tmp_path: Path) -> Iterator[Any]:
    """Starts servers, and ends what is left of them."""
    running: list[Uwsgi] = []

    def serve(*flags: str, **options: Any) -> Uwsgi:
        running.append(Uwsgi(letter_api, tmp_path, *flags, **options))
        return running[-1]

    yield serve
    letter_api.closing.set()
    for server in running:
        server.__exit__()


# With threads.


@every_start
def test_a_stop_loses_nothing_and_the_masters_events_arrive_once(start: str, uwsgi: Any) -> None:
    server = uwsgi(*STARTS[start])
    server.track_in_every_worker()
    assert server.track(20)["modes"] == {"quick": "thread", "slow": "thread"}
    assert server.quick_has_arrived()
    assert "slow" not in whose(server.api)
    assert INLINE_WARNING not in server.stop()
    server.all_arrived_once(imports_of(start))


@pytest.mark.slow
@every_start
def test_a_reload_loses_nothing(start: str, uwsgi: Any) -> None:
    server = uwsgi(*STARTS[start])
    server.track_in_every_worker()
    old = server.become_idle()
    server.signal(signal.SIGHUP)
    server.be_replaced(old)
    assert sorted(whose(server.api)["slow"]) == server.tracked  # the old workers have sent what they held
    server.track_in_every_worker()
    assert server.quick_has_arrived()
    server.stop()
    server.all_arrived_once(2 * imports_of(start))


@pytest.mark.slow
@every_start
def test_a_worker_that_ends_by_max_requests_loses_nothing(start: str, uwsgi: Any) -> None:
    # The lifetime is 10 seconds at least by default, whatever the count of requests.
    server = uwsgi("--max-requests", "3", "--min-worker-lifetime", "0", *STARTS[start])
    old = server.become_idle()
    eventually(lambda: server.track(5)["pid"], lambda pid: pid not in old)
    assert server.quick_has_arrived()
    server.stop()
    came = whose(server.api)
    server.all_arrived_once(imports=len(came["quick at import"]) if start == "lazy-apps" else 1)


def test_ctrl_c_loses_nothing(uwsgi: Any) -> None:
    server = uwsgi()
    server.track_in_every_worker()
    server.become_idle()
    server.signal_group(signal.SIGINT)
    server.ended()
    server.all_arrived_once()


@pytest.mark.slow
def test_a_second_signal_while_a_worker_ends_does_not_cut_its_end_short(uwsgi: Any) -> None:
    # Ctrl-C reaches a worker twice, from the terminal and from the master. The thread that ends the process does not
    # take the second; were it another's to take, uWSGI's handler would call C's `exit` again, in that thread.
    server = uwsgi()
    server.track_in_every_worker()
    assert server.quick_has_arrived()
    workers = server.become_idle()
    hold = Hold(then=status(503))  # each worker has a second request to make, after its second signal
    server.api.rule = None
    server.api.plan(*[hold] * len(workers))
    before = len(server.api.requests)
    server.signal(signal.SIGTERM)
    assert server.api.wait_until(lambda: len(server.api.requests) == before + len(workers)), server.output
    for pid in workers:
        server.signal(signal.SIGINT, pid)
    hold.release()
    server.ended()
    server.all_arrived_once()


@pytest.mark.parametrize("start", ["no flags", "enable-threads", "threads 2", "fork hooks"])
def test_without_a_master_nothing_is_lost(start: str, uwsgi: Any) -> None:
    server = uwsgi("--no-master", *STARTS[start], processes=1)
    assert server.track(20)["modes"] == {"quick": "thread", "slow": "thread"}
    assert server.quick_has_arrived()
    server.stop()
    server.all_arrived_once()


# Stopped in the middle of a request.


@pytest.mark.slow
def test_a_busy_worker_that_is_stopped_loses_only_waiting_events(uwsgi: Any) -> None:
    server = uwsgi()
    hold = Hold()
    clients = server.hold(hold)
    assert server.quick_has_arrived()  # in the middle of its request
    server.signal(signal.SIGTERM)
    server.ended()  # at once, though both workers are in a request that would take longer
    hold.release()
    for client in clients:
        client.join(60)
    came = whose(server.api)
    assert sorted(came["quick"]) == server.tracked
    assert set(came.get("slow", [])) <= set(server.tracked)  # uWSGI runs no exit handlers of a busy worker
    assert server.api.repeated() == {}


@pytest.mark.slow
def test_a_reload_lets_a_busy_worker_finish_and_loses_nothing(uwsgi: Any) -> None:
    server = uwsgi()
    old = server.become_idle()
    hold = Hold()
    clients = server.hold(hold)
    server.signal(signal.SIGHUP)
    assert eventually(lambda: server.output.count("Gracefully killing worker"), lambda count: count == 2) == 2
    hold.release()
    for client in clients:
        client.join(60)
    server.be_replaced(old)
    server.stop()
    server.all_arrived_once(imports=2)


def test_a_graceful_stop_lets_a_busy_worker_finish_and_loses_nothing(uwsgi: Any, tmp_path: Path) -> None:
    server = uwsgi("--master-fifo", "fifo")
    hold = Hold()
    clients = server.hold(hold)
    (tmp_path / "fifo").write_text("q")
    assert eventually(lambda: server.output.count("Gracefully killing worker"), lambda count: count == 2) == 2
    hold.release()
    for client in clients:
        client.join(60)
    server.ended()
    server.all_arrived_once()


# Two applications in one process, each in a separate interpreter by default. uWSGI ends the first one
# alone, at which Python says that others remain, and calls no exit handler of theirs.

SECOND = ("--manage-script-name", "--mount", "/second=second.py")
SAID = "letterapp: uWSGI ends interpreters other than its first without running exit handlers."


@pytest.mark.slow
def test_in_an_interpreter_that_uwsgi_never_ends_events_are_sent_at_once_and_it_is_reported(
    uwsgi: Any, tmp_path: Path
) -> None:
    (tmp_path / "second.py").write_text(APPLICATION)
    _use_both(uwsgi(*SECOND, processes=1))


@pytest.mark.slow
def test_in_an_interpreter_that_uwsgi_never_ends_without_threads(threadless: str, uwsgi: Any, tmp_path: Path) -> None:
    (tmp_path / "second.py").write_text(APPLICATION)
    _use_both(uwsgi(*SECOND, processes=1, package=threadless))


def _use_both(server: Uwsgi) -> None:
    server.get(f"/second?{server._take_serials(20)}")
    assert server.api.wait_until(lambda: sorted(whose(server.api).get("slow", [])) == server.tracked), server.output
    server.track(20)  # in the first interpreter, whose end is announced
    server.become_idle()
    server.signal(signal.SIGTERM)
    finished = server.finish()
    assert finished.output.count(SAID) == 1 and "Traceback" not in finished.output, finished
    server.all_arrived_once(imports=2)


@pytest.mark.slow
def test_two_applications_in_a_single_interpreter_lose_nothing(uwsgi: Any, tmp_path: Path) -> None:
    (tmp_path / "second.py").write_text(APPLICATION)
    server = uwsgi(*SECOND, "--single-interpreter", processes=1)
    server.get(f"/second?{server._take_serials(20)}")
    server.track(20)
    assert server.quick_has_arrived()
    assert "slow" not in whose(server.api)
    server.stop()
    server.all_arrived_once(imports=2)


# Without threads.


@pytest.mark.slow
def test_without_threads_the_calls_send_and_one_warning_says_why(threadless: str, uwsgi: Any) -> None:
    server = uwsgi(package=threadless)
    server.track_in_every_worker()
    assert server.track()["modes"] == {"quick": "inline", "slow": "inline"}
    output = server.stop()
    assert output.count(INLINE_WARNING) == 2, output  # one a worker
    assert "Under uWSGI start it with --enable-threads." in output
    server.all_arrived_once()


@pytest.mark.slow
def test_without_threads_a_batch_is_sent_at_flush_at(threadless: str, uwsgi: Any) -> None:
    server = uwsgi(package=threadless, processes=1, flush_at=30)
    server.track(29)
    assert "slow" not in whose(server.api)
    server.track(1)  # the call returns when the batch has been delivered
    assert whose(server.api)["slow"] == server.tracked
    server.track(1)
    assert whose(server.api)["slow"] == list(range(30))
    server.stop()
    server.all_arrived_once()


@pytest.mark.slow
def test_without_threads_events_are_sent_by_the_next_call_after_flush_interval(threadless: str, uwsgi: Any) -> None:
    server = uwsgi(package=threadless, processes=1)
    server.track(10)
    eventually(lambda: server.track() and whose(server.api), lambda came: len(came.get("quick", [])) >= 10)
    came = whose(server.api)
    assert came["quick"][:10] == list(range(10))
    assert "slow" not in came
    server.stop()
    server.all_arrived_once()


@pytest.mark.slow
def test_without_threads_a_reload_loses_nothing(threadless: str, uwsgi: Any) -> None:
    server = uwsgi(package=threadless)
    server.track_in_every_worker()
    old = server.become_idle()
    server.signal(signal.SIGHUP)
    server.be_replaced(old)
    assert sorted(whose(server.api)["slow"]) == server.tracked
    server.track_in_every_worker()
    server.stop()
    server.all_arrived_once(imports=2)


@pytest.mark.slow
def test_without_threads_a_worker_that_ends_by_max_requests_loses_nothing(threadless: str, uwsgi: Any) -> None:
    server = uwsgi("--max-requests", "3", "--min-worker-lifetime", "0", package=threadless)
    old = server.become_idle()
    eventually(lambda: server.track(5)["pid"], lambda pid: pid not in old)
    server.stop()
    server.all_arrived_once()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--no-master",), ("--lazy-apps",)], ids=["without a master", "lazy-apps"])
def test_without_threads_nothing_is_lost_when_started(flags: Sequence[str], threadless: str, uwsgi: Any) -> None:
    server = uwsgi(*flags, package=threadless, processes=1)
    assert server.track(20)["modes"] == {"quick": "inline", "slow": "inline"}
    server.stop()
    server.all_arrived_once()


@pytest.mark.slow
@pytest.mark.parametrize("start", ["enable-threads", "threads 2", "fork hooks"])
def test_uwsgi_runs_threads_when_enabled(start: str, threadless: str, uwsgi: Any) -> None:
    server = uwsgi(*STARTS[start], package=threadless)
    server.track_in_every_worker()
    assert server.track(20)["modes"] == {"quick": "thread", "slow": "thread"}
    assert server.quick_has_arrived()
    assert INLINE_WARNING not in server.stop()
    server.all_arrived_once()
