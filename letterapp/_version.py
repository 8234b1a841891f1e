"""The version, written once: the wheel, the ``User-Agent`` and ``letterapp.__version__`` all read it here."""

__version__ = "0.3.0"
