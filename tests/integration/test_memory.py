"""Slots, the locks on them, and what takes their place where they cannot be had.

Each test is a real program. What its processes find out comes back as an exit code, or as events on the wire.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Callable

import pytest
from harness import ROOT, start, whose

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into Linux's /proc")

LONG = 240.0  # seconds, for programs that fork ten thousand times

# Nothing sleeps: processes wait for each other at pipes, and a wait that never ends is ended by the harness.
FAMILY = """
import ctypes, fcntl, gc, mmap, resource, subprocess
from letterapp._runtime import atfork
from letterapp._storage import memory as memory_module
from letterapp._storage.file_lock import Lock

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
LATER = dict(flush_interval=1000, flush_at=10**6, exit_timeout=40)  # nothing is sent before a flush, a close or an end

class Gate:
    "Processes wait at it until as many are let through. Its numbers are above those that tests close."
    def __init__(self):
        self.ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 600) for end in os.pipe()]
    def wait(self, times=1):
        for _ in range(times):
            assert os.read(self.ends[0], 1)
    def open(self, times=1):
        os.write(self.ends[1], b"." * times)

def reap(pid):
    status = os.waitpid(pid, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def kind(letter):
    return letter.stats()["memory"]

def slot(letter):
    "The number of the slot that a client's queue lies in, in this process."
    own, memory = letter._delivery._queue._ring.slot, letter._delivery._recovery._backends._backends[0]
    return (own.base - memory.first) // memory.apart if own.kind == "shared" else None

def descriptors():
    "What is open, by number."
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass  # the one of the directory itself
    return found

def lock_files():
    return [number for number, what in descriptors().items() if what.startswith("/memfd:letterapp")]

def mappings():
    with open("/proc/self/maps") as maps:
        return len(maps.readlines())

def kilobytes(line):
    with open("/proc/self/status") as status:
        return next(int(text.split()[1]) for text in status if text.startswith(line + ":"))
"""

# Without the client: locks on the bytes of a file of the test's own.
LOCKS = """
file = memory_module.LockFile()

def take(at=7):
    return Lock.take((file, at), file.descriptor, at)

def others_can_take(at=7):
    code = reap(child(lambda: take(at) is not None))
    assert code in (0, 1), code
    return code == 1
"""


@pytest.fixture
def family(letter_api: Any, tmp_path: Path) -> Callable[..., None]:
    """Runs a program that must end well, print nothing and leave no process. ``first`` comes before all imports."""

    def run_it(code: str, first: str = "", longest: float = 60.0, **env: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(dedent(first))
        paths = os.pathsep.join([str(tmp_path), str(ROOT)])
        with start(FAMILY + dedent(code), letter_api.url, tmp_path, PYTHONPATH=paths, **env) as program:
            finished = program.finish(longest)
            assert (finished.code, finished.output) == (0, ""), finished
            assert not program.left_behind(), program.left_behind()

    return run_it


@pytest.fixture
def locks(family: Callable[..., None]) -> Callable[[str], None]:
    return lambda code: family(LOCKS + dedent(code))


def once(api: Any, expected: dict[str, int]) -> None:
    assert whose(api) == {who: list(range(count)) for who, count in expected.items()}
    assert api.repeated() == {}


# Locks.


def test_one_of_eight_threads_gets_a_lock(locks: Callable[[str], None]) -> None:
    locks("""
    all_there = threading.Barrier(8)
    got = []
    def ask():
        for turn in range(100):
            all_there.wait(40)
            got.append((turn, take(turn)))
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turn for turn, lock in got if lock is not None) == list(range(100))
    """)


def test_one_of_eight_processes_gets_a_lock(locks: Callable[[str], None]) -> None:
    locks("""
    begin, asked, end = Gate(), Gate(), Gate()
    def ask():
        begin.wait()
        lock = take()
        asked.open()
        end.wait()
        return lock is not None
    children = [child(ask) for _ in range(8)]
    begin.open(8)
    asked.wait(8)
    assert take() is None
    end.open(8)
    assert sorted(reap(pid) for pid in children) == [0] * 7 + [1]
    assert take() is not None
    """)


def test_a_lock_is_had_once_in_a_process_until_it_is_released(locks: Callable[[str], None]) -> None:
    locks("""
    lock = take()
    assert take() is None and not others_can_take()
    assert take(8) is not None
    lock.release()
    assert others_can_take()
    again = take()
    lock.release()  # a second time: it is not its own any more
    assert take() is None and not others_can_take()
    """)


def test_a_lock_that_is_forgotten_is_given_back(locks: Callable[[str], None]) -> None:
    locks("""
    lock = take()
    del lock
    gc.collect()
    assert others_can_take() and take() is not None
    """)


def test_a_lock_that_another_process_has_can_be_had_after_it(locks: Callable[[str], None]) -> None:
    locks("""
    taken, end = Gate(), Gate()
    def own():
        lock = take()
        taken.open()
        end.wait()
        die()
    pid = child(own)
    taken.wait()
    assert take() is None and take() is None
    end.open()
    assert reap(pid) == -signal.SIGKILL
    assert take() is not None
    """)


@pytest.mark.parametrize("fork", ["os.fork", "ctypes.PyDLL(None).fork"], ids=["os.fork", "without Python's hooks"])
def test_a_childs_copy_gives_back_neither_its_parents_lock_nor_its_own(fork: str, locks: Callable[[str], None]) -> None:
    locks(f"""
    fork = {fork}
    held = {{"parent": take()}}
    def forget():
        assert take() is None
        held.pop("parent").release()
        gc.collect()
        return take() is not None
    assert reap(child(forget, fork)) == 0
    assert take() is None and not others_can_take()

    ended, tried = Gate(), Gate()
    def parent():
        held["parent"] = take(9)
        def heir():
            ended.wait()
            held["own"] = take(9)
            assert held["own"] is not None
            held.pop("parent").release()  # the same byte of the same file, and another process's
            gc.collect()
            tried.open()
            ended.wait()
        child(heir, fork)
    assert reap(child(parent, fork)) == 0
    ended.open()
    tried.wait()
    assert take(9) is None
    ended.open()
    """)


def test_a_descriptor_that_is_closed_gives_no_lock_and_one_that_is_back_does(locks: Callable[[str], None]) -> None:
    locks("""
    spare = os.dup(file.descriptor)
    os.close(file.descriptor)
    assert not file.is_open() and take() is None
    os.dup2(spare, file.descriptor)
    assert file.is_open()
    lock = take()
    assert lock is not None
    os.close(file.descriptor)
    lock.release()
    """)


@pytest.mark.parametrize("options", [[], ["-X", "dev", "-W", "error"]], ids=["plain", "-X dev -W error"])
def test_an_interpreter_ends_quietly_with_many_clients_alive(
    options: list[str], letter_api: Any, family: Callable[..., None]
) -> None:
    # In places that are taken apart early, late, and by the collector alone. What was used is closed, or there would
    # be a warning about its socket.
    code = """
    def clients():
        import builtins, codecs, gc, sys, threading
        import letterapp
        def made():
            letter = letterapp.Letter('k', sys.argv[1])
            if sys.argv[2:]:
                letter.track('program', 'Worked', {'serial': 0})
                letter.close()
            return letter
        class Knot:
            def __init__(self):
                self.me, self.letter = self, made()
        gc.disable()
        builtins.one, sys.one, threading.current_thread().one = made(), made(), made()
        codecs.register(lambda name, letter=made(): None)
        from letterapp._runtime import atfork
        from letterapp._storage import file_lock, memory
        for module in letterapp, memory, file_lock, atfork, letterapp._client:
            module.one = made()
        globals()['kept'] = [made() for _ in range(50)] + [Knot() for _ in range(50)]
        [Knot() for _ in range(20)]
    """
    family(
        f"""
        import inspect, textwrap
        {dedent(code).strip().replace(chr(10), chr(10) + " " * 8)}
        options = [sys.executable, *{options!r}, '-c', inspect.getsource(clients) + 'clients()', API]
        env = {{name: value for name, value in os.environ.items() if name != 'PYTHONWARNINGS'}}
        for used in [], ['used']:
            done = subprocess.run(options + used, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert (done.returncode, done.stdout) == (0, b''), done.stdout.decode()
        """
    )
    assert letter_api.distinct == 129


# More processes than slots.


def test_processes_that_find_no_slot_keep_their_events_to_themselves_and_the_first_of_them_says_so(
    letter_api: Any, family: Callable[..., None]
) -> None:
    family("""
    memory_module.SLOTS = 2
    reports, report = os.pipe()
    letter = Letter('k', API, on_error=lambda error: os.write(report, f'{error.cause}: {error}\\n'.encode()), **LATER)
    used, end = Gate(), Gate()
    def one_more(number):
        work(letter, 20, f'child {number}')
        used.open()
        end.wait()
        letter.close()
        return slot(letter) if kind(letter) == 'shared' else 50
    work(letter, 20, 'parent')
    children = [child(lambda: one_more(number)) for number in range(6)]
    used.wait(6)
    end.open(6)
    assert sorted(reap(pid) for pid in children) == [1] + [50] * 5
    # With their ends the slots are free again.
    end.open()
    assert reap(child(lambda: one_more(6))) == 1
    (said,) = os.read(reports, 10_000).decode().splitlines()
    assert said.startswith('degraded: events lie in memory that only their own process has (more than 2 proc'), said
    """)
    once(letter_api, {"parent": 20, **{f"child {n}": 20 for n in range(7)}})


def test_a_process_that_finds_no_empty_slot_goes_on_in_a_dead_ones(
    letter_api: Any, family: Callable[..., None]
) -> None:
    family("""
    memory_module.SLOTS = 2
    letter = Letter('k', API, **LATER)
    def is_killed(who):
        work(letter, 20, who)
        assert slot(letter) == 1
        die()
    def last():
        work(letter, 20, 'last')
        assert slot(letter) == 1
        letter.close()
        assert letter.stats()['adopted'] == 40 and letter.stats()['delivered'] == 60, letter.stats()
    def after_it():
        work(letter, 20, 'after it')
        assert slot(letter) == 1 and letter.stats()['adopted'] == 0
        letter.close()
    assert reap(child(lambda: is_killed('first'))) == -signal.SIGKILL
    assert reap(child(lambda: is_killed('second'))) == -signal.SIGKILL
    assert reap(child(last)) == 0
    assert reap(child(after_it)) == 0
    """)
    assert [item["userId"] for item in letter_api.events[::20]] == ["first", "second", "last", "after it"]
    once(letter_api, dict.fromkeys(["first", "second", "last", "after it"], 20))


@pytest.mark.parametrize(
    "end", ["letter.close()", "letter.flush(); os._exit(0)", "letter.flush(); die()", "sys.exit()"]
)
def test_a_slot_is_free_before_its_dead_owner_is_reaped(end: str, letter_api: Any, family: Callable[..., None]) -> None:
    family(f"""
    letter = Letter('k', API, **LATER)
    def ends(number):
        work(letter, 3, f'child {{number}}')
        assert slot(letter) == 1, slot(letter)
        {end}
    for number in range(3):
        pid = os.fork()
        if not pid:
            ends(number)
            sys.exit(0)
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status
        assert status == (signal.SIGKILL if "die" in {end!r} else 0), status
    for number in range(3):
        os.wait()
    """)
    once(letter_api, {f"child {n}": 3 for n in range(3)})


def test_300_children_one_after_the_other_use_one_slot(letter_api: Any, family: Callable[..., None]) -> None:
    family("""
    letter = Letter('k', API, **LATER)
    work(letter, 1, 'parent')
    letter.flush()  # and what a request imports is there
    def short(number):
        work(letter, 1, f'child {number}')
        letter.close()
        return slot(letter)
    assert {reap(child(lambda: short(number))) for number in range(300)} == {1}
    """)
    once(letter_api, {"parent": 1, **{f"child {n}": 1 for n in range(300)}})


# The descriptor that locks, closed behind our back.

STRANGERS = """
import tempfile

def strangers():
    "Close all that is open, and let a file have each of the numbers."
    os.closerange(3, 256)
    path = os.path.join(os.environ['TEST_TMP'], f'stranger {os.getpid()}')
    opened = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(60)]
    assert opened[0] == 3 and opened[-1] == 62
    os.write(3, b'text')
    return path

