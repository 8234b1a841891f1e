"""What the kernel and the interpreter really do with locks and shared memory, each fact by the smallest program.

A process's events are to lie in memory that all processes share, each in a slot of its own; the owner of a slot is dead
when the lock on the slot's byte can be had. What servers make of it is in `test_server_facts`.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Callable

import pytest
from harness import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="facts about Linux")

NOWHERE = "http://127.0.0.1:9"

# The lock file and the helpers of every program. A wait that never ends is ended by the harness.
LOCKS = """
import ctypes, fcntl, json, mmap, random, re, resource, subprocess, tempfile

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def lock_file():
    # Moved before the first lock is taken: closing the first descriptor would give it back.
    file = os.environ.get("TEST_LOCKS") == "temporary file"
    with tempfile.TemporaryFile() if file else open(os.memfd_create("locks"), "wb") as made:
        return fcntl.fcntl(made.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)

LOCKS = lock_file()

def take(slot, fd=LOCKS):
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
    except BlockingIOError:  # and nothing else: a descriptor that is closed says nothing about an owner
        return False
    return True

def reap(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED).si_status

def dies(pid):
    "Wait for the end of a child, which stays a zombie."
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

def others_can_take(slot):
    code = reap(child(lambda: take(slot)))
    assert code in (0, 1), code
    return code == 1

def owner(slot, end=stay):
    "A child that has taken the slot, and does `end` when it reads something from the second thing returned."
    ready, go = os.pipe(), os.pipe()
    def own():
        assert take(slot)
        threading.Thread(target=stay, daemon=True).start()
        os.write(ready[1], b".")
        os.read(go[0], 1)
        end()
    pid = child(own)
    os.read(ready[0], 1)
    return pid, go[1]
