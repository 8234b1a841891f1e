"""Values that nobody wrote this client for: small in memory and endless as JSON, changed meanwhile, classes that raise.

None may hang, cost another event, or let anything but a `LetterError` out of a call.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import gc
import json
import operator
import pickle
import sys
import threading
import time
import uuid
from collections import Counter, OrderedDict, UserDict, defaultdict
from collections.abc import Mapping
from typing import Any, Callable, Iterator

import pytest
from harness import run

from letterapp import Letter, LetterError
from letterapp._config import Settings
from letterapp._encoding.events import Encoder
from letterapp._encoding.json_text import Unencodable
from letterapp.relay import SenderManager

ENCODER = Encoder(500_000, None)


def written(value: Any, encoder: Encoder = ENCODER) -> Any:
    data = encoder.track("user", "Event", {"v": value}, None, None)
    assert data is not None
    return json.loads(data)["properties"]["v"]


def next_arrives(letter: Letter, api: Any) -> None:
    letter.track("u", "next")
    assert letter.flush(60)
    assert [item["event"] for item in api.events] == ["next"]


# Small in memory, endless as JSON.


def doubled(inner: Any, levels: int, pair: Callable[[Any], Any]) -> Any:
    for _ in range(levels):
        inner = pair(inner)
    return inner


class Pairs(list):  # type: ignore[type-arg]
    pass


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any


class Endless(Mapping):  # type: ignore[type-arg]
    """Yields a key more, as long as it is asked."""

    def __init__(self, key: Any = None) -> None:
        self._key = key

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while True:
            number += 1
            yield self._key or f"k{number}"

    def __getitem__(self, key: Any) -> Any:
        return 1


class EndlessList(list):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield 1


class Growing(list):  # type: ignore[type-arg]
    """Makes a large text for each that it yields."""

    def __iter__(self) -> Iterator[Any]:
        for number in range(200_000):
            yield str(number) * 50_000


class EndlessSet(set):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield 1


class EndlessDict(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        return ((f"k{number}", 1) for number in iter(int, 1))


LONG = "x" * 100_000
HUGE = 10**4000
BOMBS: dict[str, Any] = {
    "lists": doubled("x", 30, lambda x: [x, x]),
    "lists of empty ones": doubled([], 30, lambda x: [x, x]),
    "tuples": doubled("x", 30, lambda x: (x, x)),
    "dicts": doubled("x", 30, lambda x: {"a": x, "b": x}),
    "dataclasses": doubled("x", 30, lambda x: Pair(x, x)),
    "subclasses": doubled("x", 30, lambda x: Pairs([x, x])),
    "mappings": doubled("x", 30, lambda x: UserDict(a=x, b=x)),
    "one long text": [LONG] * 10_000,
    "one long text, by name": {f"k{number}": LONG for number in range(500)},
    "one long text of another class": [type("Text", (str,), {})(LONG)] * 10_000,
    "one long key": [{LONG: 1}] * 10_000,
    "one huge int": [HUGE] * 10_000,
    "one huge int, by name": {f"k{number}": HUGE for number in range(10_000)},
    "an enum's long value": [enum.Enum("E", {"A": LONG}).A] * 10_000,  # type: ignore[attr-defined]
    "endless mapping": Endless(),
    "endless mapping of one key": Endless("k"),
    "endless list": EndlessList(),
    "large texts": Growing(),
    "endless set": EndlessSet(),
    "endless dict": EndlessDict(),
}
bombs = pytest.mark.parametrize("name", BOMBS)  # by name: pytest would show one, and never end


@bombs
@pytest.mark.parametrize("on_top", [True, False])
def test_a_value_that_is_endless_as_json_costs_its_own_event(
    name: str, on_top: bool, make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    bomb = BOMBS[name]
    letter = make()
    began = time.process_time()
    letter.track("u", "bomb", bomb if on_top and isinstance(bomb, Mapping) else {"b": bomb})
    assert time.process_time() - began < 20  # not an hour
    assert "over the 499,988 that max_batch_bytes leaves" in str(errors[0]) and len(str(errors[0])) < 200
    assert errors[0].cause == "invalid" and len(errors) == 1
    next_arrives(letter, letter_api)


def test_it_stops_before_it_takes_memory() -> None:
    if sys.implementation.name == "pypy":
        pytest.skip("tracemalloc is CPython's")
    import tracemalloc

    bomb = BOMBS["lists"]
    tracemalloc.start()
    try:
        with pytest.raises(Unencodable):
            written(bomb, Encoder(50_000, None))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@bombs
def test_it_is_refused_wherever_a_value_may_stand(name: str, make: Any, letter_api: Any, errors: list[Any]) -> None:
    bomb = BOMBS[name]
    letter = make(default=lambda value: bomb, max_batch_bytes=50_000)
    calls: list[Callable[[], Any]] = [
        lambda: letter.track(bomb, "E"),
        lambda: letter.track("u", bomb),
        lambda: letter.group("u", bomb),
        lambda: letter.identify("u", bomb),
        lambda: letter.track("u", "E", timestamp=bomb),
        lambda: letter.track("u", "E", message_id=bomb),
        lambda: letter.send("a@example.com", "Hi", text="Hi", metadata={"b": bomb}),
        lambda: letter.send("a@example.com", "Hi", text="Hi", headers=bomb),
        lambda: letter.send(bomb, "Hi", text="Hi"),
    ]
    for call in calls:
        with pytest.raises(LetterError) as caught:
            call()
        assert len(str(caught.value)) < 300
    letter.track("u", "E", {"x": object()})
    assert len(errors) == 1
    changed = make(
        before_send=lambda item: item if item["event"] == "next" else {**item, "b": bomb}, max_batch_bytes=50_000
    )
    changed.track("u", "E")
    assert "over the 49,988" in str(errors[1])
    next_arrives(changed, letter_api)


@pytest.mark.parametrize(
    "full",
    [
        ["a"] * 124_000,
        [[]] * 166_000,
        [1] * 249_000,
        {f"k{number:05}": 1 for number in range(45_000)},
        {"a": [{"b": "x" * 480_000}]},
        {"a": "x" * 499_000},
        Pairs([1] * 249_000),
        UserDict({f"k{number:05}": 1 for number in range(45_000)}),
        set(range(70_000)),
    ],
    ids=["texts", "lists", "ints", "keys", "a text", "a flat text", "a subclass", "a mapping", "a set"],
)
def test_what_fits_is_never_refused(full: Any) -> None:
    properties = full if isinstance(full, dict) else {"v": full}
    data = ENCODER.track("user", "Event", properties, None, None)
    assert data is not None and 400_000 < len(data) <= 499_988


# Classes that raise.


class Unreadable:
    """Raises whatever is asked of it, as `werkzeug.local.LocalProxy` does outside of a request."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("working outside of a request")

    def __bool__(self) -> bool:
        raise RuntimeError("neither")

    def __eq__(self, other: object) -> Any:
        raise RuntimeError("not to be compared")

    def __hash__(self) -> int:
        return 1

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class UnreadableText(str):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    __bool__ = __eq__ = __format__ = __repr__ = encode = __len__  # type: ignore[assignment]
    __hash__ = str.__hash__


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