def is_untouched(path):
    def look():
        with open(path, 'r+b') as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # all of it, to the largest number there is
            assert file.read() == b'text'
    return reap(child(look)) == 0
"""


@pytest.mark.parametrize("opens", [False, True], ids=["", "and opens files at their numbers"])
@pytest.mark.parametrize("first", ["", "import os; del os.memfd_create"], ids=["memfd", "temporary file"])
def test_a_child_closes_all_descriptors_before_its_first_use(
    first: str, opens: bool, letter_api: Any, tmp_path: Path, family: Callable[..., None]
) -> None:
    closes = "strangers()" if opens else "os.closerange(3, 256)"
    code = f"""
    letter, other = Letter('k', API, **LATER), Letter('k', API, **LATER)
    work(letter, 20, 'parent')
    def daemon():
        path = {closes}
        work(letter, 20, 'daemon')
        work(other, 20, 'other')
        assert kind(letter) == kind(other) == 'shared'
        def killed():
            work(letter, 20, 'killed')
            work(other, 20, 'other killed')
            die()
        assert reap(child(killed)) == -signal.SIGKILL
        letter.close()
        other.close()
        assert letter.stats()['adopted'] == 20 and other.stats()['adopted'] == 20, letter.stats()
        assert path is None or is_untouched(path)
    assert reap(child(daemon)) == 0
    assert letter.stats()['adopted'] == 0
    def sibling():
        work(letter, 20, 'sibling')
        return slot(letter)
    pid = os.fork()
    if not pid:
        assert sibling() == 1
    else:
        assert reap(pid) == 0
    """
    family(STRANGERS + dedent(code), first if hasattr(os, "memfd_create") else "", TEST_TMP=str(tmp_path))
    names = ["parent", "daemon", "other", "killed", "other killed", "sibling"]
    once(letter_api, dict.fromkeys(names, 20))


@pytest.mark.parametrize("opens", [False, True], ids=["", "and opens files at their numbers"])
def test_a_process_closes_all_descriptors_in_the_middle_of_use(
    opens: bool, letter_api: Any, tmp_path: Path, family: Callable[..., None]
) -> None:
    closes = "strangers()" if opens else "os.closerange(3, 256)"
    code = f"""
    letter, busy = Letter('k', API, **LATER), Letter('k', API, **LATER)
    work(letter, 20)
    letter.flush()
    letter._delivery._batches._transport.close()  # not this test's concern: it would be closed by its number
    work(busy, 20, 'busy')
    path = {closes}
    assert letter.flush()
    work(letter, 20, start=20)
    work(busy, 20, 'busy', start=20)
    def killed():
        work(letter, 20, 'killed')
        die()
    assert reap(child(killed)) == -signal.SIGKILL
    assert letter.flush() and busy.flush()
    assert letter.stats()['adopted'] == 20 and letter.stats()['accepted'] == letter.stats()['delivered'] == 60
    assert busy.stats()['accepted'] == busy.stats()['delivered'] == 40
    letter.close(), busy.close()
    assert path is None or is_untouched(path)
    """
    family(STRANGERS + dedent(code), TEST_TMP=str(tmp_path))
    once(letter_api, {"program": 40, "killed": 20, "busy": 40})


def test_a_process_that_lost_its_lock_and_those_who_took_its_slot_lose_nothing(
    letter_api: Any, family: Callable[..., None]
) -> None:
    # Its events are an orphan's to the others, who deliver them and use the slot for their own.
    family("""
    letter = Letter('k', API, max_retries=0, **LATER)
    lost, adopted, taken, looked = Gate(), Gate(), Gate(), Gate()
    def heir():
        lost.wait()
        work(letter, 3, 'heir')
        assert letter.flush() and letter.stats()['adopted'] == 20
        adopted.open()
        def claims():
            work(letter, 40, 'somebody with a longer name than the one before')
            assert slot(letter) == 0
            taken.open()
            looked.wait()
            die()
        assert reap(child(claims)) == -signal.SIGKILL
        letter.close()
        assert letter.stats()['adopted'] == 60 and letter.stats()['lost'] == {}, letter.stats()
    pid = child(heir)
    work(letter, 20, 'parent')
    os.close(memory_module._file.descriptor)
    lost.open()
    taken.wait()
    work(letter, 5, 'parent', start=20)
    assert letter.flush()
    work(letter, 5, 'parent', start=25)
    stats = letter.stats()
    assert stats['accepted'] == 10 and stats['lost'] == {}, stats  # 20 are the heir's
    looked.open()
    assert reap(pid) == 0
    """)
    came = whose(letter_api)
    assert sorted(came["parent"]) == list(range(30))
    assert came["heir"] == list(range(3))
    assert came["somebody with a longer name than the one before"] == list(range(40))


@pytest.mark.parametrize(
    "before, act",
    [
        ("letter._delivery._queue.take(10, 10**6)", "letter._delivery._queue.settle()"),
        ("", "work(letter, 1, 'dropping', 0)"),
        ("", "letter._delivery._queue.abandon('closed')"),
        ("is_empty()", "letter._delivery._queue.try_stop_worker()"),
    ],
    ids=["settles a batch", "drops its oldest", "gives up all", "gives memory back"],
)
def test_a_slot_is_left_alone_by_a_process_that_has_lost_it_and(
    before: str, act: str, letter_api: Any, family: Callable[..., None]
) -> None:
    family(f"""
    letter = Letter('k', API, max_queue_events=60, overflow='drop_oldest', **LATER)
    ready, lost, taken, acted = Gate(), Gate(), Gate(), Gate()
    def drive():
        letter.stats()
        letter._delivery._queue.claim_worker().started = True  # no thread of its own
    def is_empty():
        letter._delivery._queue.request_flush()
        while letter._delivery._batches.send_once() == 0:
            pass
        assert letter.stats()['delivered'] == 60
    def claims():
        drive()
        for serial in range(60):
            letter.track('next', 'Worked', {{'serial': serial, 'text': 'x' * 2000}})
        assert slot(letter) == 0
        assert letter._delivery._queue.take(10, 10**6)  # as if it were on the wire
        taken.open()
        acted.wait()
        die()
    def heir():
        assert letter.stats()['accepted'] == 0 and slot(letter) == 1
        ready.open()
        lost.wait()
        letter.flush()
        assert reap(child(claims)) == -signal.SIGKILL
        letter.close()
        assert letter.stats()['lost'] == {{}} and letter.stats()['delivered'] >= 60, letter.stats()
    pid = child(heir)
    ready.wait()
    drive()
    work(letter, 60, 'before')
    {before}
    os.close(memory_module._file.descriptor)
    lost.open()
    taken.wait()
    {act}
    letter._delivery._queue.release_worker()
    acted.open()
    assert reap(pid) == 0
    """)
    assert whose(letter_api)["next"] == list(range(60))
    assert whose(letter_api)["before"] == list(range(60))


def test_a_strangers_temporary_file_at_the_same_number_is_not_taken_for_ours(family: Callable[..., None]) -> None:
    # A disk gives a new file the number of an old one's inode.
    family(
        """
        import tempfile
        letter = Letter('k', API)
        file = memory_module._file
        seen = os.fstat(file.descriptor)
        while True:
            with tempfile.TemporaryFile() as later:
                if os.fstat(later.fileno()).st_ctime_ns > seen.st_ctime_ns:
                    break  # the clock of the disk has moved on
        os.close(file.descriptor)
        made = []
        for _ in range(200):
            made.append(tempfile.TemporaryFile())
            if os.fstat(made[-1].fileno()).st_ino == seen.st_ino:
                os.dup2(made[-1].fileno(), file.descriptor)
                break
        assert not file.is_open()
        """,
        "import os\nif hasattr(os, 'memfd_create'): del os.memfd_create",
    )


@pytest.mark.parametrize("closed", [[0], [1], [0, 1, 2]])
@pytest.mark.parametrize("first", ["", "import os; del os.memfd_create"], ids=["memfd", "temporary file"])
def test_a_program_that_is_started_without_its_standard_files_does_not_lock_one(
    first: str, closed: list[int], letter_api: Any, family: Callable[..., None]
) -> None:
    family(
        f"""
        if len(sys.argv) == 1:
            for number in {closed}:
                os.close(number)
            os.execv(sys.executable, [sys.executable, __file__, 'again'])
        for number in {closed}:
            if number in descriptors():
                os.close(number)  # `ctypes`, imported above: a newer libffi has its own library open from then on
        letter = Letter('k', API, **LATER)
        open_before = [number for number in {closed} if number in descriptors()]
        letter.track('program', 'Worked', {{'serial': 0, 'lock': memory_module._file.descriptor, 'open': open_before}})
        assert letter.stats()['memory'] == 'shared'
        """,
        first if hasattr(os, "memfd_create") else "",
    )
    (event,) = letter_api.events
    assert event["properties"]["lock"] > 2 and event["properties"]["open"] == []


# What takes the place of shared memory, or of a part of it.

SHARED = {
    "everything": "",
    "memfd_create is missing": "import os\nif hasattr(os, 'memfd_create'): del os.memfd_create",
    "memfd_create is refused": """
        import os
        def refuse(*_): raise OSError(38, 'Function not implemented')
        os.memfd_create = refuse
    """,
    "MADV_REMOVE is refused": """
        import mmap
        class Map(mmap.mmap):
            def madvise(self, *_): raise OSError(22, 'Invalid argument')
        mmap.mmap = Map
    """,
}
PRIVATE = {
    "mmap is missing": "import sys; sys.modules['mmap'] = None",
    "fcntl is missing": "import sys; sys.modules['fcntl'] = None",
    "mmap refuses": """
        import mmap
        def refuse(*_, **__): raise OSError(12, 'Cannot allocate memory')
        mmap.mmap = refuse
    """,
    "no file can be made": """
        import os, tempfile
        def refuse(*_, **__): raise OSError(24, 'Too many open files')
        os.memfd_create = tempfile.TemporaryFile = refuse
    """,
    # The programs of the test go on to fork, by a name of their own.
    "os.fork is missing": "import os; os.their_fork = os.fork; del os.fork",
}

# The helpers of FAMILY need what the client is to miss.
NEEDS_NOTHING = """
fork = getattr(os, 'their_fork', None) or os.fork
def child(end, job):
    pid = fork()
    if not pid:
        job()
        end()
        sys.exit(0)
    os.waitpid(pid, 0)
