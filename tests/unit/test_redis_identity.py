"""The names of relays that read a stream, and what they say about other relays.

Responsible for: `_redis_server.identity` alone. Not responsible for: what a relay does with it (`test_redis_restart`).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest

from letterapp._redis_server.identity import Identity

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def named(*others: str) -> str:
    identity = Identity("stream-0")
    identity.choose(others)
    return identity.name


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def with_pid(name: str, pid: object) -> str:
    """``name`` as that of the process ``pid`` of the same place."""
    host, _, place, _ = name.rsplit("-", 3)
    return f"{host}-{pid}-{place}-00000000"


def test_a_name_is_chosen_once() -> None:
    identity = Identity("stream-0")
    assert identity.name == ""
    identity.choose([])
    name = identity.name
    assert name.startswith("stream-0:")
    identity.choose([named(name)])
    assert identity.name == name


def test_a_later_name_is_greater_whatever_the_clock_says() -> None:
    names = [named()]
    for _ in range(100):
        names.append(named(*names))
    assert names == sorted(set(names))
    future = "stream-0:9000000000000000000"
    assert named(future) > future
    assert len({len(name) for name in [*names, future]}) == 1


@pytest.mark.parametrize("other", ["stream-0:", "stream-0:x", "stream-0:٣", "stream-00:1", "released", ":", ""])
def test_names_that_are_no_tokens_are_passed_over(other: str) -> None:
    assert named(other) < "stream-0:9"


def test_without_a_given_name_it_is_not_used_twice() -> None:
    assert Identity().name != Identity().name
    assert Identity().prefix == ""


def test_giving_the_name_up() -> None:
    identity = Identity("stream-0")
    identity.choose([])
    identity.give_up()
    assert identity.prefix == "" and "stream-0" not in identity.name and str(os.getpid()) in identity.name


@on_linux
def test_a_process_of_this_place_that_does_not_exist_has_ended() -> None:
    identity = Identity()
    gone = with_pid(identity.name, ended_process())
    assert identity.ended([gone, identity.name, with_pid(identity.name, os.getppid())]) == [gone]


@on_linux
def test_an_earlier_process_with_this_process_id_has_ended() -> None:
    identity = Identity()
    earlier = with_pid(identity.name, os.getpid())
    assert identity.ended([earlier]) == [earlier]


@on_linux
def test_nothing_is_known_of_processes_of_another_place_nor_of_named_ones() -> None:
    identity = Identity()
    pid = ended_process()
    others = [
        f"host-{pid}-00000000-11111111",  # another host, container or boot
        f"host-{pid}-11111111",
        f"stream-0:{pid}",
        "released",
        "",
        "-",
        "--",
        "---",
        with_pid(identity.name, ""),
        with_pid(identity.name, "x"),
        with_pid(identity.name, "٣"),
        with_pid(identity.name, 10**30),
        with_pid(identity.name, 0),
    ]
    assert identity.ended(others) == []
    assert Identity("stream-0").ended([with_pid(identity.name, pid)]) == []


@on_linux
@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)
def test_nothing_is_known_of_a_process_in_another_pid_namespace() -> None:
    # Its process ID does not exist here either.
    program = "from letterapp._redis_server.identity import Identity; print(Identity().name)"
    made = subprocess.run(["unshare", "--pid", "--fork", sys.executable, "-c", program], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no PID namespace can be made: {made.stderr}")
    there = made.stdout.strip()
    assert there.startswith(f"{socket.gethostname()}-1-")
    assert Identity().ended([with_pid(there, ended_process())]) == []


@on_linux
def test_a_host_whose_name_has_dashes_or_colons() -> None:
    identity = Identity()
    gone = with_pid(identity.name, ended_process()).partition("-")[2]
    names = [f"a-b-{gone}", f"a:b-{gone}"]
    assert identity.ended(names) == names
