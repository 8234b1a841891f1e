"""The ingestion server for tests, and `inbox`: whatever arrives, and whatever callbacks do."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, Program, environment, eventually

from letterapp import Letter, LetterError
from letterapp._cli.inbox import _Printer
from letterapp.testing import IngestionServer, status
from stress.ports import free_port

HOSTILE = "\x1b]0;owned\x07\u202egnp.exe\u2066\n2026-01-01  track     forged\u2028 \xfcml\xe4ut"


def received(api: IngestionServer, path: str = "/received", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=DEADLINE)
    try:
        connection.putrequest("GET", path, skip_host=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:{port}", "[::1]"]
)
def test_events_are_shown_only_for_a_host_name_of_this_machine(
    host: str, letter_api: IngestionServer, make: Any
) -> None:
    make().track("u", "E")
    assert letter_api.wait_for(1)
    code, said = received(letter_api, Host=host.format(port=letter_api.port))
    assert code == 200 and [item["event"] for item in said["events"]] == ["E"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example:80"},
        {"Host": "127.0.0.1:80@evil.example"},
        {"Host": ""},
        {},
        {"Host": "127.0.0.1:{port}", "Origin": "https://evil.example"},
        {"Host": "localhost", "Origin": "null"},
    ],
)
@pytest.mark.parametrize("path", ["/received", "/counts", "/"])
def test_events_are_not_shown_to_web_pages(
    path: str, headers: dict[str, str], letter_api: IngestionServer, make: Any
) -> None:
    make().track("secret-user", "E")
    assert letter_api.wait_for(1)
    given = {name: value.format(port=letter_api.port) for name, value in headers.items()}
    code, said = received(letter_api, path, **given)
    assert code == 403 and "secret-user" not in json.dumps(said) and "distinct" not in said


# Callbacks that raise.


def _raises(*_: object) -> Any:
    raise ZeroDivisionError("mine")


def _raises_late(handler: Any) -> None:
    handler.keep()
    _raises()


def _raises_after_its_answer(handler: Any) -> None:
    handler.keep()
    handler.answer(200)
    _raises()


def _finds_no_file(handler: Any) -> None:
    raise FileNotFoundError("mine")


def _fails_the_test(handler: Any) -> None:
    pytest.fail("mine")  # raises what is no `Exception`


@pytest.mark.parametrize("fault", [_raises, _raises_late, _raises_after_its_answer, _finds_no_file, _fails_the_test])
@pytest.mark.parametrize("planned", [True, False])
def test_a_fault_that_raises_loses_no_request(
    fault: Callable[[Any], object],
    planned: bool,
    letter_api: IngestionServer,
    make: Any,
    errors: list[LetterError],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if planned:
        letter_api.plan(fault)
    else:
        letter_api.rule = lambda request: fault
    letter = make(max_retries=0)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and errors == []
    assert [item["event"] for item in letter_api.events] == ["E"] and len(letter_api.requests) == 1
    printed: list[str] = []  # in pieces, when the request has been answered

    def look() -> str:
        printed.append(capsys.readouterr().err)
        return "".join(printed)

    assert "mine" in eventually(look, lambda text: "mine" in text)


@pytest.mark.parametrize("rule", [_raises, _fails_the_test])
def test_a_rule_that_raises_loses_no_request(
    rule: Any, letter_api: IngestionServer, make: Any, errors: list[LetterError], capsys: pytest.CaptureFixture[str]
) -> None:
    letter_api.rule = rule
    letter = make(max_retries=0)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and errors == [] and letter_api.distinct == 1
    assert ": mine" in capsys.readouterr().err


@pytest.mark.parametrize("raises", [_raises, _fails_the_test])
def test_an_on_event_that_raises_gets_every_event_and_loses_none(
    raises: Any, make: Any, errors: list[LetterError], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def on_event(item: dict[str, Any]) -> None:
        seen.append(item["event"])
        raises(item)

    with IngestionServer(on_event=on_event) as api:
        letter = make(base_url=api.url, max_retries=0, flush_interval=60)
        for event in "ABC":
            letter.track("u", event)
        assert letter.flush(DEADLINE) and errors == []
        assert seen == [item["event"] for item in api.events] == ["A", "B", "C"]
        assert letter.stats()["delivered"] == 3
    assert capsys.readouterr().err.count(": mine") == 3


def test_a_callback_may_raise_where_stderr_is_closed(
    make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed = (tmp_path / "closed").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    with IngestionServer(on_event=_raises) as api:
        letter = make(base_url=api.url, max_retries=0)
        letter.track("u", "E")
        assert letter.flush(DEADLINE) and errors == [] and api.distinct == 1


def test_a_fault_whose_client_has_gone_stores_exactly_the_requested_events(
    letter_api: IngestionServer, make: Any
) -> None:
    def gone(handler: Any) -> None:
        handler.hang_up()
        raise BrokenPipeError

    letter_api.plan(gone, status(200))
    letter = make(max_retries=1)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and letter_api.events == []


@pytest.mark.usefixtures("without_collection")
def test_json_that_is_too_deep_is_refused_and_answered(letter_api: IngestionServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", letter_api.port, timeout=DEADLINE)
    connection.request("POST", "/v1/batch", b"[" * 200_000, {"Authorization": "Bearer k"})
    assert connection.getresponse().status == 400
    connection.close()


# inbox.


def inbox(tmp_path: Path, arguments: str = "", redirect: str = "", **env: str) -> Program:
    line = f'exec "$0" -m letterapp inbox {arguments or "--port 0"} {redirect}'
    return Program(["sh", "-c", line, sys.executable], environment("", **env), tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_inbox_prints_any_event_on_one_line_without_control_characters(
    encoding: str, make: Any, errors: list[LetterError], tmp_path: Path
) -> None:
    with inbox(tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="0") as program:

        def output() -> str:
            return os.pread(program._output.fileno(), 1_000_000, 0).decode(encoding)

        address = next(word for word in eventually(output, lambda text: "Ctrl-C" in text).split() if "http" in word)
        letter = make(base_url=address, max_retries=0)
        letter.track("u\x1b[2J", HOSTILE, {HOSTILE: HOSTILE})
        letter.identify("u", email="a\u202e@b")
        letter.track("u", "last")
        assert letter.flush(DEADLINE) and errors == []
        lines = eventually(output, lambda text: "last" in text).rstrip("\n").split("\n")[1:]
    assert len(lines) == 4, lines
    assert all(line.isprintable() for line in lines), lines
    assert "\\u001b]0;owned\\u0007\\u202egnp.exe" in lines[1]
    assert ("\xfcml\xe4ut" if encoding != "ascii" else "\\xfcml\\xe4ut") in lines[1]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's redirection")
@pytest.mark.parametrize("redirect", [">&-", ">/dev/full", ">&- 2>&-", "2>&-"])
def test_inbox_keeps_what_stdout_cannot_write(
    redirect: str, make: Any, errors: list[LetterError], tmp_path: Path
) -> None:
    port = free_port()
    with inbox(tmp_path, f"--port {port}", redirect) as program:
        letter = make(base_url=f"http://127.0.0.1:{port}", max_retries=None)
        for event in "AB":
            letter.track("u", event)
        assert letter.flush(DEADLINE) and errors == [], program.output
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        connection.request("GET", "/api/list")
        said = json.loads(connection.getresponse().read())
        connection.close()
        assert [event["name"] for event in said["events"]] == ["B", "A"]
        complaints = eventually(
            lambda: program.output.count("can no longer be printed"), lambda count: count == (redirect == ">/dev/full")
        )
        assert complaints == (redirect == ">/dev/full")


def test_a_printer_whose_reader_has_gone_reports_that_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        show = _Printer()
        item = {"timestamp": "\ud800", "type": "track", "userId": "u", "event": "E"}
        for _ in range(3):
            show.event({"item": item, "type": "track", "user": "u", "name": "E", "again": False})
        show.close(DEADLINE)
    assert capsys.readouterr().err.count("can no longer be printed") == 1


def test_the_inbox_prints_what_arrives(tmp_path: Path) -> None:
    inbox = subprocess.Popen(
        [sys.executable, "-m", "letterapp", "inbox", "--port", "0"],
        env=environment(""),
        cwd=str(tmp_path),
        stdout=subprocess.PIPE,
        universal_newlines=True,
    )
    try:
        assert inbox.stdout is not None
        url = re.search(r"http://\S+", inbox.stdout.readline())
        assert url is not None
        assert f"LETTER_BASE_URL={url.group()} LETTER_API_KEY=lt_test_local" in inbox.stdout.readline()
        with Letter("k", url.group()) as letter:
            letter.track("user_42", "Order Completed", {"amount": 5})
        line = inbox.stdout.readline()
        assert "user_42" in line and "Order Completed" in line and '{"amount": 5}' in line
    finally:
        inbox.terminate()
        inbox.wait(30)
        assert inbox.stdout is not None
        inbox.stdout.close()