"""


def behaves(letter_api: Any, tmp_path: Path, first: str, kind: str, says: str = "") -> dict[str, Any]:
    """A program that uses a client in several ways; what its parent's `stats` said of a queue that adopts."""
    (tmp_path / "sitecustomize.py").write_text(dedent(first))
    code = NEEDS_NOTHING + dedent(f"""
    later = dict(flush_interval=1000, flush_at=10**6, exit_timeout=40)
    letter = Letter('k', API, **later)
    small = Letter('k', API, overflow='drop_oldest', max_queue_events=50, on_error=lambda error: None, **later)
    assert letter.stats()['memory'] == {kind!r}, letter.stats()
    work(letter, 500, 'parent')
    child(letter.close, lambda: work(letter, 250, 'closes'))
    child(int, lambda: work(letter, 250, 'comes to its end'))
    def grows_up():
        work(letter, 10, 'has a child')
        child(int, lambda: work(letter, 10, 'grandchild'))
    child(int, grows_up)
    work(small, 120, 'small')
    stats = small.stats()
    assert (stats['waiting'], stats['lost']) == (50, {{'overflow': 70}}), stats
    assert small.flush() and small.stats()['delivered'] == 50
    child(lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: work(letter, 30, 'killed'))
    assert letter.flush()
    stats = letter.stats()
    assert stats['accepted'] == stats['delivered'] and stats['lost'] == {{}}, stats
    letter.track('found', 'Worked', {{'serial': 0, 'stats': stats}})
    work(letter, 150, 'last')
    """)
    root = str(ROOT)
    with start(code, letter_api.url, tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), root])) as program:
        finished = program.finish()
        assert finished.code == 0 and re.fullmatch(says, finished.output), finished
        assert not program.left_behind()
    came = whose(letter_api)
    found = next(item["properties"]["stats"] for item in letter_api.events if item["userId"] == "found")
    counts = {"parent": 500, "closes": 250, "comes to its end": 250, "has a child": 10, "grandchild": 10, "last": 150}
    assert {who: came.get(who) for who in counts} == {who: list(range(count)) for who, count in counts.items()}
    assert came["small"] == list(range(70, 120))
    assert letter_api.repeated() == {}
    assert "killed" not in came or came["killed"] == list(range(30))
    return found