class NoText(Exception):
    """What a value raises may be no better."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Worse(UserDict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise NoText(Unreadable(), BOMBS["lists"], UnreadableText("x"), *range(10))


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
    "a zone": dt.datetime(2026, 1, 2, tzinfo=UnreadableZone()),
    "a wrong zone": dt.datetime(2026, 1, 2, tzinfo=WrongZone()),
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
def test_whatever_a_value_raises_only_a_letter_error_leaves_a_call(which: str, make: Any, letter_api: Any) -> None:
    value = RAISING[which]
    told: list[LetterError] = []
    letter = make(on_error=told.append)
    failing = make(default=lambda other: operator.truth(Unreadable()), on_error=told.append)
    changed = make(before_send=lambda item: value, on_error=told.append)
    nested = make(before_send=lambda item: {**item, "properties": [value]}, on_error=told.append)
    raising = make(before_send=lambda item: Worse().items(), on_error=told.append)
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
    for error in told:
        assert "no longer" not in str(error) and error.events[0]["userId"] is not None
    assert all(one.flush(60) for one in (letter, failing, changed, nested, raising))
    before = len(letter_api.events)
    letter.track("u", "next")
    assert letter.flush(60) and [item["event"] for item in letter_api.events[before:]] == ["next"]


def test_the_report_says_where_and_what() -> None:
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


def test_a_subclass_of_datetime_that_refuses_what_its_base_does() -> None:
    naive = dt.datetime(2026, 1, 2, 3, 4, 5)
    refusing = Refusing(2026, 1, 2, 3, 4, 5)
    assert written(refusing) == written(naive)
    data = ENCODER.track("u", "E", None, refusing, None)
    assert data is not None and json.loads(data)["timestamp"] == written(naive)


def test_texts_of_other_classes_are_the_texts_that_they_hold() -> None:
    data = ENCODER.group(UnreadableText("u"), UnreadableText("a"), UnreadableText("n"), None, None, None)
    assert data is not None
    item = json.loads(data)
    assert (item["userId"], item["accountId"], item["name"]) == ("u", "a", "n")
    assert written([UnreadableText("v")]) == ["v"]


def test_an_on_error_that_raises_what_cannot_be_shown(make: Any, letter_api: Any, capsys: Any) -> None:
    def on_error(error: LetterError) -> None:
        raise NoText(Unreadable())

    letter = make(on_error=on_error)
    letter.track("u", "E", {"v": object()})
    assert "on_error raised NoText(an Unreadable)" in capsys.readouterr().err
    next_arrives(letter, letter_api)


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_error_goes_through(leaving: Any, make: Any, letter_api: Any, errors: list[Any]) -> None:
    class Leaving(UserDict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise leaving

    letter = make()
    for call in (
        lambda: letter.track("u", "E", Leaving()),
        lambda: letter.track("u", "E", {"v": [Leaving()]}),
        lambda: letter.send("a@example.com", "Hi", text="Hi", metadata=Leaving()),
    ):
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
def test_properties_that_change_while_they_are_read_are_those_of_the_call(kind: Any, nested: bool) -> None:
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


def test_what_another_thread_changes_is_written_as_it_was_at_one_moment(make: Any, letter_api: Any) -> None:
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
def test_a_collection_in_the_middle_of_the_call_may_change_the_properties(make: Any, letter_api: Any) -> None:
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


# Keys, as `json.dumps` takes them.

KEYS: list[Any] = [
    {1: "a", -5: "b", 2**80: "c"},
    {1.5: "a", -0.0: "b", 1e100: "c", 5e-324: "d"},
    {True: "a", False: "b"},
    {None: "a"},
    {"text": 1, 7: 2, None: 3, 2.5: 4},
    {enum.IntEnum("I", "A").A: 1},  # type: ignore[attr-defined]
    {type("F", (float,), {"__repr__": lambda self: "no"})(1.25): 1},
    {type("S", (str,), {"__str__": lambda self: "no"})("yes"): 1},
    {1: "one", "1": "another"},
    {"Zoë": {3: {None: {True: [{4.5: 1}]}}}},
]


@pytest.mark.parametrize("given", KEYS, ids=range(len(KEYS)))
@pytest.mark.parametrize("kind", [dict, UserDict, OrderedDict])
def test_keys_are_written_as_json_dumps_writes_them(given: Any, kind: Any) -> None:
    data = ENCODER.track("u", "E", kind(given), None, None)
    assert data is not None
    assert json.loads(data)["properties"] == json.loads(json.dumps(given))
    assert written([kind(given)]) == [json.loads(json.dumps(given))]


# `default`.


def test_default_is_asked_for_what_no_rule_covers_and_for_nothing_else(make: Any, letter_api: Any) -> None:
    asked: list[Any] = []

    def default(value: Any) -> Any:
        asked.append(value)
        return {"was": type(value).__name__, "at": dt.date(2026, 1, 2)}

    letter = make(default=default)
    span = dt.timedelta(seconds=5)
    letter.track("u", "E", {"a": span, "b": [b"x"], "c": 1, "d": {3}, "e": None, "f": uuid.UUID(int=1)})
    letter.identify("u", traits={"c": 1j})
    letter.send("a@example.com", "Hi", text="Hi", metadata={"s": span})
    assert letter.flush(60)
    assert asked == [span, b"x", 1j, span]
    properties = letter_api.events[0]["properties"]
    assert properties["a"] == {"was": "timedelta", "at": "2026-01-02"} and properties["b"][0]["was"] == "bytes"
    assert letter_api.mails[0]["metadata"] == {"s": {"was": "timedelta", "at": "2026-01-02"}}


@pytest.mark.parametrize(
    "default, problem",
    [
        (lambda value: value, "nested deeper than 100 levels, or inside itself"),
        (lambda value: [value], "nested deeper than 100 levels, or inside itself"),
        (lambda value: float("nan"), "properties.v: nan is not JSON"),
        (lambda value: {}["missing"], "properties.v: default raised KeyError('missing')"),
        (lambda value: Worse().items(), "properties.v: default raised NoText("),
    ],
)
def test_a_default_that_fails_costs_its_event_alone(
    default: Any, problem: str, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(default=default)
    letter.track("u", "E", {"v": object()})
    assert problem in str(errors[0]) and errors[0].cause == "invalid"
    next_arrives(letter, letter_api)


def test_default_is_str_as_everybody_has_it(make: Any, letter_api: Any) -> None:
    letter = make(default=str)
    letter.track("u", "E", {"v": dt.timedelta(seconds=5)})
    twin = pickle.loads(pickle.dumps(Letter("test-key", letter_api.url, default=str)))
    twin.track("u", "E", {"v": dt.timedelta(seconds=5)})
    assert letter.flush(60) and twin.close(60)
    assert [item["properties"] for item in letter_api.events] == [{"v": "0:00:05"}] * 2


def test_a_wrong_default_is_an_error(make: Any) -> None:
    with pytest.raises(LetterError, match="default must be a function or None"):
        make(default="str")


# Classes that are known by what they can do.


def test_numpy_s_values() -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed: its values are not tried")
    for value, expected in [
        (numpy.int64(5), 5),
        (numpy.uint8(5), 5),
        (numpy.float64(1.5), 1.5),
        (numpy.float32(1.5), 1.5),
        (numpy.bool_(True), True),
        (numpy.str_("text"), "text"),
        (numpy.array([1, 2]), [1, 2]),
        (numpy.array([[1.5, 2.5], [3.5, 4.5]]), [[1.5, 2.5], [3.5, 4.5]]),
        (numpy.array(7), 7),
        (numpy.array([]), []),
        (numpy.array(["a", "b"]), ["a", "b"]),
        (numpy.array([{"a": numpy.int8(1)}, None], dtype=object), [{"a": 1}, None]),
        (numpy.datetime64("2026-01-02"), None),
        (numpy.datetime64("NaT", "s"), "null"),
    ]:
        came = written([value])[0]
        if expected is None:
            assert came.startswith("2026-01-0")
        else:
            assert came == (None if expected == "null" else expected)
            assert type(came) is (type(None) if expected == "null" else type(expected))
    moment = written(dt.datetime(2026, 1, 2, 3, 4, 5))
    assert written(numpy.datetime64("2026-01-02T03:04:05", "ns")) == moment
    assert written(numpy.array(["2026-01-02T03:04:05"], dtype="datetime64[ns]")) == [moment]


def test_numpy_s_values_that_are_no_json() -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed: its values are not tried")
    for value, problem in [
        (numpy.float64("nan"), "v: nan is not JSON"),
        (numpy.array([1.0, numpy.inf]), "v[1]: inf is not JSON"),
        (numpy.complex64(1j), "v: "),
        (numpy.bytes_(b"x"), "v: b'x' (bytes) is not JSON"),
        (numpy.longdouble(1), "is not JSON"),
        (numpy.timedelta64(5, "ns"), "v: "),
        (numpy.broadcast_to(numpy.int8(1), (10**6, 10**6)), "over the 499,988"),
        (numpy.broadcast_to(numpy.array(LONG), (10**3, 10**6)), "over the 499,988"),
        (numpy.zeros(10**6), "over the 499,988"),
    ]:
        with pytest.raises(Unencodable) as caught:
            written(value)
        assert problem in str(caught.value), value


def test_numpy_s_values_as_arguments(make: Any) -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed: its values are not tried")
    letter = make()
    for value in (numpy.array([1, 2]), numpy.array(["u"]), numpy.int64(5)):
        for call in (
            lambda value=value: letter.track(value, "E"),
            lambda value=value: letter.track("u", value),
            lambda value=value: letter.track("u", "E", value),
            lambda value=value: letter.track("u", "E", None, value),
            lambda value=value: letter.track("u", "E", None, None, value),
            lambda value=value: letter.identify("u", value),
            lambda value=value: letter.group("u", value),
        ):
            with pytest.raises(LetterError, match="must be"):
                call()


def test_pandas_values() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: its values are not tried")
    naive = written(dt.datetime(2026, 1, 2, 3, 4, 5, 6))
    for value, expected in [
        (pandas.Timestamp("2026-01-02T03:04:05.000006"), naive),
        (pandas.Timestamp("2026-01-02T03:04:05.123456789", tz="Europe/Berlin"), "2026-01-02T02:04:05.123456Z"),
        (pandas.Timestamp("2026-01-02T03:04:05Z"), "2026-01-02T03:04:05Z"),
        (pandas.NaT, None),
        (pandas.NA, None),
        (pandas.Timedelta(seconds=5), "P0DT0H0M5S"),
        (pandas.Series([1, 2]), [1, 2]),
        (pandas.Series([1, None], dtype="Int64"), [1, None]),
        (pandas.Series(["a", None]), ["a", None] if pandas.__version__ < "3" else "refused"),
        (pandas.Index(["a", "b"]), ["a", "b"]),
        (pandas.Series([pandas.Timestamp("2026-01-02T03:04:05Z"), pandas.NaT]), ["2026-01-02T03:04:05Z", None]),
        (pandas.Categorical(["a", "b", "a"]), ["a", "b", "a"]),
    ]:
        if expected != "refused":
            assert written([value]) == [expected]
    with pytest.raises(Unencodable, match="a DataFrame is not JSON"):
        written(pandas.DataFrame({"a": [1], "tolist": [2], "isoformat": [3]}))
    data = ENCODER.track("u", "E", None, pandas.Timestamp("2026-01-02T03:04:05.000006"), None)
    assert data is not None and json.loads(data)["timestamp"] == naive
    for wrong in (pandas.NaT, pandas.NA, pandas.Series([1])):
        with pytest.raises(LetterError, match="timestamp must be a datetime"):
            ENCODER.track("u", "E", None, wrong, None)
        with pytest.raises(LetterError, match="user_id must be a string"):
            ENCODER.track(wrong, "E", None, None, None)


def test_werkzeug_s_proxies(make: Any, letter_api: Any, errors: list[LetterError]) -> None:
    local = pytest.importorskip("werkzeug.local", reason="werkzeug is not installed: its proxies are not tried")
    letter = make()
    outside: Any = local.LocalProxy(local.LocalStack())
    bound: Any = local.LocalProxy(lambda: "u")  # a text, says `isinstance`
    for call in (
        lambda: letter.track(outside, "E"),
        lambda: letter.track("u", "E", outside),
        lambda: letter.track("u", "E", timestamp=outside),
        lambda: letter.track(bound, "E"),
        lambda: letter.identify("u", bound),
        lambda: letter.send(outside, "Hi", text="Hi"),
    ):
        with pytest.raises(LetterError, match="LocalProxy"):
            call()
    letter.track("u", "E", {"v": [outside]})
    letter.track("u", "E", {"v": [bound]})
    assert "properties.v[0]: a LocalProxy is not JSON" in str(errors[0])
    assert "properties.v[0]: could not be read: TypeError" in str(errors[1])
    inside = local.LocalProxy(lambda: {"a": [1]})
    assert written(inside) == {"a": [1]}
    next_arrives(letter, letter_api)


def test_anything_with_isoformat_is_its_text() -> None:
    assert written(dt.time(12, 30)) == "12:30:00"


# Looked at from outside: by crash reporters, debuggers, loggers.


def test_what_is_half_made_can_be_shown() -> None:
    assert repr(Letter.__new__(Letter)) == "<Letter that has not been made>"
    assert "None" in repr(Settings.__new__(Settings))
    for make in (lambda: Letter("secret", flush_at=0), lambda: SenderManager("secret", flush_at=0)):
        with pytest.raises(LetterError) as caught:
            make()
        trace = caught.value.__traceback__
        shown = []
        while trace is not None:
            shown += [repr(value) for name, value in trace.tb_frame.f_locals.items() if name == "self"]
            trace = trace.tb_next
        assert len(shown) >= 2 and not any("secret" in text for text in shown)


def test_a_repr_takes_no_lock_and_starts_nothing(make: Any, letter_api: Any) -> None:
    letter = make(flush_interval=30)
    letter.track("u", "E")
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with letter._delivery._queue._lock:
            held.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        assert "waiting=1 delivered=0 lost=0" in repr(letter)
    finally:
        over.set()
        thread.join()


@pytest.mark.skipif(sys.platform == "win32", reason="needs os.fork")
def test_a_repr_in_a_forked_child_makes_nothing(letter_api: Any, tmp_path: Any) -> None:
    code = """
    letter = Letter('k', API)
    relayed = Letter('k', API, relay=True)
    work(letter, 1)
    def job():
        before = vars(letter)["_delivery"], vars(relayed)["_delivery"]
        text = repr(letter) + repr(relayed)
        assert text == f"<Letter not used so far, pid={os.getpid()}>" * 2, text
        assert before == (vars(letter)["_delivery"], vars(relayed)["_delivery"])
        work(letter, 1)
        letter.flush()
        assert "delivered=1" in repr(letter), repr(letter)
    assert os.waitpid(child(job), 0)[1] == 0
    print("fine")
    """
    assert run(code, letter_api.url, tmp_path).output == "fine\n"


# While Python removes its modules.


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy removes no modules")
def test_a_del_in_the_very_end_waits_for_nothing_and_is_told(letter_api: Any, tmp_path: Any) -> None:
    code = """
    letter = Letter('k', API, exit_timeout=40, on_error=lambda error, write=os.write: write(1, f"{error}\\n".encode()))
    work(letter, 1)

    class Last:
        def __init__(self, letter):
            self.letter = letter
        def __del__(self, write=os.write, clock=time.monotonic):
            began = clock()
            self.letter.track("late", "E")
            settled = self.letter.flush(), self.letter.close()
            write(1, f"{settled} {clock() - began < 20} {self.letter.stats()['lost']}\\n".encode())
    sys.modules["last"] = Last(letter)
    """
    finished = run(code, letter_api.url, tmp_path)
    told, last = finished.output.splitlines()
    assert told == "1 event given up: Python is removing its modules, and nothing can be sent any more"
    assert last == "(True, True) True {'exit': 1}", finished
    assert [item["userId"] for item in letter_api.events] == ["program"]


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy removes no modules")
@pytest.mark.parametrize("call", ["letter.send('a@b.example', 'S', text='x')", "Letter('k', api)"])
def test_what_cannot_be_done_in_the_very_end_is_a_letter_error(call: str, letter_api: Any, tmp_path: Any) -> None:
    code = f"""
    class Last:
        def __init__(self, letter):
            self.letter = letter
        def __del__(self, write=os.write, Letter=Letter, api=API, LetterError=LetterError):
            letter = self.letter
            try:
                {call}
            except LetterError as error:
                write(1, str(error).encode())
    sys.modules["last"] = Last(Letter('k', API))
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.output == "Python is removing its modules, and nothing can be sent any more", finished


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy removes no modules")
def test_a_flush_in_the_very_end_waits_for_no_thread_that_stands_still(letter_api: Any, tmp_path: Any) -> None:
    from letterapp.testing import Hold

    hold = Hold()
    letter_api.rule = lambda request: hold
    code = """
    letter = Letter('k', API, exit_timeout=0.2, on_error=lambda error: None)
    work(letter, 1)

    class Last:
        def __init__(self, letter):
            self.letter = letter
        def __del__(self, write=os.write, clock=time.monotonic):
            began = clock()
            self.letter.flush(40)
            self.letter.close(40)
            write(1, f"{clock() - began < 20}\\n".encode())
    sys.modules["last"] = Last(letter)
    """
    finished = run(code, letter_api.url, tmp_path)
    hold.release()
    assert finished.output == "True\n", finished
