"""Python client of letter.app's ingestion API.

    from letterapp import Letter

    letter = Letter("your-key")
    letter.track("user_42", "Order Completed", {"amount": 99})

A call queues its event and returns; a background sender delivers batches. The client stays right over forks: see
docs/guarantees.md for what is promised and docs/processes.md for each server.
"""

from ._client import Letter
from ._version import __version__
from .errors import LetterError

__all__ = ["Letter", "LetterError", "__version__"]