@pytest.mark.parametrize("first", SHARED.values(), ids=SHARED.keys())
def test_memory_is_shared_with(first: str, letter_api: Any, tmp_path: Path) -> None:
    assert behaves(letter_api, tmp_path, first, "shared")["adopted"] == 30
    assert "killed" in whose(letter_api)


@pytest.mark.parametrize("first", PRIVATE.values(), ids=PRIVATE.keys())
def test_memory_is_private_said_once_and_all_else_is_the_same_if(first: str, letter_api: Any, tmp_path: Path) -> None:
    says = "" if "del os.fork" in first else r"letterapp: events lie in memory that only their own process has \(.+\n"
    assert behaves(letter_api, tmp_path, first, "private", says)["adopted"] == 0
    assert "killed" not in whose(letter_api)


def test_a_limit_of_the_address_space_that_is_near_leaves_private_memory_which_is_said_once_in_a_family(
    letter_api: Any, family: Callable[..., None]
) -> None:
    family("""
    used = kilobytes('VmSize') << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
    told = []
    letter, other = [Letter('k', API, on_error=told.append, **LATER) for _ in range(2)]
    assert kind(letter) == kind(other) == 'private'
    for error in told:
        assert (error.cause, error.lost, error.events) == ('degraded', 0, [])
        assert 'only their own process has (Cannot allocate memory)' in str(error)
    assert len(told) == 2  # one a client
    work(letter, 500, 'parent')
    def ends():
        work(letter, 100, 'child')
        letter.close()
        assert len(told) == 2
    assert reap(child(ends)) == 0
    work(other, 100, 'other')
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert kind(Letter('k', API)) == 'shared'
    """)
    once(letter_api, {"parent": 500, "child": 100, "other": 100})


