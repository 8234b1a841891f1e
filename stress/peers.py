"""The clients that are compared, each in a separate virtual environment, all with the same Python.

Responsible for: their names, requirements and environments. Not responsible for: how each is called
(`inside/measured_clients.py`), figures.
"""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
SELF, RELAY, MANAGER, REDIS, ORJSON, FLOOR = (
    "this client",
    "relay=True",
    "relay=queue",
    "relay=redis",
    "with orjson",
    "floor",
)
OWN = (SELF, RELAY, MANAGER, REDIS)  # the columns of this checkout
_CLEARED = ("PYTHON", "LETTER_", "POSTHOG_", "SEGMENT_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "VIRTUAL_ENV")


class _Known(NamedTuple):
    requirement: str
    version: str  # the default; "" means the newest
    marker: str  # occurs exactly once in the JSON of each event
    module: str  # what its users import


KNOWN = {
    "letterapp": _Known("letterapp", "0.2.0", '"messageId"', "letterapp"),
    "posthog": _Known("posthog", "", '"distinct_id"', "posthog"),
    "segment": _Known("segment-analytics-python", "", '"messageId"', "segment.analytics"),
    "rudder": _Known("rudder-sdk-python", "", '"messageId"', "rudderstack.analytics"),
}


class Peer(NamedTuple):
    """A column: one client, ready to be run."""

    column: str
    client: str  # its function in inside/measured_clients.py and inside/default_clients.py
    module: str  # what its users import; "" for the floor
    marker: str
    python: str
    version: str
    env: dict[str, str]
    options: Mapping[str, Any] = {}  # read only: its arguments in scenarios


class Environments:
    """Makes each virtual environment once, in ``cache``; delete a folder there to have it made again."""

    def __init__(self, python: str, cache: Path, progress: Callable[[str], None], extras: tuple[str, ...] = ()) -> None:
        """``extras`` are requirements that are installed in each environment, in addition to its client."""
        self._python = python
        self._extras = extras
        self._cache = cache
        self._progress = progress
        self.python_version = _output(python, "import platform; print(platform.python_version())")

    def this_client(self, requirement: str | None = None) -> Peer:
        """This checkout, in an environment with ``requirement``."""
        python = self._environment(requirement)
        env = {**clean_environment(), "PYTHONPATH": str(CHECKOUT)}
        version = _output(python, "import letterapp; print(letterapp.__version__)", env)
        known = KNOWN["letterapp"]
        return Peer(SELF, "letterapp", known.module, known.marker, python, version, env)

    def relay(self) -> Peer:
        """This client, with a relay to which all processes send their events."""
        return self.this_client()._replace(column=RELAY, options={"relay": True})

    def orjson(self) -> Peer:
        """This client, in an environment in which orjson is installed."""
        return self.this_client("orjson")._replace(column=ORJSON)

    def manager(self) -> Peer:
        """This client, with the queue of one `letterapp.relay.SenderManager` in all processes."""
        return self.this_client()._replace(column=MANAGER, options={"manager": {}})  # see inside/managers.py

    def redis(self) -> Peer:
        """This client, with a stream in a Redis server that is started for it: see `redis_service`."""
        return self.this_client("redis")._replace(column=REDIS)

    def floor(self) -> Peer:
        return Peer(FLOOR, "floor", "", "", self._environment(None), self.python_version, clean_environment())

    def peer(self, name: str) -> Peer:
        """The client called ``name``, ``NAME`` or ``NAME==VERSION``."""
        plain, _, version = name.partition("==")
        if plain not in KNOWN or not re.fullmatch(r"[\w.]*", version):
            raise ValueError(f"unknown peer {name!r}: one of {', '.join(KNOWN)}, or NAME==VERSION")
        known = KNOWN[plain]
        version = version or known.version
        python = self._environment(f"{known.requirement}=={version}" if version else known.requirement)
        found = _output(python, f"from importlib.metadata import version; print(version({known.requirement!r}))")
        column = f"letterapp {found}" if plain == "letterapp" else plain
        return Peer(column, plain, known.module, known.marker, python, found, clean_environment())

    def package(self, requirement: str) -> Path:
        """A folder for PYTHONPATH with this package only, for a version that no environment may contain."""
        folder = self._cache / f"py{self.python_version}-only-{requirement}"
        done = folder / "done"
        if not done.exists():
            self._progress(f"installing {requirement} for Python {self.python_version}")
            self._pip(self._environment(None), "--upgrade", "--target", str(folder), requirement)
            done.touch()
        return folder

    def _environment(self, requirement: str | None) -> str:
        wanted = [*filter(None, [requirement]), *self._extras]
        name = f"py{self.python_version}-{requirement or 'bare'}"
        if self._extras:  # the name identifies the contents, so that other requirements lead to another environment
            name += f"-and-{zlib.crc32(' '.join(self._extras).encode()):08x}"
        folder = self._cache / name
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        done = folder / "done"  # written last, so that an interrupted installation is started again
        if not done.exists():
            what = ", ".join(wanted) or "a bare environment"
            self._progress(f"installing {what} for Python {self.python_version}")
            _run([self._python, "-m", "venv", "--clear", str(folder)])
            if wanted:
                self._pip(str(python), *wanted)
            done.touch()
        return str(python)

    def _pip(self, python: str, *arguments: str) -> None:
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
        try:
            _run(command)
        except ValueError:
            _run(command)  # a registry may be temporarily unavailable


def clean_environment() -> dict[str, str]:
    """The environment without variables that configure a client or an interpreter."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(_CLEARED)}
    return {**kept, "NO_PROXY": "*", "no_proxy": "*"}


def _output(python: str, code: str, env: dict[str, str] | None = None) -> str:
    return _run([python, "-c", code], env or clean_environment()).strip()


def _run(command: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env or clean_environment(), check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout
