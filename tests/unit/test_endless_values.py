"""Values that are small in memory and endless as JSON: none may hang, take much memory, or cost another event."""

from __future__ import annotations

import dataclasses
import enum
import sys
import time
from collections import UserDict
from collections.abc import Mapping
from typing import Any, Callable, Iterator

import pytest
from values import ENCODER, LONG, Pairs, doubled, next_arrives, written

from letterapp import LetterError
from letterapp._encoding.events import Encoder
from letterapp._encoding.json_text import Unencodable


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
def test_a_value_that_is_endless_as_json_costs_only_its_own_event(
    name: str, on_top: bool, make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    bomb = BOMBS[name]
    letter = make()
    began = time.process_time()
    letter.track("u", "bomb", bomb if on_top and isinstance(bomb, Mapping) else {"b": bomb})
    assert time.process_time() - began < 20  # not an hour
    assert "over the 499,988 that max_batch_bytes allows" in str(errors[0]) and len(str(errors[0])) < 200
    assert errors[0].cause == "invalid" and len(errors) == 1
    next_arrives(letter, letter_api)


def test_encoding_stops_before_it_takes_much_memory() -> None:
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
def test_it_is_refused_in_every_argument(name: str, make: Any, letter_api: Any, errors: list[Any]) -> None:
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
def test_a_value_that_fits_is_never_refused(full: Any) -> None:
    properties = full if isinstance(full, dict) else {"v": full}
    data = ENCODER.track("user", "Event", properties, None, None)
    assert data is not None and 400_000 < len(data) <= 499_988
