"""Programs whose clients have a relay: which process starts it, which join it, what it gets and inherits."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

from letterapp import Letter, LetterError
from programs.common import API, be_patient, child, main, make, stay, work

KEY = "test-key"
PYTHON = sys.executable  # a program may change it


def join(relay: object = True, **options: Any) -> Letter:
    """A client with a relay that lives until the interpreter ends."""
    be_patient()
    return make(KEY, relay=relay, **options)


def statuses() -> list[dict[str, Any]]:
    """What ``python -m letterapp relay --status`` prints about each relay."""
    command = [PYTHON, "-m", "letterapp", "relay", "--base-url", API, "--status"]
    done = subprocess.run(command, env={**os.environ, "LETTER_API_KEY": KEY}, stdout=subprocess.PIPE, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


# Starting one, and joining.


def join_and_track() -> None:
    letter = join()
    work(letter, 5)
    assert letter.stats()["mode"] == "relay" and letter.stats()["relayed"] == 5, letter.stats()


def track_in_a_worker(number: int) -> int:
    be_patient()
    letter = Letter(KEY, API, relay=True)
    work(letter, 5, f"job {number}")
    assert letter.stats()["relayed"] == 5, letter.stats()
    return len(statuses())


def pool_without_a_relay(method: str) -> None:
    import multiprocessing

    assert statuses() == []
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(track_in_a_worker, range(2), chunksize=1) == [1, 1]
        pool.close()
        pool.join()


def start_together() -> None:
    ready, go, leave = os.pipe(), os.pipe(), os.pipe()

    def job() -> None:
        os.close(go[1])
        os.close(leave[1])
        os.write(ready[1], b".")
        os.read(go[0], 1)
        letter = Letter(KEY, API, relay=True)
        work(letter, 1)
        (one,) = statuses()
        os.write(ready[1], b"%8d" % one["pid"])
        os.read(leave[0], 1)

    children = [child(job) for _ in range(6)]
    for _ in children:
        os.read(ready[0], 1)
    os.write(go[1], b"." * 6)
    pids = {os.read(ready[0], 8) for _ in children}
    os.write(leave[1], b"." * 6)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
    assert len(pids) == 1, pids


def replace_itself() -> None:
    work(join(), 5)
    os.execv(sys.executable, [sys.executable, "-c", 'import time; print("ready", flush=True); time.sleep(600)'])


def start_with_interpreter(executable: str, expected: str) -> None:
    sys.executable = executable  # uWSGI's is uWSGI, an embedded interpreter may have none
    work(join(), 1)
    (one,) = statuses()
    with open(f"/proc/{one['pid']}/cmdline") as command:
        assert command.read().startswith(expected)


# Handing over.


def have_no_threads() -> None:
    letter = join()
    work(letter, 200)
    assert len(os.listdir("/proc/self/task")) == 1
    assert letter.flush(60)
    assert len(os.listdir("/proc/self/task")) == 1
    stats = letter.stats()
    assert (stats["mode"], stats["relayed"], stats["delivered"]) == ("relay", 200, 200), stats


def killed_children() -> None:
    letter = join()

    def job(turn: int) -> None:
        work(letter, turn, f"round {turn}")
        assert letter.stats()["relayed"] == turn
        os.kill(os.getpid(), signal.SIGKILL)

    for turn in range(1, 41):
        assert os.waitpid(child(lambda: job(turn)), 0)[1] == signal.SIGKILL  # noqa: B023  (called at once)


def track_and_be_killed(count: str, relay: str = "", who: str = "program") -> None:
    work(join(relay or True), int(count), who)
    os.kill(os.getpid(), signal.SIGKILL)


def fork_while_threads_track(hooks: str) -> None:
    import ctypes

    fork = os.fork if hooks == "called" else ctypes.PyDLL(None).fork
    letter = join(overflow="block")
    done, counts = threading.Event(), [0] * 3

    def go_on(number: int) -> None:
        while not done.is_set():
            work(letter, 1, f"thread {number}", counts[number])
            counts[number] += 1
            if counts[number] % 200 == 0:
                letter.flush(30)

    def job(number: int) -> bool:
        work(letter, 20, f"child {number}")
        return not letter.flush(30)

    # Without hooks CPython's own lock would be copied in any state, if another thread ran.
    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(3 if hooks == "called" else 0)]
    for thread in threads:
        thread.start()
    work(letter, 20, "parent")
    for number in range(25):
        assert os.waitpid(child(lambda: job(number), fork), 0)[1] == 0  # noqa: B023  (called at once)
    done.set()
    for thread in threads:
        thread.join()
    assert letter.close(30)
    print(counts)


# The end of a process.


def end_with_unsettled_events(ends: str) -> None:
    def tell(error: LetterError) -> None:
        serials = [event["properties"]["serial"] for event in error.events]
        print(error.cause, error.lost, serials == list(range(40)), error, flush=True)

    letter = join(exit_timeout=0.3, on_error=tell)
    work(letter, 40)
    if ends == "close":
        assert letter.close() is False
    else:
        assert letter.flush() is False
    stats = letter.stats()
    assert (stats["waiting"], stats["lost"]) == (40, {}), stats


def drop_the_client(path: str, how: str) -> None:
    from letterapp._runtime import servers

    warnings.simplefilter("ignore")
    if how == "no thread":
        servers.start_thread = lambda *_: False  # as under uWSGI without threads
    os.mkdir(os.path.dirname(path), 0o700)
    letter = Letter(KEY, API, relay=path, on_error=print, flush_interval=3600, flush_at=10**6)
    work(letter, 5)
    assert letter.stats()["waiting"] == 5
    del letter
    gc.collect()


# A relay that cannot be started again, and strangers.


def relay_that_cannot_be_replaced() -> None:
    from letterapp._relay import connection, delivery

    connection.FIRST_WAIT = delivery._FIRST_START = 0.4  # instead of a second
    letter = join()
    (one,) = statuses()
    os.kill(one["pid"], signal.SIGKILL)
    os.unlink(one["socket"])
    open(one["socket"], "w").close()  # which no relay will replace
    began, serial = time.monotonic(), 0
    while time.monotonic() < began + 2:
        work(letter, 1, start=serial)
        serial += 1
        time.sleep(0.01)
    assert letter.close(60)
    print(serial)


def silent_connections(path: str) -> None:
    """Connect a thousand times, and say nothing."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
    silent = []
    for _ in range(1000):
        silent.append(socket.socket(socket.AF_UNIX))
        silent[-1].connect(path)
    print("connected", flush=True)
    stay()


# What a relay inherits of the process that starts it.


def start_a_relay() -> None:
    join()
    print("started", flush=True)
    sys.stdin.read()


def start_a_relay_with_files_open(path: str) -> None:
    ends = os.pipe()
    for number in (40, 41):
        os.dup2(ends[1], number)  # which can be inherited
        os.set_inheritable(number, True)
    with open(path, "w") as kept:
        os.dup2(kept.fileno(), 42)
        join()
        print("started", flush=True)
        stay()


def start_a_relay_without_stderr() -> None:
    os.close(2)
    join()
    os.write(1, b"started\n")
    stay()


def start_a_relay_with_signals_blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    join()
    print(statuses()[0]["pid"], flush=True)
    stay()


main(globals())
