"""Other hosts: network namespaces that a test makes and removes.

Responsible for: making them, the link between each of them and the test's side, running commands there. Not responsible
for: what runs on them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess

import pytest

_NUMBERS = 4 * 64 * 250  # of networks of four addresses


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


def _reserve() -> tuple[int, socket.socket]:
    """A number that no other test has, here or in another process, while the socket is open. See `stress.ports`."""
    while True:
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        number = secrets.randbelow(_NUMBERS)
        try:
            reservation.bind(f"\0letterapp-host-{number}")
        except OSError:
            reservation.close()
            continue
        return number, reservation


needs_hosts = pytest.mark.skipif(not _can_make_hosts(), reason="needs root, iproute2 and network namespaces")


class Host:
    """A network namespace with one link, to the test's. Nothing else can be reached over it, so not the API either."""

    def __init__(self) -> None:
        number, self._reservation = _reserve()
        self.name = f"letter{number}"
        net = f"10.{64 + number // (250 * 4)}.{number // 4 % 250}"
        last = number % 4 * 4
        self.gateway = f"{net}.{last + 1}"  # the test's side
        self.address = f"{net}.{last + 2}"
        self._ours, theirs = f"la{number}", f"lb{number}"
        ip("netns", "add", self.name)
        ip("link", "add", self._ours, "type", "veth", "peer", "name", theirs)
        ip("link", "set", theirs, "netns", self.name)
        ip("addr", "add", f"{self.gateway}/30", "dev", self._ours)
        ip("link", "set", self._ours, "up")
        self._inside("addr", "add", f"{self.address}/30", "dev", theirs)
        self._inside("link", "set", theirs, "up")
        self._inside("link", "set", "lo", "up")

    def _inside(self, *arguments: str) -> None:
        ip("-n", self.name, *arguments)

    def command(self, *command: str) -> list[str]:
        """The command that runs ``command`` on this host."""
        return ["ip", "netns", "exec", self.name, *command]

    def disconnect(self) -> None:
        ip("link", "set", self._ours, "down")

    def reconnect(self) -> None:
        ip("link", "set", self._ours, "up")

    def remove(self) -> None:
        ip("netns", "del", self.name)
        self._reservation.close()
