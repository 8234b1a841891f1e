"""Forks: the parent's waiting events stay the parent's, the child starts empty, nothing goes twice, nothing sticks.

Each test is a real program; the children's findings come back as events on the wire or as lines of output.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, eventually, run, start, whose

from letterapp.testing import Hold

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# `fork(job)` runs `job` in a child that ends as `END` says, and returns its pid. `wait` reaps it, with a deadline.
FORK = """
def fork(job, end="return"):
    pid = os.fork()
    if pid:
        return pid
    job()
    if end == "close":
        letter.close()
        os._exit(0)
    if end == "exit":
        sys.exit(0)
    if end == "raise":
        raise RuntimeError("on purpose")
    globals()["is_child"] = True
    raise Ended  # out of every frame, to the program's end

class Ended(Exception):
    pass

def wait(pid, seconds=40):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise SystemExit("a child hung")

def child_work(count, who):
    return lambda: work(letter, count, who)
"""


def program(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    return f"{FORK}\ntry:\n{lines}\nexcept Ended:\n    pass\n"


def once(api: Any, expected: dict[str, int]) -> None:
    assert whose(api) == {who: list(range(count)) for who, count in expected.items()}
    assert api.repeated() == {}


@pytest.mark.parametrize("end", ["return", "exit", "raise", "close"])
def test_with_events_waiting_in_the_parent_a_child_that_ends_by(end: str, letter_api: Any, tmp_path: Path) -> None:
    body = f"""
letter = Letter('k', API, flush_interval=30, flush_at=10_000)
work(letter, 500, 'parent')
children = [fork(child_work(300, f'child {{n}}'), {end!r}) for n in range(3)]
for child in children:
    wait(child)
"""
    finished = run(program(body), letter_api.url, tmp_path)
    assert finished.code == 0, finished
    once(letter_api, {"parent": 500, "child 0": 300, "child 1": 300, "child 2": 300})


def test_a_child_that_does_nothing_sends_nothing(letter_api: Any, tmp_path: Path) -> None:
    body = """
letter = Letter('k', API, flush_interval=30)
work(letter, 40, 'parent')
for child in [fork(lambda: None) for n in range(4)]:
    assert wait(child) == 0
"""
    finished = run(program(body), letter_api.url, tmp_path)
    assert finished.code == 0 and finished.output == "", finished
    once(letter_api, {"parent": 40})


def test_a_child_counts_from_zero(letter_api: Any, tmp_path: Path) -> None:
    body = """
letter = Letter('k', API, flush_interval=30)
work(letter, 40, 'parent')
def look():
    stats = letter.stats()
    print(stats['pid'] == os.getpid(), stats['accepted'], stats['waiting'], f'pid={os.getpid()}' in repr(letter))
wait(fork(look))
print(letter.stats()['waiting'])
"""
    assert run(program(body), letter_api.url, tmp_path).output == "True 0 0 True\n40\n"


def test_a_request_on_the_wire_at_the_fork_is_sent_once_and_by_the_parent(letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.plan(hold)
    body = """
letter = Letter('k', API, flush_at=1, timeout=60, exit_timeout=50)
work(letter, 10, 'parent')
sys.stdin = open(sys.argv[1])
sys.stdin.read()  # until the request is on the wire
child = fork(child_work(200, 'child'))
wait(child)
print('child ended', flush=True)
"""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with start(program(body), letter_api.url, tmp_path, str(gate)) as running:
        assert hold.arrived.wait(DEADLINE)
        gate.write_text("")
        assert eventually(lambda: running.output, lambda text: "child ended" in text)
        assert whose(letter_api) == {"child": list(range(200))}
        hold.release()
        assert running.finish().code == 0
    once(letter_api, {"parent": 10, "child": 200})
    by_pid: dict[int, set] = {}
    for request in letter_api.requests:
        for item in request.json["batch"]:
            by_pid.setdefault(item["properties"]["pid"], set()).add(request.connection)
    parents, childs = by_pid.values()
    assert not parents & childs, "the child used the parent's connection"


def test_the_childs_copy_of_the_connection_is_closed_in_the_child_and_open_in_the_parent(
    letter_api: Any, tmp_path: Path
) -> None:
    body = """
