"""How values become JSON: keys, `default`, and the values of numpy, pandas and werkzeug."""

from __future__ import annotations

import datetime as dt
import enum
import json
import pickle
import uuid
from collections import OrderedDict, UserDict
from functools import partial
from typing import Any, Callable

import pytest
from values import ENCODER, LONG, Worse, next_arrives, written

from letterapp import Letter, LetterError
from letterapp._encoding.json_text import Unencodable

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
def test_keys_are_encoded_like_json_dumps(given: Any, kind: Any) -> None:
    data = ENCODER.track("u", "E", kind(given), None, None)
    assert data is not None
    assert json.loads(data)["properties"] == json.loads(json.dumps(given))
    assert written([kind(given)]) == [json.loads(json.dumps(given))]


# The option `default`.


def test_default_is_called_only_for_values_without_a_rule(make: Any, letter_api: Any) -> None:
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


EMPTY: dict[str, Any] = {}


@pytest.mark.parametrize(
    "default, problem",
    [
        (lambda value: value, "nested deeper than 100 levels, or contains itself"),
        (lambda value: [value], "nested deeper than 100 levels, or contains itself"),
        (lambda value: float("nan"), "properties.v: nan is not JSON"),
        (lambda value: EMPTY["missing"], "properties.v: default raised KeyError('missing')"),
        (lambda value: Worse().items(), "properties.v: default raised NoText("),
    ],
)
def test_a_default_that_fails_costs_only_its_own_event(
    default: Any, problem: str, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(default=default)
    letter.track("u", "E", {"v": object()})
    assert problem in str(errors[0]) and errors[0].cause == "invalid"
    next_arrives(letter, letter_api)


def test_default_may_be_str(make: Any, letter_api: Any) -> None:
    letter = make(default=str)
    letter.track("u", "E", {"v": dt.timedelta(seconds=5)})
    twin = pickle.loads(pickle.dumps(Letter("test-key", letter_api.url, default=str)))
    twin.track("u", "E", {"v": dt.timedelta(seconds=5)})
    assert letter.flush(60) and twin.close(60)
    assert [item["properties"] for item in letter_api.events] == [{"v": "0:00:05"}] * 2


def test_a_wrong_default_is_an_error(make: Any) -> None:
    with pytest.raises(LetterError, match="default must be a function or None"):
        make(default="str")


# Values of other packages.


def test_numpy_values() -> None:
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


def test_numpy_values_that_are_not_json() -> None:
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


def test_numpy_values_as_arguments(make: Any) -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed: its values are not tried")
    letter = make()
    for value in (numpy.array([1, 2]), numpy.array(["u"]), numpy.int64(5)):
        calls: list[Callable[[], object]] = [
            partial(letter.track, value, "E"),
            partial(letter.track, "u", value),
            partial(letter.track, "u", "E", value),
            partial(letter.track, "u", "E", None, value),
            partial(letter.track, "u", "E", None, None, value),
            partial(letter.identify, "u", value),
            partial(letter.group, "u", value),
        ]
        for call in calls:
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


def test_werkzeug_proxies(make: Any, letter_api: Any, errors: list[LetterError]) -> None:
    local = pytest.importorskip("werkzeug.local", reason="werkzeug is not installed: its proxies are not tried")
    letter = make()
    outside: Any = local.LocalProxy(local.LocalStack())
    bound: Any = local.LocalProxy(lambda: "u")  # `isinstance` says that it is a str
    calls: list[Callable[[], object]] = [
        lambda: letter.track(outside, "E"),
        lambda: letter.track("u", "E", outside),
        lambda: letter.track("u", "E", timestamp=outside),
        lambda: letter.track(bound, "E"),
        lambda: letter.identify("u", bound),
        lambda: letter.send(outside, "Hi", text="Hi"),
    ]
    for call in calls:
        with pytest.raises(LetterError, match="LocalProxy"):
            call()
    letter.track("u", "E", {"v": [outside]})
    letter.track("u", "E", {"v": [bound]})
    assert "properties.v[0]: a LocalProxy is not JSON" in str(errors[0])
    assert "properties.v[0]: could not be read: TypeError" in str(errors[1])
    inside = local.LocalProxy(lambda: {"a": [1]})
    assert written(inside) == {"a": [1]}
    next_arrives(letter, letter_api)


def test_anything_with_isoformat_is_encoded_with_it() -> None:
    assert written(dt.time(12, 30)) == "12:30:00"
