"""What gunicorn has to do for the metrics of several processes."""

from prometheus_client.multiprocess import mark_process_dead

preload_app = True


def _publish(timeout=None):
    from app import letter, publisher

    letter.flush(timeout)
    publisher.publish(now=True)


def worker_exit(server, worker):
    """Runs in a worker that ends: send what it has, then publish the last numbers."""
    _publish()


def child_exit(server, worker):
    """Runs in the master: send what a killed worker has left, and publish that. Blocks the master for 1 s at most."""
    mark_process_dead(worker.pid)
    _publish(timeout=1)


def on_exit(server):
    """Runs in the master, after its workers."""
    _publish()
