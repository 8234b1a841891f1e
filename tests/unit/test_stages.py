"""`Stages`: the transitions of the table at the head of its module, and no others."""

from __future__ import annotations

from typing import Callable

import pytest

from letterapp._delivery.stages import SURVIVAL, Stage, Stages

EVENTS: dict[str, Callable[[Stages], None]] = {
    "a signal": lambda stages: stages.begin_exit(final=False, now=0.0),
    "the end": lambda stages: stages.begin_exit(final=True, now=0.0),
    "survived": lambda stages: stages.cancel_exit(),
}
REACHED = {
    Stage.OPEN: [],
    Stage.EXITING: ["a signal"],
    Stage.FINAL: ["a signal", "the end"],
}
TRANSITIONS = {
    (Stage.OPEN, "a signal"): Stage.EXITING,
    (Stage.OPEN, "the end"): Stage.FINAL,
    (Stage.EXITING, "the end"): Stage.FINAL,
    (Stage.EXITING, "survived"): Stage.OPEN,
    (Stage.FINAL, "survived"): Stage.OPEN,
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("stage", Stage)
def test_the_table_of_transitions(stage: Stage, event: str) -> None:
    stages = Stages()
    for each in REACHED[stage]:
        EVENTS[each](stages)
    assert stages.now is stage
    EVENTS[event](stages)
    assert stages.now is TRANSITIONS.get((stage, event), stage)


def test_calls_wait_for_their_events_after_the_end_until_it_is_cancelled() -> None:
    stages = Stages()
    stages.begin_exit(final=False, now=0.0)
    assert not stages.calls_settle
    stages.set_budget(-1.0)
    assert stages.calls_settle and stages.budget == 0.0
    stages.cancel_exit()
    assert not stages.calls_settle


def test_a_signal_is_survived_when_the_budget_is_used_up_or_after_a_while() -> None:
    stages = Stages()
    assert not stages.has_survived(now=SURVIVAL)
    stages.begin_exit(final=False, now=1.0)
    assert not stages.has_survived(now=SURVIVAL) and stages.has_survived(now=SURVIVAL + 1.0)
    stages.set_budget(0.1)
    assert not stages.has_survived(now=1.0)
    stages.set_budget(0.0)
    assert stages.has_survived(now=1.0)
    stages.begin_exit(final=False, now=2.0)  # another signal: its `end` has not returned yet
    assert not stages.has_survived(now=2.0) and not stages.calls_settle
    stages.begin_exit(final=True, now=3.0)
    stages.set_budget(0.0)
    assert not stages.has_survived(now=3.0 + SURVIVAL)
