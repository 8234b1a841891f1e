"""Temporary failures of the machine (no descriptor, no memory, a failing import), and unexpected errors."""

from __future__ import annotations

import errno
import itertools
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest
from certificates import serving
from harness import first_is_quick, needs, run
from programs import failures
from responses import serials

from letterapp import LetterError
from letterapp.testing import IngestionServer

if TYPE_CHECKING:
    import trustme


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
def test_no_descriptor_at_the_first_request_loses_no_event(
    spool: bool, letter_api: IngestionServer, tmp_path: Path
) -> None:
    finished = run(failures.no_descriptors, letter_api.url, tmp_path, *["spool"] * spool)
    assert finished.output == "12 {} True []\n", finished
    assert letter_api.distinct == 12


@pytest.mark.parametrize("module", ["http.client", "ssl", "socket", "json", "encodings.idna"])
@first_is_quick("error", failures.ERRORS)
def test_an_import_that_fails_once_loses_no_event(
    module: str, error: str, letter_api: IngestionServer, tmp_path: Path
) -> None:
    finished = run(failures.import_fails_once, letter_api.url, tmp_path, module, error)
    assert finished.output == "3 {} True\n", finished


@needs("orjson")
@pytest.mark.parametrize("module", ["json", "datetime", "enum", "uuid", "dataclasses", "orjson", "orjson.orjson"])
@first_is_quick("error", failures.ERRORS)
def test_an_import_that_fails_in_orjson_loses_no_event(
    module: str, error: str, letter_api: IngestionServer, tmp_path: Path
) -> None:
    # orjson ends the process by a segmentation fault if it cannot import one of these while it is imported itself.
    finished = run(failures.import_fails_in_orjson, letter_api.url, tmp_path, module, error)
    assert finished.output == "True 3\n", finished


def test_an_import_that_fails_in_send_is_a_letter_error(letter_api: IngestionServer, tmp_path: Path) -> None:
    assert run(failures.import_fails_in_send, letter_api.url, tmp_path).output == "True\nsent\n"


UNEXPECTED = [
    MemoryError(),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("unexpected"),
    ImportError("partially initialised module"),
]


def failing(real: Callable[..., Any], error: Exception, times: float) -> Callable[..., Any]:
    calls = itertools.count()

    def fail(*arguments: Any, **named: Any) -> Any:
        if next(calls) < times:
            raise error
        return real(*arguments, **named)

    return fail


@pytest.mark.parametrize("error", UNEXPECTED, ids=repr)
@pytest.mark.parametrize("place", ["_transport.post", "_transport.prepare", "_queue.take", "_send"])
def test_an_unexpected_error_while_sending_is_retried(
    place: str,
    error: Exception,
    letter_api: IngestionServer,
    driven: Any,
    errors: list[LetterError],
    monkeypatch: Any,
) -> None:
    one = driven()
    one.track(5)
    part, _, name = place.rpartition(".")
    owner = getattr(one.sender._batches, part) if part else one.sender._batches
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), error, 3))
    waits = one.settle()
    assert len(waits) == 3
    backoff = [0.25] * 3 if place == "_queue.take" else [0.25, 0.5, 1.0]  # before it has a batch, it is no try
    for wait, bare in zip(waits, backoff):
        assert bare <= wait <= bare * 1.25
    assert serials(letter_api) == [0, 1, 2, 3, 4] and errors == []


@pytest.mark.parametrize(
    "place",
    [
        "_queue.due",
        "_queue.is_taken_over",
        "_queue.take_overflow_report",
        "_recovery.recover_if_due",
        "_apply_outcome",
        "_queue.settle",
    ],
)
def test_an_unexpected_error_around_sending_does_not_stop_the_sender(
    place: str, letter_api: IngestionServer, driven: Any, errors: list[LetterError], monkeypatch: Any
) -> None:
    one = driven()
    one.track(5)
    part, _, name = place.rpartition(".")
    owner = getattr(one.sender._batches, part) if part else one.sender._batches
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), BufferError("cannot be re-sized"), 3))
    assert all(0.25 <= wait <= 0.5 * 1.25 for wait in one.settle())
    assert letter_api.distinct == 5 and {error.cause for error in errors} <= {"degraded"} and len(errors) <= 1


def test_only_an_event_that_fits_into_no_request_is_lost(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError], tmp_path: Path
) -> None:
    for options in ({}, {"overflow": "drop_oldest"}, {"overflow": "block"}, {"spool": tmp_path / "spool"}):
        one = driven(max_queue_bytes=600_000, **options)
        one.track(5)
        one.sender.put(b'{"x":"%s"}' % (b"a" * 599_000))  # as a client of a relay may send
        one.track(5)
        one.settle()
        error = errors.pop()
        assert (error.cause, error.lost) == ("overflow", 1) and "501,608 (max_batch_bytes)" in str(error)
        assert one.sender.stats()["delivered"] == 10 and errors == []


def test_an_unexpected_error_is_reported_when_no_try_is_left(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError], monkeypatch: Any
) -> None:
    one = driven(max_retries=2)
    one.track(5)
    monkeypatch.setattr(
        one.sender._batches._transport, "post", failing(one.sender._batches._transport.post, MemoryError(), 3)
    )
    assert len(one.settle()) == 2
    (error,) = errors
    assert error.cause == "undeliverable" and error.lost == 5 and "MemoryError" in str(error)
    one.track()
    assert one.settle() == [] and letter_api.distinct == 1


def test_an_unexpected_error_never_settles_a_batch_of_a_spool(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError], monkeypatch: Any, tmp_path: Path
) -> None:
    one = driven(max_retries=0, spool=tmp_path / "spool")
    one.track(5)
    monkeypatch.setattr(
        one.sender._batches._transport, "post", failing(one.sender._batches._transport.post, MemoryError(), 20)
    )
    assert len(one.settle()) == 20
    assert serials(letter_api) == [0, 1, 2, 3, 4] and errors == []


def test_a_recovery_that_fails_is_reported_once_and_repeated(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError], monkeypatch: Any
) -> None:
    one = driven()
    backends = one.sender._recovery._backends
    scans: list[float] = []

    def orphans() -> list[Any]:
        scans.append(one.now)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(backends, "orphans", orphans)
    for _ in range(4):
        one.sender._batches.send_once()
        one.now += 3600.0
    assert len(scans) == 4 and len(errors) == 1


def test_a_tls_context_without_certificates_is_created_again(
    ca: trustme.CA, trusting: ssl.SSLContext, driven: Any, errors: list[LetterError]
) -> None:
    # OpenSSL does not say when it could not open the file of certificates, for want of a descriptor.
    contexts = [ssl.create_default_context(), trusting]
    with serving(ca, "localhost") as api:
        one = driven(api.url, ssl_context=lambda: contexts.pop(0))
        for tries in (1, 0):
            one.track()
            assert len(one.settle()) == tries
        assert api.distinct == 2 and errors == [] and contexts == []
