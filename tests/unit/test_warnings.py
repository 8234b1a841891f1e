"""`python -X dev` has nothing to complain of, however a program with a client ends."""

from __future__ import annotations

import os
import ssl
import sys
import textwrap
from pathlib import Path
from typing import Any, Iterator

import pytest
import trustme
from harness import DEADLINE, PRELUDE, Program, environment, eventually
from managed import Directory
from relayed import Runtime
from senders import clear

from letterapp.testing import Hold, IngestionServer

USED = "letter = Letter('k', API, **options)\nletter.track('u', 'E')\nassert letter.flush(60)\n"
FORKED = USED + "pid = os.fork()\nif pid:\n    assert os.waitpid(pid, 0)[1] == 0\n"
MANAGED = (
    "from letterapp.relay import SenderManager\nmanager = SenderManager('k', API)\nmanager.start()\n"
    "options = {'relay': manager.queue}\nAPI = ''\n" + USED
)

ENDS = {
    "its end": "letter = Letter('k', API, **options)\nletter.track('u', 'E')",
    "its end, with a connection": USED,
    "close": USED + "assert letter.close()",
    "async with": "import asyncio\nasync def main():\n    async with Letter('k', API, **options) as letter:\n"
    "        letter.track('u', 'E')\n        assert await letter.aflush(60)\nasyncio.run(main())",
    "a client that nobody keeps": USED + "del letter\nimport gc\ngc.collect()",
    "a client of a function": f"def main():\n{textwrap.indent(USED, '    ')}main()",
    "an exception": USED + "raise SystemExit(0)",
    "a child that does not use it": FORKED,
    "a child that uses it": FORKED + "else:\n    letter.track('u', 'E')",
    "a child that throws it away": FORKED + "else:\n    del letter",
    "a child that calls os._exit": FORKED + "else:\n    letter.track('u', 'E')\n    os._exit(0)",
    "multiprocessing": "import multiprocessing\n" + USED + "job = multiprocessing.get_context('fork').Process"
    "(target=letter.track, args=('u', 'E'))\njob.start()\njob.join()",
    "send": "assert Letter('k', API, **options).send('a@b', 's', text='t')",
}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[IngestionServer, str]]:
    authority = trustme.CA()
    trusted = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with IngestionServer(ssl_context=context) as api:
        yield api, str(trusted)


def program(code: str, api_url: str, tmp_path: Path, options: str = "{}", **env: str) -> Program:
    script = tmp_path / "program.py"
    script.write_text(f"{PRELUDE}\noptions = {options}\n{textwrap.dedent(code)}\n")
    # Warnings of forks beside threads are another matter. Python 3.8's own forks do not bear its development mode.
    mode = ["-X", "dev"] if sys.version_info >= (3, 9) else []
    flags = [*mode, "-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning"]
    return Program([sys.executable, *flags, str(script)], environment(api_url, **env), tmp_path)


def ends_without_a_word(running: Program) -> None:
    finished = running.finish()
    assert (finished.code, finished.output) == (0, ""), finished


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_no_socket_is_left_open_by(code: str, tls: bool, letter_api: Any, secured: Any, tmp_path: Path) -> None:
    if tls:
        with program(code, secured[0].url, tmp_path, SSL_CERT_FILE=secured[1]) as running:
            ends_without_a_word(running)
    else:
        with program(code, letter_api.url, tmp_path) as running:
            ends_without_a_word(running)


@pytest.mark.parametrize("end", ["its end, with a connection", "close", "a client that nobody keeps"])
@pytest.mark.parametrize("way", ["relay", "manager", "spool"])
def test_nor_by_another_way(way: str, end: str, letter_api: Any, tmp_path: Path) -> None:
    options = {"relay": "{'relay': True}", "manager": "{}", "spool": "{'spool': 'spool'}"}[way]
    code = ENDS[end].replace(USED, MANAGED) if way == "manager" else ENDS[end]
    here = Directory(letter_api) if way == "manager" else Runtime(letter_api)
    try:
        with program(code, letter_api.url, tmp_path, options, XDG_RUNTIME_DIR=str(here.path)) as running:
            ends_without_a_word(running)
    finally:
        assert clear(here) == []


QUIET = "options = {'on_error': lambda error: None, 'exit_timeout': 0.3}\nletter = Letter('k', API, **options)\n"


@pytest.mark.parametrize("last", ["", "letter.close()"], ids=["end", "close"])
def test_nor_where_the_api_is_down(last: str, tmp_path: Path) -> None:
    with program(f"{QUIET}letter.track('u', 'E')\n{last}", "http://127.0.0.1:1", tmp_path) as running:
        ends_without_a_word(running)


@pytest.mark.parametrize("last", ["", "letter.close(0)"], ids=["end", "close"])
def test_nor_where_the_api_does_not_answer(last: str, letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    code = f"{QUIET}letter.track('u', 'E')\nwhile not os.path.exists('arrived'):\n    time.sleep(0.01)\n{last}"
    with program(code, letter_api.url, tmp_path) as running:
        assert hold.arrived.wait(DEADLINE)
        (tmp_path / "arrived").touch()
        ends_without_a_word(running)
    hold.release()


def test_nor_where_the_answer_comes_after_close_has_given_up(letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    code = f"""{QUIET}letter.track('u', 'E')
while not os.path.exists('arrived'):
    time.sleep(0.01)
assert not letter.close(0)
open('given up', 'w').close()
while len(sys._current_frames()) > 1:  # the sender's thread has its answer, and leaves
    time.sleep(0.01)
"""
    with program(code, letter_api.url, tmp_path) as running:
        assert hold.arrived.wait(DEADLINE)
        (tmp_path / "arrived").touch()
        assert eventually(lambda: os.path.exists(tmp_path / "given up"), bool)
        hold.release()
        ends_without_a_word(running)
