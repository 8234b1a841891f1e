"""The settings."""

import os
import sys
from pathlib import Path

SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
DEBUG = True
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
ASGI_APPLICATION = "shop.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(__file__).parent.parent / "db.sqlite3"},
}
TEST_RUNNER = "shop.runner.Runner"
if "test" in sys.argv:
    os.environ["LETTER_API_KEY"] = "lt_test_local"  # any value: with this runner nothing is sent
