"""The lifecycle of one client in one process.

    OPEN ----- a signal announces the end -----> EXITING ----- it does not come (`has_survived`) ---> OPEN
      |                                             |
      +--------- the process is ending -------------+-----> FINAL

    FINAL ---- the signal did not end it, as the first process of a container ---> OPEN

Responsible for: the stage, how long calls may still block while the process is ending, what `close` has given up.
Not responsible for: `close` itself, which is possible in any stage (`BoundedQueue.closed`), how an end is detected
(`shutdown`).
"""

from __future__ import annotations

from enum import Enum

from .._runtime.clock import FOREVER

# Seconds after which a process that has received a signal is taken to continue. Supervisors kill earlier: Docker after
# 10 s, Kubernetes and gunicorn after 30 s, systemd after 90 s.
SURVIVAL = 90.0


class Stage(Enum):
    OPEN = "open"
    EXITING = "exiting"  # the process may still survive the signal
    FINAL = "final"  # events that are not delivered in time are lost


class Stages:
    """The stage of one sender. Any thread may read it; the end of the process changes it."""

    def __init__(self) -> None:
        self.now = Stage.OPEN
        # Total time in seconds that later calls may wait for their events to be settled: what `end` has left of
        # `exit_timeout`. Infinite until `end` has returned; no call waits before that.
        self.budget = FOREVER
        self._began = 0.0  # when the last `begin_exit` was called
        self.has_given_up = False  # by `close`: no caller waits for what is still in flight
        self.lost_at_close = 0  # number of events; if there are any, no later `close` returns True

    @property
    def is_open(self) -> bool:
        return self.now is Stage.OPEN

    @property
    def is_final(self) -> bool:
        return self.now is Stage.FINAL

    @property
    def calls_settle(self) -> bool:
        """True if each call has to wait until its event is settled, because threads may not run any more."""
        return self.budget < FOREVER

    def has_survived(self, now: float) -> bool:
        """True if a signal has announced the end, and calls need not wait for their events any longer."""
        return self.now is Stage.EXITING and (self.budget <= 0.0 or now - self._began >= SURVIVAL)

    def begin_exit(self, final: bool, now: float) -> None:
        if final:
            self.now = Stage.FINAL
        elif self.now is Stage.OPEN or self.has_survived(now):
            self.now = Stage.EXITING
            self.budget = FOREVER
        self._began = now

    def set_budget(self, budget: float) -> None:
        """`end` has returned: later calls may wait for ``budget`` seconds in total."""
        self.budget = max(0.0, budget)

    def cancel_exit(self) -> None:
        self.now = Stage.OPEN
        self.budget = FOREVER

    def give_up(self, events: int) -> None:
        self.has_given_up = True
        self.lost_at_close += events
