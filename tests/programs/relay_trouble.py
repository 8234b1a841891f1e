"""Programs whose relay fails: it is stopped, lacks something on the host, or its descriptor is closed."""

from __future__ import annotations

import os
import resource
import signal
import socket
import warnings

from letterapp import Letter, LetterError
from programs.common import API, child, main, make, suspend, work
from programs.relays import KEY, join, statuses


def _ignore(_: LetterError) -> None:
    pass


# A relay that stands still.


def killed_after_the_relay_stopped() -> None:
    """150 children that the relay knows track an event each while it is stopped; all are killed."""
    letter = join(on_error=_ignore)
    relay = statuses()[0]["pid"]
    print(relay)
    known, go_on = os.pipe(), os.pipe()

    def job() -> None:
        work(letter, 1, str(os.getpid()))
        os.write(known[1], b".")
        os.close(go_on[1])
        os.read(go_on[0], 1)
        work(letter, 1, str(os.getpid()), start=1)
        os.kill(os.getpid(), signal.SIGKILL)

    children = [child(job) for _ in range(150)]
    for _ in children:
        os.read(known[0], 1)
    suspend(relay)
    os.close(go_on[1])
    for pid in children:
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    os.kill(os.getpid(), signal.SIGKILL)


def killed_before_the_relay_answered() -> None:
    from letterapp._relay import client

    letter = join(on_error=_ignore)
    client.GREETING = 0.05  # it will not answer
    relay = statuses()[0]["pid"]
    print(relay)
    suspend(relay)

    def job() -> None:
        work(letter, 1, str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)

    for pid in [child(job) for _ in range(20)]:
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    letter.flush(60)  # the children's events too, which the family sends itself
    os.kill(os.getpid(), signal.SIGKILL)


def end_without_threads() -> None:
    """End while the relay stands still, with events that the process has to send itself."""
    from letterapp._runtime import servers

    servers.start_thread = lambda *_: False  # as under uWSGI without threads
    letter = join(flush_interval=1000, flush_at=10_000, exit_timeout=3)
    work(letter, 1)
    relay = statuses()[0]["pid"]
    suspend(relay)
    print(relay, flush=True)
    serial = 1
    while letter.stats()["mode"] == "relay":
        letter.track("filling", "E", {"serial": serial, "much": "x" * 3000})
        serial += 1
    work(letter, 20, "local")


# The connection of a process.


def lose_the_descriptor() -> None:
    letter = join()
    work(letter, 1)
    os.closerange(3, 256)  # what a daemon library does
    strangers = [socket.socketpair() for _ in range(10)]
    work(letter, 3, start=1)
    for pair in strangers:
        for one in pair:
            one.setblocking(False)
            try:
                print("a stranger got", one.recv(1000))
            except BlockingIOError:
                pass
    assert letter.flush(60), letter.stats()


class Interruption(Exception):
    """Raised by a signal handler."""


def interrupted_calls() -> None:
    letter = join(max_queue_events=1_000_000, max_queue_bytes=1 << 30)
    inside = False

    def handler(*_: object) -> None:
        nonlocal inside
        if inside:
            inside = False  # here, as the next signal may come before an `except` has started
            raise Interruption

    signal.signal(signal.SIGALRM, handler)
    returned, interrupted = [], 0
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    serial = 0
    while interrupted < 200:
        try:
            serial += 1
            inside = True
            letter.track("u", "E", {"serial": serial})
            inside = False
            returned.append(serial)
        except Interruption:
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    assert letter.flush(30), letter.stats()
    stats = letter.stats()
    assert stats["waiting"] == 0 and stats["lost"] == {} and stats["accepted"] == stats["delivered"], stats
    print("\nreturned", *returned)


def end_with_warnings() -> None:
    warnings.simplefilter("always")
    letter = join()
    work(letter, 1)
    letter.flush()


# A host that is short of something.


def _limit_descriptors() -> tuple[int, int]:
    """Forbid to open anything; return the limits before that."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) - 1, before[1]))
    return before


def no_descriptor_for_a_relay() -> None:
    import letterapp._http.transport
    import letterapp._relay.delivery  # or it would be looked for when nothing can be opened

    letterapp._http.transport.load()
    Letter(KEY, API, enabled=False)
    before = _limit_descriptors()
    letter = join()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    work(letter, 1)
    assert letter.flush(60)


def no_descriptor_for_modules() -> None:
    before = _limit_descriptors()
    try:
        Letter(KEY, API, relay=True)
    except LetterError as problem:
        print(problem)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    Letter(KEY, API, enabled=False)
    _limit_descriptors()
    letter = make(KEY, relay=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    work(letter, 1)
    assert letter.flush(60)


def no_process_for_a_relay(runtime: str) -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    os.setuid(4_000_000)
    os.environ["XDG_RUNTIME_DIR"] = runtime
    letter = join()
    work(letter, 1)
    letter.flush(60)
    print("continues", letter.stats()["relayed"], letter.stats()["delivered"])


main(globals())
