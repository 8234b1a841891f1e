"""Values that are encoded as they stand, and those that are copied first: both ways write the same."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import importlib.util
import json
import math
import sys
import threading
import uuid
from collections import OrderedDict, UserDict
from types import FrameType
from typing import Any, Callable

import pytest
from harness import needs
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from letterapp._encoding import json_text
from letterapp._encoding.events import Encoder
from letterapp._encoding.json_text import MAX_DEPTH, Unencodable, encode, fastest_encoder, is_plain
from letterapp._runtime import servers

MOST = 500_000


class Copying(Encoder):
    """Copies whatever it is given."""

    def _is_plain(self, properties: dict[Any, Any]) -> bool:
        return False


class Text(str):
    pass


class Fields(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        return {"instead": 1}.items()


class Colour(str, enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Item:
    sku: str
    price: float


PLAIN = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


def encoders() -> dict[str, Callable[[Any], str]]:
    found: dict[str, Callable[[Any], str]] = {"C": encode}
    if PLAIN and importlib.util.find_spec("orjson") is not None:
        found["orjson"] = fastest_encoder()
        assert found["orjson"] is not encode
    return found


ENCODERS = encoders()

keys = st.text(st.characters(), max_size=8) | st.sampled_from([1, -0.0, True, None, Text("k"), b"bytes", math.nan, "k"])
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.just(5000).map(lambda digits: 10**digits)  # which has no repr on most Pythons
    | st.sampled_from(
        [
            *(
                Text("text"),
                Colour.RED,
                b"bytes",
                2**63,
                2**64,
                -(2**63) - 1,
                "\ud800",
                "\x00\u2028\U0001f600",
            ),
            *(
                decimal.Decimal("1.5"),
                dt.date(2026, 1, 2),
                uuid.UUID(int=5),
                Item("a", 1.5),
                {"a"},
                frozenset(),
                object,
            ),
            *(1e16, 5e-324, 1.7976931348623157e308, -0.0, 1e22, 123456789012345680.0, "null", math.inf, ...),
        ]
    )
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3).map(Fields)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3).map(OrderedDict)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3).map(UserDict)
        | inner.map(lambda value: [value, value])
    ),
    max_leaves=20,
)


def written(encoder: Encoder, properties: Any) -> Any:
    """What travels as properties, or why it does not; with numbers as they are written, so that 1 is not 1.0."""
    try:
        data = encoder.track("user", "Event", properties, "2026-01-02T03:04:05Z", "id")
    except Unencodable as problem:
        return str(problem)
    assert data is not None
    return json.loads(data, parse_float=lambda text: ("float", float(text)), parse_int=lambda text: ("int", text))


@pytest.mark.slow
@examples(500)
@given(st.dictionaries(keys, values, max_size=5))
def test_the_fast_path_and_the_copy_encode_and_refuse_the_same(properties: dict[Any, Any]) -> None:
    copied = written(Copying(MOST, None), properties)
    for name, encode_plain in ENCODERS.items():
        assert written(Encoder(MOST, None, encode_plain=encode_plain), properties) == copied, name


CART = {
    "total": 99.5,
    "sizes": [1, 2, 3],
    "cart": [{"sku": f"A-{n}", "price": 9.5, "quantity": n, "gift": n > 1} for n in range(5)],
}


@pytest.mark.skipif(not PLAIN, reason="needs CPython with its GIL")
def test_an_order_of_1000_values_is_plain_and_a_long_text_in_2000_places_is_not() -> None:
    assert is_plain({"cart": [{"sku": f"A-{item}", "price": 9.5, "paid": True} for item in range(333)]}, MOST)
    text = "x" * 20_000
    assert not is_plain({"list": [text] * 2_000}, MOST)
    assert not is_plain({"list": [{"a": text} for _ in range(1_000)]}, MOST)
    assert is_plain({"list": [text[:100]] * 2_000}, MOST)


@pytest.mark.skipif(not PLAIN, reason="needs CPython with its GIL")
def test_a_typical_order_is_encoded_without_a_copy() -> None:
    assert is_plain(CART, MOST)
    seen: list[Any] = []

    def note(value: Any) -> str:
        seen.append(value)
        return encode(value)

    Encoder(MOST, None, encode_plain=note).track("user", "Event", CART, None, None)
    assert len(seen) == 1 and seen[0] is CART


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def bomb(levels: int) -> Any:
    value: Any = ["x"]
    for _ in range(levels):
        value = [value, value]
    return value


def cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(bomb(12), id="a bomb of 4,096 texts"),
        pytest.param(bomb(60), id="a bomb without an end"),
        pytest.param(["x" * 100_000] * 100, id="a text that is repeated"),
        pytest.param([{"x" * 100_000: 1}] * 100, id="a key that is repeated"),
        pytest.param(list(range(10_000)), id="many values"),
        pytest.param(cyclic(), id="a list inside itself"),
        pytest.param(nested(MAX_DEPTH + 1), id="too deep"),
        pytest.param([Text("x")], id="a text of a subclass"),
        pytest.param([Fields()], id="a dict of a subclass"),
        pytest.param([Colour.RED], id="an enum"),
        pytest.param({"a": [Item("a", 1.0)]}, id="a dataclass"),
    ],
)
def test_values_that_are_copied_first(value: Any) -> None:
    assert not is_plain({"value": value}, MOST)


def test_a_value_that_another_thread_changes_loses_no_other_event() -> None:
    over = threading.Event()
    properties: dict[str, Any] = {"list": [1, 2, 3], "fields": {}}

    def change() -> None:
        number = 0
        while not over.is_set():
            number += 1
            properties["fields"][f"key {number % 50}"] = [number]
            properties["list"].append({"number": number})
            properties["fields"].pop(f"key {(number + 25) % 50}", None)
            del properties["list"][3:]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        encoder = Encoder(MOST, None, encode_plain=fastest_encoder())
        for _ in range(3000):
            data = encoder.track("user", "Event", properties, None, None)
            assert data is not None and json.loads(data)["properties"]["list"][:3] == [1, 2, 3]
    finally:
        over.set()
        thread.join()


def test_properties_that_another_thread_changes_while_they_are_checked_are_not_lost() -> None:
    properties: dict[str, Any] = {"amount": 9.5, "plan": "pro"}

    def change(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code is Encoder._is_plain.__code__:
            if "kind" in frame.f_locals:
                properties["added"] = True  # in the place of the other thread
            return change
        return None

    tracing = sys.gettrace()
    sys.settrace(change)
    try:
        data = Encoder(MOST, None).track("user", "Event", properties, None, None)
    finally:
        sys.settrace(tracing)
    assert data is not None and json.loads(data)["properties"] == {"amount": 9.5, "plan": "pro", "added": True}


@needs("orjson")
@pytest.mark.parametrize("value", [math.nan, -math.inf, 2**64, "\ud800", {1: 2}, {None: 1}, None, [nested(200)]])
def test_what_orjson_would_write_otherwise_is_left_to_the_ordinary_encoder(value: Any) -> None:
    for properties in ({"value": value}, {"list": [value]}):
        quick = Encoder(MOST, None, encode_plain=fastest_encoder())
        assert written(quick, properties) == written(Copying(MOST, None), properties)


def test_without_orjson_the_ordinary_encoder_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert fastest_encoder() is encode


def test_in_a_sub_interpreter_orjson_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "is_main_interpreter", lambda: False)
    assert fastest_encoder() is encode


def test_without_the_gil_orjson_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "_inspects", False)
    assert fastest_encoder() is encode
