"""Testing what an application sends: an ingestion server that implements the API's protocol, and fails on request.

    from letterapp.testing import IngestionServer

    with IngestionServer() as api:
        letter = Letter("key", api.url)
        letter.track("user_42", "Order Completed")
        letter.close()
        assert [item["event"] for item in api.events] == ["Order Completed"]

In pytest the fixture `letter_api` is a running server. If a callback (`on_event`, `rule`, a fault) raises, the
traceback is printed to stderr, and the request is handled as if the callback had not been called.
"""

from ._testing.checks import MAX_ITEMS
from ._testing.faults import Exchange, Fault, Hold, Request, cut, endless, raw, reset, stall, status
from ._testing.server import IngestionServer

__all__ = [
    "MAX_ITEMS",
    "Exchange",
    "Fault",
    "Hold",
    "IngestionServer",
    "Request",
    "cut",
    "endless",
    "raw",
    "reset",
    "stall",
    "status",
]
