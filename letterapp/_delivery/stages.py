"""How far the life of one client in one process has come.

    OPEN ----- a signal announces the end -----> EXITING ----- the process goes on after all -----> OPEN
      |                                             |
      +--------- the process is ending -------------+-----> FINAL

Responsible for: the stage, the time that calls may still take once the end has been announced, what `close` gave up.
Not responsible for: `close` itself, which may come in any stage (`BoundedQueue.closed`), how an end is noticed
(`shutdown`).
"""

from __future__ import annotations

from enum import Enum

FOREVER = float("inf")


class Stage(Enum):
    OPEN = "open"
    EXITING = "exiting"  # the process may still survive the signal
    FINAL = "final"  # what is not delivered in time is lost


class Stages:
    """Belongs to one sender. Any thread may read it; the end of the process changes it."""

    def __init__(self) -> None:
        self.now = Stage.OPEN
        # Seconds that calls may still wait for their events, in all: the end itself has used up the rest. Infinite
        # until it is over, and no call waits before that.
        self.budget = FOREVER
        self.has_given_up = False  # by `close`: nobody waits for what is still on the wire
        self.lost_at_close = 0  # events; so no later `close` can return True

    @property
    def is_final(self) -> bool:
        return self.now is Stage.FINAL

    @property
    def calls_settle(self) -> bool:
        """True when each call has to wait until its event is settled, because no thread can be relied on any more."""
        return self.budget is not FOREVER

    def begin_exit(self, final: bool) -> None:
        self.now = Stage.FINAL if final else Stage.EXITING

    def leave_to_calls(self, budget: float) -> None:
        """The end is over, and has left ``budget`` seconds to the calls that come after it."""
        self.budget = max(0.0, budget)

    def cancel_exit(self) -> None:
        self.now = Stage.OPEN
        self.budget = FOREVER

    def give_up(self, events: int) -> None:
        self.has_given_up = True
        self.lost_at_close += events
