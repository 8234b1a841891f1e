"""`letterapp.message_id`: ids that are derived from what an event is about."""

from __future__ import annotations

import enum
import itertools
import json
import subprocess
import sys
import uuid
from typing import Any

import pytest
from harness import environment
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

import letterapp
from letterapp import LetterError, message_id

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://letter.app/message_id")

# These never change: a job that is repeated with another version must not double its events.
KNOWN = {
    ("order completed", 1001): "315ab7f5-7f99-599f-8736-cf5f3dc88ba4",
    ("a", "bc"): "3ea33356-fae2-5760-9836-ca2d408c2ec9",
    (1,): "0b34f3c3-1170-56c1-93e1-44b694986291",
    ("1",): "d07b7fe0-ed5c-5801-8061-2f2b40daee13",
}
PARTS = st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers(), st.booleans()), min_size=1)


@pytest.mark.parametrize("parts", KNOWN, ids=repr)
def test_the_ids_never_change(parts: tuple[Any, ...]) -> None:
    assert message_id(*parts) == KNOWN[parts]


@examples()
@given(PARTS)
def test_it_is_the_uuid5_of_the_parts_as_json(parts: list[Any]) -> None:
    name = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    assert message_id(*parts) == str(uuid.uuid5(NAMESPACE, name))


def test_different_parts_give_different_ids() -> None:
    parts: list[tuple[Any, ...]] = [
        *[
            ("a", "bc"),
            ("ab", "c"),
            ("abc",),
            ("a", "b", "c"),
            ("", "abc"),
            ("abc", ""),
            ("a,b",),
            ('a","b',),
            ("a", "b"),
        ],
        *[(1,), ("1",), (True,), ("True",), ("true",), (0,), (False,), ("",), ("", ""), (-1,), ("-1",), (1, 1), (11,)],
        *[("é",), ("e\u0301",), ("\\u00e9",), ("\0",), ("\\u0000",), ("[1]",), ("a", 1), ("a", "1"), ("A",), ("a ",)],
    ]
    for one, other in itertools.combinations(parts, 2):
        assert message_id(*one) != message_id(*other), (one, other)


class Kind(str, enum.Enum):
    ORDER = "order"


class Level(enum.IntEnum):
    ONE = 1


class Index:  # numpy's integers are no `int`s
    def __index__(self) -> int:
        return 1


def test_subclasses_and_indexes_count_as_their_values() -> None:
    assert message_id(Kind.ORDER, Level.ONE) == message_id("order", 1) == message_id("order", Index())  # type: ignore[arg-type]
    key = uuid.uuid4()
    assert message_id(key) == message_id(str(key))


class Hostile:
    def __index__(self) -> int:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (None, "not None: its value is missing"),
        (1.0, "not 1.0: round it"),
        (b"x", "hex"),
        ([], "not a list"),
        ({}, "not a dict"),
        pytest.param(object(), "not an object: pass a string", id="an object"),
        (1 << 1024, "308 digits"),
        (-(1 << 1024), "308 digits"),
        ("\ud800", "lone surrogate"),
        pytest.param(Hostile(), "could not be read: RuntimeError", id="a hostile object"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else type(value).__name__,
)
def test_other_parts_are_refused(part: Any, said: str) -> None:
    with pytest.raises(LetterError, match="message_id") as caught:
        message_id("order", part)
    assert said in str(caught.value) and caught.value.cause is None


def test_no_parts_are_refused() -> None:
    with pytest.raises(LetterError, match="one part or more"):
        message_id()


def test_it_is_loaded_when_it_is_used() -> None:
    code = (
        "import sys, letterapp\n"
        "assert 'hashlib' not in sys.modules and 'message_id' in letterapp.__all__\n"
        "assert not hasattr(letterapp, 'other')\n"
        "print(letterapp.message_id('a', 'bc'), letterapp.message_id is letterapp.message_id)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment("http://127.0.0.1:9"), stdout=subprocess.PIPE)
    assert done.stdout.decode().split() == [KNOWN["a", "bc"], "True"]


def test_calls_accept_it(letter_api: Any) -> None:
    with letterapp.Letter("key", letter_api.url) as letter:
        for _ in range(2):
            letter.track("ada", "Order Completed", message_id=message_id("order completed", 1001))
        letter.identify("ada", message_id=message_id("ada"))
        letter.group("ada", "acme", message_id=message_id("ada", "acme"))
    ids = [item["messageId"] for item in letter_api.events]  # an event sent twice, then two others
    assert ids == [KNOWN["order completed", 1001]] * 2 + [message_id("ada"), message_id("ada", "acme")]
