"""The managers of a server's processes: where they are, and what must be true of them and of the server's output.

Responsible for: what the tests of gunicorn, uWSGI and Celery with a manager share. Not responsible for: starting and
stopping servers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterator

import psutil
import pytest
from harness import Program, eventually
from managed import Directory
from senders import lent
from services import COMPLAINTS, zombies
from test_uwsgi import INLINE_WARNING
from webapps import without_servers_own

SOON = 8.0  # seconds: less than a manager serves clients that stay connected when its starter has gone
# What an application begins with to have `letterapp.Letter` be a client of a manager, which it starts.
FIRST = "import programs.managed_clients\n"


class Managers(Directory):
    """The directory of the managers that a server's processes start."""

    def serving(self, program: Program, count: int = 1) -> set[int]:
        """The managers of a program's processes: ``count`` of them, none of which is a descendant of the program."""
        found = eventually(lambda: self._detached(program), lambda found: found is not None and len(found) == count)
        assert found is not None and len(found) == count, (found, self.processes(), program.output)
        assert found <= started(program), program.output
        assert eventually(lambda: zombies(program), lambda dead: not dead, SOON) == []
        return found

    def _detached(self, program: Program) -> set[int] | None:
        """Their process ids; None while one of them is a descendant of the program, as when it is being started."""
        managers = self.processes()
        family = {program.pid, *(process.pid for process in program.descendants())}
        try:
            parents = {process.ppid() for process in managers}
        except psutil.NoSuchProcess:
            return None
        pids = {process.pid for process in managers}
        return None if family & (pids | parents) else pids

    def sockets(self) -> list[Path]:
        return list(self.path.glob("letterapp/manager-*"))

    def take_no_more(self, program: Program) -> None:
        """Wait until no manager listens any more: those that are left send what they have, and end."""
        assert not eventually(self.sockets, lambda sockets: not sockets, SOON), program.output

    def are_gone(self, program: Program) -> None:
        """All managers end soon after the last process of the program, and leave no socket."""
        assert not self.left_behind(SOON), (self.processes(), program.output)
        assert not self.sockets(), program.output


def started(program: Program) -> set[int]:
    """The process ids of the managers that an application has printed."""
    return {int(pid) for pid in re.findall(r"^manager (\d+) of \d+$", program.output, re.M)}


# For all tests of a module that imports it.
@pytest.fixture(name="runtime", autouse=True)
def managers_directory(letter_api: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Managers]:
    yield from lent(Managers(letter_api), monkeypatch)


UNUSABLE = "cannot be used: "


def complaints(output: str) -> list[str]:
    """Lines that should not be there, where each client may report once that its manager was stopped or killed."""
    known = re.compile(rf"letterapp: relay: .*{UNUSABLE}.* sends its events itself meanwhile")
    output = without_servers_own(output).replace(INLINE_WARNING, "")
    lines = [known.sub("", line) for line in output.splitlines()]
    return [line for line in lines if any(complaint in line for complaint in COMPLAINTS)]
