"""Programs of test_logging: handlers that do what handlers should not, in processes that fork and end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any, Callable

from letterapp import LetterError
from programs.common import child, main, make, work


def _records(level: int = 10) -> list[str]:
    """What the logger `letterapp` logs from now on."""
    import logging

    records: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    logging.getLogger("letterapp").setLevel(level)
    logging.getLogger("letterapp").addHandler(Handler())
    return records


def _status(pid: int) -> int:
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def not_imported() -> None:
    letter = make()
    work(letter, 3)
    assert letter.flush()
    print("logging" in sys.modules)


def nobody_listens() -> None:
    import logging  # noqa: F401

    letter = make(on_error=lambda error: None)
    work(letter, 1)
    assert letter.close()
    work(letter, 1)  # lost


def printed() -> None:
    letter = make("lt_live_the_key", on_error=lambda error: None)
    letter.track("a person", "An event", {"secret": "content"})
    assert letter.flush()
    letter.track("a person", "An event", {"secret": object()})


def until_the_end(path: str, imports_late: str) -> None:
    """Track, and end. ``imports_late``: `logging` is imported after the client was made, so it is shut down first."""
    letter = make() if imports_late else None
    import logging

    handler = logging.FileHandler(path)
    logging.getLogger("letterapp").setLevel(logging.DEBUG)
    logging.getLogger("letterapp").addHandler(handler)
    letter = letter or make()
    work(letter, 3)


def forks_in_a_handler() -> None:
    """A handler forks in the sending thread; its child goes on in the client's code, and ends."""
    import logging

    parent = os.getpid()
    children: list[int] = []
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            if os.getpid() != parent:
                os.write(1, b"logged by the child\n")
            if not children:
                children.append(os.fork())

    logging.getLogger("letterapp").setLevel(logging.DEBUG)
    logging.getLogger("letterapp").addHandler(Handler())
    letter = make(flush_at=1, on_error=lambda error: None)
    work(letter, 1)
    assert letter.flush()
    work(letter, 1, start=1)
    assert letter.flush()
    assert _status(children[0]) == 0
    work(letter, 2, start=2)
    assert letter.flush()
    print(sum("delivered" in line for line in lines) >= 2 and "1 event lost (rejected)" in lines)


def forks_while_it_logs(children: str) -> None:
    """Fork again and again while another thread logs what it delivers; each child tracks, logs and ends."""
    records = _records()
    letter = make()
    is_over = threading.Event()

    def busy() -> None:
        serial = 0
        while not is_over.is_set():
            work(letter, 1, "busy", start=serial)
            letter.flush()
            serial += 1

    thread = threading.Thread(target=busy)
    thread.start()

    def job() -> int:
        records.clear()
        work(letter, 5, f"child {os.getpid()}")
        assert letter.flush()
        return 0 if records and all("batch" in line for line in records) else 1

    codes = [_status(child(job)) for _ in range(int(children))]
    is_over.set()
    thread.join()
    assert letter.flush()
    print(codes == [0] * int(children) and len(records) > 0)


def relayed() -> None:
    letter = make(relay=True, flush_interval=1000)
    work(letter, 2)
    assert letter.flush()
    print(os.getpid())


def takes_over() -> None:
    """A child is killed with events in its queue; the parent logs that it took them over."""
    records = _records()
    letter = make(flush_interval=1000, flush_at=1000)
    read, write = os.pipe()

    def job() -> None:
        work(letter, 7, "killed")
        os.write(write, b".")
        signal.pause()

    pid = child(job)
    os.read(read, 1)
    os.kill(pid, signal.SIGKILL)
    _status(pid)
    assert letter.flush()
    print([line for line in records if "taken over" in line])


def interrupted_handler() -> None:
    """A signal handler uses the client again and again while a handler of the logger runs in the main thread."""
    import logging

    inside = threading.Event()
    counts = {"records": 0, "signals": 0}
    letter: Any = None
    is_over = False

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            counts["records"] += 1
            if threading.current_thread() is threading.main_thread():
                inside.set()
                until = counts["signals"] + 3
                while counts["signals"] < until:
                    time.sleep(0.0005)

    def on_signal(*_: Any) -> None:
        counts["signals"] += 1
        letter.track("handler", "Worked", {"serial": counts["signals"], "pid": os.getpid()})
        letter.flush(0.001)
        if not is_over:
            # Once: at intervals it would interrupt itself on a busy machine, ever deeper.
            signal.setitimer(signal.ITIMER_REAL, 0.002)

    logging.getLogger("letterapp").setLevel(logging.DEBUG)
    logging.getLogger("letterapp").addHandler(Handler())
    letter = make(on_error=lambda error: None)
    signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.002)
    serial = 0
    while not inside.is_set():
        letter.track("program", "Worked", {"serial": serial, "bad": object()})  # reported, and logged, in this thread
        serial += 1
    is_over = True
    signal.setitimer(signal.ITIMER_REAL, 0)  # else a signal could come between the two that are printed
    print(letter.flush(), letter.stats()["waiting"])


