"""Programs of test_forks_tls and test_tls: forks during a handshake, a request, or other work of OpenSSL."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from letterapp import Letter, LetterError
from programs.common import API, main, make, work

if TYPE_CHECKING:
    import ssl


def fork_in_ssl_context() -> None:
    import subprocess

    def context() -> ssl.SSLContext:
        import ssl

        subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None)
        if not os.fork():
            assert sys.__stdout__ is not None
            sys.__stdout__.flush()
            __import__("posix")._exit(0)
        os.wait()
        return ssl.create_default_context()

    letter = make(flush_interval=0, ssl_context=context, max_retries=0, on_error=print)
    began = time.monotonic()
    work(letter, 1)
    letter.flush(40)
    print(time.monotonic() - began < 20)


def fork_while_the_context_is_made(ca_file: str) -> None:
    import ssl

    inside = threading.Event()
    finished = False

    def context() -> ssl.SSLContext:
        nonlocal finished
        inside.set()
        for _ in range(5):  # some 80 ms; which instruction the fork would meet is a matter of luck
            ssl.create_default_context()
        made = ssl.create_default_context(cafile=ca_file)
        finished = True
        return made

    letter = make(flush_interval=0, ssl_context=context, exit_timeout=20, timeout=20)
    work(letter, 3, "parent")
    assert inside.wait(30)
    child = os.fork()
    if child == 0:
        assert finished, "forked inside OpenSSL"
        work(letter, 3, "child")
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0


def fork_while_the_thread_ends(ends: str) -> None:
    import ctypes

    from letterapp._delivery import worker
    from letterapp._runtime import atfork

    atfork.NETWORK = 60.0
    worker.IDLE = 0.01 if ends == "idle" else 60.0
    forking, is_over = threading.Event(), False

    def end_slowly(_: Any) -> None:
        nonlocal is_over
        forking.wait(60)
        time.sleep(0.2)
        is_over = True

    destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(end_slowly)

    libc = ctypes.CDLL(None)
    key = ctypes.c_uint()
    assert libc.pthread_key_create(ctypes.byref(key), destructor) == 0

    def on_error(error: LetterError) -> None:  # on the sender's thread
        assert libc.pthread_setspecific(key, ctypes.c_void_p(1)) == 0

    letter: Any = make(on_error=on_error)
    os.register_at_fork(before=forking.set)  # called before the client's
    letter.track("u", "E")
    if ends == "flush":
        assert letter.flush(60)
    while letter._delivery._queue.has_worker:
        time.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if is_over else 1)
    assert os.waitpid(pid, 0)[1] == 0, "forked while the thread ended"


def fork_right_after_flush(ca_file: str) -> None:
    import ssl

    context = ssl.create_default_context(cafile=ca_file)
    children = []
    for turn in range(20):
        letter = make(ssl_context=context)
        work(letter, 1, start=turn)
        assert letter.flush(60)
        pid = os.fork()
        if not pid:
            return  # to the end of the interpreter, and of OpenSSL
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0


def fork_with_a_request_on_the_wire(how: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    # Nothing else may keep it: one of the children drops it.
    letter = Letter("k", API, flush_at=1, max_retries=0, timeout=60, on_error=lambda error: print(error, flush=True))
    work(letter, 1, "parent")
    assert letter.flush(60)
    work(letter, 1, "parent", start=1)
    signal.sigwait({signal.SIGUSR1})  # now that request is on the wire

    def child(who: str) -> None:
        work(letter, 3, who)
        assert letter.flush(60)
        assert letter.stats()["retried"] == 0, letter.stats()

    pid = os.fork()
    if not pid:
        if how.startswith("tracks"):
            child("child")
        if how == "tracks and forks again":
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
            else:
                child("grandchild")
        elif how == "drops the client":
            del letter
            gc.collect()
        elif how == "closes":
            letter.close()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status
    print("waited", flush=True)
    assert letter.flush(60)
    work(letter, 1, "parent", start=2)
    assert letter.flush(60)
    assert letter.stats()["retried"] == 0, letter.stats()


def fork_during_a_handshake() -> None:
    from letterapp._http import transport

    vars(transport)["NETWORK"] = 0.3  # this handshake never ends, so the fork waits that long
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def sockets() -> int:
        descriptors = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        return sum(os.readlink(path).startswith("socket:") for path in descriptors if os.path.lexists(path))

    options: dict[str, Any] = {"timeout": 60, "exit_timeout": 0, "on_error": print, "send_on_os_exit": False}
    letter = make(flush_at=1, max_retries=0, **options)
    work(letter, 1)
    signal.sigwait({signal.SIGUSR1})
    inherited = sockets()
    pid = os.fork()
    if not pid:
        print(inherited, sockets(), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    os._exit(0)


main(globals())
