"""A plain program: every event of it arrives once, however it ends."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, eventually, run, start, whose

from letterapp.testing import Hold, status

ENDS = {
    "comes to its end": "",
    "closes": "letter.close()",
    "flushes": "assert letter.flush() is True",
    "calls sys.exit": "sys.exit(0)",
    "raises": "raise RuntimeError('on purpose')",
    "leaves a with": "letter.__exit__(None, None, None)",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_every_event_of_a_script_arrives_once_when_it(end: str, letter_api: Any, tmp_path: Path) -> None:
    finished = run(f"letter = Letter('k', API)\nwork(letter, 777)\n{end}\n", letter_api.url, tmp_path)
    assert finished.code == (1 if "raise" in end else 0), finished
    assert whose(letter_api) == {"program": list(range(777))}, finished
    assert letter_api.repeated() == {}


def test_ctrl_c_loses_nothing(letter_api: Any, tmp_path: Path) -> None:
    code = """
    letter = Letter('k', API, flush_interval=30, flush_at=10_000)
    work(letter, 500)
    print('tracked', flush=True)
    stay()
    """
    with start(code, letter_api.url, tmp_path) as program:
        assert eventually(lambda: program.output, lambda text: "tracked" in text)
        program.signal(signal.SIGINT)
        finished = program.finish()
    assert "KeyboardInterrupt" in finished.output
    assert whose(letter_api) == {"program": list(range(500))}


@pytest.mark.parametrize(
    "first", ["atexit.register(last); letter = Letter('k', API)", "letter = Letter('k', API); atexit.register(last)"]
)
def test_an_event_tracked_by_an_exit_callback_arrives_on_whichever_side_of_ours_it_runs(
    first: str, letter_api: Any, tmp_path: Path
) -> None:
    code = f"""
    import atexit
    def last():
        work(letter, 10, start=20)
    {first}
    work(letter, 20)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0 and finished.output == "", finished
    assert whose(letter_api) == {"program": list(range(30))}
    assert letter_api.repeated() == {}


def test_a_client_first_used_in_an_exit_callback_delivers(letter_api: Any, tmp_path: Path) -> None:
    code = """
    import atexit
    atexit.register(lambda: work(Letter('k', API), 3))
    atexit.register(lambda: work(unused, 3, start=3))
    unused = Letter('k', API)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.output == "", finished
    assert sorted(whose(letter_api)["program"]) == list(range(6))


def test_events_of_a_thread_that_runs_while_the_interpreter_ends_arrive(letter_api: Any, tmp_path: Path) -> None:
    code = """
    letter = Letter('k', API)
    main = threading.current_thread()
    def on():
        main.join()  # the interpreter has begun to end: it waits for this thread
        work(letter, 300)
    threading.Thread(target=on).start()
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.output == "", finished
    assert whose(letter_api) == {"program": list(range(300))}


def test_a_client_that_was_thrown_away_still_delivers(letter_api: Any, tmp_path: Path) -> None:
    code = """
    import gc
    work(Letter('k', API, flush_interval=30), 40)
    gc.collect()
    """
    run(code, letter_api.url, tmp_path)
    assert whose(letter_api) == {"program": list(range(40))}


def test_one_request_a_call_as_in_a_lambda_function(letter_api: Any, make: Any) -> None:
    letter = make(flush_at=1)
    for invocation in range(5):
        letter.track("user", "Invoked", {"serial": invocation})
        assert letter.flush() is True
        assert letter_api.distinct == invocation + 1
    assert len(letter_api.requests) == 5
    assert len({request.connection for request in letter_api.requests}) == 1