def test_children_that_lose_the_shared_memory_and_can_have_no_other_say_so_once(family: Callable[..., None]) -> None:
    family("""
    reports, report = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 600) for end in os.pipe()]
    letter = Letter('k', API, on_error=lambda error: os.write(report, f'{error.cause}: {error}\\n'.encode()), **LATER)
    resource.setrlimit(resource.RLIMIT_AS, ((kilobytes('VmSize') << 10) + (200 << 20), resource.RLIM_INFINITY))
    def daemon():
        os.closerange(3, 500)
        work(letter, 1, 'child')
        assert kind(letter) == 'private'
        letter.close()
    assert kind(letter) == 'shared'
    assert [reap(child(daemon)) for _ in range(3)] == [0, 0, 0]
    (said,) = os.read(reports, 10_000).decode().splitlines()
    assert said.startswith('degraded: events lie in memory that only their own process has (what it shared is'), said
    """)


def test_where_there_is_no_memory_for_the_whole_queue_it_is_smaller(
    letter_api: Any, family: Callable[..., None]
) -> None:
    family("""
    lost = []
    letter = Letter('k', API, on_error=lost.append, **LATER)
    def limit(bytes):
        resource.setrlimit(resource.RLIMIT_AS, (bytes, resource.RLIM_INFINITY))
    def first_use():
        os.closerange(3, 500)
        limit((kilobytes('VmSize') << 10) + (3 << 20))
        work(letter, 10, 'child')
        kept, other = kind(letter), Letter('k', API, on_error=lost.append, **LATER)
        limit(resource.RLIM_INFINITY)
        assert kept == kind(other) == 'private'
        work(other, 10, 'other')
        letter.track('child', 'Worked', {'large': 'x' * 400_000})
        assert letter.flush(40) and other.flush(40)
        assert [error.cause for error in lost if error.lost] in ([], ['overflow'])
        assert letter.stats()['delivered'] + letter.stats()['lost'].get('overflow', 0) == 11
    assert reap(child(first_use)) == 0
    """)
    assert len([item for item in letter_api.events if "serial" in item["properties"]]) == 20


