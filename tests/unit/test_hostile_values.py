"""Values whose classes raise, and values that change while they are encoded.

None may hang, cost another event, or let anything but a `LetterError` out of a call.
"""

from __future__ import annotations

import datetime as dt
import enum
import gc
import json
import operator
import sys
import threading
import uuid
from collections import Counter, OrderedDict, UserDict, defaultdict
from typing import Any, Callable

import pytest
from values import ENCODER, NoText, Unreadable, UnreadableText, Worse, next_arrives, written

from letterapp import LetterError
from letterapp._encoding.events import Encoder
from letterapp._encoding.json_text import Unencodable

# Classes that raise.


class UnreadableUUID(uuid.UUID):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class UnreadableZone(dt.tzinfo):
    def utcoffset(self, moment: Any) -> Any:
        raise ZeroDivisionError("no offset")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class WrongZone(dt.tzinfo):
    def utcoffset(self, moment: Any) -> Any:
        return "two hours"


class Refusing(dt.datetime):
    """As pandas' for a naive moment."""

    def astimezone(self, tz: Any = None) -> Any:
        raise TypeError("Cannot convert tz-naive Timestamp, use tz_localize to localize")


class UnreadableDate(dt.date):
    def isoformat(self) -> str:
        raise RuntimeError("no text")


class UnreadableFloat(float):
    def __float__(self) -> float:
        raise RuntimeError("no number")


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Bogus:
    __dataclass_fields__ = 5


class UnreadableEnum(enum.Enum):
    A = 1

    @property
    def value(self) -> Any:
        raise RuntimeError("no value")


