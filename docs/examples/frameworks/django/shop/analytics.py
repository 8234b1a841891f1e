"""The client: `from shop.analytics import letter`."""

import signal

from letterapp import Letter

# The key is in LETTER_API_KEY. `exit_signals` is for uvicorn, hypercorn with several workers, `runserver --noreload`.
letter = Letter(exit_signals=(signal.SIGTERM,))
