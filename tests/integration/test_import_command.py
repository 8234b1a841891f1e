"""``python -m letterapp import FILE``: real files, real processes, a real server."""

from __future__ import annotations

import gzip
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, Finished, Program, environment, eventually

from letterapp.testing import IngestionServer, Request, status

KEY = "lt_test_secret_of_the_import"
NOWHERE = "http://127.0.0.1:9"
WHEN = "2026-01-31T12:00:00Z"
Import = Callable[..., Finished]


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "letterapp", "import", *map(str, arguments)]


def env_for(url: str, **env: str) -> dict[str, str]:
    return environment(url, **{"LETTER_API_KEY": KEY, "LETTER_BASE_URL": url, **env})


@pytest.fixture
def importing(tmp_path: Path, letter_api: IngestionServer) -> Import:
    """Runs the command to its end, in the folder of the test."""

    def run(*arguments: Any, url: str = letter_api.url, **env: str) -> Finished:
        with Program(command(*arguments), env_for(url, **env), tmp_path) as program:
            finished = program.finish()
        assert KEY not in finished.output
        return finished

    return run


def row(number: int, **more: Any) -> dict[str, Any]:
    made = {"userId": f"u{number % 7}", "event": "E", "timestamp": WHEN, "properties": {"n": number}}
    return {**made, **more}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in rows))
    return path


def numbers(api: IngestionServer) -> list[int]:
    """The rows that arrived, once for each id."""
    return sorted({item["messageId"]: item["properties"]["n"] for item in api.events}.values())


def refused(path: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["line"], line["reason"]) for line in lines]


# What a row becomes.


