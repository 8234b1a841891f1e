"""mod_wsgi in Apache, as Debian packages them: `apt-get install apache2 libapache2-mod-wsgi-py3`."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, Iterator

import pytest
from applications import LATE_FLUSH, Application, copy, ended
from harness import ROOT, WebServer, environment, eventually

from stress.ports import free_port

APACHE = shutil.which("apache2", path=f"{os.environ.get('PATH')}:/usr/sbin")
MODULES = Path("/usr/lib/apache2/modules")
MAIN = """
ServerRoot {directory}
ServerName localhost
PidFile {directory}/pid
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule wsgi_module {modules}/mod_wsgi.so
ErrorLog /dev/stderr
Define SHOP {directory}
Include {directory}/shop.conf
"""


def readable_by_others(path: Path) -> bool:
    return all(each.stat().st_mode & 0o005 == 0o005 for each in [path, *path.parents])


pytestmark = [
    pytest.mark.skipif(
        not APACHE or not (MODULES / "mod_wsgi.so").exists(), reason="apache2 or its mod_wsgi is not installed"
    ),
    pytest.mark.skipif(
        os.getuid() == 0 and not readable_by_others(ROOT), reason="Apache does not run as root, and could not read this"
    ),
]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as outer:
        os.chmod(outer, 0o755)  # pytest's own is private
        yield Path(outer) / "mod_wsgi"


def start(directory: Path, api: Any, without: str = "") -> Application:
    copy("mod_wsgi", directory, without)
    port = free_port()
    user = "User www-data\nGroup www-data\n" if os.getuid() == 0 else ""
    (directory / "main.conf").write_text(user + MAIN.format(directory=directory, port=port, modules=MODULES))
    env = environment(api.url, LETTER_BASE_URL=api.url, LETTER_API_KEY="lt_test_key")
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(LATE_FLUSH)])
    command = [str(APACHE), "-DFOREGROUND", "-f", str(directory / "main.conf")]
    return Application(WebServer(command, env, directory, port), directory, api, port)


@pytest.mark.gate
def test_a_stop(directory: Path, letter_api: Any) -> None:
    check_end(signal.SIGTERM, directory, letter_api)


def test_a_graceful_stop(directory: Path, letter_api: Any) -> None:
    check_end(signal.SIGWINCH, directory, letter_api)


def check_end(number: int, directory: Path, letter_api: Any) -> None:
    shop = start(directory, letter_api)
    with shop.program:
        shop.orders(20)
        shop.waits()
        shop.stop(number, code=0)
        shop.all_arrived()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1], ids=["restart", "graceful"])
def test_a_restart(number: int, directory: Path, letter_api: Any) -> None:
    shop = start(directory, letter_api)
    with shop.program:
        shop.orders(20)
        shop.waits()
        old = shop.workers()
        shop.program.signal(number)
        assert ended(old), shop.output
        assert shop.arrived() == shop.answered
        assert eventually(shop.order, bool), shop.output
        shop.stop(code=0)
        shop.all_arrived()


def test_a_sub_interpreter_loses_what_waits(directory: Path, letter_api: Any) -> None:
    """It hangs at its end, without any client too, and Apache kills the process."""
    shop = start(directory, letter_api, without="WSGIApplicationGroup %{GLOBAL}\n")
    with shop.program:
        shop.orders(20)
        shop.stop(code=0)
        assert shop.arrived() == []
