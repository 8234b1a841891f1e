"""HTTP responses, parsed more strictly than by `http.client`.

Responsible for: interim responses, and the length of a response. Not responsible for: what it means (`retry`), the
connection (`deadline_socket`). Imported at the first request, like `http.client`.
"""

from __future__ import annotations

import http.client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable

MOST_INTERIM = 20  # interim responses before the final one: enough for a proxy that sends "Processing" each second
LONGEST_NUMBER = 18  # digits of a plausible length: a petabyte has 16


class TunnelResponse(http.client.HTTPResponse):
    """A proxy's response to CONNECT, which has no body, whatever its length says (RFC 9110, 9.3.6)."""

    def _read_status(self) -> Any:
        """The final status line, after 100, 102, 103 and the like (RFC 9110, 15.2). 101 is final."""
        for _ in range(MOST_INTERIM + 1):
            status_line = super()._read_status()  # type: ignore[misc]
            if not 100 <= status_line[1] < 200 or status_line[1] == 101:
                return status_line
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"more than {MOST_INTERIM} interim responses")


class Response(TunnelResponse):
    """A response whose length is known for certain, or that ends with the connection."""

    def begin(self) -> None:
        super().begin()
        length = content_length(self.headers.get_all("Content-Length", []))
        if "Transfer-Encoding" in self.headers:
            # It overrides the length (RFC 9112, 6.3). But a proxy may have used the length: do not keep the connection.
            self.will_close = self.will_close or length is not None
        elif self.length is None:
            self.length = length  # "2, 2", which `http.client` cannot read


def content_length(values: Iterable[str]) -> int | None:
    """The length in ``values`` of Content-Length headers; None if there is none.

    Raises `HTTPException` if they differ or one is not a number. `http.client` would read until the connection is
    closed then, and accept whatever a broken proxy has made of the response.
    """
    numbers = {_number(part.strip(" \t")) for value in values for part in value.split(",")}
    if len(numbers) > 1:
        raise http.client.HTTPException("the response has contradictory Content-Length headers")
    return numbers.pop() if numbers else None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER):  # `int` accepts "+5", "-1" and "1_0"
        raise http.client.HTTPException(f"the response has an invalid Content-Length: {text[:20]!r}")
    return int(text)
