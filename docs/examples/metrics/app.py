"""A WSGI application of several processes: ``/metrics``, and an event for each other request.

    PROMETHEUS_MULTIPROC_DIR=/tmp/metrics LETTER_API_KEY=... gunicorn --preload --workers 4 app:app

The directory must exist, and be empty at the start.
"""

from multiprocess import Publisher
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from letterapp import Letter

letter = Letter()
publisher = Publisher(letter)


def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        publisher.publish(now=True)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [generate_latest(registry)]
    letter.track("user_42", "Page Viewed", {"path": environ["PATH_INFO"]})
    publisher.publish()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