class Attributes:
    """Looks like anything, as a mock does."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any) -> Any:
        return self


class Recursive(UserDict):  # type: ignore[type-arg]
    def items(self) -> Any:
        return {"again": Recursive()}.items()


RAISING: dict[str, Any] = {
    "a proxy": Unreadable(),
    "a text": UnreadableText("text"),
    "a UUID": UnreadableUUID(int=1),
    "a zone": dt.datetime(2026, 1, 2, tzinfo=UnreadableZone()),  # type: ignore[abstract]
    "a wrong zone": dt.datetime(2026, 1, 2, tzinfo=WrongZone()),  # type: ignore[abstract]
    "a date": UnreadableDate(2026, 1, 2),
    "a mapping": Worse(),
    "a float": UnreadableFloat(1),
    "a class without a name": Nameless("N", (), {})(),
    "a bogus dataclass": Bogus(),
    "an enum": UnreadableEnum.A,
    "what looks like anything": Attributes(),
    "one without end": Recursive(),
}


@pytest.mark.parametrize("which", RAISING)
def test_whatever_a_value_raises_a_call_raises_only_letter_errors(which: str, make: Any, letter_api: Any) -> None:
    value = RAISING[which]
    reported: list[LetterError] = []
    letter = make(on_error=reported.append)
    failing = make(default=lambda other: operator.truth(Unreadable()), on_error=reported.append)
    changed = make(before_send=lambda item: value, on_error=reported.append)
    nested = make(before_send=lambda item: {**item, "properties": [value]}, on_error=reported.append)
    raising = make(before_send=lambda item: Worse().items(), on_error=reported.append)
    mail: dict[str, Any] = {"to": "a@example.com", "subject": "Hi", "text": "Hi"}
    try:
        in_a_hash_table: Any = {value: 1}
    except Exception:
        in_a_hash_table = {}  # it cannot be in one
    calls: list[Callable[[], Any]] = [
        lambda: letter.track(value, "E"),
        lambda: letter.track("u", value),
        lambda: letter.track("u", "E", value),
        lambda: letter.track("u", "E", {"v": value}),
        lambda: letter.track("u", "E", {"v": [{"w": (value,)}]}),
        lambda: letter.track("u", "E", in_a_hash_table),
        lambda: letter.track("u", "E", {"v": set(in_a_hash_table)}),
        lambda: letter.track("u", "E", timestamp=value),
        lambda: letter.track("u", "E", message_id=value),
        lambda: letter.identify(value),
        lambda: letter.identify("u", email=value),
        lambda: letter.identify("u", timezone=value),
        lambda: letter.identify("u", traits=value),
        lambda: letter.group("u", value),
        lambda: letter.group("u", "a", name=value),
        lambda: failing.track("u", "E", {"v": value}),
        lambda: changed.track("u", "E"),
        lambda: nested.track("u", "E"),
        lambda: raising.track("u", "E"),
        *[lambda name=name: letter.send(**{**mail, name: value}) for name in (*mail, "metadata", "idempotency_key")],
        lambda: letter.send(**mail, metadata={"v": [value]}),
        lambda: letter.send(**mail, headers={"X": value}),
    ]
    for call in calls:
        try:
            call()
        except LetterError as problem:
            str(problem).encode()
    for error in reported:
        assert "no longer" not in str(error) and error.events[0]["userId"] is not None
    assert all(one.flush(60) for one in (letter, failing, changed, nested, raising))
    before = len(letter_api.events)
    letter.track("u", "next")
    assert letter.flush(60) and [item["event"] for item in letter_api.events[before:]] == ["next"]


def test_the_error_says_where_and_what() -> None:
    for value, problem in {
        "a proxy": "properties.v: could not be read: RuntimeError('working outside of a request')",
        "a zone": "properties.v: could not be read: ZeroDivisionError('no offset')",
        "a mapping": "properties.v: could not be read: NoText(an Unreadable, a list, an UnreadableText)",
        "a class without a name": "properties.v: a N is not JSON",
    }.items():
        with pytest.raises(Unencodable) as caught:
            written(RAISING[value])
        assert str(caught.value) == problem
    for argument, problem in {
        "a proxy": "timestamp could not be read: RuntimeError('working outside of a request')",
        "a wrong zone": "timestamp could not be read: TypeError(",
    }.items():
        with pytest.raises(LetterError) as raised:
            ENCODER.track("u", "E", None, RAISING[argument], None)
        assert str(raised.value).startswith(problem)


def test_a_subclass_of_datetime_that_refuses_conversion_is_encoded_as_its_base() -> None:
    naive = dt.datetime(2026, 1, 2, 3, 4, 5)
    refusing = Refusing(2026, 1, 2, 3, 4, 5)
    assert written(refusing) == written(naive)
    data = ENCODER.track("u", "E", None, refusing, None)
    assert data is not None and json.loads(data)["timestamp"] == written(naive)


def test_subclasses_of_str_are_encoded_as_their_text() -> None:
    data = ENCODER.group(UnreadableText("u"), UnreadableText("a"), UnreadableText("n"), None, None, None)
    assert data is not None
    item = json.loads(data)
    assert (item["userId"], item["accountId"], item["name"]) == ("u", "a", "n")
    assert written([UnreadableText("v")]) == ["v"]


def test_an_on_error_that_raises_something_without_a_repr_is_reported(make: Any, letter_api: Any, capsys: Any) -> None:
    def on_error(error: LetterError) -> None:
        raise NoText(Unreadable())

    letter = make(on_error=on_error)
    letter.track("u", "E", {"v": object()})
    assert "on_error raised NoText(an Unreadable)" in capsys.readouterr().err
    next_arrives(letter, letter_api)


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_base_exceptions_propagate(leaving: Any, make: Any, letter_api: Any, errors: list[Any]) -> None:
    class Leaving(UserDict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise leaving

    letter = make()
    calls: list[Callable[[], object]] = [
        lambda: letter.track("u", "E", Leaving()),
        lambda: letter.track("u", "E", {"v": [Leaving()]}),
        lambda: letter.send("a@example.com", "Hi", text="Hi", metadata=Leaving()),
    ]
    for call in calls:
        with pytest.raises(leaving):
            call()
    assert errors == []
    next_arrives(letter, letter_api)


# Changed by others while it is encoded.


class Changing:
    """Removes a key of the properties that it stands in, and adds others, when it is read."""

    def __init__(self, properties: Any, key: Any) -> None:
        self._properties = properties
        self._key = key

    @property
    def __class__(self) -> Any:
        for number in range(50):
            self._properties[f"more {number}"] = object()
        self._properties.pop(self._key, None)
        return dict

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise AttributeError


@pytest.mark.parametrize("kind", [dict, OrderedDict, Counter, lambda: defaultdict(list)])
@pytest.mark.parametrize("nested", [False, True])
def test_properties_that_change_while_they_are_read_are_encoded_as_at_the_call(kind: Any, nested: bool) -> None:
    properties = kind()
    properties.update(a=1, at=Changing(properties, "b"), b=2)
    with pytest.raises(Unencodable, match=r"at: a Changing is not JSON|at: could not be read"):
        written(properties) if nested else ENCODER.track("u", "E", properties, None, None)
    encoder = Encoder(500_000, None, lambda value: "changed")
    properties = kind()
    properties.update(a=1, at=Changed(properties), b=2)
    data = encoder.track("u", "E", {"v": properties} if nested else properties, None, None)
    assert data is not None
    came = json.loads(data)["properties"]
    assert (came["v"] if nested else came) == {"a": 1, "at": "changed", "b": 2}


class Changed:
    def __init__(self, properties: Any) -> None:
        self._properties = properties

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@pytest.mark.slow
def test_properties_that_another_thread_changes_are_encoded_atomically(make: Any, letter_api: Any) -> None:
    before = sys.getswitchinterval()
    shared: dict[Any, Any] = {"fixed": 1}
    others = [shared, OrderedDict(shared), Counter(shared)]
    over = threading.Event()
    reported: list[LetterError] = []
    letter = make(max_queue_events=100_000, on_error=reported.append)

    def change() -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            for one in others:
                one[f"k{turn % 7}"] = [turn, {"deep": {turn: None}}, {"set"}]
                one.pop(f"k{(turn + 3) % 7}", None)

    thread = threading.Thread(target=change)
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        for turn in range(600):
            letter.track("u", "e", others[turn % 3])
            letter.track("u", "e", {"v": [others[turn % 3]]})
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)
    assert letter.flush(60)
    assert [str(error) for error in reported] == [] and letter_api.distinct == 1200
    assert "object at" not in json.dumps(letter_api.events)


@pytest.mark.skipif(not hasattr(gc, "get_threshold"), reason="CPython's collections")
def test_a_garbage_collection_during_the_call_may_change_the_properties(make: Any, letter_api: Any) -> None:
    letter = make()
    properties: dict[str, Any] = {f"k{number}": [number] for number in range(50)}

    def on_collection(phase: str, info: Any) -> None:
        properties.pop(f"k{len(properties) - 1}", None)
        properties["late"] = {1}

    threshold = gc.get_threshold()
    gc.callbacks.append(on_collection)
    gc.set_threshold(1, 1, 1)
    try:
        letter.track("u", "e", properties)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(on_collection)
    assert letter.flush(60) and letter_api.distinct == 1
