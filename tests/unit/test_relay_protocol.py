"""The lines between a process and a relay (`letterapp._relay.protocol`).

The process's side of a connection is in `test_relay_client`, the relay's in `tests/integration/test_relay_lines.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
from relayed import KEY, NOWHERE, callee, caller

from letterapp import LetterError
from letterapp._relay import protocol

EVENTS = [b'{"number":%d}' % number for number in range(2)]


def authenticate(process: protocol.Caller, relay: protocol.Callee) -> str:
    """What the process wants, when both have proved themselves."""
    challenge, wants = relay.hear(process.hello)
    assert not wants
    said, wants = relay.hear(process.answer(challenge))
    assert not said
    return wants


@pytest.mark.parametrize("wants", ["events", "lease", "status"])
def test_a_process_with_the_same_key_and_api_is_accepted(wants: str) -> None:
    process = caller(KEY, NOWHERE, wants)
    assert process.hello.count(b"\n") == 1 and KEY.encode() not in process.hello
    assert authenticate(process, callee(KEY, NOWHERE)) == wants
    with pytest.raises(protocol.Refused, match="another API key"):
        authenticate(caller(KEY, NOWHERE, wants), callee(KEY + "x", NOWHERE))
    with pytest.raises(protocol.Refused, match="another API than"):
        authenticate(caller(KEY, NOWHERE, wants), callee(KEY, NOWHERE + "/x"))


def test_a_recorded_exchange_cannot_be_replayed() -> None:
    process, relay = caller(KEY, NOWHERE), callee(KEY, NOWHERE)
    challenge, _ = relay.hear(process.hello)
    answer = process.answer(challenge)
    assert relay.hear(answer) == (b"", "events")
    # A stranger who has recorded it can neither be the process...
    again = callee(KEY, NOWHERE)
    again.hear(process.hello)
    with pytest.raises(protocol.Refused, match="another API key"):
        again.hear(answer)
    # ... nor the relay, nor give a relay its own proof back.
    with pytest.raises(protocol.Refused, match="another API key"):
        caller(KEY, NOWHERE).answer(challenge)
    mirror = callee(KEY, NOWHERE)
    own, _ = mirror.hear(process.hello)
    with pytest.raises(protocol.Refused, match="another API key"):
        mirror.hear(own)


@pytest.mark.usefixtures("without_collection")
@pytest.mark.parametrize("line", [b"", b"hello", b"[]", b"7", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}'])
def test_an_invalid_greeting_is_refused(line: bytes) -> None:
    with pytest.raises(protocol.Refused, match="does not use this protocol"):
        callee(KEY, NOWHERE).hear(line)
    with pytest.raises(protocol.Refused, match="an invalid response"):
        caller(KEY, NOWHERE).answer(line)


@pytest.mark.parametrize("proof", [None, 7, [], "", "ü", "\ud800"])
def test_an_invalid_proof_is_refused(proof: Any) -> None:
    relay = callee(KEY, NOWHERE)
    relay.hear(caller(KEY, NOWHERE).hello)
    with pytest.raises(protocol.Refused, match="another API key"):
        relay.hear(protocol.line_of({"proof": proof}))
    with pytest.raises(protocol.Refused, match="another API key"):
        caller(KEY, NOWHERE).answer(protocol.line_of({"challenge": "c", "proof": proof}))


def test_a_report_arrives_as_it_was_sent() -> None:
    error = LetterError("two\nlines", 422, "ünïcode", "code", "reason", cause="rejected")
    line = protocol.lost(error, 7, EVENTS)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    arrived = protocol.lost_error(protocol.parse(line), 7)
    assert str(arrived) == "reported by the relay: two lines"
    assert (arrived.lost, arrived.events) == (7, [{"number": 0}, {"number": 1}])
    names = ("status", "body", "code", "reason", "cause")
    assert [getattr(arrived, name) for name in names] == [getattr(error, name) for name in names]


def test_a_report_is_not_longer_than_a_line_may_be() -> None:
    error = LetterError("no", cause="rejected")
    line = protocol.lost(error, 100, ['{"x":"ü%s"}'.encode() % (b"y" * 30_000)] * 100)
    assert len(line) < protocol.LONGEST_ANSWER and protocol.lost_error(protocol.parse(line), 100).lost == 100


def test_long_numbers_and_all_of_unicode_are_valid_in_an_event() -> None:
    assert protocol.is_event('{"a":"\u2028ü😀","b":[1e999,-0,12345678901234567890],"c":NaN}'.encode())
    assert protocol.is_event(b'{"a":%s}' % (b"9" * 20_000)) and protocol.is_event(b"{}")
    assert not protocol.is_event(b"[]") and not protocol.is_event(b"") and not protocol.is_event(b'{"a":\n1}')
