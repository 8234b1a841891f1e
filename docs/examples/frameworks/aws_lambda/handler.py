"""A function of AWS Lambda. Its handler is `handler.charge`."""

from typing import Any, Dict

from letterapp import Letter, message_id

letter = Letter()  # LETTER_API_KEY. Created when the container starts; later invocations find it, and its connection


def charge(event: Dict[str, Any], context: Any) -> Dict[str, Any]:
    order = event["order"]
    # Lambda invokes a function again if it has failed, so ids are derived.
    letter.track(event["user"], "Order Charged", {"order": order}, message_id=message_id("Order Charged", order))
    # When the function has returned, the container is frozen, perhaps for ever: nothing is sent after this line.
    if not letter.flush():
        raise RuntimeError("the API did not take the events in time")
    return {"order": order}
