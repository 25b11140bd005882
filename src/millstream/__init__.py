"""Millstream: event sourcing, change data capture, CQRS and stream processing on one append-only log.

The public names stand in ``__init__.pyi``. Each is imported when it is first used, so that the command line starts
without what it does not need.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

del lazy_loader