def test_a_client_that_is_switched_off_reserves_nothing(family: Callable[..., None]) -> None:
    family("""
    before = descriptors(), mappings()
    letters = [Letter(enabled=False) for _ in range(20)]
    assert {kind(letter) for letter in letters} == {'private'}
    assert lock_files() == [] and mappings() < before[1] + 20
    """)


def test_a_client_that_is_switched_off_costs_nothing_and_changes_no_signal(family: Callable[..., None]) -> None:
    family("""
    Letter(enabled=False)  # loads what a client needs
    before, handler = kilobytes('VmRSS'), signal.getsignal(signal.SIGTERM)
    options = {'exit_signals': (signal.SIGTERM,), 'spool': 'none', 'base_url': 'https://localhost'}
    letters = [Letter(enabled=False, **options) for _ in range(200)]
    assert kilobytes('VmRSS') - before < 200 * 20, kilobytes('VmRSS') - before
    assert signal.getsignal(signal.SIGTERM) is handler and not os.path.exists('none')
    def child_of_it():
        letters[0].track('u', 'e')
        assert letters[0].stats()['pid'] == os.getpid() and letters[0].close()
    assert reap(child(child_of_it)) == 0
    letters[0].track('u', 'e')
    stats = letters[0].stats()
    assert stats.pop('lost') == {} and stats.pop('pid') == os.getpid() and stats.pop('memory') == 'private', stats
    assert stats.pop('mode') == 'thread' and set(stats.values()) == {0}, stats
    assert {*stats, 'lost', 'pid', 'memory', 'mode'} == set(Letter('k', API).stats())
    """)


