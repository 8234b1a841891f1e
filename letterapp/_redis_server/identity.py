"""The name of a relay in the group, and what it says about the other relays.

Responsible for: a name that no other process has; which relays of the same `--consumer` came earlier; which processes
of this host have ended. Not responsible for: the commands (`group`), what becomes of the entries (`consumer`).

    --consumer NAME    NAME:TOKEN. Tokens grow, so a process with a greater one was started later (a fencing token).
                       It takes what earlier ones have, however short a time ago they were seen.
    otherwise          HOST-PID-PLACE-RANDOM. The place is the host, its boot and the PID namespace: for a process of
                       the same place, the kernel says whether it still exists.

A wrong guess does no harm: events are then sent twice, with the same message IDs.
"""

from __future__ import annotations

import os
import socket
import time
from hashlib import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

_SEPARATOR = ":"
_MILLISECONDS, _RANDOM = 13, 6  # digits of a token; decimal and of one length, so that they compare as text


class Identity:
    """The name of this process in the group. Used by one thread."""

    def __init__(self, given: str = "") -> None:
        """``given``: the name that is used again by the next process, or empty."""
        self.given = given
        self._place = "" if given else _place()
        self.name = "" if given else self._unnamed()

    @property
    def prefix(self) -> str:
        """How the names of all processes with the ``given`` name begin; empty if there is none."""
        return self.given and self.given + _SEPARATOR

    def choose(self, others: Iterable[str]) -> None:
        """Choose the name, once: its token is greater than those of ``others``, even if this host's clock is slow."""
        if self.name:
            return
        earlier = [_token(name) for name in others if name.startswith(self.prefix)]
        newest = max((int(token[:_MILLISECONDS]) for token in earlier if token), default=0)
        moment = max(time.time_ns() // 1_000_000, newest + 1)
        self.name = f"{self.prefix}{moment:0{_MILLISECONDS}}{_random(_RANDOM)}"

    def give_up(self) -> None:
        """Continue without the ``given`` name, because a process that was started later has it."""
        self.given = ""
        self._place = _place()
        self.name = self._unnamed()

    def ended(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that belong to processes that certainly have ended."""
        return [name for name in names if self._has_ended(name)]

    def _has_ended(self, name: str) -> bool:
        _, _, rest = name.rpartition(_SEPARATOR)
        pid, place, _ = ["", "", *rest.split("-")][-3:]
        if not self._place or place != self._place or name == self.name or not (pid.isascii() and pid.isdigit()):
            return False
        if int(pid) == os.getpid():
            return True  # an earlier one: of a container that was restarted
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            pass  # it exists, and belongs to another user
        return False

    def _unnamed(self) -> str:
        place = self._place and f"{self._place}-"
        return f"{socket.gethostname()}-{os.getpid()}-{place}{os.urandom(4).hex()}"


def _token(name: str) -> str:
    token = name.rpartition(_SEPARATOR)[2]
    return token if len(token) == _MILLISECONDS + _RANDOM and token.isascii() and token.isdigit() else ""


def _random(digits: int) -> str:
    return f"{int.from_bytes(os.urandom(8), 'big') % 10**digits:0{digits}}"


def _place() -> str:
    """A text that all processes have in common whose IDs mean the same; empty if the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read()
        # With the host's name, because copies of a running virtual machine have the same boot.
        place = f"{boot}{os.readlink('/proc/self/ns/pid')}{socket.gethostname()}"
        return sha256(place.encode()).hexdigest()[:8]
    except OSError:
        return ""