def signal_in_a_handler_of_the_application() -> None:
    """It holds a lock of its own when the signal comes, whose handler causes a loss."""
    import logging

    lock = threading.Lock()
    warnings: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with lock:
                if record.name == "letterapp":
                    warnings.append(record.getMessage())
                else:
                    signal.raise_signal(signal.SIGUSR1)

    logging.getLogger().addHandler(Handler())
    letter = make(on_error=lambda error: None)
    signal.signal(signal.SIGUSR1, lambda *_: letter.track("handler", "Worked", {"bad": object()}))
    logging.getLogger("application").warning("a line")
    assert not warnings
    assert letter.flush()
    print(warnings == ["1 event lost (invalid)"])


def signal_that_raises() -> None:
    """A signal handler raises while a handler of the logger runs: the application gets the exception."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            signal.raise_signal(signal.SIGALRM)
            threading.Event().wait(60)  # the signal is handled in here

    def on_signal(*_: Any) -> None:
        raise TimeoutError("of the application")

    logging.getLogger("letterapp").addHandler(Handler())
    letter = make(on_error=lambda error: None)
    signal.signal(signal.SIGALRM, on_signal)
    try:
        letter.track("u", "E", {"bad": object()})
    except TimeoutError as error:
        print(error)
    print(letter.stats()["lost"])


def forked_while_another_thread_logs() -> None:
    """A child knows nothing of what its parent is logging, or still has to log."""
    import logging

    from letterapp import _log

    is_inside, is_over = threading.Event(), threading.Event()
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            if lines == ["first"]:
                is_inside.set()
                is_over.wait(60)

    logging.getLogger("letterapp").setLevel(logging.DEBUG)
    logging.getLogger("letterapp").addHandler(Handler())
    _log.note("first")
    thread = threading.Thread(target=_log.emit)
    thread.start()
    assert is_inside.wait(60)
    _log.note("second")
    assert _log.is_handler_running_elsewhere() and not _log.emit()

    # While a thread of the parent is in a handler, and when it is not.
    def job() -> int:
        waits = _log.is_handler_running_elsewhere()
        return 10 * waits + _log.emit() + len(lines) - 1

    print(_status(child(job)))
    is_over.set()
    thread.join()
    print(_status(child(job)))
    assert _log.emit()
    print(lines)


def logs_at_the_very_end() -> None:
    """An object tracks in its `__del__` when Python clears its modules: no handler is called then."""
    import logging

    from letterapp import _log

    letter = make(on_error=lambda error: os.write(1, f"{error.cause}, {sys.is_finalizing()}\n".encode()))

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            os.write(1, f"{record.getMessage()}, {sys.is_finalizing()}\n".encode())

    class Tracks:
        def __del__(self) -> None:
            letter.track("u", "E", {"bad": object()})
            os.write(1, f"{_log.emit()}\n".encode())

    logging.getLogger("letterapp").addHandler(Handler())
    sys.last_value = Tracks()  # type: ignore[assignment]  # Python clears it first, while there are modules


def killed_by_a_signal(where: str) -> None:
    """A signal of `exit_signals` comes while ``where`` goes on, and what waits is lost."""
    import logging

    lock = threading.Lock()  # not re-entrant, like the lock of a stream
    is_inside, is_lost = threading.Event(), threading.Event()

    def track_in_a_thread() -> None:
        thread = threading.Thread(target=work, args=(letter, 2))  # what a handler tracks is not logged
        thread.start()
        thread.join()

    def get_signal() -> None:
        signal.raise_signal(signal.SIGTERM)  # not `os.kill`: a thread that is just being started might get it
        is_lost.wait(60)  # the signal is handled in here

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with lock:
                if record.name == "application":
                    get_signal()
                elif record.levelno == logging.WARNING:
                    time.sleep(0.1 if where == "a handler of another thread" else 0)  # a slow handler
                    os.write(1, record.getMessage().encode() + b"\n")
                    if "invalid" in record.getMessage():
                        track_in_a_thread()
                        get_signal()
                elif where == "a handler of another thread":
                    is_inside.set()
                    is_lost.wait(60)

    def on_error(error: LetterError) -> None:
        os.write(1, f"{error.cause}\n".encode())
        if error.cause == "exit":
            is_lost.set()

    logging.getLogger().addHandler(Handler())
    logging.getLogger().setLevel(logging.DEBUG)
    nowhere = "http://127.0.0.1:9"  # where nothing listens
    letter = make(base_url=nowhere, exit_signals=(signal.SIGTERM,), exit_timeout=0.2, on_error=on_error)
    if where == "a handler of this logger":
        letter.track("u", "E", {"bad": object()})
    work(letter, 2)
    acts: dict[str, Callable[[], object]] = {
        "a handler of the application": lambda: logging.getLogger("application").info("a line"),
        "a handler of another thread": lambda: is_inside.wait(60),
    }
    acts.get(where, lambda: None)()
    signal.raise_signal(signal.SIGTERM)


main(globals())
