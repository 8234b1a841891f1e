"""The protocol between a process and a relay: lines over a Unix socket.

Responsible for: the lines, their lengths, and the authentication by the API key. Not responsible for: sockets, waiting.

    process -> relay     HELLO                     {"letterapp": 2, "nonce": ..., "api": ..., "wants": ...}
    relay -> process     {"challenge": ..., "proof": ...}
    process -> relay     {"proof": ...}            followed, without waiting for a response, by:
                         {...}                     an event, as the API will receive it
                         !                         send my events without delay

    relay -> process     {"welcome": ...}          the response to the proof of a process that does not send events
                         {"refused": "why"}        at any time; the connection is closed. "busy": true if it may pass
                         [N]                       N of your events are settled, counted from the proof
                         {"lost": N, ...}          N events are lost, and why; before the `[N]` that counts them

Each side proves that it has the key by an HMAC over the random numbers of both, the relay first. So a recorded exchange
cannot be replayed, a server without the key gets no event, and neither proof is a valid response to the other.
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
END = b"\n"  # JSON in one line does not contain it
FLUSH = b"!"
EVENTS, LEASE, STATUS = "events", "lease", "status"  # what a connection is for
LONGEST_GREETING = 4096  # bytes of a line during the authentication
LONGEST_EVENT = 32_000  # bytes: Linux sends that many completely or not at all
LONGEST_ANSWER = 1_048_576  # bytes of a line to an authenticated process
SHORT = 300  # characters of a report to a process that reads slowly
CAUSES = ("rejected", "undeliverable", "testing", "overflow", "closed", "exit", "damaged")  # of losses in a relay
_PROCESS, _RELAY = b"process", b"relay"  # which side a proof belongs to


UNKNOWN_PROTOCOL = "it does not use this protocol"


class Refused(Exception):
    """One side refuses the other. The text says why."""

    is_busy = False  # the reason may pass


class Caller:
    """The process's side of the authentication, for one connection."""

    def __init__(self, api_key: Secret, base_url: str, wants: str) -> None:
        self._key = api_key
        self._nonce = _nonce()
        self._purpose = _purpose(base_url, wants)
        self.hello = line_of({"letterapp": VERSION, "nonce": self._nonce, "api": base_url, "wants": wants})

    def answer(self, line: bytes) -> bytes:
        """The response to the relay's challenge in ``line``. Raises `Refused` if that is invalid or of another key."""
        message = parse(line)
        if "refused" in message:
            raise refusal(message)
        challenge = str(message.get("challenge"))
        if not _is_same(message.get("proof"), _proof(self._key, _RELAY, self._nonce, challenge, self._purpose)):
            known = "challenge" in message
            raise Refused("refuses this client: it has another API key" if known else "sent an invalid response")
        return line_of({"proof": _proof(self._key, _PROCESS, self._nonce, challenge, self._purpose)})


class Callee:
    """The relay's side of the authentication, for one connection."""

    def __init__(self, api_key: Secret, base_url: str) -> None:
        self._key = api_key
        self._url = base_url
        self._nonce = self._challenge = self._purpose = self._wants = ""

    @property
    def has_challenged(self) -> bool:
        return bool(self._challenge)

    def hear(self, line: bytes) -> tuple[bytes, str]:
        """The response to ``line``, and what the connection is for (empty until the process is authenticated).

        Raises `Refused`.
        """
        message = parse(line)
        if self._challenge:
            if not _is_same(
                message.get("proof"), _proof(self._key, _PROCESS, self._nonce, self._challenge, self._purpose)
            ):
                raise Refused("it has another API key")
            return b"", self._wants
        if message.get("letterapp") != VERSION:
            raise Refused(UNKNOWN_PROTOCOL if "letterapp" not in message else "it uses another version of the protocol")
        if message.get("api") != self._url:
            raise Refused(f"it sends to another API than {self._url}")
        if message.get("wants") not in (EVENTS, LEASE, STATUS):
            raise Refused("it asks for something that this relay does not offer")
        self._nonce = str(message.get("nonce"))
        self._wants = message["wants"]
        self._purpose = _purpose(self._url, self._wants)
        self._challenge = _nonce()
        own = _proof(self._key, _RELAY, self._nonce, self._challenge, self._purpose)
        return line_of({"challenge": self._challenge, "proof": own}), ""


def refusal(message: Mapping[str, Any]) -> Refused:
    """The relay's refusal as an exception."""
    refused = Refused(f"refuses this client: {readable(message.get('refused', 'no reason given'))}")
    refused.is_busy = bool(message.get("busy"))
    return refused


def proof(api_key: Secret) -> str:
    """A fingerprint of the key, for two sides that have authenticated each other by other means."""
    return sha256(b"letterapp relay\0" + api_key.encode()).hexdigest()


def _nonce() -> str:
    return random_bytes(16).hex()


def _purpose(base_url: str, wants: str) -> str:
    return dumps([VERSION, base_url, wants])


def _proof(api_key: Secret, who: bytes, nonce: str, challenge: str, said: str) -> str:
    text = dumps([nonce, challenge, said]).encode()
    return hmac(api_key.encode(), who + b"\0" + text, sha256).hexdigest()


def _is_same(said: object, right: str) -> bool:
    return compare_digest(str(said).encode("utf-8", "replace"), right.encode())


def readable(text: object) -> str:
    """``text`` of the other side for a message: one printable line of at most `SHORT` characters."""
    return "".join(sign if sign.isprintable() else " " for sign in str(text)[:SHORT])


def parse(line: bytes) -> dict[str, Any]:
    """The JSON object in ``line``; an empty dict for anything else."""
    try:
        said = loads(line.decode())  # UTF-8, and not the encoding that `loads` would guess
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


_decode = JSONDecoder(parse_int=str, parse_float=str).raw_decode  # the numbers are not used


def is_event(line: bytes) -> bool:
    """True if ``line`` is exactly one JSON object, in UTF-8 and one line, so that it cannot corrupt a batch."""
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
    """The report of ``count`` lost events. ``events`` are some of them; without any the report is short."""
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
    """The inverse of `lost`. Raises `ValueError` for an invalid report, or one of more than ``most`` events."""
    count, events = said["lost"], said["events"]
    texts = [said["message"], *(said[name] for name in ("body", "code", "reason", "cause") if said[name] is not None)]
    if type(count) is not int or not 0 < count <= most or not isinstance(events, list) or len(events) > count:
        raise ValueError("it reports events that were not sent to it")
    if not all(isinstance(text, str) for text in (*texts, *events)) or type(said["status"]) not in (int, type(None)):
        raise ValueError("its report is malformed")
    return LetterError(
        f"reported by the relay: {said['message']}",
        said["status"],
        said["body"],
        said["code"],
        said["reason"],
        cause=said["cause"] if said["cause"] in CAUSES else "undeliverable",
        lost=count,
        events=[event.encode() for event in events],
    )
