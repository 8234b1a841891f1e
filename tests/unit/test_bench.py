"""The benchmark's own rules: the shapes of events, the limits of their rows, and what its programs tell each other."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from harness import ROOT
from redis_server import needs_redis

from stress import bench, shapes, stream_costs
from stress.counting_server import Counts
from stress.metrics import CURVES, MEASURES, METRICS, OLD, PER_ENTRY, SHAPES, SLOW_RELAYS, Samples, check_limits
from stress.peers import FLOOR, KNOWN, ORJSON, SELF, Environments, Peer
from stress.programs import Failure
from stress.redis_service import RedisService
from stress.shapes import BATCH, EVENTS, TURNS, WARM_UP, Window


@pytest.fixture
def measured_clients(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that runs in the interpreters of the clients."""
    monkeypatch.syspath_prepend(str(ROOT / "stress" / "inside"))
    import measured_clients

    return measured_clients


def test_the_shapes_are_those_of_the_rows(measured_clients: Any) -> None:
    flat, with_list, with_cart = (measured_clients.SHAPES[shape](7) for shape in SHAPES)
    assert len(measured_clients.SHAPES) == len(SHAPES)
    assert len(flat) == 4 and not any(isinstance(value, (list, dict)) for value in flat.values())
    assert len(with_list) == 4 and [value for value in with_list.values() if isinstance(value, list)] == [[1, 2, 3]]
    cart = with_cart.pop("cart")
    assert with_cart == with_list
    assert [len(item) for item in cart] == [4] * 5
    assert not any(isinstance(value, (list, dict)) for item in cart for value in item.values())


def test_no_two_events_share_an_object_that_a_client_could_have_seen_before(measured_clients: Any) -> None:
    for make in measured_clients.SHAPES.values():
        one, other = make(1), make(1)
        assert one == other != make(2)
        for key, value in one.items():
            assert not isinstance(value, list) or value is not other[key]


def test_no_shape_contains_what_the_server_counts(measured_clients: Any) -> None:
    text = json.dumps([make(1) for make in measured_clients.SHAPES.values()])
    assert not any(client.marker in text for client in KNOWN.values())


def test_the_floor_keeps_no_more_events_than_clients_may(measured_clients: Any) -> None:
    client = measured_clients.floor("", 3)
    for number in range(5):
        client.track(properties=measured_clients.flat(number))
    queue = client.close.__self__
    assert [json.loads(event)["properties"]["count"] for event in queue] == [2, 3, 4]


def limits(key: str) -> list[str]:
    (found,) = (metric for metric in METRICS if metric.key == key)
    return [str(limit) for limit in found.limits]


@pytest.mark.parametrize(
    ("shape", "call", "with_orjson"), [("flat", 0.7, 0.45), ("list", 0.7, 0.45), ("cart", 0.65, 0.3)]
)
def test_each_shape_has_rows_with_limits(shape: str, call: float, with_orjson: float) -> None:
    assert limits(f"{shape}_call") == [f"at most {call} x floor", f"with orjson: at most {with_orjson} x floor"]
    assert limits(f"{shape}_tail") == ["at most 8"]
    assert limits(f"{shape}_cpu") == ["at most 1.2 x floor"]
    assert limits(f"{shape}_rate") == ["at least 1.3 x letterapp 0.2.0", "at least 8 x posthog"]


def test_all_shapes_are_measured_in_one_run() -> None:
    assert "shapes" in MEASURES
    keys = [metric.key for metric in METRICS if metric.measure == "shapes"]
    assert keys == [f"{shape}_{what}" for shape in SHAPES for what in ("call", "tail", "cpu", "rate")]


def verdicts(samples: Samples) -> dict[str, str]:
    return {f"{check.metric.key} {check.limit}": check.verdict for check in check_limits(samples)}


def test_a_ratio_is_taken_within_a_round() -> None:
    samples: Samples = {"flat_call": {SELF: [6.0, 12.0, 6.0], FLOOR: [10.0, 20.0, 5.0]}}  # 0.6, 0.6, 1.2
    assert verdicts(samples) == {"flat_call at most 0.7 x floor": "met"}
    samples["flat_call"][SELF][0] = 9.0
    assert verdicts(samples) == {"flat_call at most 0.7 x floor": "MISSED"}
    samples["flat_call"][SELF] = [None, 12.0, None]  # some rounds failed
    assert verdicts(samples) == {"flat_call at most 0.7 x floor": "met"}


