"""What a process and a relay say to each other: lines over a Unix socket.

Responsible for: the lines, their lengths, and the proof that both have the same API key. Not responsible for: sockets,
waiting.

    process -> relay     HELLO                     {"letterapp": 2, "nonce": ..., "api": ..., "wants": ...}
    relay -> process     {"challenge": ..., "proof": ...}
    process -> relay     {"proof": ...}            and from here on, without waiting for an answer:
                         {...}                     an event, as it will travel
                         !                         send what I handed over without delay

    relay -> process     {"welcome": ...}          to the proof of who does not want to hand events over
                         {"refused": "why"}        at any time, and the end; with "busy": true where it may pass
                         [N]                       N of your events are settled, counted from the proof
                         {"lost": N, ...}          of which N are lost, and why; before the `[N]` that counts them

Each side proves that it has the key by an HMAC over what both have just drawn, and the relay does so first. So what is
heard once is worth nothing, whoever serves at the socket gets no event without the key, and neither proof can be the
answer to the other.
"""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from hmac import new as hmac
from json import JSONDecoder, dumps, loads

from .._runtime.random_bytes import random_bytes
from ..errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping

    from .._text import Secret

VERSION = 2
END = b"\n"  # which no JSON that is written in one line holds
FLUSH = b"!"
EVENTS, LEASE, STATUS = "events", "lease", "status"  # what a connection may want
LONGEST_GREETING = 4096  # bytes of a line before both know each other
LONGEST_EVENT = 32_000  # bytes: Linux sends as much whole or not at all
LONGEST_ANSWER = 1_048_576  # bytes of a line to a process that is known
SHORT = 300  # characters of a report that a process is slow to read
CAUSES = ("rejected", "undeliverable", "overflow", "closed", "exit", "damaged")  # of what a relay loses
_PROCESS, _RELAY = b"process", b"relay"  # who proves something


class Refused(Exception):
    """The other side is not what it should be, or does not want this one. Its text says why."""

    is_busy = False  # it may pass


class Caller:
    """The process's side of getting to know each other, for one connection."""

    def __init__(self, api_key: Secret, base_url: str, wants: str) -> None:
        self._key = api_key
        self._nonce = _nonce()
        self._said = _told(base_url, wants)
        self.hello = line_of({"letterapp": VERSION, "nonce": self._nonce, "api": base_url, "wants": wants})

    def answer(self, line: bytes) -> bytes:
        """The line that answers the relay's challenge; `Refused` if there is none, or the relay has another key."""
        told = parse(line)
        if "refused" in told:
            raise refusal(told)
        challenge = str(told.get("challenge"))
        if not _is_same(told.get("proof"), _proof(self._key, _RELAY, self._nonce, challenge, self._said)):
            known = "challenge" in told
            raise Refused("refuses this client: it has another API key" if known else "answers what is no answer")
        return line_of({"proof": _proof(self._key, _PROCESS, self._nonce, challenge, self._said)})


class Callee:
    """The relay's side of it."""

    def __init__(self, api_key: Secret, base_url: str) -> None:
        self._key = api_key
        self._url = base_url
        self._nonce = self._challenge = self._said = self._wants = ""

    @property
    def has_challenged(self) -> bool:
        return bool(self._challenge)

    def hear(self, line: bytes) -> tuple[bytes, str]:
        """What to say to ``line``, and what the process wants when it has proved itself, else an empty text.

        `Refused` if it is not welcome.
        """
        told = parse(line)
        if self._challenge:
            if not _is_same(told.get("proof"), _proof(self._key, _PROCESS, self._nonce, self._challenge, self._said)):
                raise Refused("it has another API key")
            return b"", self._wants
        if told.get("letterapp") != VERSION:
            raise Refused(
                "it speaks no version of this protocol" if "letterapp" not in told else "it is of another version"
            )
        if told.get("api") != self._url:
            raise Refused(f"it wants another API than {self._url}")
        if told.get("wants") not in (EVENTS, LEASE, STATUS):
            raise Refused("it wants what this relay has not")
        self._nonce = str(told.get("nonce"))
        self._wants = told["wants"]
        self._said = _told(self._url, self._wants)
        self._challenge = _nonce()
        own = _proof(self._key, _RELAY, self._nonce, self._challenge, self._said)
        return line_of({"challenge": self._challenge, "proof": own}), ""


