"""A manager over TCP, and applications on other hosts: network namespaces, which this test makes and removes.

Responsible for: two applications on two hosts, one sender process on a third, and a link that goes away for a while.
Not responsible for: what holds on one host as well (test_manager.py).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import PRELUDE, Program, environment, eventually, whose
from managed import KEY, Directory, own_directory  # noqa: F401  (a fixture that is there for all)

from stress.ports import free_port

_numbers = itertools.count()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _can_make_hosts() -> bool:
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"lettertry{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except subprocess.CalledProcessError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _can_make_hosts(), reason="needs root, iproute2 and network namespaces")


class Host:
    """A namespace with one link to this one, over which nothing else can be reached, the API least of all."""

    def __init__(self) -> None:
        self.name = f"letter{os.getpid()}x{next(_numbers)}"
        number = (os.getpid() * 8 + next(_numbers)) % (250 * 250)
        net = f"10.{64 + number // (250 * 4) % 64}.{number // 4 % 250}"
        last = number % 4 * 4
        self.gateway = f"{net}.{last + 1}"  # this side
        self._ours, theirs = f"la{os.getpid() % 100_000}{next(_numbers)}", f"lb{os.getpid() % 100_000}{next(_numbers)}"
        ip("netns", "add", self.name)
        ip("link", "add", self._ours, "type", "veth", "peer", "name", theirs)
        ip("link", "set", theirs, "netns", self.name)
        ip("addr", "add", f"{self.gateway}/30", "dev", self._ours)
        ip("link", "set", self._ours, "up")
        self._inside("addr", "add", f"{net}.{last + 2}/30", "dev", theirs)
        self._inside("link", "set", theirs, "up")
        self._inside("link", "set", "lo", "up")

    def _inside(self, *arguments: str) -> None:
        ip("-n", self.name, *arguments)

    def run(self, code: str, api: Any, tmp_path: Path, *arguments: str) -> Program:
        script = tmp_path / f"{self.name}.py"
        script.write_text(PRELUDE + textwrap.dedent(code))
        command = ["ip", "netns", "exec", self.name, sys.executable, str(script), *arguments]
        return Program(command, environment(api.url, LETTER_API_KEY=KEY), tmp_path)

    def cut(self) -> None:
        ip("link", "set", self._ours, "down")

    def mend(self) -> None:
        ip("link", "set", self._ours, "up")

    def remove(self) -> None:
        ip("netns", "del", self.name)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    made = [Host(), Host()]
    yield made
    for host in made:
        host.remove()


APPLICATION = """
from letterapp.relay import SenderManager
host, port, who = sys.argv[1:]
manager = SenderManager(base_url=API, address=(host, int(port)), authkey=b"a secret of the tests")
manager.connect()
letter = Letter(relay=manager.queue, max_retries=10**6, exit_timeout=50)
for serial in range(0, 300, 10):
    work(letter, 10, who, serial)
    pid = child(lambda: (work(letter, 10, f"{who}'s child {serial}"), letter.close())[0])
    if os.waitpid(pid, 0)[1] != 0:
        sys.exit("a child failed")
print("tracked")
sys.stdout.flush()
sys.exit(0 if letter.close() else 3)
"""


def test_applications_on_two_hosts_send_through_a_manager_on_a_third(
    hosts: list[Host], directory: Directory, letter_api: Any, tmp_path: Path
) -> None:
    port = free_port()
    with directory.keep(address=f"0.0.0.0:{port}") as kept:
        programs = [host.run(APPLICATION, letter_api, tmp_path, host.gateway, str(port), host.name) for host in hosts]
        for program in programs:
            with program:
                finished = program.finish()
                assert finished.code == 0 and finished.output == "tracked\n", finished
        kept.signal(signal.SIGTERM)
        assert kept.finish().code == 0
    came = whose(letter_api)
    for host in hosts:
        assert came.pop(host.name) == list(range(300))
        for serial in range(0, 300, 10):
            assert came.pop(f"{host.name}'s child {serial}") == list(range(10))
    assert came == {} and letter_api.repeated() == {}
    assert len({request.connection for request in letter_api.requests}) == 1


PATIENT = """
from letterapp.relay import SenderManager
host, port, who = sys.argv[1:]
manager = SenderManager(base_url=API, address=(host, int(port)), authkey=b"a secret of the tests")
manager.connect()
letter = Letter(relay=manager.queue, max_retries=10**6, exit_timeout=50, flush_interval=0)
work(letter, 10, who)
assert letter.flush(50)
print("connected")
sys.stdout.flush()
sys.stdin.readline()
longest = 0.0
for serial in range(10, 500):
    began = time.monotonic()
    letter.track(who, "Worked", {"serial": serial})
    longest = max(longest, time.monotonic() - began)
assert longest < 0.5, longest
print("tracked")
sys.stdout.flush()
sys.exit(0 if letter.close() else 3)
"""


def test_a_link_that_is_cut_for_a_while_loses_nothing(
    hosts: list[Host], directory: Directory, letter_api: Any, tmp_path: Path
) -> None:
    port = free_port()
    host = hosts[0]
    with directory.keep(address=f"0.0.0.0:{port}"):
        code = PATIENT.replace("sys.stdin.readline()", "while not os.path.exists('go'): time.sleep(0.01)")
        with host.run(code, letter_api, tmp_path, host.gateway, str(port), "patient") as program:
            assert eventually(lambda: program.output, lambda text: "connected" in text) == "connected\n"
            host.cut()
            (tmp_path / "go").touch()
            output = eventually(lambda: program.output, lambda text: "tracked" in text and "cannot be used" in text)
            assert "tracked" in output and output.count("cannot be used") == 1, output
            assert len(letter_api.events) == 10
            host.mend()
            finished = program.finish()
            assert finished.code == 0 and "Traceback" not in finished.output, finished
        assert whose(letter_api) == {"patient": list(range(500))}
