"""``python -m letterapp import``: rows that are refused, and files that cannot be read."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from imports import WHEN, Import, numbers, refused, row, run_import, write  # noqa: F401  (a fixture)

from letterapp.testing import IngestionServer, Request, status

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


@pytest.mark.slow
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


@pytest.mark.slow
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
