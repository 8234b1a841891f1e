"""The client: `from shop.analytics import letter`."""

import signal

from letterapp import Letter

# The key is in LETTER_API_KEY. Only uvicorn, and `runserver --noreload`, need `exit_signals`: see docs/frameworks.
letter = Letter(exit_signals=(signal.SIGTERM,))
