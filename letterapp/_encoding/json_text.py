"""The JSON encoder, and the error for values that JSON cannot represent.

Responsible for: `encode` and `as_bytes`, which write plain values; `is_plain`, which checks a value; `Unencodable`,
with the path of the value; finding the value that the encoder refused. Not responsible for: converting other values to
plain ones (`plain`), events (`events`).

No lock, no I/O, no state.
"""

from __future__ import annotations

import sys

from .._runtime import servers
from .._runtime.signal_errors import reraise_signal_error
from .._text import described, said, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

MAX_DEPTH = 100  # levels of nesting; far above any real event, far below the interpreter's recursion limit
_MOST_VALUES = 5000  # maximum number of values that `is_plain` checks; it returns False for more
_EXCESS = 16  # `is_plain` allows a bound on the size up to this many times `max_bytes`; the exact size is checked later


def _never(value: object) -> Any:
    raise TypeError(f"{described(value)} is not plain")


try:
    # CPython's encoder, used directly: `json.dumps` takes half as long again, and importing `json` takes longer than
    # importing this whole package.
    from _json import encode_basestring, make_encoder
except ImportError:  # PyPy
    from json.encoder import JSONEncoder, encode_basestring

    encode = JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=_never
    ).encode
else:
    # By position, because the keywords of the C type differ between versions: markers (no check for cycles, because
    # the depth has been checked), default, string encoder, indent, separators, sort_keys, skipkeys, allow_nan.
    _pieces = make_encoder(None, _never, encode_basestring, None, ":", ",", False, False, False)

    def encode(o: Any) -> str:
        return "".join(_pieces(o, 0))


quote = encode_basestring  # a str as a JSON string


# What orjson imports while it is imported itself. If one of these imports fails there, it crashes the process.
_IMPORTED_BY_ORJSON = ("json", "datetime", "enum", "uuid", "dataclasses")


def fastest_encoder() -> Callable[[Any], str]:
    """A function like `encode`, for values that `is_plain`: by orjson if that can be imported, else `encode` itself.

    Not called in `track`, because a fork in another thread during the import would leave the child a partial module.
    """
    if not _inspects or not servers.is_main_interpreter():
        return encode  # orjson reads dicts without a lock, and supports no other interpreter
    try:
        if "orjson" not in sys.modules:
            from importlib import import_module
            from importlib.machinery import PathFinder

            if PathFinder.find_spec("orjson") is None:
                return encode
            for name in _IMPORTED_BY_ORJSON:
                import_module(name)
        from orjson import OPT_PASSTHROUGH_DATACLASS, OPT_PASSTHROUGH_DATETIME, OPT_PASSTHROUGH_SUBCLASS, dumps
    except Exception as error:  # it is not installed, or broken
        reraise_signal_error(error)
        return encode
    options = OPT_PASSTHROUGH_SUBCLASS | OPT_PASSTHROUGH_DATETIME | OPT_PASSTHROUGH_DATACLASS

    def encode_fast(value: Any) -> str:
        try:
            text: str = dumps(value, None, options).decode()
        except TypeError:  # a key that is not a str, a large int, a lone surrogate
            return encode(value)
        return encode(value) if "null" in text else text  # orjson also writes NaN as null, which is refused

    return encode_fast


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
    """True if ``value`` can be encoded as it is: it consists of plain types, and its size is bounded.

    Two C functions check this, much faster than Python code. `gc.get_referents` lists the contents of containers, level
    by level, and repeated objects each time, which bounds their number and the depth. `marshal.dumps` refuses
    subclasses and writes repeated objects once, so the length of its result bounds the length of each string. If that
    bound is too rough, it also writes each object as often as it occurs (version 2 of its format). False does not mean
    that a value is not plain: `Copier` measures a large one exactly.
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
        most = _EXCESS * max_bytes
        bound = count * len(marshalled(value))
        return bound <= most or (bound <= _EXCESS * most and len(marshalled(value, 2)) <= most)
    except ValueError:
        return False


class Unencodable(Exception):
    """A value is not JSON, or the event is too large. ``path`` is that of the value: ``properties.cart[3].price``."""

    timestamp = message_id = ""  # of the refused event

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    def within(self, step: str) -> Unencodable:
        """Prepend ``step`` to the path. Called from the innermost level outward."""
        self.path = step + self.path
        return self

    def __str__(self) -> str:
        path = self.path if len(self.path) <= 200 else f"{self.path[:100]}...{self.path[-60:]}"
        return f"{path}: {self.problem}" if path else self.problem


# Values that the C encoder refuses.


def as_bytes(copy: Any) -> bytes:
    """Encode plain values. Raises `Unencodable` with the path of a value that JSON cannot represent."""
    try:
        return encode(copy).encode()
    except ValueError as error:
        reraise_signal_error(error)
        raise fault_of(copy, "", error) from None


def fault_of(copy: Any, name: str, error: Exception) -> Unencodable:
    """The error to raise, with the path of the value in ``copy`` for which the encoder raised ``error``."""
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
    """A key as `json.dumps` writes it."""
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
