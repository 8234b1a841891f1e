"""The application in the container: a WSGI application with a spool on a volume."""

import os
from typing import Any, Callable, Iterable

from letterapp import Letter

letter = Letter(spool=os.environ["LETTER_SPOOL"])  # LETTER_API_KEY


def app(environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path.startswith("/order/"):
        letter.track("user_42", "Order Completed", {"order": int(path.rpartition("/")[2])})
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok\n"]