def sockets():
    import socket
    found = 0
    for name in os.listdir('/proc/self/fd'):
        try:
            found += os.readlink(f'/proc/self/fd/{name}').startswith('socket:')
        except OSError:
            pass
    return found
letter = Letter('k', API)
work(letter, 10, 'parent')
letter.flush()
print(sockets())
wait(fork(lambda: print(sockets())))
work(letter, 10, 'parent')
letter.flush()
"""
    finished = run(program(body), letter_api.url, tmp_path)
    assert finished.output == "1\n0\n", finished
    assert len({request.connection for request in letter_api.requests}) == 1


def test_a_descriptor_that_became_something_else_in_the_child_is_left_alone(letter_api: Any, tmp_path: Path) -> None:
    # A daemon closes all that it inherited, and its log gets the number. Without a fork hook (as under uWSGI) the
    # client finds out late.
    body = """
from letterapp._runtime import atfork
atfork._hooked = True
letter = Letter('k', API)
work(letter, 10, 'parent')
letter.flush()
def daemon():
    os.closerange(3, 100)
    log = [os.open(sys.argv[0], os.O_RDONLY) for _ in range(20)]
    work(letter, 10, 'child')
    letter.flush()
    for descriptor in log:  # were one closed, its number would be the new connection's by now
        assert os.path.samestat(os.fstat(descriptor), os.stat(sys.argv[0]))
wait(fork(daemon))
"""
    finished = run(program(body), letter_api.url, tmp_path)
    assert finished.code == 0 and finished.output == "", finished
    once(letter_api, {"parent": 10, "child": 10})


def test_the_queues_lock_held_by_another_thread_at_the_fork(letter_api: Any, tmp_path: Path) -> None:
    body = """
letter = Letter('k', API)
work(letter, 10, 'parent')
held, over = threading.Event(), threading.Event()
def hold():
    def wait_inside():
        with letter._delivery._queue._lock:
            held.set()
            over.wait(40)
    letter._delivery._batches.lock.run(wait_inside, 0)
holder = threading.Thread(target=hold)
letter.flush()
holder.start()
held.wait(40)
child = fork(child_work(50, 'child'))
wait(child)
over.set()
holder.join()
"""
    finished = run(program(body), letter_api.url, tmp_path)
    assert finished.code == 0, finished
    once(letter_api, {"parent": 10, "child": 50})


def test_a_fork_from_a_thread(letter_api: Any, tmp_path: Path) -> None:
    body = """
letter = Letter('k', API)
work(letter, 120, 'parent')
def forking():
    pid = os.fork()
    if not pid:
        work(letter, 130, 'child')
        letter.close()
        os._exit(0)
    wait(pid)
thread = threading.Thread(target=forking)
thread.start()
thread.join()
"""
    assert run(program(body), letter_api.url, tmp_path).code == 0
    once(letter_api, {"parent": 120, "child": 130})


def test_a_fork_from_on_error_on_the_senders_own_thread(letter_api: Any, tmp_path: Path) -> None:
    from letterapp.testing import status

    letter_api.plan(status(403))
    body = """
def on_error(error):
    pid = os.fork()
    if pid:
        wait(pid)
    else:
        work(letter, 20, 'child')
        letter.close()
        # and goes on: as the sender's thread of a process that is not the sender's
letter = Letter('k', API, on_error=on_error, flush_at=5, flush_interval=30)
work(letter, 5, 'refused')
letter.flush()
work(letter, 100, 'parent')
"""
    finished = run(program(body), letter_api.url, tmp_path)
    assert finished.code == 0, finished
    once(letter_api, {"parent": 100, "child": 20})


def test_three_generations(letter_api: Any, tmp_path: Path) -> None:
    body = """
letter = Letter('k', API, flush_interval=30, flush_at=10_000)
work(letter, 100, 'generation 0')
def grandchild():
    work(letter, 100, 'generation 2')
    wait(fork(child_work(100, 'generation 3')))
