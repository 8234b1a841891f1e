"""The JSON encoder, and the error for a value that has no JSON.

Responsible for: `encode`, which writes plain values; `is_plain`, which says whether a value is; `Unencodable`, with the
path of the value; finding the value that the encoder refused. Not responsible for: turning other values into plain ones
(`plain`), events (`events`).

Pure: no lock, no I/O, no state of the process.
"""

from __future__ import annotations

import sys

from .._runtime.signal_errors import reraise_signal_error
from .._text import described, said, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 100  # levels of nesting; far above any event, far below the interpreter's own limit at any call depth
_MOST_VALUES = 5000  # for which `is_plain` looks
_EXCESS = 16  # times the bytes that an event may have: what is encoded in vain at the most, before it is measured


def _never(value: object) -> Any:
    raise TypeError(f"{described(value)} is not plain")


try:
    # CPython's own encoder, held directly: `json.dumps` costs half as much again, and importing `json` costs more
    # than this whole package.
    from _json import encode_basestring, make_encoder
except ImportError:  # PyPy
    from json.encoder import JSONEncoder, encode_basestring

    encode = JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=_never
    ).encode
else:
    # By position, because the keywords of the C type differ between versions: markers (no check for cycles: nesting
    # is bounded before), default, text encoder, indent, separators, sort_keys, skipkeys, allow_nan.
    _pieces = make_encoder(None, _never, encode_basestring, None, ":", ",", False, False, False)

    def encode(o: Any) -> str:
        return "".join(_pieces(o, 0))


quote = encode_basestring  # a text as a JSON string


try:
    from gc import get_referents
    from marshal import dumps as marshalled
except ImportError:
    _inspects = False
else:
    # PyPy's `get_referents` is no faster than Python code. Without the GIL another thread might change a value while C
    # code reads it.
    _inspects = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


def is_plain(value: Any, max_bytes: int) -> bool:
    """True when ``value`` can be encoded as it stands: it has plain types only, and its size is bounded.

    Two functions in C look, much faster than Python code. `gc.get_referents` lists what containers hold, level by
    level, repeated objects each time: it bounds the count and the depth. `marshal.dumps` refuses subclasses, and writes
    repeated objects once: its length bounds the length of each text. A large value may be plain all the same:
    `Copier` measures it exactly.
    """
    if not _inspects:
        return False
    level = get_referents(value)
    count = 1
    for _ in range(MAX_DEPTH):
        if not level:
            break
        count += len(level)
        if count > _MOST_VALUES:
            return False
        level = get_referents(*level)
    else:
        return False
    try:
        return count * len(marshalled(value)) <= _EXCESS * max_bytes
    except ValueError:
        return False


class Unencodable(Exception):
    """A value is not JSON, or the event is too large; ``path`` says where: ``properties.cart[3].price``."""

    timestamp = message_id = ""  # those that the event would have had on the wire

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    def within(self, step: str) -> Unencodable:
        """Note that the value lay inside ``step``; called from the inside outward."""
        self.path = step + self.path
        return self

    def __str__(self) -> str:
        path = self.path if len(self.path) <= 200 else f"{self.path[:100]}...{self.path[-60:]}"
        return f"{path}: {self.problem}" if path else self.problem


# What the C encoder refuses.


def fault_of(copy: Any, name: str, error: Exception) -> Unencodable:
    """The report of the value in ``copy`` for which ``error`` was raised."""
    fault = _find_fault(copy)
    if fault is not None:
        return fault.within(name)
    if isinstance(error, UnicodeEncodeError):
        return _surrogate(error)  # in another argument
    return Unencodable(f"could not be read: {said(error)}", name)


def _find_fault(value: Any) -> Unencodable | None:
    if type(value) is dict:
        for key, item in value.items():
            fault = _fault_in(key)
            if fault is not None:
                return fault
            fault = _find_fault(item)
            if fault is not None:
                return fault.within(f".{key_text(key)}")
    elif type(value) is list:
        for index, item in enumerate(value):
            fault = _find_fault(item)
            if fault is not None:
                return fault.within(f"[{index}]")
    return _fault_in(value)


def _fault_in(value: Any) -> Unencodable | None:
    try:
        if isinstance(value, str):
            str.encode(value)
        elif isinstance(value, int):
            int.__repr__(value)
        elif isinstance(value, float) and not is_finite(value):
            return Unencodable(f"{float.__repr__(value)} is not JSON")
    except UnicodeEncodeError as error:
        return _surrogate(error)
    except ValueError as error:  # CPython's limit on digits
        reraise_signal_error(error)
        return Unencodable(str(error))
    return None


def is_finite(number: float) -> bool:
    return float.__sub__(number, number) == 0.0


def key_text(key: Any) -> str:
    """As `json.dumps` writes keys."""
    if isinstance(key, str):
        return str.__str__(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        return int.__repr__(key)
    if isinstance(key, float):
        if not is_finite(key):
            raise Unencodable(f"the key {float.__repr__(key)} is not JSON")
        return float.__repr__(key)
    raise Unencodable(f"{shown(key)} cannot be a key in JSON")


def _surrogate(error: UnicodeEncodeError) -> Unencodable:
    around = error.object[max(0, error.start - 20) : error.start + 10]
    return Unencodable(f"a lone surrogate cannot be encoded: {around!r}")
