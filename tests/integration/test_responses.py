"""Unusual and invalid responses: interim ones, unrequested ones, lengths."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Iterator

import pytest
from certificates import serving
from driven import connections
from responses import KEEP_ALIVE_200, PROPER, then

from letterapp import LetterError
from letterapp.testing import IngestionServer, raw, status

if TYPE_CHECKING:
    import trustme


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nLink: </x>\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
OTHER = b"HTTP/1.1 199 X\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        *[
            interim + KEEP_ALIVE_200
            for interim in (HINTS, PROCESSING, CONTINUE, HINTS * 2, CONTINUE + PROCESSING * 3 + HINTS, OTHER)
        ],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\nTrailer: t\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 \r\nX: " + b"y" * 60_000 + b"\r\ncontent-length: 0\r\n\r\n",
    ],
    ids=["103", "102", "100", "103 twice", "mixed", "199", "chunked", "204", "long header"],
)
def test_an_unusual_but_valid_response_is_read_and_the_connection_kept(
    data: bytes, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(then(data), then(data))
    one = driven(max_retries=0)
    for _ in range(3):
        one.track()
        assert one.settle() == []
    assert (len(letter_api.requests), connections(letter_api)) == (3, 1)
    assert errors == [] and letter_api.repeated() == {}


def test_endless_interim_responses_are_an_error(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(then(HINTS * 1000 + KEEP_ALIVE_200))
    one = driven(max_retries=0, timeout=600)
    one.track()
    assert one.settle() == []
    (error,) = errors
    assert error.cause == "undeliverable" and "interim" in str(error)


def test_a_switch_of_protocols_is_an_error(letter_api: IngestionServer, driven: Any, errors: list[LetterError]) -> None:
    letter_api.plan(then(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n" + KEEP_ALIVE_200))
    one = driven(max_retries=0, timeout=600)
    one.track()
    assert one.settle() == []
    assert errors[0].cause == "undeliverable" and "101" in str(errors[0])


@pytest.fixture(params=["http", "https"])
def any_api(request: Any, ca: trustme.CA, trusting: ssl.SSLContext) -> Iterator[tuple[IngestionServer, dict[str, Any]]]:
    """A server, and what a client of it needs."""
    if request.param == "http":
        with IngestionServer() as api:
            yield api, {}
        return
    with serving(ca, "localhost") as api:
        yield api, {"ssl_context": trusting}


def padded(size: int) -> bytes:
    """A valid response of ``size`` bytes."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
    body = size - len(head % size)
    return head % body + b" " * body if len(head % body) + body == size else head % (body + 1) + b" " * (body + 1)


@pytest.mark.parametrize("size", [100, 8191, 8192, 8193, 16_000])
def test_an_unrequested_second_response_is_not_taken_for_the_next(
    size: int, any_api: tuple[IngestionServer, dict[str, Any]], driven: Any, errors: list[LetterError]
) -> None:
    api, options = any_api
    # One write, so with TLS one record: what is read of it in part lies in OpenSSL's buffer, where no `poll` sees it.
    api.plan(then(padded(size) + KEEP_ALIVE_200), status(422))
    one = driven(api.url, max_retries=0, **options)
    for _ in range(2):
        one.track()
        assert one.settle() == []
    assert (len(api.requests), connections(api)) == (2, 2)
    assert [error.status for error in errors] == [422] and one.letter.stats()["lost"] == {"rejected": 1}


INVALID_LENGTHS = {
    "negative": b"Content-Length: -1\r\n",
    "no number": b"Content-Length: abc\r\n",
    "empty": b"Content-Length:\r\n",
    "two": b"Content-Length: 2\r\nContent-Length: 3\r\n",
    "two in one line": b"Content-Length: 2, 3\r\n",
    "a number and nothing": b"Content-Length: 2,\r\n",
    "signed": b"Content-Length: +2\r\n",
    "underscored": b"Content-Length: 0_2\r\n",
    "a fraction": b"Content-Length: 2.0\r\n",
    "hexadecimal": b"Content-Length: 0x2\r\n",
    "a digit of another script": b"Content-Length: \xb2\r\n",
    "larger than anything": b"Content-Length: " + b"9" * 5000 + b"\r\n",
}


@pytest.mark.parametrize("length", INVALID_LENGTHS.values(), ids=INVALID_LENGTHS.keys())
def test_a_response_with_an_invalid_length_is_invalid(
    length: bytes, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(raw(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n{}"), PROPER)
    one = driven(max_retries=1)
    one.track()
    assert len(one.settle()) == 1
    assert (len(letter_api.requests), connections(letter_api)) == (2, 2)
    assert errors == [] and letter_api.distinct == 1


@pytest.mark.parametrize(
    "length",
    [
        b"Content-Length: 2\r\nContent-Length: 2\r\n",
        b"Content-Length: 2, 2\r\n",
        b"Content-Length: 2 , 02\r\nContent-Length: 2\r\n",
        b"Content-Length:   2   \r\n",
    ],
)
def test_a_length_that_is_repeated_is_valid(
    length: bytes, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(then(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n{}"))
    one = driven(max_retries=0, timeout=5)
    one.track()
    assert one.settle() == [] and errors == [] and letter_api.distinct == 1