def child():
    work(letter, 100, 'generation 1')
    wait(fork(grandchild))
wait(fork(child))
"""
    assert run(program(body), letter_api.url, tmp_path).code == 0
    once(letter_api, {f"generation {n}": 100 for n in range(4)})


def test_a_child_of_a_child_that_never_used_the_client(letter_api: Any, tmp_path: Path) -> None:
    body = """
letter = Letter('k', API, flush_interval=30)
work(letter, 30, 'parent')
wait(fork(lambda: wait(fork(child_work(30, 'grandchild')))))
"""
    assert run(program(body), letter_api.url, tmp_path).code == 0
    once(letter_api, {"parent": 30, "grandchild": 30})


@pytest.mark.parametrize("hooks", ["called", "not called"])
def test_200_children_while_four_threads_track_without_rest(hooks: str, letter_api: Any, tmp_path: Path) -> None:
    body = f"""
from letterapp._runtime import atfork
atfork._hooked = {hooks == "not called"}
letter = Letter('k', API, max_queue_events=10**6, max_queue_bytes=10**9, exit_timeout=40)
if {hooks == "not called"}:
    # Whoever forks without hooks (uWSGI) has no thread at that time that could be in the middle of its imports.
    work(letter, 1, 'warm up')
    letter.flush()
over = threading.Event()
counts = [0] * 4
def without_rest(number):
    while not over.is_set():
        letter.track(f'thread {{number}}', 'Worked', {{'serial': counts[number], 'pid': os.getpid()}})
        counts[number] += 1
        if counts[number] % 50 == 0:
            over.wait(0.001)  # leaves the interpreter to the others, so that there are more forks than events
threads = [threading.Thread(target=without_rest, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for first in range(0, 200, 10):
    children = []
    for number in range(first, first + 10):
        pid = os.fork()
        if not pid:
            work(letter, 20, f'child {{number}}')
            letter.close()
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert wait(pid) == 0
over.set()
for thread in threads:
    thread.join()
letter.close()
assert letter.stats()['lost'] == {{}}, letter.stats()
print(*counts)
"""
    finished = run(program(body), letter_api.url, tmp_path)
    assert finished.code == 0, finished
    counts: list[int] = [int(text) for text in finished.output.splitlines()[-1].split()]
    warm_up = {"warm up": 1} if hooks == "not called" else {}
    once(
        letter_api,
        {
            **warm_up,
            **{f"thread {n}": count for n, count in enumerate(counts)},
            **{f"child {n}": 20 for n in range(200)},
        },
    )


def test_after_flush_the_process_forks_single_threaded(letter_api: Any, tmp_path: Path) -> None:
    body = """
letter = Letter('k', API)
for turn in range(100):
    work(letter, 2, 'parent', start=turn * 2)
    assert letter.flush()
    print(len(os.listdir('/proc/self/task')), end=' ')
"""
    assert run(program(body), letter_api.url, tmp_path).output.split() == ["1"] * 100
    once(letter_api, {"parent": 200})


def test_a_fork_in_the_middle_of_the_first_requests_imports_waits_for_them(letter_api: Any, tmp_path: Path) -> None:
    # The child would inherit half of a module, and the import system's lock on it, for ever. The gate is an import
    # hook that stands still in the middle of `http.client`.
    body = """
reached, forking = threading.Event(), threading.Event()
class Gate:
    def find_spec(self, name, path=None, target=None):
        if name == 'http.client' and not reached.is_set():
            reached.set()
            forking.wait(40)
sys.meta_path.insert(0, Gate())
letter = Letter('k', API, flush_at=1)
os.register_at_fork(before=lambda: forking.set())  # after the client's own hook, and so run before it
work(letter, 10, 'parent')
reached.wait(40)
wait(fork(child_work(10, 'child')))
"""
    finished = run(program(body), letter_api.url, tmp_path)
    assert finished.code == 0 and finished.output == "", finished
    once(letter_api, {"parent": 10, "child": 10})
