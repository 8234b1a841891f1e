"""Testing what an application sends: captured events, and an ingestion server.

    from letterapp.testing import capture

    with capture() as letter:  # in pytest: the fixture `letter`
        complete_order("user_42", amount=99)  # with the application's own client, or this one
        letter.assert_tracked("Order Completed", user_id="user_42", amount=99)

`capture` needs no server: nothing is sent. `IngestionServer` (in pytest: the fixture `letter_api`) is for tests of the
connection itself: it implements the API's protocol over real sockets, and fails on request.

    with IngestionServer() as api:
        letter = Letter("key", api.url)
        letter.track("user_42", "Order Completed")
        letter.close()
        assert [item["event"] for item in api.events] == ["Order Completed"]

If a callback of a server (`on_event`, `rule`, a fault) raises, the traceback is printed to stderr, and the request is
handled as if the callback had not been called. docs/testing.md has more examples.
"""

from ._api_rules import MAX_ITEMS
from ._testing.active import no_network
from ._testing.captured import CapturedLetter, capture
from ._testing.faults import Exchange, Fault, Hold, Request, cut, endless, raw, reset, stall, status
from ._testing.server import IngestionServer

__all__ = [
    "MAX_ITEMS",
    "CapturedLetter",
    "Exchange",
    "Fault",
    "Hold",
    "IngestionServer",
    "Request",
    "capture",
    "cut",
    "endless",
    "no_network",
    "raw",
    "reset",
    "stall",
    "status",
]