"""


@pytest.fixture
def holds(tmp_path: Path) -> Callable[..., None]:
    """Runs a program that must end well and print nothing."""

    def run_it(code: str, **env: str) -> None:
        finished = run(LOCKS + dedent(code), NOWHERE, tmp_path, **env)
        assert (finished.code, finished.output) == (0, ""), finished

    return run_it


@pytest.fixture(params=["memfd", "temporary file"])
def locks(request: Any, holds: Callable[..., None]) -> Callable[[str], None]:
    return lambda code: holds(code, TEST_LOCKS=request.param)


# When a lock is given back.

ENDS = {
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "leaves by os._exit": "os._exit(0)",
    "aborts": "os.abort()",
    "crashes": "ctypes.string_at(0)",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_a_lock_is_given_back_before_its_owner_is_reaped(end: str, locks: Callable[[str], None]) -> None:
    locks(f"""
    pid, go = owner(1, lambda: {end})
    assert not take(1)
    os.write(go, b".")
    dies(pid)
    assert take(1)
    reap(pid)
    """)


def test_a_lock_is_kept_by_a_stopped_owner_and_given_back_when_that_is_killed(locks: Callable[[str], None]) -> None:
    locks("""
    pid, go = owner(1)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    assert not take(1)
    os.kill(pid, signal.SIGKILL)
    dies(pid)
    assert take(1)
    reap(pid)
    """)


@pytest.mark.parametrize("stays_open", [False, True], ids=["given back", "kept if the descriptor is inheritable"])
def test_at_exec_a_lock_is(stays_open: bool, locks: Callable[[str], None]) -> None:
    locks(f"""
    there, back = os.pipe(), os.pipe()
    def execute():
        assert take(1)
        os.set_inheritable(LOCKS, {stays_open} or os.get_inheritable(LOCKS))
        os.dup2(there[0], 0), os.dup2(back[1], 1)
        os.execvp("cat", ["cat"])
    pid = child(execute)
    os.write(there[1], b"."), os.read(back[0], 1)
    assert take(1) == (not {stays_open})
    os.close(there[1])
    assert reap(pid) == 0
    """)


# Who has a lock.


RAW_FORK = pytest.param(
    "ctypes.PyDLL(None).fork",
    id="without Python's hooks",
    marks=pytest.mark.skipif(not hasattr(ctypes, "PyDLL"), reason="PyPy has no PyDLL, and does not bear such a fork"),
)


@pytest.mark.parametrize("fork", [pytest.param("os.fork", id="os.fork"), RAW_FORK])
def test_a_lock_is_not_inherited_and_not_given_back_by_a_child(fork: str, locks: Callable[[str], None]) -> None:
    locks(f"""
    fork = {fork}
    def has_its_own():
        os._exit(10 * take(1) + take(2))
    assert take(1)
    assert reap(child(has_its_own, fork)) == 1  # and its end gives back no more than that
    assert not others_can_take(1) and others_can_take(2)
    assert reap(child(lambda: os.close(LOCKS), fork)) == 0
    assert not others_can_take(1)
    """)


def test_a_lock_of_a_child_outlives_its_parent(locks: Callable[[str], None]) -> None:
    locks("""
    ready, go = os.pipe(), os.pipe()
    def parent():
        os.write(ready[1], owner(1)[0].to_bytes(8, "little"))
    middle = child(parent)
    assert reap(middle) == 0
    assert not take(1)
    os.kill(int.from_bytes(os.read(ready[0], 8), "little"), signal.SIGKILL)
    fcntl.lockf(LOCKS, fcntl.LOCK_EX, 1, 1)  # an orphan cannot be waited for; its lock can
    """)


def test_a_lock_is_kept_while_and_after_its_owner_runs_programs(locks: Callable[[str], None]) -> None:
    locks("""
    assert take(1)
    for how in {}, {"close_fds": False}, {"preexec_fn": int}, {"start_new_session": True}, {"shell": True}:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, **how) as running:
            assert not others_can_take(1), how
        assert not others_can_take(1), how
    os.system("true")
    if hasattr(os, "posix_spawnp"):  # PyPy has no such function
        assert reap(os.posix_spawnp("true", ["true"], os.environ)) == 0
    assert not others_can_take(1)
    """)


def test_a_lock_is_its_process_s_own_and_may_be_taken_twice(locks: Callable[[str], None]) -> None:
    locks("""
    taken = []
    thread = threading.Thread(target=lambda: taken.append(take(1)))
    thread.start(), thread.join()
    assert taken == [True]
    assert not others_can_take(1)  # though the thread has ended
    assert take(1) and take(1, os.dup(LOCKS))
    """)


CLOSINGS = {
    "a copy": "os.close(os.dup(LOCKS))",
    "the file opened anew": "open(f'/proc/self/fd/{LOCKS}').close()",
    "a mapping of the file": "mmap.mmap(LOCKS, 4096).close()",
}


@pytest.mark.parametrize("closing", CLOSINGS.values(), ids=CLOSINGS.keys())
def test_all_locks_are_given_back_when_their_owner_closes(closing: str, locks: Callable[[str], None]) -> None:
    locks(f"""
    os.ftruncate(LOCKS, 4096)
    assert take(1) and take(2)
    assert not others_can_take(1) and not others_can_take(2)
    {closing}
    assert others_can_take(1) and others_can_take(2)
    """)


# What a killed writer leaves.


def test_a_word_that_a_killed_child_stored_is_there_and_was_never_seen_half(holds: Callable[..., None]) -> None:
    holds("""
    words = memoryview(mmap.mmap(-1, 4096)).cast("Q")
    one, other = 2**64 // 255, 2**64 - 1  # which differ in every byte
    def store():
        words[1] = 2**63 + 1
        while True:
            words[0] = one
            words[0] = other
    pid = child(store)
    seen = set()
    while not seen >= {one, other}:
        seen |= {words[0] for _ in range(100_000)}
    os.kill(pid, signal.SIGKILL)
    reap(pid)
    assert seen <= {0, one, other}
    assert words[1] == 2**63 + 1
    """)


def test_no_published_record_is_torn_wherever_its_writer_was_killed(holds: Callable[..., None]) -> None:
    holds("""
    SLOTS, SIZE = 8, 1 << 15
    shared = mmap.mmap(-1, 4096 + SLOTS * SIZE)
    words = memoryview(shared).cast("Q")  # one for each slot, and the last number written

    def place(slot):
        return slice(4096 + slot * SIZE, 4096 + (slot + 1) * SIZE)

    def record(number):
        return number.to_bytes(8, "little") * (SIZE // 8)

    def write():
        number = words[SLOTS]
        while True:
            number += 1
            data, slot = record(number), number % SLOTS
            words[slot] = 0
            shared[place(slot)] = data
            words[slot] = words[SLOTS] = number

    chance, torn = random.Random(1), 0
    for turn in range(150):
        goal = words[SLOTS] + chance.randrange(SLOTS, 300)
        pid = child(write)
        while words[SLOTS] < goal:
            pass
        os.kill(pid, signal.SIGKILL)
        reap(pid)
        published = {slot: words[slot] for slot in range(SLOTS) if words[slot]}
        assert len(published) >= SLOTS - 1
        assert all(shared[place(slot)] == record(number) for slot, number in published.items())
        for slot in set(range(SLOTS)) - set(published):
            data = shared[place(slot)]
            torn += data != data[:8] * (SIZE // 8)
    assert torn  # so records were torn, and none of them was published
    """)


# What the mapping costs.

BIG = """
shared = mmap.mmap(-1, 500 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
address = ctypes.addressof(ctypes.c_char.from_buffer(shared))

def resident():
    "KiB of the mapping in this process's page tables."
    with open("/proc/self/smaps") as maps:
        text = maps.read()
    return int(re.compile(r"^Rss: +(\\d+)", re.M).search(text, text.index(f"{address:08x}-")).group(1))

"""


def test_a_fork_copies_no_page_tables_of_a_shared_mapping(holds: Callable[..., None]) -> None:
    holds(
        BIG
        + "\n".join(
            [
                "shared[:1 << 20] = b'x' * (1 << 20)",
                "assert resident() >= 1 << 10",
                "assert reap(child(lambda: resident() > 0)) == 0",
                "assert reap(child(lambda: shared[(1 << 20) - 1] == ord('x') and resident() > 0)) == 1",
            ]
        )
    )


def test_removed_pages_are_given_back_by_all_processes_and_read_as_zeros(holds: Callable[..., None]) -> None:
    holds(
        BIG
        + dedent("""
    half, whole = 4 << 20, 8 << 20
    shared[:whole] = b"x" * whole
    ready, go = os.pipe(), os.pipe()
    def look():
        had = resident() if shared[:whole] == b"x" * whole else 0
        os.write(ready[1], b".")
        os.read(go[0], 1)
        return had - resident() >= half >> 10 and is_right()
    def is_right():
        return shared[:half] == b"x" * half and shared[half:whole] == bytes(half)
    pid = child(look)
    os.read(ready[0], 1)
    had = resident()
    shared.madvise(mmap.MADV_REMOVE, half, half)
    assert had - resident() >= half >> 10
    os.write(go[1], b".")
    assert reap(pid) == 1
    assert is_right()
    """)
    )


EXIT = {"x86_64": 60, "aarch64": 93}  # the call that ends the thread that makes it, and no other


@pytest.mark.skipif(platform.machine() not in EXIT, reason="its number is not known here")
def test_a_process_whose_first_thread_alone_has_ended_looks_like_a_zombie_and_keeps_all(
    holds: Callable[..., None],
) -> None:
    code = """
    import socket
    ready, port = os.pipe(), os.pipe()
    def loses_its_first_thread():
        threading.Thread(target=stay, daemon=True).start()
        server = socket.create_server(("127.0.0.1", 0))
        assert take(0)
        os.write(port[1], str(server.getsockname()[1]).encode())
        ctypes.CDLL(None).syscall(int(os.environ["TEST_EXIT"]), 0)
    pid = child(loses_its_first_thread)
    address = "127.0.0.1", int(os.read(port[0], 10))
    def status(name):
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
    """
    holds(code, TEST_EXIT=str(EXIT[platform.machine()]))
