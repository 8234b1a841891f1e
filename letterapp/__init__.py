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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._message_id import message_id

__all__ = ["Letter", "LetterError", "__version__", "message_id"]


def __getattr__(name: str) -> object:
    if name != "message_id":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._runtime.atfork import WORK, block_forks

    def load() -> object:
        from ._message_id import message_id

        return message_id

    function = globals()[name] = block_forks(WORK, load)
    return function