def refusal(told: Mapping[str, Any]) -> Refused:
    """What the relay said in place of an answer."""
    refused = Refused(f"refuses this client: {readable(told.get('refused', 'for no reason'))}")
    refused.is_busy = bool(told.get("busy"))
    return refused


def proof(api_key: Secret) -> str:
    """What two sides can compare that have proved themselves to each other in another way."""
    return sha256(b"letterapp relay\0" + api_key.encode()).hexdigest()


def _nonce() -> str:
    return random_bytes(16).hex()


def _told(base_url: str, wants: str) -> str:
    return dumps([VERSION, base_url, wants])


def _proof(api_key: Secret, who: bytes, nonce: str, challenge: str, said: str) -> str:
    text = dumps([nonce, challenge, said]).encode()
    return hmac(api_key.encode(), who + b"\0" + text, sha256).hexdigest()


def _is_same(said: object, right: str) -> bool:
    return compare_digest(str(said).encode("utf-8", "replace"), right.encode())


def readable(text: object) -> str:
    """``text`` of another side, for a message: one line, printable, and not longer than `SHORT`."""
    return "".join(sign if sign.isprintable() else " " for sign in str(text)[:SHORT])


def parse(line: bytes) -> dict[str, Any]:
    """A line that is an object; empty for anything else."""
    try:
        said = loads(line.decode())  # in UTF-8, and not in what `loads` would guess
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


_decode = JSONDecoder(parse_int=str, parse_float=str).raw_decode  # nobody looks at the numbers


def is_event(line: bytes) -> bool:
    """True for one JSON object in UTF-8 and one line, and nothing after it: so it cannot mark_corrupt a batch of
    others.
    """
    if line[:1] != b"{" or END in line:
        return False
    try:
        text = line.decode()
        return _decode(text)[1] == len(text)
    except (ValueError, RecursionError):
        return False


def line_of(said: Mapping[str, Any]) -> bytes:
    return dumps(said).encode() + END


def settled(count: int) -> bytes:
    return b"[%d]\n" % count


def lost(error: LetterError, count: int, events: list[bytes]) -> bytes:
    """The report of ``count`` lost events, of which ``events`` are some; without them it is a short one."""
    line = line_of(
        {
            "lost": count,
            "message": str(error) if events else str(error)[:SHORT],
            "status": error.status,
            "body": error.body if events else None,
            "code": error.code if events or not error.code else error.code[:SHORT],
            "reason": error.reason if events or not error.reason else error.reason[:SHORT],
            "cause": error.cause,
            "events": [event.decode("utf-8", "replace") for event in events],
        }
    )
    return line if len(line) < LONGEST_ANSWER or not events else lost(error, count, events[: len(events) // 2])


def lost_error(said: dict[str, Any], most: int) -> LetterError:
    """The other way round; `ValueError` for what tells of none of the ``most`` events that may be lost."""
    count, events = said["lost"], said["events"]
    texts = [said["message"], *(said[name] for name in ("body", "code", "reason", "cause") if said[name] is not None)]
    if type(count) is not int or not 0 < count <= most or not isinstance(events, list) or len(events) > count:
        raise ValueError("it tells of events that it has not had")
    if not all(isinstance(text, str) for text in (*texts, *events)) or type(said["status"]) not in (int, type(None)):
        raise ValueError("its report is none")
    return LetterError(
        f"by the relay: {said['message']}",
        said["status"],
        said["body"],
        said["code"],
        said["reason"],
        cause=said["cause"] if said["cause"] in CAUSES else "undeliverable",
        lost=count,
        events=[event.encode() for event in events],
    )
