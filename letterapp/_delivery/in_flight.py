"""The batch that is being sent, and the tries that it has had.

    EMPTY ------ begin ------> SENDING ------ end, give_up ------> EMPTY
                               |     ^
         wait, for a next try  |     |  begin, when that is due
                               v     |
                               WAITING ------ give_up ------> EMPTY

    split: SENDING stays SENDING, with the first half of the batch.

Responsible for: the state of the batch in flight, how many tries and splits it has had, when the next try is due. Not
responsible for: the events themselves (`_storage.queue`), what an answer means (`retry`), sending (`batches`).

One thread at a time sends, and only that thread begins, waits, splits and ends. Any other thread may give the batch up
or bring its next try forward in the meantime. An exception of a signal handler may interrupt the sending thread between
any two instructions: so `begin` is possible in every state. What is not in the table changes nothing.
"""

from __future__ import annotations

from enum import Enum

# Splits of one batch to find the events that are refused. Each costs two requests, and seven isolate one bad event of a
# hundred. An API that answers 400 to everything, because base_url is wrong, accepts no part: it gets 17 requests a
# batch at most. One that accepts some events gets 65 at most. These bounds find any four bad events of a hundred.
SPLITS_IN_VAIN, MOST_SPLITS = 8, 32


class InFlightState(Enum):
    EMPTY = "empty"
    SENDING = "sending"
    WAITING = "waiting"  # for its next try


class InFlight:
    """Belongs to one sender. Each batch starts with no tries, so that none inherits those of another."""

    def __init__(self) -> None:
        self.state = InFlightState.EMPTY
        self.batch = 0  # the number that the queue gave it
        self.attempt = 0  # failed tries of what is being sent: the batch, or the current part of it
        self.not_before = 0.0  # the time of the next try, by the sender's clock
        self._splits = 0
        self._has_accepted = False  # the API has accepted a part of it
        self._has_failed = False  # the last try, so that it waits for another one
        self._is_expedited = False  # since `begin`

    def begin(self, batch: int) -> None:
        """A try of the batch with this number starts."""
        if self.batch != batch:
            self.batch, self.attempt, self._splits, self._has_accepted = batch, 0, 0, False
        self._has_failed = self._is_expedited = False
        self.not_before = 0.0
        self.state = InFlightState.SENDING

    def wait(self, until: float, now: float, failed: bool) -> None:
        """The try has ``failed``, or there is no outcome so far; the next one is due at ``until``."""
        if self.state is not InFlightState.SENDING:
            return
        self.attempt += failed
        self._has_failed = failed
        self.not_before = until
        self.state = InFlightState.WAITING
        if self._is_expedited:  # during the request
            self._bring_forward(now)

    def split(self, in_search: bool) -> None:
        """The batch is sent in two parts from now on: it was too large, or ``in_search`` of events that are refused."""
        if self.state is InFlightState.SENDING:
            self.attempt = 0
            self._splits += in_search

    def end(self, accepted: bool) -> None:
        """The batch, or a part of it, is settled; the next part has all its tries."""
        if self.state is InFlightState.SENDING:
            self.attempt = 0
            self._has_accepted = self._has_accepted or accepted
            self.state = InFlightState.EMPTY

    def give_up(self) -> None:
        """Nobody waits for the batch any longer."""
        self.not_before = 0.0
        self.state = InFlightState.EMPTY

    def pause(self, until: float) -> None:
        """Begin no try before ``until``, of whichever batch."""
        self.not_before = until

    def expedite(self, now: float) -> None:
        """Make the next try due now, because there may be no later. Any thread may call."""
        self._is_expedited = True  # first: either `wait` sees it, or what `wait` has set is seen here
        self._bring_forward(now)

    def may_search(self) -> bool:
        """True while the batch may be split to find events that the API refuses."""
        return self._splits < (MOST_SPLITS if self._has_accepted else SPLITS_IN_VAIN)

    def _bring_forward(self, now: float) -> None:
        if self.not_before > now and self._has_failed:
            self._has_failed = False
            self.attempt = max(0, self.attempt - 1)  # its wait is cut short, so the failed try does not count
        self.not_before = 0.0
