"""Every option has its effect, and an error names the one that is wrong."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
import re
import ssl
import threading
from typing import Any
from unittest import mock

import pytest
from harness import DEADLINE, eventually

from letterapp import Letter, LetterError
from letterapp.relay import LISTENING, SENDING, QueueListener, SenderManager
from letterapp.testing import Hold, status


def fill(letter: Letter, count: int, start: int = 0) -> None:
    for serial in range(start, start + count):
        letter.track("u", "e", {"serial": serial})


def serials(events: list[dict[str, Any]]) -> list[int]:
    return [item["properties"]["serial"] for item in events]


def test_the_documented_seven_keep_their_names_order_and_defaults() -> None:
    parameters = list(inspect.signature(Letter).parameters.values())
    documented = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [name for name, _ in documented] == [
        *("api_key", "base_url", "flush_at", "flush_interval", "max_retries", "timeout", "on_error"),
    ]
    assert [default for _, default in documented[1:]] == ["https://api.letter.app", 50, 0.1, 3, 10.0, None]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[7:])


@pytest.mark.parametrize(
    "options, named",
    [
        ({"api_key": None}, "api_key is required"),
        ({"api_key": ""}, "api_key is required"),
        ({"api_key": "a\nb"}, "api_key must be printable ASCII"),
        ({"api_key": "a b"}, "api_key"),
        ({"api_key": "clé"}, "api_key"),
        ({"api_key": 5}, "api_key"),
        ({"base_url": "ftp://host"}, "base_url"),
        ({"base_url": "api.letter.app"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "http://host:port"}, "base_url"),
        ({"base_url": "http://host/?q"}, "base_url"),
        ({"base_url": "http://user@host"}, "base_url"),
        ({"base_url": "http://ho st"}, "base_url"),
        ({"base_url": "http://[::1"}, "base_url"),
        ({"base_url": 5}, "base_url"),
        ({"base_url": "http://host:0"}, "base_url"),
        ({"base_url": "http://[::1]:0"}, "base_url"),
        ({"base_url": "https://host:00/prefix"}, "base_url"),
        ({"base_url": "http://host:65536"}, "base_url"),
        ({"base_url": "http://host:-1"}, "base_url"),
        ({"base_url": "http://host:+80"}, "base_url"),
        ({"base_url": "http://host:8_0"}, "base_url"),
        ({"base_url": "http://host:\u0668\u0660"}, "base_url"),
        ({"base_url": "http://host:"}, "base_url"),
        ({"base_url": "http://host:/prefix"}, "base_url"),
        ({"base_url": "http://:80"}, "base_url"),
        ({"base_url": "http://::1"}, "base_url"),
        ({"base_url": "http://host:80:90"}, "base_url"),
        ({"base_url": "http://[::1]80"}, "base_url"),
        ({"base_url": "http://[::1]x:80"}, "base_url"),
        ({"base_url": "http://x[::1]:80"}, "base_url"),
        ({"base_url": "http://[x]:80"}, "base_url"),
        ({"base_url": "http://host: 80"}, "base_url"),
        ({"base_url": " http://host"}, "base_url"),
        ({"base_url": "http://host\n"}, "base_url"),
        ({"base_url": "http://host\t:80"}, "base_url"),
        ({"base_url": "http://host\xa0"}, "base_url"),
        ({"base_url": "http://:password@host"}, "base_url"),
        ({"base_url": "http://@host"}, "base_url"),
        ({"base_url": "http://ho\\st"}, "base_url"),
        ({"base_url": "http://ho%73t"}, "base_url"),
        ({"base_url": "http:host"}, "base_url"),
        ({"base_url": "http:///host"}, "base_url"),
        ({"flush_at": 0}, "flush_at"),
        ({"flush_at": 1.5}, "flush_at"),
        ({"flush_at": True}, "flush_at"),
        ({"flush_interval": -1}, "flush_interval"),
        ({"flush_interval": float("nan")}, "flush_interval"),
        ({"flush_interval": 10**400}, "flush_interval"),
        ({"flush_interval": "1"}, "flush_interval"),
        ({"max_retries": -1}, "max_retries"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"on_error": "print"}, "on_error"),
        ({"max_queue_bytes": 0}, "max_queue_bytes"),
        ({"max_queue_events": -5}, "max_queue_events"),
        ({"overflow": "drop"}, "overflow must be one of drop_newest, drop_oldest, block"),
        ({"max_batch_bytes": 10}, "max_batch_bytes"),
        ({"exit_timeout": -1}, "exit_timeout"),
        ({"before_send": 5}, "before_send"),
        ({"enabled": "yes"}, "enabled"),
        ({"ssl_context": "strict"}, "ssl_context"),
        ({"exit_signals": ("SIGTERM",)}, "exit_signals"),
        ({"exit_signals": 15}, "exit_signals"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it_at_construction(options: dict[str, Any], named: str) -> None:
    with pytest.raises(LetterError, match=named):
        Letter(**{"api_key": "k", **options})


@pytest.mark.parametrize(
    "base_url, host, port",
    [
        ("http://host", "host", 80),
        ("https://Host:8443/prefix/", "host", 8443),
        ("http://host:080", "host", 80),
        ("http://host:65535", "host", 65535),
        ("http://[::1]", "::1", 80),
        ("http://[::1]:8080", "::1", 8080),
        ("http://[fe80::1%eth0]:8080", "fe80::1%eth0", 8080),
        ("http://[::ffff:127.0.0.1]", "::ffff:127.0.0.1", 80),
        ("http://under_score.example", "under_score.example", 80),
        ("http://b\xfccher.example", "xn--bcher-kva.example", 80),
        ("http://host.", "host.", 80),
    ],
)
def test_an_address_is_used_as_it_is_written(base_url: str, host: str, port: int) -> None:
    settings = Letter("k", base_url)._settings
    assert (settings.host, settings.port) == (host, port)


def test_an_unknown_option_is_python_s_own_error() -> None:
    with pytest.raises(TypeError, match="flush_every"):
        Letter("k", flush_every=5)  # type: ignore[call-arg]


def test_the_key_never_shows(make: Any) -> None:
    letter = make(api_key="secret-key")
    assert "secret" not in repr(letter) + repr(letter._settings) + repr(letter._delivery) + str(letter.stats())


def test_key_and_address_come_from_the_environment_when_not_given(
    monkeypatch: pytest.MonkeyPatch, letter_api: Any
) -> None:
    monkeypatch.setenv("LETTER_API_KEY", "from-outside")
    monkeypatch.setenv("LETTER_BASE_URL", letter_api.url + "/prefix/")
    with Letter() as letter:
        letter.track("u", "e")
    request = letter_api.requests[0]
    assert request.path == "/prefix/v1/batch" and request.headers["authorization"] == "Bearer from-outside"
    with Letter("given", letter_api.url) as letter:
        letter.track("u", "e")
    request = letter_api.requests[1]
    assert request.path == "/v1/batch" and request.headers["authorization"] == "Bearer given"


def test_an_address_that_is_given_wins_even_when_it_is_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTER_BASE_URL", "http://elsewhere")
    assert Letter("k")._settings.base_url == "http://elsewhere"
    assert Letter("k", "".join(["https://api.", "letter.app"]))._settings.base_url == "https://api.letter.app"


def test_flush_at_sends_a_batch_before_its_interval(make: Any, letter_api: Any) -> None:
    letter = make(flush_at=7, flush_interval=1000)
    fill(letter, 7)
    assert letter_api.wait_for(7)
    assert len(letter_api.requests) == 1


@pytest.mark.parametrize(
    "waiting, options, sizes",
    [
        (250, {"flush_at": 250}, [100, 100, 50]),
        (250, {"flush_at": 101}, [100, 100, 50]),
        (100, {"flush_at": 100}, [100]),
        (120, {"flush_at": 50}, [100, 20]),
        (40, {"flush_at": 40, "max_batch_bytes": 2000}, None),
    ],
    ids=["three requests", "one more than a request carries", "one request", "more than flush_at", "large events"],
)
def test_all_waiting_events_are_sent_at_once_when_flush_at_is_reached(
    waiting: int, options: dict[str, Any], sizes: Any, driven: Any, letter_api: Any
) -> None:
    one = driven(flush_interval=1000, **options)
    one.track(waiting)
    assert one.settle() == []  # the clock stood still
    came = [len(request.json["batch"]) for request in letter_api.requests]
    assert sum(came) == waiting and len(came) > 1 if sizes is None else came == sizes
    one.track(1)
    assert one.settle() == [1000.0], "what comes later waits for company as before"


def test_flush_at_counts_events_queued_during_a_request(driven: Any, letter_api: Any) -> None:
    one = driven(flush_interval=1000, flush_at=150)
    one.track(150)
    assert one.sender._batches.send_once() == 0.0
    one.track(99)  # with the 50 that are left
    assert one.settle() == [1000.0]
    assert [len(request.json["batch"]) for request in letter_api.requests] == [100, 100, 49]


def test_flush_interval_sends_a_single_event(make: Any, letter_api: Any) -> None:
    letter = make(flush_at=1000, flush_interval=0.05)
    fill(letter, 3)
    assert letter_api.wait_for(3)


def test_timeout_reaches_the_request(make: Any, letter_api: Any, errors: list[LetterError]) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = make(timeout=0.2, max_retries=0, flush_at=1)
    fill(letter, 1)
    assert eventually(lambda: errors, bool)
    assert "no answer within 0.2 s" in str(errors[0])
    hold.release()


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_max_retries_counts_the_tries_after_the_first(
    retries: int, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = lambda request: status(429, headers={"Retry-After": "0"})
    letter = make(max_retries=retries, flush_interval=600)
    fill(letter, 2)
    assert letter.flush(DEADLINE)
    assert len(letter_api.requests) == retries + 1
    assert letter.stats()["retried"] == 2 * retries and letter.stats()["lost"] == {"undeliverable": 2}
    assert errors[0].status == 429 and serials(errors[0].events) == [0, 1]


def held_queue(make: Any, letter_api: Any, **options: Any) -> Any:
    """A client with one event on the wire, held there, and nothing else."""
    hold = Hold()
    letter_api.plan(hold)
    letter = make(flush_at=1, flush_interval=0, **options)
    fill(letter, 1)
    assert hold.arrived.wait(DEADLINE)
    return letter, hold


def test_max_queue_events_bounds_the_queue_including_the_request_in_progress(
    make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter, hold = held_queue(make, letter_api, max_queue_events=10)
    fill(letter, 20, start=1)
    assert letter.stats()["waiting"] == 10 and letter.stats()["lost"] == {"overflow": 11}
    hold.release()
    assert letter.flush()
    assert serials(letter_api.events) == list(range(10))
    assert eventually(lambda: errors, bool)
    assert [error.lost for error in errors] == [11] and serials(errors[0].events) == list(range(10, 21))
    assert "11 events dropped (drop_newest): the queue is full (10 events" in str(errors[0])


def test_max_queue_bytes_bounds_the_queue(make: Any, letter_api: Any) -> None:
    letter, hold = held_queue(make, letter_api, max_queue_bytes=2000)
    fill(letter, 50, start=1)
    stats = letter.stats()
    assert 1800 < stats["waiting_bytes"] <= 2000 and stats["waiting"] + stats["lost"]["overflow"] == 51
    hold.release()
    assert letter.flush()
    assert letter.stats()["waiting_bytes"] == 0


def test_drop_oldest_keeps_the_newest_and_the_request_in_progress(
    make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter, hold = held_queue(make, letter_api, max_queue_events=5, overflow="drop_oldest")
    fill(letter, 20, start=1)
    hold.release()
    assert letter.flush()
    assert serials(letter_api.events) == [0, 17, 18, 19, 20]
    assert eventually(lambda: errors, bool)
    assert sum(error.lost for error in errors) == 16 and letter.stats()["lost"] == {"overflow": 16}


def test_block_waits_for_room(make: Any, letter_api: Any) -> None:
    letter, hold = held_queue(make, letter_api, max_queue_events=5, overflow="block", timeout=DEADLINE)
    calls = threading.Thread(target=fill, args=(letter, 20, 1))
    calls.start()
    assert eventually(lambda: letter.stats()["waiting"], lambda waiting: waiting == 5)
    assert calls.is_alive()
    hold.release()
    calls.join(DEADLINE)
    assert letter.flush()
    assert serials(letter_api.events) == list(range(21)) and letter.stats()["lost"] == {}


def test_block_waits_no_longer_than_timeout(make: Any, letter_api: Any, errors: list[LetterError]) -> None:
    letter, hold = held_queue(make, letter_api, max_queue_events=1, overflow="block", timeout=0.2)
    letter_api.rule = lambda request: hold  # its next tries as well
    fill(letter, 1, start=1)
    assert letter.stats()["lost"] == {"overflow": 1}
    hold.release()


def test_an_event_larger_than_the_queue_is_dropped_at_once(make: Any, errors: list[LetterError]) -> None:
    for overflow in ("drop_newest", "drop_oldest", "block"):
        letter = make(max_queue_bytes=1000, overflow=overflow, timeout=1000, flush_interval=1000)
        fill(letter, 2)
        letter.track("u", "large", {"blob": "x" * 2000})
        assert letter.stats()["lost"] == {"overflow": 1} and letter.stats()["waiting"] == 2
        error = errors.pop()
        assert re.fullmatch(r"1 event dropped: it has 2,\d+ bytes, and the maximum is 1,000 .*", str(error)), error
        assert (error.cause, error.lost) == ("overflow", 1) and error.events[0]["event"] == "large" and errors == []


def test_drops_are_reported_once_per_burst(make: Any, letter_api: Any, errors: list[LetterError]) -> None:
    letter, hold = held_queue(make, letter_api, max_queue_events=10, timeout=1, max_retries=100)
    letter_api.rule = lambda request: hold  # its next tries as well: the queue stays full
    fill(letter, 500, start=1)
    assert eventually(lambda: errors, bool)  # when the request has timed out, though the queue is still full
    assert errors[0].lost == 491 and len(errors[0].events) == 100
    fill(letter, 5, start=501)
    hold.release()
    assert letter.flush()
    assert eventually(lambda: len(errors), lambda count: count == 2) == 2
    assert errors[1].lost == 5
    assert letter.stats()["lost"] == {"overflow": 496}


def test_max_batch_bytes_bounds_each_request_and_each_event(
    make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(max_batch_bytes=2000, flush_interval=30)
    fill(letter, 100)
    letter.track("u", "large", {"blob": "x" * 2000})
    assert letter.flush()
    assert serials(letter_api.events) == list(range(100))
    sizes = [len(request.body) for request in letter_api.requests]
    assert max(sizes) <= 2000 and min(sizes[:-1]) > 1700
    assert "max_batch_bytes" in str(errors[0]) and letter.stats()["lost"] == {"invalid": 1}


def test_exit_timeout_is_the_default_budget_of_flush_and_close(make: Any, letter_api: Any) -> None:
    letter, hold = held_queue(make, letter_api, exit_timeout=0.1)
    assert letter.flush() is False
    assert letter.close() is False
    hold.release()


def test_disabled_everything_is_a_no_op_without_a_key(letter_api: Any) -> None:
    letter = Letter(enabled=False, base_url=letter_api.url)
    letter.track("", "")
    letter.identify("u")
    letter.group("u", "a")
    assert letter.send("to", "subject", text="x") == {}
    assert letter.flush() is True and letter.close() is True
    assert letter_api.requests == [] and letter.stats()["accepted"] == 0


def test_ssl_context_is_used(make: Any) -> None:
    context = ssl.create_default_context()
    assert make(base_url="https://localhost", ssl_context=context)._delivery._batches._transport._tls() is context
    assert (
        make(base_url="https://localhost", ssl_context=lambda: context)._delivery._batches._transport._tls() is context
    )


# Options are fixed.

OPTIONS = list(inspect.signature(Letter).parameters)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_cannot_be_set_afterwards(name: str, make: Any) -> None:
    letter = make()
    with pytest.raises(AttributeError, match=rf"^{name} is an option, .* make another Letter\({name}=\.\.\.\)$"):
        setattr(letter, name, 3)
    with pytest.raises(AttributeError):
        delattr(letter, name)
    assert not hasattr(letter, name)


def test_an_option_of_a_manager_or_a_listener_cannot_be_set_afterwards() -> None:
    senders: list[Any] = [SenderManager("k"), QueueListener(multiprocessing.Queue(), "k")]
    for sends in senders:
        for name in (*LISTENING, *SENDING, "api_key", "base_url"):
            with pytest.raises(AttributeError):
                setattr(sends, name, 3)
        sends.label = "mine"


def test_other_attributes_can_be_set(make: Any, letter_api: Any) -> None:
    class Mine(Letter):
        timeout = 5  # its own

        def __init__(self, *given: Any, **options: Any) -> None:
            self.host = "of the application"
            self.timeout = 7
            super().__init__(*given, **options)
            self.name = "orders"
            self.flush_interval_of_mine = 1

    letter = Mine("k", letter_api.url)
    assert (letter.host, letter.timeout, letter.name) == ("of the application", 7, "orders")
    assert letter._settings.timeout == 10.0
    letter.track("u", "e")
    for replaced in (letter, Letter):
        with mock.patch.object(replaced, "track") as track:
            letter.track("u", "not this one")
        track.assert_called_once()
    mock.create_autospec(letter).track("u", "nor this one")
    letter.track("u", "e")
    assert letter.close()
    assert [item["event"] for item in letter_api.events] == ["e", "e"]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_is_a_client_with_the_same_options_too(copied: Any, make: Any, letter_api: Any) -> None:
    other = copied(make(on_error=None, flush_at=3))
    assert other._settings.flush_at == 3
    other.track("u", "of the copy")
    assert other.close()
    assert letter_api.distinct == 1


# Pickling.


def on_error(error: LetterError) -> None:
    pass


def test_a_pickled_client_is_one_with_the_same_options(letter_api: Any) -> None:
    letter = Letter("k", letter_api.url, flush_at=3, overflow="block", on_error=on_error, exit_timeout=7)
    letter.track("u", "stays here")
    other = pickle.loads(pickle.dumps(letter))
    assert other._settings.__dict__ == letter._settings.__dict__
    assert other.stats()["waiting"] == 0
    other.track("u", "from the copy")
    assert other.close()
    assert [item["event"] for item in letter_api.events if item["event"] == "from the copy"] == ["from the copy"]
    letter.close()


def test_a_client_with_an_unpicklable_context_says_what_to_do(make: Any) -> None:
    with pytest.raises(LetterError, match=r"ssl_context to a module-level function"):
        pickle.dumps(make(ssl_context=ssl.create_default_context()))


def test_an_error_can_be_pickled_whatever_its_events_contain() -> None:
    error = LetterError(
        "m", 400, "body", "code", "reason", cause="invalid", events=[b'{"a":1}', {"x": threading.Lock()}]
    )
    other = pickle.loads(pickle.dumps(error))
    assert str(other) == "m" and (other.status, other.body, other.code, other.reason) == (400, "body", "code", "reason")
    assert other.cause == "invalid" and other.lost == 2 and other.events == [{"a": 1}]