def test_private_memory_is_used_page_by_page_and_is_a_child_s_own(letter_api: Any, family: Callable[..., None]) -> None:
    family("""
    from letterapp._storage.memory import PrivateMemory
    settings = Letter('k', API, **LATER)._settings
    before = kilobytes('VmRSS')
    slots = [PrivateMemory(settings).claim() for _ in range(20)]
    assert kilobytes('VmRSS') - before < 20 * 100, kilobytes('VmRSS') - before
    slots[0].memory[slots[0].base] = 1
    def writes():
        slots[0].memory[slots[0].base] = 2
    assert reap(child(writes)) == 0
    assert slots[0].memory[slots[0].base] == 1 and bytes(slots[0].memory[-8:]) == bytes(8)
    """)


@pytest.mark.skipif(sys.platform != "linux", reason="mlockall as Linux has it")
@pytest.mark.parametrize("flags, keeps", [(2, 8192), (3, 8192), (6, 0)], ids=["future", "current too", "on fault"])
def test_where_all_memory_is_locked_a_client_takes_what_it_writes(
    flags: int, keeps: int, letter_api: Any, family: Callable[..., None]
) -> None:
    family(f"""
    import ctypes, mmap
    if ctypes.CDLL(None).mlockall({flags}):
        sys.exit(0)  # this user may not
    letter = Letter('k', API, **LATER)
    assert kind(letter) == 'shared'
    work(letter, 1000, 'parent')
    assert kilobytes('RssShmem') < 4096, kilobytes('RssShmem')
    before = kilobytes('RssShmem')
    other = mmap.mmap(-1, 8 << 20)
    assert abs(kilobytes('RssShmem') - before - {keeps}) < 1024, "what the program asked for is as before"
    def is_killed():
        work(letter, 10, 'killed')
        die()
    assert reap(child(is_killed)) == -signal.SIGKILL
    assert letter.flush(40)
    assert letter.stats()['adopted'] == 10
    """)
    if letter_api.events:
        once(letter_api, {"parent": 1000, "killed": 10})


# What it costs.


def test_200_clients_cost_one_descriptor_and_a_child_uses_them_all(
    letter_api: Any, family: Callable[..., None]
) -> None:
    family("""
    letters = [Letter('k', API, **LATER) for _ in range(200)]
    assert len(lock_files()) == 1
    assert kilobytes('RssShmem') <= 200 * 8, kilobytes('RssShmem')  # the page of the words, of each
    for number, letter in enumerate(letters):
        work(letter, 1, f'parent {number}')
    def uses_them_all():
        for number, letter in enumerate(letters):
            work(letter, 1, f'child {number}')
        assert {slot(letter) for letter in letters} == {1}
        assert len(lock_files()) == 1
        for letter in letters:
            letter.close(40)
    assert reap(child(uses_them_all)) == 0
    def is_killed():
        for number, letter in enumerate(letters):
            work(letter, 1, f'killed {number}')
        die()
    assert reap(child(is_killed)) == -signal.SIGKILL
    for letter in letters:
        letter.close(40)
    assert {letter.stats()['adopted'] for letter in letters} == {1}
    """)
    once(letter_api, {f"{who} {n}": 1 for who in ("parent", "child", "killed") for n in range(200)})


def test_clients_that_are_thrown_away_leave_nothing(letter_api: Any, family: Callable[..., None]) -> None:
    family("""
    import _thread
    def make(times):
        for number in range(times):
            letter = Letter('k', API, **LATER)
            if number % 100 == 0:
                work(letter, 1, f'client {number}')
                letter.close()
    def held():
        while _thread._count():  # of a thread that has left the last instructions may be to come
            time.sleep(0.01)
        gc.collect()
        return len(descriptors()), len(atfork.this_process().locks), mappings(), kilobytes('VmRSS')
    make(101)
    before = held()
    make(2000)
    after = held()
    assert after[:2] == before[:2], (before, after)
    assert after[2] <= before[2] + 20 and after[3] <= before[3] + 4096, (before, after)
    """)
    assert letter_api.distinct == 22


