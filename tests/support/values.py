"""Unusual values, and what tests do with an event that contains one.

Responsible for: values that more than one module needs. Not responsible for: what is right.
"""

from __future__ import annotations

import json
from collections import UserDict
from typing import Any, Callable

from letterapp import Letter
from letterapp._encoding.events import Encoder

ENCODER = Encoder(500_000, None)
LONG = "x" * 100_000


def written(value: Any, encoder: Encoder = ENCODER) -> Any:
    data = encoder.track("user", "Event", {"v": value}, None, None)
    assert data is not None
    return json.loads(data)["properties"]["v"]


def next_arrives(letter: Letter, api: Any) -> None:
    letter.track("u", "next")
    assert letter.flush(60)
    assert [item["event"] for item in api.events] == ["next"]


def doubled(inner: Any, levels: int, pair: Callable[[Any], Any]) -> Any:
    for _ in range(levels):
        inner = pair(inner)
    return inner


class Pairs(list):  # type: ignore[type-arg]
    pass


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


class NoText(Exception):
    """What a value raises may be no better."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Worse(UserDict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise NoText(Unreadable(), doubled("x", 30, lambda x: [x, x]), UnreadableText("x"), *range(10))
