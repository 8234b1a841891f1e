"""Runs the shop: `python serve.py`."""

import os

from shop import app
from waitress import serve

serve(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
