"""TLS: which certificates are trusted, what is reported otherwise; children do not use the parent's connection."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme
from certificates import serving
from harness import DEADLINE, eventually, start
from programs import forks_tls

from letterapp import LetterError
from letterapp.testing import Hold, IngestionServer, reset, status


def connections(api: IngestionServer) -> int:
    return len({request.connection for request in api.requests})


def test_a_context_is_used(
    tls_api: IngestionServer, make: Any, trusting: ssl.SSLContext, errors: list[LetterError]
) -> None:
    letter = make(base_url=tls_api.url, ssl_context=trusting)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) is True
    assert tls_api.distinct == 1 and errors == []
    assert tls_api.requests[0].headers["host"] == f"localhost:{tls_api.port}"


def test_an_ssl_context_function_is_called_once_at_the_first_request(
    tls_api: IngestionServer, make: Any, trusting: ssl.SSLContext, errors: list[LetterError]
) -> None:
    calls: list[int] = []

    def context() -> ssl.SSLContext:
        calls.append(threading.get_ident())
        return trusting

    letter = make(base_url=tls_api.url, ssl_context=context, flush_interval=600)
    letter.track("u", "E")
    assert calls == []
    assert letter.flush(DEADLINE) is True
    tls_api.drop_connections()
    letter.track("u", "E")
    assert letter.flush(DEADLINE) is True
    assert tls_api.distinct == 2 and connections(tls_api) == 2 and errors == []
    assert len(calls) == 1 and calls[0] != threading.get_ident()


def test_a_failing_ssl_context_function_is_reported(
    tls_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    def context() -> ssl.SSLContext:
        raise FileNotFoundError("no ca.pem")

    letter = make(base_url=tls_api.url, ssl_context=context, max_retries=0)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) is True
    (error,) = errors
    assert "no ca.pem" in str(error) and error.cause == "undeliverable" and error.lost == 1


def test_the_default_context_uses_ssl_cert_file(
    tls_api: IngestionServer, make: Any, ca_file: str, monkeypatch: pytest.MonkeyPatch, errors: list[LetterError]
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    letter = make(base_url=tls_api.url)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) is True
    assert tls_api.distinct == 1 and errors == []


def test_send_verifies_by_the_same_rules(tls_api: IngestionServer, make: Any, trusting: ssl.SSLContext) -> None:
    assert make(base_url=tls_api.url, ssl_context=trusting).send("a@b.example", "S", text="x")["status"] == "sent"
    with pytest.raises(LetterError, match="CERTIFICATE_VERIFY_FAILED"):
        make(base_url=tls_api.url).send("a@b.example", "S", text="x")
    assert len(tls_api.requests) == 1


def refused(make: Any, errors: list[LetterError], **options: Any) -> LetterError:
    letter = make(max_retries=1, **options)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) is True
    (error,) = errors
    assert (error.status, error.cause, error.lost) == (None, "undeliverable", 1)
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    return error


def test_an_unknown_authority_is_refused_and_reported(
    tls_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    refused(make, errors, base_url=tls_api.url)
    assert tls_api.requests == []  # the key has not travelled


def test_another_authority_than_the_trusted_one_is_refused_and_reported(
    make: Any, trusting: ssl.SSLContext, errors: list[LetterError]
) -> None:
    with serving(trustme.CA(), "localhost") as api:
        refused(make, errors, base_url=api.url, ssl_context=trusting)
        assert api.requests == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_another_name_than_the_certificates_is_refused_and_reported(
    host: str, ca: trustme.CA, make: Any, trusting: ssl.SSLContext, errors: list[LetterError]
) -> None:
    with serving(ca, "elsewhere.example") as api:
        error = refused(make, errors, base_url=f"https://{host}:{api.port}", ssl_context=trusting)
        assert host in str(error)
        assert api.requests == []


def test_an_ip_address_in_the_certificate_is_accepted(
    ca: trustme.CA, make: Any, trusting: ssl.SSLContext, errors: list[LetterError]
) -> None:
    with serving(ca, "127.0.0.1") as api:
        letter = make(base_url=f"https://127.0.0.1:{api.port}", ssl_context=trusting)
        letter.track("u", "E")
        assert letter.flush(DEADLINE) is True
        assert api.distinct == 1 and errors == []


def test_a_server_without_tls_is_reported(
    letter_api: IngestionServer, make: Any, trusting: ssl.SSLContext, errors: list[LetterError]
) -> None:
    letter = make(base_url=f"https://127.0.0.1:{letter_api.port}", ssl_context=trusting, max_retries=0)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) is True
    assert len(errors) == 1 and errors[0].cause == "undeliverable"
    assert letter_api.requests == []


def test_a_server_that_never_shakes_hands_is_bounded_by_timeout(
    make: Any, trusting: ssl.SSLContext, errors: list[LetterError]
) -> None:
    with socket.socket() as listener:  # the system accepts for it
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        letter = make(base_url=url, ssl_context=trusting, max_retries=0, timeout=0.3)
        letter.track("u", "E")
        assert letter.flush(DEADLINE) is True
    assert "no answer within 0.3 s" in str(errors[0])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_one_connection_serves_many_batches(
    version: ssl.TLSVersion, tls_api: IngestionServer, make: Any, trusting: ssl.SSLContext, errors: list[LetterError]
) -> None:
    # TLS 1.3 sends tickets behind the handshake, which must not be taken for a server that hangs up.
    trusting.minimum_version = trusting.maximum_version = version
    letter = make(base_url=tls_api.url, ssl_context=trusting)
    for _ in range(5):
        for _ in range(200):
            letter.track("u", "E", {"text": "x" * 1000})
        assert letter.flush(DEADLINE) is True
    assert len(tls_api.requests) >= 10 and connections(tls_api) == 1
    assert tls_api.distinct == 1000 and errors == [] and letter.stats()["retried"] == 0


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_connection_that_the_server_closed_is_replaced_without_a_retry(
    max_retries: int, tls_api: IngestionServer, make: Any, trusting: ssl.SSLContext, errors: list[LetterError]
) -> None:
    letter = make(base_url=tls_api.url, ssl_context=trusting, max_retries=max_retries)
    for _ in range(2):
        letter.track("u", "E")
        assert letter.flush(DEADLINE) is True
        tls_api.drop_connections()  # while idle
    tls_api.plan(status(200, stored=True), reset())  # and under a request
    for _ in range(2):
        letter.track("u", "E")
        assert letter.flush(DEADLINE) is True
    assert tls_api.distinct == 4 and errors == []
    assert letter.stats()["retried"] == 0 and tls_api.repeated() == {}


# Forks.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    "how, expected",
    [
        ("tracks", 3),
        ("does nothing", 0),  # and leaves with what it inherited
        ("drops the client", 0),
        ("closes", 0),
        ("tracks and forks again", 6),
    ],
)
def test_a_child_does_not_use_a_tls_connection_with_a_request_in_progress(
    how: str, expected: int, tls_api: IngestionServer, ca_file: str, tmp_path: Path
) -> None:
    hold = Hold()
    tls_api.plan(status(200, stored=True), hold)
    with start(forks_tls.fork_with_a_request_on_the_wire, tls_api.url, tmp_path, how, SSL_CERT_FILE=ca_file) as program:
        assert hold.arrived.wait(DEADLINE), program.output
        program.signal(signal.SIGUSR1)
        # The child has come and gone before the parent's answer is sent.
        assert tls_api.wait_for(1 + expected, DEADLINE), program.output
        assert eventually(lambda: program.output, lambda text: bool(text) or program.process.poll() is not None)
        hold.release()
        finished = program.finish()
    assert finished.code == 0 and finished.output == "waited\n", finished
    who_came_over: dict[str, set[Any]] = {}
    for request in tls_api.requests:
        (who,) = {item["userId"] for item in request.json["batch"]}
        who_came_over.setdefault(who, set()).add(request.connection)
    assert len(who_came_over["parent"]) == 1
    connections_used = [connection for used in who_came_over.values() for connection in used]
    assert len(connections_used) == len(set(connections_used)) == len(who_came_over)
    assert sum(item["userId"] == "parent" for item in tls_api.events) == 3
    assert tls_api.distinct == 3 + expected and tls_api.repeated() == {}


def test_a_child_keeps_no_copy_of_a_connection_whose_handshake_was_under_way(ca_file: str, tmp_path: Path) -> None:
    # With a copy left open in a child the server would never see the parent close.
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc to look into")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        listener.settimeout(DEADLINE)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with start(forks_tls.fork_during_a_handshake, url, tmp_path, SSL_CERT_FILE=ca_file) as program:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(DEADLINE)
                assert sock.recv(1)  # the client's greeting: it waits for ours
                program.signal(signal.SIGUSR1)
                finished = program.finish()
    assert finished.output == "1 0\n", finished
