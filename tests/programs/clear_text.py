"""Programs of test_texts: the reports about clients that connect to another host without TLS."""

from __future__ import annotations

import os

from letterapp import LetterError
from programs.common import main, make


def clients(urls: str) -> None:
    said = []

    def on_error(error: LetterError) -> None:
        said.append((error.cause, "clear text" in str(error)))

    for url in urls.split():
        letter = make("test-key", url, on_error=on_error)
        make("test-key", url, on_error=on_error, enabled=False)
    if os.fork() == 0:
        letter.stats()
        make("test-key", url, on_error=on_error)
        os._exit(len(said))
    print(said, os.WEXITSTATUS(os.wait()[1]))


main(globals())
