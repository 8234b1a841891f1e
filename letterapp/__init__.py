"""Python client of letter.app's ingestion API.

    from letterapp import Letter

    letter = Letter("your-key")
    letter.track("user_42", "Order Completed", {"amount": 99})

A call queues its event and returns; a background thread delivers batches. The client can be used across forks:
docs/guarantees.md describes what is guaranteed, and docs/processes.md how to use it with each server.
"""

from ._client import Letter
from ._version import __version__
from .errors import LetterError

__all__ = ["Letter", "LetterError", "__version__"]
