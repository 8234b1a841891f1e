"""The settings, with a test runner that sends nothing."""

SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "shop"
TEST_RUNNER = "runner.Runner"
