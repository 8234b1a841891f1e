"""docs/migration.md: the programs run with the packages that they are about, and the tables name what these have."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import Block, blocks_of
from event_sink import EventSink
from harness import DEADLINE, ROOT, needs

from letterapp import Letter
from stress.__main__ import CACHE
from stress.peers import Environments, Peer

pytestmark = [needs("fcntl"), pytest.mark.slow]

PAGE = ROOT / "docs" / "migration.md"
# Prints the names that a program can use: the methods of a client, and the parameters of each.
NAMES = """
import importlib, inspect, json, sys
client = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
found = {}
for name, value in inspect.getmembers(client, callable):
    if not name.startswith("_") or name == "__init__":
        found[name] = list(inspect.signature(value).parameters)
        for parameter in inspect.signature(value).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD and hasattr(parameter.annotation, "__args__"):
                found[name] += parameter.annotation.__args__[0].__annotations__
print(json.dumps(found))
"""
# The old version has no variable for the address of the API.
OLD = """
import letterapp
letterapp.Letter.__init__.__defaults__ = ("PEER_API", *letterapp.Letter.__init__.__defaults__[1:])
"""


def peer(name: str) -> Peer:
    try:
        return Environments(sys.executable, CACHE, print).peer(name)
    except (ValueError, OSError, subprocess.SubprocessError) as problem:
        pytest.skip(f"{name} cannot be installed here: {problem}")


def run(of: Peer, program: str, folder: Path, *arguments: str) -> str:
    path = folder / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [of.python, str(path), *arguments],
        env=of.env,
        cwd=str(folder),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["letterapp==0.2.0", "segment", "posthog"])
def test_the_programs_run_with_the_other_packages(name: str, tmp_path: Path) -> None:
    (block,) = (one for one in blocks_of(PAGE) if name in (one.notes.get("with"), one.notes.get("also with")))
    with EventSink() as sink:
        program = (OLD if name.startswith("letterapp") else "") + block.program()
        program = program.replace("PEER_API", sink.url).replace("https://eu.i.posthog.com", sink.url)
        run(peer(name), program, tmp_path)
        assert len(sink.events) == int(block.notes["arrives"]), sink.events


def test_both_sides_of_each_pair_send_the_same(tmp_path: Path) -> None:
    """What letter.app's client sends for the program beside Segment's, in the words that both have."""
    segment, here = [one for one in blocks_of(PAGE) if _is_of_segment(one)]
    with EventSink() as sink:
        run(peer("segment"), segment.program().replace("PEER_API", sink.url), tmp_path)
        theirs = list(sink.events)
        sink.events.clear()
        subprocess.run(
            [sys.executable, "-c", here.program().replace('"your-key"', f'"your-key", "{sink.url}"')],
            cwd=str(ROOT),
            check=True,
            timeout=DEADLINE,
        )
        ours = list(sink.events)
    assert [(one["type"], one["userId"], one.get("event")) for one in ours] == [
        (one["type"], one["userId"], one.get("event")) for one in theirs
    ]
    assert ours[2]["properties"] == theirs[2]["properties"]
    assert {**ours[0]["traits"], "email": ours[0]["email"]} == theirs[0]["traits"]
    assert {**ours[1]["traits"], "name": ours[1]["name"]} == theirs[1]["traits"]


def _is_of_segment(block: Block) -> bool:
    before = PAGE.read_text(encoding="utf-8").splitlines()[: block.line]
    return block.language == "python" and [line for line in before if line.startswith("## ")][-1] == "## From Segment"


@pytest.mark.parametrize(
    ("name", "heading", "client"), [("segment", "From Segment", "Client"), ("posthog", "From PostHog", "Posthog")]
)
def test_the_tables_name_what_there_is(name: str, heading: str, client: str, tmp_path: Path) -> None:
    other = peer(name)
    known: dict[str, list[str]] = json.loads(run(other, NAMES, tmp_path, other.module, client))
    ours = {
        method: list(inspect.signature(getattr(Letter, method)).parameters)
        for method in ("__init__", "identify", "group", "track", "flush", "close")
    }
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", section, re.MULTILINE)
    assert len(rows) > 10
    for left, right in rows:
        for code in re.findall(r"`([^`]+)`", left):
            check(code, known)
        for code in re.findall(r"`([^`]+)`", right):
            if not code.isupper() and not code.startswith(("error.", "properties")):
                check(code, ours)


def check(code: str, known: dict[str, list[str]]) -> None:
    """``name``, ``name=value`` or ``method(parameters)`` is one that there is."""
    found = re.fullmatch(r"(\w+)(?:=\w+)?(?:\((.*)\))?", code)
    assert found, code
    anywhere = {name for names in known.values() for name in names}
    assert found[1] in known or found[1] in anywhere, code
    for parameter in filter(None, (found[2] or "").split(", ")):
        assert parameter in known[found[1]], code
