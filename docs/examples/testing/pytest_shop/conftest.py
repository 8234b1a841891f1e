"""Settings of the tests. pytest imports this file before the tests, and so before the application."""

import os

os.environ.setdefault("LETTER_API_KEY", "lt_test_local")  # any value: nothing is sent
