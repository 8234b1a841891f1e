"""Programs of test_kernel_facts. Each exits with status 0 and prints nothing if the fact holds."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from typing import Any

from programs.common import child, main, stay
from programs.locks import LOCKS, dies, others_can_take, owner, reap, take

# When a lock is given back.


def owner_ends(how: str) -> None:
    ends: dict[str, Any] = {
        "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "leaves by os._exit": lambda: os._exit(0),
        "aborts": os.abort,
        "crashes": lambda: ctypes.string_at(0),
    }
    pid, go = owner(1, ends[how])
    assert not take(1)
    os.write(go, b".")
    dies(pid)
    assert take(1)
    reap(pid)


def stopped_owner() -> None:
    pid, _ = owner(1)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    assert not take(1)
    os.kill(pid, signal.SIGKILL)
    dies(pid)
    assert take(1)
    reap(pid)


def owner_executes(descriptor: str) -> None:
    stays_open = descriptor == "inheritable"
    there, back = os.pipe(), os.pipe()

    def execute() -> None:
        assert take(1)
        os.set_inheritable(LOCKS, stays_open or os.get_inheritable(LOCKS))
        os.dup2(there[0], 0)
        os.dup2(back[1], 1)
        os.execvp("cat", ["cat"])

    pid = child(execute)
    os.write(there[1], b".")
    os.read(back[0], 1)
    assert take(1) == (not stays_open)
    os.close(there[1])
    assert reap(pid) == 0


# Who has a lock.


def fork_of_an_owner(hooks: str) -> None:
    fork: Any = os.fork if hooks == "with hooks" else ctypes.PyDLL(None).fork

    def has_its_own() -> None:
        os._exit(10 * take(1) + take(2))

    assert take(1)
    assert reap(child(has_its_own, fork)) == 1  # and its end gives back no more than that
    assert not others_can_take(1) and others_can_take(2)
    assert reap(child(lambda: os.close(LOCKS), fork)) == 0
    assert not others_can_take(1)


def orphaned_owner() -> None:
    ready = os.pipe()

    def parent() -> None:
        os.write(ready[1], owner(1)[0].to_bytes(8, "little"))

    middle = child(parent)
    assert reap(middle) == 0
    assert not take(1)
    os.kill(int.from_bytes(os.read(ready[0], 8), "little"), signal.SIGKILL)
    fcntl.lockf(LOCKS, fcntl.LOCK_EX, 1, 1)  # an orphan cannot be waited for; its lock can


def owner_runs_programs() -> None:
    assert take(1)
    ways: list[dict[str, Any]] = [
        {},
        {"close_fds": False},
        {"preexec_fn": int},
        {"start_new_session": True},
        {"shell": True},
    ]
    for how in ways:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, **how):
            assert not others_can_take(1), how
        assert not others_can_take(1), how
    os.system("true")
    if hasattr(os, "posix_spawnp"):  # PyPy has no such function
        assert reap(os.posix_spawnp("true", ["true"], os.environ)) == 0
    assert not others_can_take(1)


def owner_with_threads() -> None:
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.append(take(1)))
    thread.start()
    thread.join()
    assert taken == [True]
    assert not others_can_take(1)  # though the thread has ended
    assert take(1) and take(1, os.dup(LOCKS))


def owner_closes(what: str) -> None:
    os.ftruncate(LOCKS, 4096)
    assert take(1) and take(2)
    assert not others_can_take(1) and not others_can_take(2)
    if what == "a copy":
        os.close(os.dup(LOCKS))
    elif what == "the file opened anew":
        open(f"/proc/self/fd/{LOCKS}").close()
    else:
        mmap.mmap(LOCKS, 4096).close()
    assert others_can_take(1) and others_can_take(2)


# What a killed writer leaves.


def stored_word() -> None:
    words = memoryview(mmap.mmap(-1, 4096)).cast("Q")
    one, other = 2**64 // 255, 2**64 - 1  # which differ in every byte

    def store() -> None:
        words[1] = 2**63 + 1
        while True:
            words[0] = one
            words[0] = other

    pid = child(store)
    seen: set[int] = set()
    while not seen >= {one, other}:
        seen |= {words[0] for _ in range(100_000)}
    os.kill(pid, signal.SIGKILL)
    reap(pid)
    assert seen <= {0, one, other}
    assert words[1] == 2**63 + 1


def published_records() -> None:
    slots, size = 8, 1 << 15
    shared = mmap.mmap(-1, 4096 + slots * size)
    words = memoryview(shared).cast("Q")  # one for each slot, and the last number written

    def place(slot: int) -> slice:
        return slice(4096 + slot * size, 4096 + (slot + 1) * size)

    def record(number: int) -> bytes:
        return number.to_bytes(8, "little") * (size // 8)

    def write() -> None:
        number = words[slots]
        while True:
            number += 1
            data, slot = record(number), number % slots
            words[slot] = 0
            shared[place(slot)] = data
            words[slot] = words[slots] = number

    chance, torn = random.Random(1), 0
    for _ in range(150):
        goal = words[slots] + chance.randrange(slots, 300)
        pid = child(write)
        while words[slots] < goal:
            pass
        os.kill(pid, signal.SIGKILL)
        reap(pid)
        published = {slot: words[slot] for slot in range(slots) if words[slot]}
        assert len(published) >= slots - 1
        assert all(shared[place(slot)] == record(number) for slot, number in published.items())
        for slot in set(range(slots)) - set(published):
            data = shared[place(slot)]
            torn += data != data[:8] * (size // 8)
    assert torn  # so records were torn, and none of them was published


# What the mapping costs.


def _big_mapping() -> mmap.mmap:
    return mmap.mmap(-1, 500 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE


def _resident(shared: mmap.mmap) -> int:
    """KiB of the mapping in this process's page tables."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    with open("/proc/self/smaps") as maps:
        text = maps.read()
    found = re.compile(r"^Rss: +(\d+)", re.M).search(text, text.index(f"{address:08x}-"))
    assert found is not None
    return int(found.group(1))


