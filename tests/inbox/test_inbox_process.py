"""The inbox as a process: its start, its end, its file, its bounds."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import DEADLINE, environment, eventually
from inboxes import Inbox, item

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def start(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an inbox that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "letterapp", "inbox", *arguments],
        env=environment(""),
        cwd=str(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
    )


def test_a_port_in_use_is_one_clear_line(inbox: Inbox, tmp_path: Path) -> None:
    done = start(tmp_path, "--port", str(inbox.port))
    assert done.returncode == 1
    assert done.stdout == (
        f"inbox: cannot listen on port {inbox.port}: Address already in use; choose another with --port\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_whatever_is_connected(number: int, tmp_path: Path) -> None:
    with Inbox(tmp_path) as inbox:
        silent, streaming, waiting = inbox.connect(), inbox.connect(), inbox.connect()
        streaming.sendall(f"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1:{inbox.port}\r\n\r\n".encode())
        assert streaming.recv(100).startswith(b"HTTP/1.1 200")
        waiting.sendall(f"GET /api/events?wait=60 HTTP/1.1\r\nHost: 127.0.0.1:{inbox.port}\r\n\r\n".encode())
        inbox.track(item())
        started = time.monotonic()
        inbox.signal(number)
        done = inbox.finish()
        assert time.monotonic() - started < 10  # some 0.05 s, unless the machine is busy
        assert done.code == 0 and "Traceback" not in done.output
        for sock in (silent, streaming, waiting):
            sock.close()


@pytest.mark.slow
def test_ctrl_c_ends_it_though_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "letterapp", "inbox", "--port", "0", "--json"]
    with subprocess.Popen(
        command, env=environment(""), cwd=str(tmp_path), stdout=writing, stderr=subprocess.PIPE
    ) as it:
        os.close(writing)
        assert it.stderr is not None
        port = int(it.stderr.readline().decode().split("127.0.0.1:")[1].split()[0])
        from letterapp import Letter

        with Letter("k", f"http://127.0.0.1:{port}") as letter:
            for _ in range(50):
                letter.track("u", "E", {"text": "x" * 4000})  # more than a pipe has room for
        it.send_signal(signal.SIGINT)
        assert it.wait(DEADLINE) == 0
    os.close(reading)


def test_a_printed_line_has_all_fields(tmp_path: Path) -> None:
    with Inbox(tmp_path) as inbox:
        inbox.track(item("group", name="Acme Inc.", traits={"seats": 3}), item("group"))
        inbox.track(item("identify", email="a@example.com", timezone="Europe/Vienna"), item(properties={"name": "x"}))
        printed = eventually(lambda: inbox.output, lambda text: text.count("  u1  ") == 4)
    assert [line.split("  u1  ")[1] for line in printed.splitlines() if "  u1  " in line] == [
        'acme  name="Acme Inc."  {"seats": 3}',
        "acme  {}",
        'a@example.com  timezone="Europe/Vienna"  {}',
        'E  {"name": "x"}',
    ]


def test_it_prints_events_as_lines_of_json(tmp_path: Path) -> None:
    with Inbox(tmp_path, "--json") as inbox:
        event = item(event="A\n\u2028", properties={"n": 1})
        inbox.track(event)
        inbox.track(event)
        printed = eventually(lambda: inbox.output, lambda text: text.count("\n{") == 2)
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [line["item"] for line in lines] == [event, event]
    assert [(line["again"], line["attempt"]) for line in lines] == [(False, 1), (True, 2)]


@pytest.mark.slow
def test_the_demo_can_send_to_it(inbox: Inbox, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "letterapp", "demo", "--workers", "2", "--base-url", inbox.url],
        env=environment("", LETTER_API_KEY="lt_test_local"),
        cwd=str(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stdout
    stats = inbox.get("/api/stats")
    assert stats["events"] == 19 and stats["names"] == [{"name": "Demo Event", "count": 19}]
    if sys.platform == "linux":
        assert {one["process"] for one in stats["processes"]} == {
            "letterapp",
            "multiprocessing.spawn",
            "letterapp relay",
        }


# --keep.


def test_what_is_kept_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    event = item(event="Kept", user="u7", properties={"n": 1})
    with Inbox(tmp_path, "--keep", str(path)) as inbox:
        inbox.track(event, item(event="Other"))
        inbox.track(event)
        before = inbox.get("/api/stats")
        inbox.signal(signal.SIGKILL)
        inbox.finish()
    assert path.stat().st_mode & 0o777 == 0o600
    with Inbox(tmp_path, "--keep", str(path)) as inbox:
        stats = inbox.get("/api/stats")
        for name in ("events", "last", "again", "requests", "types", "processes", "names", "bytes"):
            assert stats[name] == before[name], name
        seen = inbox.get("/api/events", event="Kept")
        assert seen["item"] == event and seen["deliveries"] == 2 and len(seen["requests"]) == 2
        inbox.track(event)
        assert inbox.get("/api/stats")["events"] == 2 and inbox.names() == ["Other", "Kept"]


@pytest.mark.slow
def test_a_kill_while_events_arrive_loses_none_that_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    answered = []
    with Inbox(tmp_path, "--keep", str(path)) as inbox:
        for number in range(60):
            event = item(messageId=f"m{number}")
            inbox.track(event)
            answered.append(event["messageId"])
            if number == 50:
                inbox.signal(signal.SIGSTOP)
                inbox.signal(signal.SIGKILL)
                break
        inbox.finish()
    with Inbox(tmp_path, "--keep", str(path)) as inbox:
        events = inbox.get("/api/list", whole=1, limit=100)["events"]
        assert [event["item"]["messageId"] for event in events] == answered[::-1]


def test_one_inbox_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    with Inbox(tmp_path, "--keep", str(path)):
        done = start(tmp_path, "--port", "0", "--keep", str(path))
    assert done.returncode == 1 and done.stdout == f"inbox: cannot use {path}: another inbox has it open\n"


@pytest.mark.parametrize("what", ["text", "other database", "folder", "missing folder"])
def test_a_file_that_is_no_inbox_s_is_left_alone(what: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    if what == "text":
        path.write_text("not a database, but long enough to be looked at " * 100)
    elif what == "other database":
        with sqlite3.connect(str(path)) as db:
            db.execute("CREATE TABLE mine (x)")
        db.close()
    elif what == "folder":
        path.mkdir()
    else:
        path = tmp_path / "none" / "it"
    before = path.read_bytes() if path.is_file() else b""
    done = start(tmp_path, "--port", "0", "--keep", str(path))
    assert done.returncode == 1 and done.stdout.startswith(f"inbox: cannot use {path}: ")
    assert done.stdout.count("\n") == 1
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_file_is_small_again_after_everything_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    with Inbox(tmp_path, "--keep", str(path)) as inbox:
        inbox.track(*(item(properties={"text": "x" * 10_000}) for _ in range(100)))
        inbox.request("DELETE", "/api/events")
        inbox.signal(signal.SIGINT)
        inbox.finish()
    assert path.stat().st_size < 100_000


@pytest.mark.skipif(sys.platform == "darwin", reason="needs a limit of a file's size")
def test_a_full_disk_is_answered_and_the_client_keeps_its_events(tmp_path: Path) -> None:
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)); "
    limited += "from letterapp.__main__ import main; sys.exit(main(sys.argv[1:]))"
    with Inbox(tmp_path, "--keep", str(tmp_path / "kept.sqlite"), program=("-c", limited)) as inbox:
        stored = 0
        status = 200
        while status == 200:
            status, said = inbox.post("/v1/batch", {"batch": [item(properties={"text": "x" * 20_000})]})
            stored += status == 200
            assert stored < 100
        assert status == 500 and said["error"]["code"] == "storage"
        assert inbox.get("/api/stats")["events"] == inbox.get("/api/stats")["types"]["track"] == stored
        assert inbox.get("/api/count", type="track")["count"] == stored
        assert "inbox: cannot use its file" in inbox.output and "Traceback" not in inbox.output
        assert inbox.request("DELETE", "/api/events")[0] in (200, 500)


# Bounds.


@pytest.mark.parametrize("kept", [False, True])
def test_the_oldest_events_go_and_are_counted(kept: bool, tmp_path: Path) -> None:
    arguments = ["--keep", str(tmp_path / "kept.sqlite")] if kept else []
    with Inbox(tmp_path, "--max-events", "150", *arguments) as inbox:
        for start_ in range(0, 400, 100):
            inbox.track(*(item(event=f"E{number}") for number in range(start_, start_ + 100)))
        stats = inbox.get("/api/stats")
        names = inbox.names(limit=1000)
        assert names == [f"E{number}" for number in reversed(range(400 - len(names), 400))]
        assert 140 <= stats["events"] == len(names) <= 150 and stats["evicted"] == 400 - len(names)
        assert stats["types"]["track"] == len(names) == sum(one["count"] for one in stats["names"])


def test_a_kept_file_with_more_events_than_the_bound_is_cut_at_the_start(tmp_path: Path) -> None:
    path = str(tmp_path / "kept.sqlite")
    with Inbox(tmp_path, "--keep", path) as inbox:
        inbox.track(*(item(event=f"E{number}") for number in range(50)))
    with Inbox(tmp_path, "--keep", path, "--max-events", "20") as inbox:
        assert inbox.names() == [f"E{number}" for number in reversed(range(30, 50))]
        assert inbox.get("/api/stats")["evicted"] == 30


def test_the_bytes_of_events_are_bounded(tmp_path: Path) -> None:
    with Inbox(tmp_path, "--max-bytes", "100000") as inbox:
        for number in range(30):
            inbox.track(item(event=f"E{number}", properties={"text": "x" * 10_000}))
        stats = inbox.get("/api/stats")
        assert stats["bytes"] <= 100_000 and 5 <= stats["events"] <= 10
        assert stats["evicted"] == 30 - stats["events"] and inbox.names()[0] == "E29"
        inbox.track(item(event="Larger than all", properties={"text": "x" * 200_000}))
        assert inbox.get("/api/stats")["events"] == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hundred_thousand_events_are_searched_without_keeping_senders_waiting(full: Inbox) -> None:
    # Each takes some 20 ms; a hundred times that on a busy machine.
    for parameters in ({"q": "nothing"}, {"offset": 99_900}, {"q": "m99999"}, {"user": "none"}):
        started = time.monotonic()
        full.get("/api/list", **parameters)
        assert time.monotonic() - started < 2, parameters
    with open(f"/proc/{full.pid}/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert resident < 250_000, "kB"