def test_10_000_forks_leak_nothing(letter_api: Any, family: Callable[..., None]) -> None:
    family(
        """
        letter = Letter('k', API, **LATER)
        work(letter, 1, 'parent')
        assert letter.flush()
        def held():
            gc.collect()
            process = atfork.this_process()
            return sorted(what.split(':')[0] for what in descriptors().values()), len(process.locks), process.children
        def uses(number):
            work(letter, 1, f'child {number}')
            if number % 200:
                letter.close()
                return slot(letter)
            die()
        before, lines = held(), mappings()
        slots = set()
        for number in range(0, 10_000, 100):
            slots.add(reap(child(lambda: uses(number))))
            if number % 200 == 0:
                assert letter.flush()
            for _ in range(9):
                children = []
                for _ in range(11):
                    pid = os.fork()
                    if not pid:
                        os._exit(0)
                    children.append(pid)
                assert {reap(pid) for pid in children} == {0}
        assert slots == {1, -signal.SIGKILL}, slots
        assert held() == before and mappings() <= lines + 10
        assert letter.stats()['adopted'] == 50
        """,
        longest=LONG,
    )
    once(letter_api, {"parent": 1, **{f"child {n}": 1 for n in range(0, 10_000, 100)}})


HELD = """
letter = Letter('k', API, max_queue_events=20_000, exit_timeout=40)

def held(shared=letter._delivery._recovery._backends._backends[0].memory):
    "KiB of the shared memory that are in use, whoever of the family wrote there."
    pages = (ctypes.c_ubyte * (len(shared) // mmap.PAGESIZE))()
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(shared)), pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE >> 10

def burst(count=10_000, size=20):
    for serial in range(count):
        letter.track('program', 'Worked', {'text': 'x' * size})
"""


def test_an_idle_client_holds_little_memory_after_a_backlog_too(letter_api: Any, family: Callable[..., None]) -> None:
    code = """
    burst(10)
    assert letter.flush()
    assert held() <= 40, held()
    burst()
    assert letter.flush(40)
    assert held() <= 160, held()
    def one_more():
        burst()
        letter.close(40)
    for pid in [child(one_more) for _ in range(4)]:
        assert reap(pid) == 0
    assert held() <= 5 * 160, held()
    """
    family(HELD + dedent(code))
    assert letter_api.distinct == 50_010


@pytest.mark.parametrize(
    "leaves",
    [
        "burst(); letter.flush(40); burst(900, 4000); assert letter.flush(40)",
        "assert reap(child(lambda: (burst(), die()))) == -signal.SIGKILL; assert letter.flush(40)",
        "assert reap(child(settles_and_dies)) == -signal.SIGKILL; assert reap(child(uses)) == 0",
    ],
    ids=["large events", "a killed process", "a process that was killed before its thread left, when the slot is used"],
)
def test_memory_is_given_back_after(leaves: str, family: Callable[..., None]) -> None:
    code = f"""
    def settles_and_dies():
        burst()
        letter._delivery._worker.stop_when_idle = lambda: None  # the thread stays for its idle time
        assert letter.flush(40)
        die()
    def uses():
        burst(1)
        letter.close(40)
    {leaves}
    assert held() <= 2 * 160, held()
    """
    family(HELD + dedent(code))


# Another interpreter.


@pytest.mark.skipif(shutil.which("pypy3") is None, reason="needs PyPy")
def test_pypy(letter_api: Any, tmp_path: Path) -> None:
    code = """
    import gc
    letter = Letter('k', API, flush_interval=1000, flush_at=10**6)
    assert letter.stats()['memory'] == 'shared'
    work(letter, 250, 'parent')
    def child(end, job):
        pid = os.fork()
        if not pid:
            job()
            end()
            sys.exit(0)
        os.waitpid(pid, 0)
    child(letter.close, lambda: work(letter, 120, 'closes'))
    child(int, lambda: work(letter, 120, 'comes to its end'))
    child(lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: work(letter, 120, 'killed'))
    assert letter.flush() and letter.stats()['adopted'] == 120
    for _ in range(300):
        Letter('k', API)
    gc.collect()
    work(letter, 10, 'parent', start=250)
    """
    with start(code, letter_api.url, tmp_path, python=str(shutil.which("pypy3"))) as program:
        finished = program.finish()
        assert (finished.code, finished.output) == (0, ""), finished
        assert not program.left_behind()
    once(letter_api, {"parent": 260, "closes": 120, "comes to its end": 120, "killed": 120})


@pytest.mark.parametrize("later", [False, True], ids=["before the kernel has it", "after"])
def test_a_lock_that_is_cut_short_is_nobodys(later: bool, locks: Callable[[str], None]) -> None:
    # By a signal handler's exception, in the middle of it. Else nobody could take over what lies there.
    locks(
        f"""
    lockf = fcntl.lockf
    def interrupted(descriptor, how, *where):
        if {later} or how == fcntl.LOCK_UN:
            lockf(descriptor, how, *where)
        if how != fcntl.LOCK_UN:
            raise KeyboardInterrupt
    fcntl.lockf = interrupted
    try:
        take()
    except KeyboardInterrupt:
        pass
    else:
        assert False
    fcntl.lockf = lockf
    gc.collect()
    assert others_can_take()
    assert take()
    """
    )
