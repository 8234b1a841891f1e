"""Programs whose clients append to a stream in Redis."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing import Pool
from urllib.parse import urlsplit

import psutil

from letterapp import Letter
from programs.common import child, main, make, work


def forks(url: str) -> None:
    """Parent, child and grandchild use one client, before and after each fork."""
    letter = make(relay=url)
    port = urlsplit(url).port
    work(letter, 100)
    assert letter.flush(20)

    def grandchild() -> None:
        work(letter, 100, start=2000)
        assert letter.flush(20)

    def first() -> None:
        # The copy of the parent's connection was closed before the child has used its client.
        assert not [each for each in psutil.Process().net_connections() if each.raddr and each.raddr.port == port]
        work(letter, 100, start=1000)
        assert os.waitpid(child(grandchild), 0)[1] == 0
        assert letter.flush(20)

    pid = child(first)
    work(letter, 100, start=100)
    assert letter.flush(20)
    assert os.waitpid(pid, 0)[1] == 0


letter: Letter  # of the pool


def _job(serial: int) -> int:
    work(letter, 10, f"pool {serial}")
    return serial


def pool(url: str, key: str) -> None:
    """A pool whose workers are terminated at the end of its ``with`` block."""
    global letter
    letter = make(key, relay=url, exit_timeout=30, max_retries=None)
    with Pool(4) as workers:
        assert sorted(workers.imap_unordered(_job, range(50))) == list(range(50))
    os.write(1, b"tracked\n")


def lonely_host(url: str, key: str, who: str, count: str) -> None:
    """A program on a host that reaches Redis and nothing else: it keeps its events while it does not reach that."""
    letter = make(key, relay=url, exit_timeout=60, max_retries=None, timeout=1)
    for serial in range(int(count)):
        work(letter, 1, who, serial)
        if serial == int(count) // 4:
            assert letter.flush(20)
            os.write(1, b"connected\n")
            sys.stdin.readline()  # nothing: it is /dev/null
        time.sleep(0.002)
    os.write(1, b"tracked\n")
    assert letter.flush(60)


main(globals())
