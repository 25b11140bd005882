"""In a forked child, one thread opens anew what a store has open, and the others wait for it."""

from __future__ import annotations

import os
import threading

_renewing = threading.RLock()


def renewing() -> threading.RLock:
    """What a thread holds that opens a store anew."""
    return _renewing


def _forked() -> None:
    global _renewing
    _renewing = threading.RLock()  # the thread that held it may not be here


os.register_at_fork(after_in_child=_forked)