def test_the_limits_of_a_variant_are_for_its_own_figures() -> None:
    samples: Samples = {"cart_call": {SELF: [6.0], ORJSON: [4.0], FLOOR: [10.0]}}
    assert verdicts(samples) == {
        "cart_call at most 0.65 x floor": "met",
        "cart_call with orjson: at most 0.3 x floor": "MISSED",
    }
    samples["cart_call"][ORJSON] = [2.0]
    assert verdicts(samples)["cart_call with orjson: at most 0.3 x floor"] == "met"
    samples["cart_call"][ORJSON] = [None]
    assert verdicts(samples)["cart_call with orjson: at most 0.3 x floor"] == "not measured"


def test_the_limits_of_a_variant_that_was_not_asked_for_are_not_shown() -> None:
    samples: Samples = {"cart_call": {SELF: [6.0], FLOOR: [10.0]}}
    assert verdicts(samples) == {"cart_call at most 0.65 x floor": "met"}


def test_the_variant_with_orjson_is_this_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def environment(self: Environments, requirement: str | None) -> str:
        asked.append(requirement)
        return sys.executable

    monkeypatch.setattr(Environments, "_environment", environment)
    environments = Environments(sys.executable, tmp_path, print)
    one, other = environments.this_client(), environments.orjson()
    assert asked == [None, "orjson"]
    assert (one.column, other) == (SELF, one._replace(column=ORJSON))


def test_a_rate_has_a_limit_for_each_of_two_clients() -> None:
    samples: Samples = {"cart_rate": {SELF: [40_000.0], OLD: [31_000.0], "posthog": [5_000.0]}}
    assert verdicts(samples) == {
        "cart_rate at least 1.3 x letterapp 0.2.0": "MISSED",
        "cart_rate at least 8 x posthog": "met",
    }
    del samples["cart_rate"][OLD]
    assert verdicts(samples)["cart_rate at least 1.3 x letterapp 0.2.0"] == "not measured"


def test_a_tail_that_the_floor_has_too_is_no_fault_of_this_client() -> None:
    samples: Samples = {"list_tail": {SELF: [9.0], FLOOR: [2.0]}}
    assert verdicts(samples) == {"list_tail at most 8": "MISSED"}
    samples["list_tail"][FLOOR] = [10.0]
    assert verdicts(samples) == {"list_tail at most 8": "unknown: the floor misses it too"}


def test_the_figures_of_a_round() -> None:
    windows = [Window(5.0, 10.0, 9.0, 80_000.0), Window(4.0, 40.0, 7.0, 60_000.0), Window(8.0, 24.0, 8.0, 10_000.0)]
    assert shapes.figures("cart", windows) == {
        "cart_call": 4.0,  # of the quickest window
        "cart_tail": 3.0,
        "cart_cpu": 8.0,
        "cart_rate": 60_000.0,
    }
    sending_nothing = [window._replace(rate=None) for window in windows]
    assert set(shapes.figures("flat", sending_nothing)) == {"flat_call", "flat_tail", "flat_cpu"}


def test_the_server_reports_before_the_last_batch_of_each_window_and_after_it() -> None:
    ends = shapes.window_ends()
    assert ends[:3] == [WARM_UP, WARM_UP + EVENTS - BATCH, WARM_UP + EVENTS]
    assert ends[-1] == WARM_UP + TURNS * len(SHAPES) * EVENTS
    assert len(ends) == 1 + 2 * TURNS * len(SHAPES) and ends == sorted(ends)


def test_the_server_sends_its_counts_at_each_expected_number(capsys: pytest.CaptureFixture[str]) -> None:
    counts = Counts([3, 10, 11])
    for events in (2, 2, 5, 4):
        counts.add_request(events, 100)
    reported = [json.loads(line)["events"] for line in capsys.readouterr().out.splitlines()]
    assert reported == [4, 13, 13], "a request that reaches two of them is reported twice"


