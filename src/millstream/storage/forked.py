"""In a forked child: one thread opens anew what a store has open, and the others wait; frames are not computed."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from contextlib import suppress
from typing import Any

from ..errors import UsageError

_renewing = threading.RLock()
doors = threading.Lock()
"""Who opens or closes a DuckDB file: what is opened while the last one closes it would be another database, and in the
way. Nobody does when a process forks: who is just opening one has it noted before."""
_left = False
"""Whether Polars had threads in a process that this one comes from: it would wait for them for ever."""


_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def lock() -> threading.Lock:
    """A lock that is free in a forked child, whoever holds it here: for what is whole whenever it is left."""
    made = threading.Lock()
    _locks.add(made)
    return made


def renewing() -> threading.RLock:
    """What a thread holds that opens a store anew."""
    return _renewing


def check_frames() -> None:
    """See that Polars can compute in this process.

    Raises:
        UsageError: Its threads are in the process that this one was forked from.
    """
    if _left:
        raise UsageError(
            "frames cannot be computed here: the threads of Polars are in the process that this one was forked from",
            hint="Start processes by 'spawn', or fork before the first frame is computed",
        )


def _has_threads() -> bool:
    if "polars" not in sys.modules:
        return False
    with suppress(OSError):  # where there is no such folder
        for task in os.listdir("/proc/self/task"):
            with suppress(OSError), open(f"/proc/self/task/{task}/comm") as name:
                if name.read().startswith("polars-0"):
                    return True
    return False


def _before() -> None:
    global _leaving
    doors.acquire()
    _leaving = _left or _has_threads()


def _forked() -> None:
    global _renewing, _left
    _renewing = threading.RLock()  # the thread that held it may not be here
    _left = _leaving
    doors.release()
    for each in list(_locks):
        each._at_fork_reinit()


_leaving = False
os.register_at_fork(before=_before, after_in_parent=doors.release, after_in_child=_forked)
