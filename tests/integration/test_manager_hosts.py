"""A manager over TCP, and applications on other hosts, which are network namespaces that a test makes and removes.

Responsible for: two applications on two hosts, one sender process on a third, and a link that is down for a while.
Not responsible for: what can be tested on one host (test_manager.py).
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import Program, environment, eventually, whose
from hosts import Host, needs_hosts
from managed import KEY, Directory, command_of, own_directory  # noqa: F401  (a fixture for all tests)
from programs import managers

from stress.ports import free_port

pytestmark = needs_hosts


def start(host: Host, program: Callable[..., object], api: Any, tmp_path: Path, port: int, who: str) -> Program:
    """Start a program on ``host`` that connects to a manager at ``port`` on the test's side."""
    command = host.command(*command_of(program, host.gateway, port, who))
    return Program(command, environment(api.url, LETTER_API_KEY=KEY), tmp_path)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    made = [Host(), Host()]
    yield made
    for host in made:
        host.remove()


@pytest.mark.slow
def test_applications_on_two_hosts_send_through_a_manager_on_a_third(
    hosts: list[Host], directory: Directory, letter_api: Any, tmp_path: Path
) -> None:
    port = free_port()
    with directory.keep(address=f"0.0.0.0:{port}") as kept:
        programs = [start(host, managers.forks_30_children, letter_api, tmp_path, port, host.name) for host in hosts]
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


@pytest.mark.slow
def test_nothing_is_lost_while_a_link_is_down(
    hosts: list[Host], directory: Directory, letter_api: Any, tmp_path: Path
) -> None:
    port = free_port()
    host = hosts[0]
    with directory.keep(address=f"0.0.0.0:{port}"):
        with start(host, managers.never_waits_in_a_call, letter_api, tmp_path, port, "patient") as program:
            assert eventually(lambda: program.output, lambda text: "connected" in text) == "connected\n"
            host.disconnect()
            (tmp_path / "go").touch()
            output = eventually(lambda: program.output, lambda text: "tracked" in text and "cannot be used" in text)
            assert "tracked" in output and output.count("cannot be used") == 1, output
            assert len(letter_api.events) == 10
            host.reconnect()
            finished = program.finish()
            assert finished.code == 0 and "Traceback" not in finished.output, finished
        assert whose(letter_api) == {"patient": list(range(500))}