@pytest.fixture
def rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Rounds with few events, of clients on this interpreter."""
    monkeypatch.setattr(shapes, "EVENTS", 300)
    monkeypatch.setattr(shapes, "TURNS", 2)
    certificate = bench._Certificate(tmp_path, tmp_path)

    def rounds(**clients: str) -> bench._Rounds:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        columns = [
            Peer(column, client, "letterapp", '"messageId"', sys.executable, "", env)
            for column, client in clients.items()
        ]
        environments: Any = None  # of the clients that these rounds do not have
        return bench._Rounds(columns, environments, certificate, tmp_path)

    return rounds


def test_a_client_that_is_named_twice_is_refused() -> None:
    one, other = (Peer(name, "letterapp", "letterapp", "messageId", "python", "1", {}) for name in ("one", "other"))
    assert bench.distinct([one, other]) == [one, other]
    with pytest.raises(ValueError, match="one is named twice"):
        bench.distinct([one, other, one])


@pytest.mark.slow
def test_a_round_has_one_figure_for_each_row_and_client(rounds: Any) -> None:
    taken = rounds(own="letterapp", floor="floor")
    steps: list[str] = []
    for _ in range(2):
        taken.take("shapes", steps.append)
    assert taken.failures == {}
    assert len(steps) == 2 * taken.steps("shapes")
    assert steps[:4] == ["flat, own", "flat, floor", "list, own", "list, floor"]
    assert {key: set(columns) for key, columns in taken.samples.items()} == {
        metric.key: {"own"} if metric.key.endswith("rate") else {"own", "floor"}
        for metric in METRICS
        if metric.measure == "shapes"
    }
    assert all(
        len(values) == 2 and all(value > 0 for value in values)
        for columns in taken.samples.values()
        for values in columns.values()
    )


@pytest.mark.slow
def test_a_client_that_fails_has_no_figures_and_the_others_have_theirs(rounds: Any) -> None:
    taken = rounds(own="letterapp", other="unknown")
    for _ in range(2):
        taken.take("shapes", lambda what: None)
    assert "unknown" in taken.failures["shapes"]["other"]
    assert taken.samples["list_rate"]["other"] == [None, None]
    assert len(taken.samples["list_rate"]["own"]) == 2 and None not in taken.samples["list_rate"]["own"]


class ThisInterpreter:
    """Environments that have redis-py already: the one of the tests."""

    def redis(self) -> Peer:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return Peer("with Redis", "letterapp", "letterapp", '"messageId"', sys.executable, "", env)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> stream_costs.StreamCosts:
    """With few events."""
    monkeypatch.setattr(stream_costs, "EVENTS", {1: 2_000, 10: 20_000, 100: 30_000})
    monkeypatch.setattr(stream_costs, "SLOW_EVENTS", 2_000)
    environments: Any = ThisInterpreter()
    return stream_costs.StreamCosts(environments)


def keys(measure: str) -> set[str]:
    found = {metric.key for metric in METRICS if metric.measure == measure}
    return found | {curve.key for curve in CURVES if curve.measure == measure}


def test_there_are_events_for_each_size_of_an_entry() -> None:
    assert tuple(stream_costs.EVENTS) == PER_ENTRY == next(c.xs for c in CURVES if c.measure == "redis_entries")
    assert all(events % (per_entry * stream_costs.APPENDERS) == 0 for per_entry, events in stream_costs.EVENTS.items())
    assert next(c.xs for c in CURVES if c.measure == "redis_slow_api") == SLOW_RELAYS


@needs_redis
@pytest.mark.slow
def test_what_entries_of_a_stream_cost(costs: stream_costs.StreamCosts, measured_clients: Any) -> None:
    figures = costs.entries(10)
    assert set(figures) == keys("redis_entries")
    assert all(value > 0 for value in figures.values())
    event = len(measured_clients.encoded(1))
    assert event < figures["redis_event_memory"] < 2 * event


@needs_redis
@pytest.mark.slow
def test_each_relay_sends_one_request_after_the_other_to_a_slow_api(costs: stream_costs.StreamCosts) -> None:
    (key,) = keys("redis_slow_api")
    for relays in (1, 2):
        # Between the two moments 1,600 events for each relay, so 16 requests and at least 15 responses.
        assert 0 < costs.slow_api(relays)[key] < relays * 1_600 / (15 * stream_costs.SLOW)


@needs_redis
@pytest.mark.slow
def test_events_of_a_stream_that_do_not_arrive_are_a_failure_and_no_figure(
    costs: stream_costs.StreamCosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisService, "drain", lambda self: False)
    with pytest.raises(Failure, match=r"20,000 of 20,000 events arrived: .*reading"):
        costs.entries(10)


@needs_redis
@pytest.mark.slow
def test_a_connection_costs_more_after_a_request(costs: stream_costs.StreamCosts) -> None:
    figures = costs.connections()
    assert set(figures) == keys("redis_connections")
    assert 0 < figures["redis_idle_connection"] < figures["redis_used_connection"]


def test_the_properties_are_those_of_a_client(measured_clients: Any, letter_api: Any) -> None:
    """An encoded event of the stream is as long as one that the client sends."""
    client = measured_clients.letterapp(letter_api.url, 10)
    client.track(properties=measured_clients.properties(7))
    client.close()
    (sent,) = letter_api.events
    appended = json.loads(measured_clients.encoded(7))
    assert set(appended) == set(sent) and appended["properties"] == sent["properties"]
    assert len(letter_api.requests[0].body) - len('{"batch":[]}') == len(measured_clients.encoded(7))
