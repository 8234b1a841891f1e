"""What a process and a relay say to each other: lines over a Unix socket.

Lives here: the lines, and the proof that both have the same API key. Never here: sockets, waiting.

    process -> relay     GREETING                  the first line: who this is, the proof, what is wanted
                         {...}                     an event, as it will travel
                         !                         send what I handed over without delay

    relay -> process     {"welcome": ...}          to a greeting
                         {"refused": "why"}        instead, and the end; with "busy": true where it may pass
                         [N]                       N of your events are settled, counted from the greeting
                         {"lost": N, ...}          of which N are lost, and why; before the `[N]` that counts them

Nobody waits for an answer: a process sends its greeting and its first events in one go. So the proof is no answer to a
challenge. It is made of the key, says nothing about it, and only those hear it who may serve in a directory that is
this user's alone.
"""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from json import dumps, loads

from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping

    from ._texts import Secret

VERSION = 1
END = b"\n"  # which no JSON that is written in one line holds
HURRY = b"!"
EVENTS, LEASE, STATUS = "events", "lease", "status"  # what a connection may want
LONGEST_GREETING = 4096  # bytes
SHORT = 300  # characters of a report that a process is slow to read


def greeting(api_key: Secret, base_url: str, wants: str) -> bytes:
    return dumps({"letterapp": VERSION, "proof": proof(api_key), "api": base_url, "wants": wants}).encode() + END


def proof(api_key: Secret) -> str:
    return sha256(b"letterapp relay\0" + api_key.encode()).hexdigest()


def refusal(line: bytes, api_key: Secret, base_url: str) -> str:
    """Why a greeting is refused; empty if it is welcome."""
    said = parse(line)
    if said.get("letterapp") != VERSION:
        return "it speaks no version of this protocol" if "letterapp" not in said else "it is of another version"
    if not compare_digest(str(said.get("proof")).encode("utf-8", "replace"), proof(api_key).encode()):
        return "it has another API key"
    if said.get("api") != base_url:
        return f"it wants another API than {base_url}"
    return "" if said.get("wants") in (EVENTS, LEASE, STATUS) else "it wants what this relay has not"


def parse(line: bytes) -> dict[str, Any]:
    """A line that is an object; empty for anything else."""
    try:
        said = loads(line)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def line_of(said: Mapping[str, Any]) -> bytes:
    return dumps(said).encode() + END


def settled(count: int) -> bytes:
    return b"[%d]\n" % count


def lost(error: LetterError, count: int, events: list[bytes]) -> bytes:
    """The report of ``count`` lost events, of which ``events`` are some; without them it is a short one."""
    return line_of(
        {
            "lost": count,
            "message": str(error) if events else str(error)[:SHORT],
            "status": error.status,
            "body": error.body if events else None,
            "code": error.code,
            "reason": error.reason,
            "cause": error.cause,
            "events": [event.decode() for event in events],
        }
    )


def lost_error(said: dict[str, Any]) -> LetterError:
    """The other way round."""
    return LetterError(
        f"by the relay: {said['message']}",
        said["status"],
        said["body"],
        said["code"],
        said["reason"],
        cause=said["cause"] or "undeliverable",
        lost=said["lost"],
        events=[event.encode() for event in said["events"]],
    )
