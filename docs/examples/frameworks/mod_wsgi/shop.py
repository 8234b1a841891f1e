"""A shop. Apache runs it, with shop.conf."""

from typing import Any, Callable, Dict, List

from letterapp import Letter

letter = Letter()  # the key is in LETTER_API_KEY, in Apache's environment: on Debian /etc/apache2/envvars


def application(environ: Dict[str, Any], start_response: Callable[..., Any]) -> List[bytes]:
    number = int(environ["PATH_INFO"].rpartition("/")[2])
    letter.track("user_42", "Order Completed", {"number": number})
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"thank you"]
