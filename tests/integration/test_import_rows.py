"""``python -m letterapp import``: which events the rows of a file become, and their ids."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest
from harness import DEADLINE, Program
from imports import WHEN, Import, command, env_for, numbers, refused, row, run_import, write  # noqa: F401  (a fixture)

from letterapp.testing import IngestionServer

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


@pytest.mark.slow
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