def test_lines_of_json(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    rows = [
        row(1, messageId="given"),
        {"user_id": "ada", "event": "E", "timestamp": "2026-01-31 13:00:00.5+01:00"},
        {"type": "identify", "userId": "ada", "email": "ada@example.com", "traits": {"plan": "pro"}, "timestamp": None},
        {"userId": "ada", "accountId": "acme", "name": "Acme", "timestamp": 1769860800},
        "",
        "   ",
    ]
    done = importing(write(tmp_path / "rows.jsonl", *rows))
    assert done.code == 0 and "4 rows sent, 0 refused\n" in done.output, done
    given, other, person, account = letter_api.events
    assert given == {"type": "track", **row(1), "messageId": "given"}
    assert other["timestamp"] == "2026-01-31T12:00:00.5Z" and other["properties"] == {}
    assert person["email"] == "ada@example.com" and person["traits"] == {"plan": "pro"}
    assert (account["accountId"], account["name"], account["timestamp"]) == ("acme", "Acme", "2026-01-31T12:00:00Z")
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl"]  # nothing is left


def test_csv(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b"\xef\xbb\xbfuser_id,event,timestamp,amount,vip,properties.tags,note\r\n"
        b'ada,Order Completed,2026-01-31,99.5,yes,"[1, 2]","two\r\nlines, and a ""quote"""\r\n'
        b"\r\n"
        b",,,,,,\r\n"
        b"grace,Signed Up,2026-01-31T12:00:00Z,,,,\r\n"
    )
    done = importing(path, "--types", "amount=number,vip=boolean,properties.tags=json")
    assert done.code == 0 and "2 rows sent, 0 refused\n" in done.output, done
    order, signed_up = letter_api.events
    wanted = {"amount": 99.5, "vip": True, "tags": [1, 2], "note": 'two\r\nlines, and a "quote"'}
    assert (order["userId"], order["event"], order["timestamp"]) == ("ada", "Order Completed", "2026-01-31")
    assert order["properties"] == wanted and signed_up["properties"] == {}


def test_csv_with_all_kinds_of_events(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.csv",
        "type;userId;event;accountId;email;name;timestamp;plan;traits",
        'identify;ada;;;ada@example.com;;;pro;"{""age"": 36}"',
        "group;ada;;acme;;Acme;;;",
        f"track;ada;E;;x@example.com;;{WHEN};;",
    )
    assert importing(path).code == 0
    person, account, event = letter_api.events
    assert person["traits"] == {"age": 36, "plan": "pro"} and person["email"] == "ada@example.com"
    assert account["accountId"] == "acme" and account["name"] == "Acme"
    assert event["properties"] == {"email": "x@example.com"}  # no field of a track


@pytest.mark.parametrize("header", ["email,events", "traits.events,plan", "event_count,plan"])
def test_traits_that_look_like_an_event(
    header: str, importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(f"user_id,{header}\nu,a,b\n")
    assert importing("rows.csv").code == 0
    assert [item["type"] for item in letter_api.events] == ["identify"]


def test_from_stdin_and_compressed(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    data = "".join(json.dumps(row(number)) + "\n" for number in range(150)).encode()
    for given in (data, gzip.compress(data)):
        done = subprocess.run(
            command("-"),
            input=given,
            env=env_for(letter_api.url),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            timeout=DEADLINE,
        )
        assert done.stdout == b"150 rows sent, 0 refused\n"
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(data))
    assert importing("rows.jsonl.gz").code == 0
    assert letter_api.distinct == 150 and len(letter_api.events) == 450


def test_from_a_pipe_with_a_name(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with Program(command(path), env_for(letter_api.url), tmp_path) as program:
        write(path, row(1), row(2), "no json")
        done = program.finish()
    assert done.code == 1 and "2 rows sent, 1 refused (see refused.jsonl)" in done.output, done
    assert sorted(os.listdir(tmp_path)) == ["pipe", "refused.jsonl"]


# Ids.


# They never change: an import that is repeated with another version must not double its events.
IDS = [
    "fe453097-5941-5bde-b55f-b322663ec56e",
    "6f132fb4-6e6a-5f97-bab5-0a54ed589020",
    "984660e7-95e2-5ab0-8cc4-d310a9914d91",
]


def test_ids_are_derived_from_the_row_and_never_change(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    importing(write(tmp_path / "rows.jsonl", {"event": "E", "userId": "ada", "timestamp": WHEN}))
    importing(write(tmp_path / "other.csv", "timestamp,user_id,event", "2026-01-31 13:00+0100,ada,E"))
    importing(write(tmp_path / "keyed.csv", "timestamp,user_id,event,order", f"{WHEN},ada,E,7"), "--id-from", "order")
    importing(
        write(tmp_path / "keyed.jsonl", row(1, userId="x", properties={"order": "7"})), "--id-from", "properties.order"
    )
    ids = [item["messageId"] for item in letter_api.events]
    assert ids[0] == ids[1] == IDS[0] and ids[2] == IDS[1] and ids[3] == IDS[2]


def test_a_second_run_doubles_nothing(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *map(row, range(250)))
    for _ in range(2):
        assert importing(path).code == 0
    assert len(letter_api.events) == 500 and numbers(letter_api) == list(range(250))


def test_a_row_without_the_field_of_its_id_is_refused(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.csv", "user_id,event,timestamp,order", f"ada,E,{WHEN},", f"ada,E,{WHEN},1")
    done = importing(path, "--id-from", "order")
    assert done.code == 1 and refused(tmp_path / "rows.csv.refused.jsonl") == [
        (2, "it has no value order, from which its id is derived")
    ]


# Rows that are refused.

BAD = {
    "no json": "it is not JSON",
    "[1]": "it is not a JSON object",
    "NaN": "it is not a JSON object",
    "[" * 100_000: "it is not JSON",
    '{"userId": "u", "event": "E"}': "it has no timestamp",
    '{"userId": "", "event": "E", "timestamp": 1}': "userId is required",
    '{"userId": 7, "event": "E", "timestamp": 1}': "userId must be a string, not int: 7",
    '{"userId": "u", "event": null, "timestamp": 1}': "event is required",
    '{"userId": "u", "event": "E", "timestamp": "31.1.2026"}': "is neither ISO 8601",
    '{"userId": "u", "event": "E", "timestamp": "2026-02-30T00:00:00Z"}': "is neither ISO 8601",
    '{"userId": "u", "event": "E", "timestamp": [1]}': "its timestamp must be a string or a number",
    '{"userId": "u", "event": "E", "timestamp": 1e300}': "is neither ISO 8601",
    '{"userId": "u", "event": "E", "timestamp": 1, "email": "a"}': "a track has no field 'email'",
    '{"userId": "u", "evnt": "E", "timestamp": 1}': "has no field 'evnt'. Did you mean 'event'? If not, put it",
    '{"userId": "u", "event": "E", "Time": 1}': "a track has no field 'Time'. Did you mean 'timestamp'? If not, put",
    '{"userId": "u", "type": "group", "account-id": 1}': "a group has no field 'account-id'. Did you mean 'accountId'?",
    '{"userId": "u", "event": "E", "timestamp": 1, "time": 1}': "a track has no field 'time': put it into properties",
    '{"userId": "u", "event": "E", "timestamp": 1, "properties": [1]}': "properties must be a dict",
    '{"userId": "u", "event": "E", "timestamp": 1, "properties": {"a": NaN}}': "nan is not JSON",
    '{"userId": "u", "event": "E", "timestamp": 1, "properties": {"a": "\\ud800"}}': "surrogate",
    '{"userId": "u", "user_id": "v", "event": "E", "timestamp": 1}': "it has the field userId twice",
    '{"userId": "u", "type": "alias"}': "its type must be track, identify or group",
    '{"userId": "u", "event": "a\0b", "timestamp": 1}': "it contains a NUL byte",
}


@pytest.mark.parametrize("dry", [False, True])
def test_bad_rows_of_json(dry: bool, importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    rows = [line for number, bad in enumerate(BAD) for line in (bad, json.dumps(row(number)))]
    rows.append(json.dumps(row(1, properties={"n": "x" * 600_000})))
    done = importing(write(tmp_path / "rows.jsonl", *rows), *["--dry-run"] * dry)
    assert done.code == 1 and "Traceback" not in done.output, done
    assert f"line 1 is refused: {BAD['no json']}" in done.output and f"and {len(BAD) + 1 - 10} more\n" in done.output, (
        done
    )
    if dry:
        assert f"{len(BAD)} track" in done.output and f"{len(BAD) + 1} rows would be refused" in done.output, done
        assert not letter_api.requests and os.listdir(tmp_path) == ["rows.jsonl"]
        return
    assert letter_api.distinct == len(BAD)
    found = refused(tmp_path / "rows.jsonl.refused.jsonl")
    assert [line for line, _ in found] == [*range(1, 2 * len(BAD), 2), 2 * len(BAD) + 1]
    for (_, reason), said in zip(found, [*BAD.values(), "over the 499,988"]):
        assert said in reason, (said, reason)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl.refused.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines[:3]] == list(BAD)[:3]


def test_bad_rows_of_csv(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    good = f"u,E,{WHEN},%d\n"
    path.write_bytes(
        b"user_id,event,timestamp,n\n"
        + b"".join(bad + b"\n" + (good % number).encode() for number, bad in enumerate(BAD_CELLS))
        + b'u,E,"no end\n'
    )
    done = importing(path, "--types", "n=number")
    assert done.code == 1 and "Traceback" not in done.output, done
    assert numbers(letter_api) == list(range(len(BAD_CELLS)))
    found = refused(tmp_path / "rows.csv.refused.jsonl")
    assert [line for line, _ in found] == [2 * number + 2 for number in range(len(BAD_CELLS) + 1)]
    for (_, reason), said in zip(found, [*BAD_CELLS.values(), "it is not CSV: unexpected end of data"]):
        assert said in reason, (said, reason)


BAD_CELLS = {
    b"u,E": "it has 2 columns, and the header has 4",
    b"u,E,2026-01-31,1,2": "it has 5 columns, and the header has 4",
    b"u,,2026-01-31,1": "event is required",
    b",E,2026-01-31,1": "userId is required",
    b"u,E,,1": "it has no timestamp",
    b"u,E,2026-01-31,1a": "n must be a number, not '1a'",
    b"u,E,2026-01-31,true": "n must be a number, not 'true'",
    b'u,E,"x"y,1': "it is not CSV",
    b"u,E\xfc,2026-01-31,1": "it is not utf-8 (byte 4 of line 18): set --encoding, for example cp1252",
    b"u,E\0,2026-01-31,1": "it contains a NUL byte",
}


def test_lines_without_an_end(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        file.write(json.dumps(row(1)) + "\n")
        for _ in range(40):
            file.write("x" * 1_000_000)
        file.write("\n" + json.dumps(row(2)) + "\n")
    done = importing(path)
    assert done.code == 1 and numbers(letter_api) == [1, 2], done
    assert refused(tmp_path / "rows.jsonl.refused.jsonl") == [(2, "it is longer than 4,194,304 bytes")]


def test_a_quote_without_an_end_does_not_stop_the_import(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w") as file:
        file.write('user_id,event,timestamp,n\nu,E,2026-01-31,"0\n')
        for number in range(300_000):
            file.write(f"u,E,2026-01-31,{number}\n")
    done = importing(path, "--types", "n=number", "--dry-run")
    assert done.code == 1 and "line 2 is refused" in done.output and "Traceback" not in done.output, done
    assert 0 < int(done.output.splitlines()[-1].split(" track")[0].replace(",", "")) < 300_000


def test_only_the_rows_that_the_api_refuses_are_refused(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    def rule(request: Request) -> Any:
        bad = [item for item in request.json["batch"] if item["properties"]["n"] in (7, 8, 190)]
        return status(422, b'{"error":{"message":"it is too old"}}') if bad else None

    letter_api.rule = rule
    done = importing(write(tmp_path / "rows.jsonl", *map(row, range(250))))
    assert done.code == 1 and "247 rows sent, 3 refused (see " in done.output, done
    assert numbers(letter_api) == [number for number in range(250) if number not in (7, 8, 190)]
    said = "the API answered 422: it is too old"
    assert refused(tmp_path / "rows.jsonl.refused.jsonl") == [(8, said), (9, said), (191, said)]


def test_refused_rows_can_be_repaired_and_imported(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    importing(write(tmp_path / "rows.jsonl", row(1), {**row(2), "timestamp": "soon"}))
    texts = [json.loads(line)["row"] for line in (tmp_path / "rows.jsonl.refused.jsonl").read_text().splitlines()]
    assert importing(write(tmp_path / "again.jsonl", *[text.replace("soon", WHEN) for text in texts])).code == 0
    assert numbers(letter_api) == [1, 2]


# Files that cannot be read.


@pytest.mark.parametrize(
    ("name", "data", "arguments", "said"),
    [
        ("a.csv", "user_id,event\n".encode("utf-16"), [], "UTF-16"),
        ("a.csv", b"", [], "the file is empty"),
        ("a.csv", b"a,a\n1,2\n", [], "two columns 'a'"),
        ("a.csv", b"a,,b\n1,2,3\n", [], "a column without a name"),
        ("a.csv", b"a,b\r1,2\r3,4\r", [], "CR alone"),
        ("a.csv", b"a\xff,b\n", [], "the header cannot be read"),
        ("a", b"[{}]", [], "it is an array|is an array"),
        ("a.gz", b"\x1f\x8b no gzip", [], "cannot be decompressed"),
        (
            "a.csv", b"User ID,event,time,amount\nu,E,2026-01-31,1\n", [],
            "import: the header has no column user_id and no column timestamp: rename 'User ID' to user_id and 'time' "
            "to timestamp (--now: all events happened now). It has 'User ID', 'event', 'time', 'amount'\n",
        ),
        ("a.csv", b"user,event\n", ["--now"], "no column user_id: rename 'user' to user_id. It has 'user', 'event'\n"),
        ("a.csv", b"user_id,Event Name,timestamp\n", [], "rename 'Event Name' to event, or to 'traits."),
        ("a.csv", b"user_id,evnt,timestamp\n", ["--dry-run"], "rename 'evnt' to event, or to 'traits.evnt'\n"),
        ("a.csv", b"who,type\n", [], "import: the header has no column user_id. It has 'who', 'type'\n"),
        ("a.csv", b"user_id,event,when\nu,E,2026-01-31\n", ["--dry-run"], "has no column timestamp (--now"),
        ("a.csv", b"user_id,userId\n", [], "have the same name"),
        ("a.csv", b"user_id,amount,properties.amount\n", [], "have the same name"),
        ("a.csv", b"user_id\n", ["--id-from", "order"], "no column 'order'"),
        ("a.csv", b"a,b\n", ["--types", "c=number"], "no column 'c'"),
        ("a.csv", b"a,b\n", ["--types", "a=int"], "must be COLUMN=TYPE"),
        ("a.jsonl", b"{}\n", ["--types", "a=number"], "for CSV only"),
        ("a.jsonl", b"{}\n", ["--encoding", "klingon"], "no encoding"),
        ("a.jsonl", b"{}\n", ["--encoding", "utf-16"], "convert the file"),
        ("a.csv", b"a,b\n", ["--delimiter", "::"], "one character"),
        ("a.jsonl", b"{}\n", ["--connections", "0"], "from 1 to 64"),
        ("b.jsonl", None, [], "No such file"),
        (".", None, [], "is a directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_said_at_once(
    name: str, data: bytes | None, arguments: list[str], said: str, importing: Import, tmp_path: Path,
    letter_api: IngestionServer,
) -> None:  # fmt: skip
    if data is not None:
        (tmp_path / name).write_bytes(data)
    done = importing(name, *arguments)
    assert done.code == 2 and any(each in done.output for each in said.split("|")), done
    assert "Traceback" not in done.output and not letter_api.requests


def test_other_encodings_and_an_empty_file(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(f"user_id,event,timestamp\nu,Größe,{WHEN}\n".encode("cp1252"))
    assert importing("a.csv", "--encoding", "cp1252").code == 0
    assert letter_api.events[0]["event"] == "Größe"
    (tmp_path / "empty.jsonl").touch()
    assert importing("empty.jsonl").output == "0 rows sent, 0 refused\n"


def test_a_cut_gzip_file_stops_the_import_and_can_be_continued(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    data = gzip.compress("".join(json.dumps(row(number)) + "\n" for number in range(20_000)).encode())
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(data[: len(data) // 2])
    done = importing(path)
    assert done.code == 1 and "cannot be read beyond line" in done.output and "Traceback" not in done.output, done
    before = letter_api.distinct
    path.write_bytes(data)
    again = importing(path)
    assert again.code == 0 and "continuing behind line" in again.output, again
    assert 0 < before < 20_000 and numbers(letter_api) == list(range(20_000))


# Stops, and goes on.


def test_a_killed_import_is_continued(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    rows = [row(number) if number % 50 else {**row(number), "timestamp": "soon"} for number in range(1000)]
    path = write(tmp_path / "rows.jsonl", *rows)
    letter_api.rule = lambda _: letter_api.hold() if len(letter_api.requests) == 5 else None
    with Program(command(path), env_for(letter_api.url), tmp_path) as program:
        assert letter_api.wait_until(lambda: len(letter_api.requests) >= 5)
        state = tmp_path / "rows.jsonl.import-state"
        assert eventually(lambda: state.exists() and state.read_text(), bool)
        program.signal(signal.SIGKILL)
        program.finish()
    with (tmp_path / "rows.jsonl.refused.jsonl").open("a") as file:  # what it may have written after the last state
        file.write('{"line": 401, "reason": "soon", "row": "' + 100_000 * "x")
    letter_api.rule = None
    letter_api.release()
    done = importing(path)
    assert "continuing behind line" in done.output and done.code == 1, done
    assert "980 rows sent, 20 refused" in done.output, done
    assert numbers(letter_api) == [number for number in range(1000) if number % 50]
    assert [line for line, _ in refused(tmp_path / "rows.jsonl.refused.jsonl")] == list(range(1, 1000, 50))
    assert len(letter_api.requests) < 14  # it did not begin with the first row
    assert not state.exists()


def test_ctrl_c_stops_and_says_how_to_continue(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *map(row, range(2000)))
    letter_api.rule = lambda _: letter_api.hold() if len(letter_api.requests) == 4 else None
    with Program(command(path), env_for(letter_api.url), tmp_path) as program:
        assert letter_api.wait_until(lambda: len(letter_api.requests) >= 4)
        program.signal(signal.SIGINT)
        assert eventually(lambda: "stopping" in program.output, bool)
        letter_api.release()
        done = program.finish()
    letter_api.rule = None
    assert done.code == -signal.SIGINT and "Run the same command again to continue" in done.output, done
    assert f"{letter_api.distinct:,} rows sent" in done.output and letter_api.distinct < 2000, done
    before = len(letter_api.requests)
    assert importing(path).code == 0
    assert numbers(letter_api) == list(range(2000)) and len(letter_api.requests) - before < 20


def test_the_end_of_the_batches_under_way_is_recorded(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", *map(row, range(2000)))
    letter_api.rule = lambda _: letter_api.hold() if len(letter_api.requests) == 4 else None
    with Program(command(path, "--connections", "3"), env_for(letter_api.url), tmp_path) as program:
        assert letter_api.wait_until(lambda: len(letter_api.requests) >= 4)
        program.signal(signal.SIGINT)
        assert eventually(lambda: "stopping" in program.output, bool)
        program.signal(signal.SIGINT)  # impatient
        done = program.finish()
    letter_api.rule = None
    letter_api.release()
    assert done.code == -signal.SIGINT, done
    assert importing(path, "--connections", "3").code == 0
    assert numbers(letter_api) == list(range(2000))


def test_a_key_that_the_api_refuses_stops_it_at_once(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    letter_api.rule = lambda _: status(401, b'{"error":{"message":"no such key"}}')
    path = write(tmp_path / "rows.jsonl", *map(row, range(5000)))
    done = importing(path)
    assert done.code == 1 and "no such key" in done.output and "0 rows sent" in done.output, done
    assert len(letter_api.requests) < 5 and not (tmp_path / "rows.jsonl.refused.jsonl").exists()
    letter_api.rule = None
    assert importing(path).code == 0 and letter_api.distinct == 5000


def test_no_key(importing: Import, tmp_path: Path) -> None:
    done = importing(write(tmp_path / "rows.jsonl", row(1)), LETTER_API_KEY="")
    assert done.code == 1 and "api_key is required" in done.output, done
    assert importing("rows.jsonl", "--dry-run", LETTER_API_KEY="").code == 0


def test_failures_are_retried(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    letter_api.plan(status(503), status(429, headers={"Retry-After": "0"}))
    done = importing(write(tmp_path / "rows.jsonl", *map(row, range(250))))
    assert done.code == 0 and "the API answered 503; trying again" in done.output, done
    assert numbers(letter_api) == list(range(250))


def test_another_file_or_other_options_begin_anew(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", *map(row, range(300)))
    letter_api.rule = lambda _: status(401) if len(letter_api.requests) == 2 else None
    assert importing(path).code == 1
    letter_api.rule = None
    other = importing(path, "--now")
    assert "beginning with the first row: the last run had another options" in other.output and other.code == 0, other

    letter_api.rule = lambda request: status(401) if request.json["batch"][0]["properties"]["n"] >= 100 else None
    assert importing(path).code == 1
    letter_api.rule = None
    write(path, *map(row, range(3)))
    shorter = importing(path)
    assert shorter.code == 1 and "is shorter than in the last run" in shorter.output, shorter
    assert importing(path, "--restart").code == 0


def test_one_import_of_a_file_at_a_time(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row(1))
    letter_api.hold()
    with Program(command(path), env_for(letter_api.url), tmp_path) as program:
        assert letter_api.wait_until(lambda: len(letter_api.requests) >= 1)
        second = importing(path)
        assert second.code == 1 and "another process imports this file" in second.output, second
        letter_api.release()
        assert program.finish().code == 0
    assert letter_api.distinct == 1


def test_a_file_that_is_not_its_own_is_not_overwritten(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    path, other = write(tmp_path / "rows.jsonl", row(1)), tmp_path / "rows.jsonl.refused.jsonl"
    other.write_text("notes\n")
    done = importing(path)
    assert done.code == 1 and "exists, and no import has written it" in done.output, done
    assert other.read_text() == "notes\n" and not letter_api.requests
    assert importing(path, "--refused", tmp_path / "bad.jsonl").code == 0


def test_without_a_place_for_the_state_it_is_still_imported(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", row(1))
    done = importing(path, "--state", tmp_path / "missing" / "state")
    assert done.code == 0 and "it cannot be continued" in done.output, done


# What it shows, and costs.


def test_a_terminal_shows_a_bar(letter_api: IngestionServer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *map(row, range(300)))
    ours, its = pty.openpty()
    with subprocess.Popen(
        command(path), env=env_for(letter_api.url, TERM="xterm"), stdout=subprocess.PIPE, stderr=its, cwd=tmp_path
    ) as process:
        os.close(its)
        seen = b""
        try:
            while data := os.read(ours, 4096):
                seen += data
        except OSError:
            pass  # the other end is closed
        assert process.stdout is not None and process.stdout.read() == b"300 rows sent, 0 refused\n"
    os.close(ours)
    assert b"%  " in seen and b"rows  " in seen and seen.endswith(b"\r\x1b[K"), seen


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_memory_does_not_grow_with_the_file(letter_api: IngestionServer, tmp_path: Path) -> None:
    code = "from letterapp.__main__ import main; main(); print(open('/proc/self/status').read())"
    letter_api.rule = lambda _: letter_api.events.clear()  # the server is in this process
    peaks = []
    for count in (2_000, 60_000):
        path = write(tmp_path / f"{count}.jsonl", *map(row, range(count)))
        line = [sys.executable, "-c", code, "import", str(path)]
        with Program(line, env_for(letter_api.url), tmp_path) as program:
            done = program.finish()
        peaks.append(int(done.output.split("VmHWM:")[1].split()[0]))
    # Kilobytes. PyPy's memory grows until its collector thinks it worthwhile.
    assert peaks[1] - peaks[0] < (2_000 if sys.implementation.name == "cpython" else 100_000), peaks
