"""The batch in flight, and its tries.

    IDLE ------ begin ------> SENDING ------ end, give_up ------> IDLE
                              |     ^
    wait, for the next try    |     |  begin, when it is due
                              v     |
                              WAITING ------ give_up ------> IDLE

    split: SENDING stays SENDING, with the first half of the batch.

Responsible for: the state of the batch in flight, the number of its tries and splits, when the next try is due. Not
responsible for: the events themselves (`_storage.queue`), what an answer means (`retry`), sending (`batches`).

One thread at a time sends, and only that thread begins, waits, splits and ends. Any other thread may give up the batch
or bring its next try forward. An exception of a signal handler may interrupt the sending thread between any two
instructions, so `begin` is possible in every state. Calls that are not in the table change nothing.
"""

from __future__ import annotations

from enum import Enum

# Maximum number of splits of one batch to find the events that are refused: before any part has been accepted, and
# after. Each costs two requests, and seven isolate one bad event in a hundred. An API that answers 400 to everything,
# because base_url is wrong, accepts no part: it gets at most 17 requests per batch. One that accepts some events gets
# at most 65. These bounds suffice for any four bad events in a hundred.
SPLITS_IN_VAIN, MOST_SPLITS = 8, 32


class InFlightState(Enum):
    IDLE = "idle"
    SENDING = "sending"
    WAITING = "waiting"  # for its next try


class InFlight:
    """Belongs to one sender. Each batch starts with no tries, so it does not inherit those of the previous one."""

    def __init__(self) -> None:
        self.state = InFlightState.IDLE
        self.batch = 0  # the number that the queue gave it
        self.attempt = 0  # number of failed tries of the batch, or of its current part
        self.not_before = 0.0  # the time of the next try, by the sender's clock
        self._splits = 0
        self._has_accepted = False  # the API has accepted a part of it
        self._has_failed = False  # the last try has failed
        self._is_expedited = False  # `expedite` was called since `begin`

    def begin(self, batch: int) -> None:
        """A try of the batch with this number starts."""
        if self.batch != batch:
            self.batch, self.attempt, self._splits, self._has_accepted = batch, 0, 0, False
        self._has_failed = self._is_expedited = False
        self.not_before = 0.0
        self.state = InFlightState.SENDING

    def wait(self, until: float, now: float, failed: bool) -> None:
        """The try has ``failed``, or has no outcome yet; the next one is due at ``until``."""
        if self.state is not InFlightState.SENDING:
            return
        self.attempt += failed
        self._has_failed = failed
        self.not_before = until
        self.state = InFlightState.WAITING
        if self._is_expedited:  # during the request
            self._bring_forward(now)

    def split(self, in_search: bool) -> None:
        """The batch is sent in two parts from now on: it was too large, or ``in_search`` of refused events."""
        if self.state is InFlightState.SENDING:
            self.attempt = 0
            self._splits += in_search

    def end(self, accepted: bool) -> None:
        """The batch, or its current part, is settled. The next part starts with no tries."""
        if self.state is InFlightState.SENDING:
            self.attempt = 0
            self._has_accepted = self._has_accepted or accepted
            self.state = InFlightState.IDLE

    def give_up(self) -> None:
        """The batch was given up."""
        self.not_before = 0.0
        self.state = InFlightState.IDLE

    def pause(self, until: float) -> None:
        """Begin no try of any batch before ``until``."""
        self.not_before = until

    def expedite(self, now: float) -> None:
        """Make the next try due now, because there may be no later one. Any thread may call."""
        self._is_expedited = True  # first: either `wait` sees it, or what `wait` has set is seen here
        self._bring_forward(now)

    def may_search(self) -> bool:
        """True while the batch may be split to find events that the API refuses."""
        return self._splits < (MOST_SPLITS if self._has_accepted else SPLITS_IN_VAIN)

    def _bring_forward(self, now: float) -> None:
        if self.not_before > now and self._has_failed:
            self._has_failed = False
            self.attempt = max(0, self.attempt - 1)  # the back-off is cut short, so the failed try does not count
        self.not_before = 0.0
