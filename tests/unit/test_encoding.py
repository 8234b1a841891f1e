"""Invalid input: wrong arguments raise, an invalid value loses only its event; others are encoded by the rules."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import threading
import uuid
from collections import OrderedDict, UserDict, namedtuple
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from letterapp import LetterError
from letterapp._encoding.events import Encoder
from letterapp._encoding.json_text import MAX_DEPTH, Unencodable

ENCODER = Encoder(500_000, None)


def encoded(properties: Any, **options: Any) -> dict[str, Any]:
    data = ENCODER.track("user", "Event", properties, options.get("timestamp"), options.get("message_id"))
    assert data is not None
    item: dict[str, Any] = json.loads(data)
    return item


def refusal(properties: Any) -> str:
    with pytest.raises(Unencodable) as caught:
        encoded(properties)
    return str(caught.value)


# Arguments: raised there and then, by name.


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda letter: letter.track("", "E"), "user_id is required"),
        (lambda letter: letter.track(None, "E"), "user_id is required"),
        (lambda letter: letter.track(42, "E"), "user_id must be a string, not int: 42"),
        (lambda letter: letter.track("u", ""), "event is required"),
        (lambda letter: letter.track("u", None), "event is required"),
        (lambda letter: letter.track("u", b"E"), "event must be a string, not bytes: b'E'"),
        (lambda letter: letter.track("u", "E", []), r"properties must be a dict or None, not list$"),
        (lambda letter: letter.track("u", "E", "text"), "properties must be a dict"),
        (lambda letter: letter.track("u", "E", timestamp=1700000000), "timestamp must be a datetime"),
        (lambda letter: letter.track("u", "E", timestamp=dt.datetime.min.replace(tzinfo=dt.timezone.max)), "timestamp"),
        (lambda letter: letter.track("u", "E", message_id=""), "message_id must be a non-empty string"),
        (lambda letter: letter.track("u", "E", message_id=7), "message_id must be a non-empty string"),
        (lambda letter: letter.identify(""), "user_id is required"),
        (lambda letter: letter.identify("u", email=5), "email must be a string or None, not int: 5"),
        (lambda letter: letter.identify("u", timezone=5), "timezone must be a string or None"),
        (lambda letter: letter.identify("u", traits=5), "traits must be a dict or None"),
        (lambda letter: letter.group("u", ""), "account_id is required"),
        (lambda letter: letter.group("u", 5), "account_id must be a string"),
        (lambda letter: letter.group("", "a"), "user_id is required"),
        (lambda letter: letter.group("u", "a", name=[]), "name must be a string or None"),
    ],
)
def test_a_wrong_argument_raises_at_the_call_and_is_named(call: Any, name: str, make: Any, errors: list[Any]) -> None:
    letter = make()
    with pytest.raises(LetterError, match=name):
        call(letter)
    assert errors == [] and letter.stats()["accepted"] == 0


def test_a_missing_argument_is_python_s_own_error(make: Any) -> None:
    with pytest.raises(TypeError, match="event"):
        make().track("u")


# Values: the event is refused alone, with the path.


def cycle() -> dict[str, Any]:
    inner: dict[str, Any] = {}
    inner["again"] = inner
    return inner


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class HostileDict(UserDict):  # type: ignore[type-arg]  # it has none on Python 3.8
    def __iter__(self) -> Any:
        raise RuntimeError("no iteration")


BAD = {
    "nan": ({"cart": [0, 1, 2, {"price": math.nan}]}, "properties.cart[3].price: nan is not JSON"),
    "flat nan": ({"price": math.nan}, "properties.price: nan is not JSON"),
    "infinity": ({"price": -math.inf}, "properties.price: -inf is not JSON"),
    "bytes": ({"body": b"x"}, "properties.body: b'x' (bytes) is not JSON"),
    "object": ({"lock": threading.Lock}, "properties.lock: "),
    "lone surrogate": ({"name": "a\ud800"}, "properties.name: a lone surrogate cannot be encoded: 'a\\ud800'"),
    "lone surrogate inside": ({"name": ["\udfff"]}, "properties.name[0]: a lone surrogate"),
    "lone surrogate in a key": ({"\ud800": 1}, "properties: a lone surrogate"),
    "key": ({"cart": {(7,): 1}}, "properties.cart: a tuple cannot be a key in JSON"),
    "key on top": ({b"k": 1}, "properties: b'k' (bytes) cannot be a key in JSON"),
    "key that is no number": ({"cart": [{math.nan: 1}]}, "properties.cart[0]: the key nan is not JSON"),
    "key on top that is no number": ({math.inf: 1}, "properties: the key inf is not JSON"),
    "cycle": ({"c": cycle()}, f"nested deeper than {MAX_DEPTH} levels"),
    "depth 10,000": ({"d": deep(10_000)}, f"nested deeper than {MAX_DEPTH} levels"),
    "decimal nan": ({"price": decimal.Decimal("nan")}, "properties.price: nan is not JSON"),
    "decimal too large": ({"price": decimal.Decimal("1e400")}, "properties.price: inf is not JSON"),
    "year 0": ({"at": dt.datetime.min.replace(tzinfo=dt.timezone.max)}, "properties.at: "),
    "hostile repr": ({"x": Hostile()}, "properties.x: a Hostile is not JSON"),
    "hostile mapping": (HostileDict(a=1), "properties: could not be read: RuntimeError('no iteration')"),
    "size": ({"blob": "x" * 500_000}, "over the 499,988 that max_batch_bytes allows"),
}


@pytest.mark.parametrize("properties, problem", BAD.values(), ids=BAD.keys())
def test_an_invalid_value_is_reported_with_its_path_and_the_next_event_arrives(
    properties: Any, problem: str, make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    letter = make()
    letter.track("u", "before")
    letter.track("u", "bad", properties)
    letter.track("u", "after")
    assert letter.flush()
    assert [item["event"] for item in letter_api.events] == ["before", "after"]
    assert problem in str(errors[0]) and len(errors) == 1
    assert errors[0].cause == "invalid"
    assert errors[0].events[0]["event"] == "bad" and errors[0].events[0]["userId"] == "u"
    assert letter.stats()["lost"] == {"invalid": 1} and letter.stats()["accepted"] == 3


def test_identify_and_group_refuse_an_invalid_value_too(make: Any, errors: list[LetterError], letter_api: Any) -> None:
    letter = make()
    letter.identify("u", traits={"age": math.nan})
    letter.group("u", "acme", traits={"size": math.inf})
    letter.identify("\ud800")
    assert str(errors[0]) == "identify: traits.age: nan is not JSON; the event is lost"
    assert str(errors[1]) == "group: traits.size: inf is not JSON; the event is lost"
    assert "a lone surrogate" in str(errors[2]) and "userId" in str(errors[2])
    assert letter.flush() and letter_api.events == []


def test_an_integer_beyond_the_interpreters_digit_limit_is_refused_or_encoded_completely() -> None:
    huge = 10**5000
    try:
        item = encoded({"n": huge})
    except Unencodable as problem:
        assert str(problem).startswith("properties.n: ")
    else:
        assert item["properties"]["n"] == huge  # a Python without the limit


def test_100_levels_are_encoded() -> None:
    assert encoded({"d": deep(MAX_DEPTH - 2)})["properties"]["d"] == deep(MAX_DEPTH - 2)


# What is written, and how: the table in docs/configuration.md.


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Name(str):
    pass


@dataclasses.dataclass
class Address:
    street: str
    tags: list[Any]


Point = namedtuple("Point", "x y")
UTC_PLUS_2 = dt.timezone(dt.timedelta(hours=2))

GOOD = {
    "datetime, aware": (dt.datetime(2026, 1, 2, 3, 4, 5, 6, UTC_PLUS_2), "2026-01-02T01:04:05.000006Z"),
    "date": (dt.date(2026, 1, 2), "2026-01-02"),
    "uuid": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "decimal": (decimal.Decimal("19.99"), 19.99),
    "enum": (Colour.RED, "red"),
    "int enum": (Level.HIGH, 3),
    "set": ({"b", "a"}, ["a", "b"]),
    "set that has no order": ({1, "a"}, None),
    "frozenset": (frozenset([2, 1]), [1, 2]),
    "tuple": ((1, (2,)), [1, [2]]),
    "named tuple": (Point(1, 2), [1, 2]),
    "dataclass": (Address("Elm", [Colour.RED]), {"street": "Elm", "tags": ["red"]}),
    "subclass of str": (Name("n"), "n"),
    "ordered dict": (OrderedDict(a=1), {"a": 1}),
    "another mapping": (UserDict(a={"b": None}), {"a": {"b": None}}),
    "text beyond ASCII": ("Zoë 🎈", "Zoë 🎈"),
    "control characters": ('"\\\n\x00\u2028', '"\\\n\x00\u2028'),
    "big integer": (2**80, 2**80),
    "true": (True, True),
}


@pytest.mark.parametrize("value, written", GOOD.values(), ids=GOOD.keys())
@pytest.mark.parametrize("nested", [False, True])
def test_a_value_is_encoded_by_rule(value: Any, written: Any, nested: bool) -> None:
    properties = encoded({"v": [value]} if nested else {"v": value})["properties"]
    came = properties["v"][0] if nested else properties["v"]
    if written is None:
        assert sorted(map(str, came)) == sorted(map(str, value))
    else:
        assert came == written and type(came) is type(written)


SECRET = "a secret that no event may carry"


@dataclasses.dataclass
class Base:
    shared: ClassVar[str] = SECRET
    first: int = 1
    given: dataclasses.InitVar[str] = SECRET


@dataclasses.dataclass
class Derived(Base):
    at: dt.date = dt.date(2026, 1, 2)
    inner: Any = dataclasses.field(default_factory=lambda: Address("Elm", ["red"]))
    shown: int = dataclasses.field(default=5, repr=False, compare=False)
    also_shared: ClassVar[str] = SECRET

    def __post_init__(self, given: str) -> None:
        self.added = SECRET  # no field

    def __getattr__(self, name: str) -> str:
        return SECRET


class Slotted:
    __slots__ = ("first",)
    shared: ClassVar[str] = SECRET
    first: int

    def __init__(self, first: int) -> None:
        self.first = first


@dataclasses.dataclass(frozen=True)
class Row(dict):  # type: ignore[type-arg]
    first: int = 1
    shared: ClassVar[str] = SECRET


DATACLASSES = {
    "class variables and arguments of __init__": Base(),
    "inherited": Derived(),
    "nested": Address("Elm", [{"of": Derived(inner=Base())}]),
    "slots": dataclasses.dataclass(Slotted)(3),
    "a dict too": Row(),
    "made at run time": dataclasses.make_dataclass("Made", [("x", int), ("y", ClassVar[str], SECRET)])(1),
}


@pytest.mark.parametrize("value", DATACLASSES.values(), ids=DATACLASSES.keys())
def test_only_the_fields_of_a_dataclass_are_sent(value: Any) -> None:
    written = encoded({"v": value})["properties"]["v"]
    assert written == json.loads(json.dumps(dataclasses.asdict(value), default=str))
    assert SECRET not in json.dumps(written)


def test_a_dataclass_type_is_refused() -> None:
    assert refusal({"v": Base}).startswith("properties.v: ")


def test_a_naive_datetime_is_local_time() -> None:
    naive = dt.datetime(2026, 7, 1, 12, 0)
    written = encoded({"at": naive})["properties"]["at"]
    assert dt.datetime.fromisoformat(written.replace("Z", "+00:00")) == naive.astimezone()


def test_properties_may_be_any_mapping() -> None:
    assert encoded(UserDict(a=1))["properties"] == {"a": 1}
    assert encoded(None)["properties"] == {}


def test_a_later_change_of_the_callers_dict_has_no_effect(make: Any, letter_api: Any) -> None:
    letter = make(flush_interval=30)
    properties = {"cart": [1]}
    letter.track("u", "e", properties)
    properties["cart"].append(2)
    letter.flush()
    assert letter_api.events[0]["properties"] == {"cart": [1]}
    assert properties == {"cart": [1, 2]}


def test_the_message_id_is_a_random_uuid_of_version_4() -> None:
    ids = [uuid.UUID(encoded({})["messageId"]) for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert {each.version for each in ids} == {4} and {each.variant for each in ids} == {uuid.RFC_4122}


def test_a_dict_that_another_thread_keeps_changing_never_breaks_the_call(make: Any, letter_api: Any) -> None:
    letter = make(max_queue_events=100_000)
    shared: dict[str, Any] = {}
    over = threading.Event()

    def change() -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            shared[f"k{turn % 50}"] = turn
            shared.pop(f"k{(turn + 25) % 50}", None)

    thread = threading.Thread(target=change)
    thread.start()
    for _ in range(2000):
        letter.track("u", "e", shared)
    over.set()
    thread.join()
    assert letter.flush(30)
    assert letter_api.distinct + letter.stats()["lost"].get("invalid", 0) == 2000


# Whatever is handed in, the next event still arrives.

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters()),
    st.binary(max_size=5),
    st.datetimes(),
    st.dates(),
    st.uuids(),
    st.decimals(),
    st.complex_numbers(),
    st.sampled_from([Colour.RED, Level.HIGH]),
    st.just(object()),
    st.builds(Hostile),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(st.one_of(st.text(st.characters()), st.integers(), st.none()), inner, max_size=3),
        st.builds(Address, st.text(), st.lists(inner, max_size=2)),
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.dictionaries(st.text(st.characters()), anything, max_size=4), anything), st.data())
def test_any_value_is_either_valid_json_or_refused(properties: Any, data: Any) -> None:
    user = data.draw(st.one_of(st.text(st.characters()), anything))
    try:
        encoded_event = ENCODER.track(user, "Event", properties, None, None)
    except (Unencodable, LetterError) as problem:
        str(problem).encode("utf-8", "backslashreplace")
        return
    assert encoded_event is not None

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    item = json.loads(encoded_event.decode("utf-8"), parse_constant=no_constant)
    assert set(item) == {"type", "event", "properties", "userId", "timestamp", "messageId"}
    assert item["userId"] == user and isinstance(item["properties"], dict)


@pytest.mark.slow
def test_after_any_value_the_next_event_still_arrives(make: Any, letter_api: Any) -> None:
    letter = make(flush_interval=0)

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.one_of(st.dictionaries(st.text(st.characters()), anything, max_size=3), anything), max_size=4))
    def hand_in(all_of_it: list[Any]) -> None:
        for properties in all_of_it:
            try:
                letter.track("u", "odd", properties)
            except LetterError:
                pass  # not a dict
        letter.track("u", "next")
        assert letter.flush(30)
        assert letter_api.events[-1]["event"] == "next"
        assert set(letter.stats()["lost"]) <= {"invalid"}  # the server refused nothing that the client had let pass

    hand_in()
