"""Programs whose connections are closed: by the server, or by closing their descriptors."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from letterapp import LetterError
from programs.common import main, make, work


def descriptor_is_reused(by: str) -> None:
    letter = make()
    work(letter, 1)
    assert letter.flush(30)
    os.closerange(3, 256)
    pairs = [socket.socketpair() for _ in range(10)]
    if by == "a child" and os.fork():
        sys.exit(os.wait()[1])
    work(letter, 1, start=1)
    assert letter.flush(30), letter.stats()
    for pair in pairs:
        for one in pair:
            one.setblocking(False)
            try:
                print("a stranger got", one.recv(1000))
            except BlockingIOError:
                pass


def broken_pipe(way: str) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    letter = make(
        flush_interval=600,
        flush_at=1000,
        max_retries=2,
        timeout=30,
        on_error=lambda error: None,
        max_batch_bytes=4_000_000,
    )
    if way == "flush":
        import _thread

        def none(*_: Any) -> None:
            raise RuntimeError("can't start new thread")

        vars(_thread)["start_new_thread"] = none  # so that this thread sends
    if way == "send":
        for _ in range(5):
            try:
                letter.send("a@b.example", "S", text="x" * 3_000_000)
            except LetterError:
                print("refused", flush=True)
    else:
        for _ in range(10):
            letter.track("u", "E", {"text": "x" * 300_000})
        letter.flush(30)
        print("flushed", flush=True)
    print(signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.sigpending())
    os._exit(0)


main(globals())