def page_tables_after_a_fork() -> None:
    shared = _big_mapping()
    shared[: 1 << 20] = b"x" * (1 << 20)
    assert _resident(shared) >= 1 << 10
    assert reap(child(lambda: _resident(shared) > 0)) == 0
    assert reap(child(lambda: shared[(1 << 20) - 1] == ord("x") and _resident(shared) > 0)) == 1


def removed_pages() -> None:
    shared = _big_mapping()
    half, whole = 4 << 20, 8 << 20
    shared[:whole] = b"x" * whole
    ready, go = os.pipe(), os.pipe()

    def is_right() -> bool:
        return shared[:half] == b"x" * half and shared[half:whole] == bytes(half)

    def look() -> bool:
        had = _resident(shared) if shared[:whole] == b"x" * whole else 0
        os.write(ready[1], b".")
        os.read(go[0], 1)
        return had - _resident(shared) >= half >> 10 and is_right()

    pid = child(look)
    os.read(ready[0], 1)
    had = _resident(shared)
    shared.madvise(mmap.MADV_REMOVE, half, half)
    assert had - _resident(shared) >= half >> 10
    os.write(go[1], b".")
    assert reap(pid) == 1
    assert is_right()


def first_thread_has_ended(exit_call: str) -> None:
    """``exit_call``: the number of the system call that ends the thread that makes it, and no other."""
    ready = os.pipe()

    def loses_its_first_thread() -> None:
        threading.Thread(target=stay, daemon=True).start()
        server = socket.create_server(("127.0.0.1", 0))
        assert take(0)
        os.write(ready[1], str(server.getsockname()[1]).encode())
        ctypes.CDLL(None).syscall(int(exit_call), 0)

    pid = child(loses_its_first_thread)
    address = "127.0.0.1", int(os.read(ready[0], 10))

    def status(name: str) -> str:
        with open(f"/proc/{pid}/status") as lines:
            return dict(line.split(":\t", 1) for line in lines)[name].split()[0]

    while status("State") != "Z":
        time.sleep(0.01)
    assert status("Threads") == "2"
    socket.create_connection(address).close()
    assert not take(0)
    os.kill(pid, signal.SIGKILL)
    dies(pid)
    assert status("Threads") == "1"
    assert take(0)
    assert socket.socket().connect_ex(address) != 0
    assert reap(pid) == signal.SIGKILL


main(globals())