def test_many_clients_settle_at_the_same_time_at_an_end(letter_api: Any, tmp_path: Path) -> None:
    from letterapp.testing import stall

    letter_api.rule = lambda request: stall(1)
    code = """
    clients = [Letter('k', API, flush_interval=1000, exit_timeout=18) for _ in range(20)]
    for number, letter in enumerate(clients):
        work(letter, 5, f'client {number}')
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.output == "", finished  # one after the other would take 20 s
    assert whose(letter_api) == {f"client {number}": list(range(5)) for number in range(20)}


def test_a_call_after_the_end_has_begun_returns_when_its_event_is_settled(make: Any, letter_api: Any) -> None:
    import threading
    import time

    from letterapp.testing import Hold

    letter = make()
    letter._delivery.end(time.monotonic() + 60, final=True)
    hold = Hold()
    letter_api.plan(hold)
    calls = [threading.Thread(target=letter.track, args=("u", f"{number}")) for number in range(3)]
    calls[0].start()
    assert hold.arrived.wait(60)
    for number, call in enumerate(calls[1:], 2):  # the first of them finds an empty queue, the second does not
        call.start()
        assert eventually(lambda: letter.stats()["waiting"], lambda waiting: waiting == number) == number  # noqa: B023
    calls[2].join(0.3)
    assert all(call.is_alive() for call in calls)
    hold.release()
    for call in calls:
        call.join(60)
    assert letter.stats()["delivered"] == 3


def test_an_end_takes_one_budget_when_the_api_is_silent(letter_api: Any, tmp_path: Path) -> None:
    from letterapp.testing import Hold

    letter_api.rule = lambda request: Hold()
    code = """
    clients = [Letter('k', API, exit_timeout=3.0, timeout=60) for _ in range(20)]
    for letter in clients:
        work(letter, 5)
    """
    finished = run(code, letter_api.url, tmp_path)
    letter_api.rule = None
    assert finished.seconds < 40  # twenty clients, one after the other, would take 60 s
    assert finished.output.count("5 events given up") == 20, finished


def test_what_is_lost_last_is_reported_before_the_process_ends(letter_api: Any, tmp_path: Path) -> None:
    # Settled is not yet reported: `on_error` runs on the sender's thread, which the end of the interpreter stops.
    letter_api.plan(status(401))
    code = """
    def on_error(error):
        threading.Event().wait(0.2)
        print("told of", len(error.events), flush=True)
    letter = Letter('k', API, on_error=on_error, flush_interval=30)
    work(letter, 10)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert (finished.code, finished.output) == (0, "told of 10\n"), finished


@pytest.mark.parametrize("end", ["", "letter.close(timeout=0.5)"], ids=["plain end", "close"])
def test_drops_are_reported_at_the_end_though_a_request_hangs(end: str, letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    code = f"""
    def on_error(error):
        print(error.cause, error.lost, flush=True)
    letter = Letter('k', API, on_error=on_error, flush_at=1, max_queue_events=10, exit_timeout=0.5)
    work(letter, 30)
    {end}
    """
    finished = run(code, letter_api.url, tmp_path)
    hold.release()
    assert finished.code == 0, finished
    assert sorted(finished.output.splitlines()) == [f"{'closed' if end else 'exit'} 10", "overflow 20"], finished


@pytest.mark.parametrize("in_child", [False, True], ids=["script", "multiprocessing child"])
def test_an_exit_that_a_signal_asks_for_while_the_process_ends_cuts_nothing_short(
    in_child: bool, letter_api: Any, tmp_path: Path
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    code = """
    import multiprocessing
    def leave(*_):
        os.write(1, b"told\\n")
        sys.exit(0)
    def program():
        signal.signal(signal.SIGTERM, leave)
        letter = Letter('k', API, flush_interval=600, exit_timeout=30)
        work(letter, 5)
        os.write(1, f"{os.getpid()}\\n".encode())
    if sys.argv[1] == "True":
        process = multiprocessing.get_context("fork").Process(target=program)
        process.start()
        process.join()
    else:
        program()
    """
    with start(code, letter_api.url, tmp_path, str(in_child)) as program:
        assert hold.arrived.wait(DEADLINE)
        pid = int(program.output)
        for times in (1, 2):
            program.signal(signal.SIGTERM, pid)
            assert eventually(lambda times=times: program.output.count("told") >= times, bool)
        hold.release()
        finished = program.finish()
    assert (finished.code, finished.output) == (0, f"{pid}\ntold\ntold\n"), finished
    assert whose(letter_api) == {"program": list(range(5))}


def test_a_try_that_the_end_brought_forward_does_not_count(letter_api: Any, tmp_path: Path) -> None:
    letter_api.plan(status(429, headers={"Retry-After": "60"}), status(503))
    code = """
    letter = Letter('k', API, max_retries=1, exit_timeout=30)
    work(letter, 10)
    while not letter._delivery._batches._in_flight.not_before:
        threading.Event().wait(0.01)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert (finished.code, finished.output) == (0, ""), finished
    assert whose(letter_api) == {"program": list(range(10))}
