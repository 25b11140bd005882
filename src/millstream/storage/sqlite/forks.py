"""SQLite across forks: nobody is inside it when a process forks, and the child has none of the parent's connections.

A lock of SQLite's that another thread holds at that moment is never free in the child. And a file that the parent has
open is taken, in the child too, for one whose locks this process holds: the child would lock nothing itself, and what
it commits would be gone when the parent closes the file. So a fork waits for those at work, lets nobody begin, and
the child closes what the parent has open before it opens anything. To close it there is harmless: the parent has its
own descriptors, and the locks of a process are not its child's.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - see the end
import gc
import logging  # noqa: F401
import os
import sqlite3
import threading
import time
import weakref
from contextlib import suppress
from typing import Any

from ...errors import StorageError
from .. import forked  # noqa: F401

PATIENCE = 5.0
"""The longest that a fork waits for those at work, in seconds."""
_SHUT_FOR = 0.02
"""For so long at once nobody may begin: who is at work may wait for somebody who is about to."""
_REST = 0.002


class Thread:
    """One thread's stay in SQLite."""

    __slots__ = ("__weakref__", "depth")

    def __init__(self) -> None:
        self.depth = 0


_listing = threading.RLock()
_threads: weakref.WeakSet[Thread] = weakref.WeakSet()
_here = threading.local()
_shut = False
_opened = threading.Event()
_forking = threading.Lock()
MEMORY = ":memory:"
_alone = True
"""Whether nobody else was at work at the last fork."""
_connections: weakref.WeakSet[Tracked] = weakref.WeakSet()
_uncollected: list[Tracked | _Cursor] = []
"""What was collected while nobody might begin."""
_lost: set[str] = set()
"""In a child, the files that the parent has open and that could not be closed; and what is in memory, if somebody else
was at work."""


def _this() -> Thread:
    try:
        return _here.thread  # type: ignore[no-any-return]
    except AttributeError:
        made = Thread()  # a finalizer that runs meanwhile makes one, and has left it again
        with _listing:
            _threads.add(made)
        _here.thread = made
        return made


def enter() -> Thread:
    """Begin to use SQLite, on this thread; `leave` afterwards. They may be nested."""
    thread = _this()
    thread.depth += 1
    if _shut and thread.depth == 1:
        _wait(thread)
    return thread


def leave(thread: Thread | None = None) -> None:
    """End it.

    Args:
        thread: What `enter` gave, where a block may end on another thread than it began on.
    """
    (thread or _this()).depth -= 1


def _entered() -> bool:
    """Begin, unless that would be to wait: a finalizer runs anywhere, under locks that the fork may wait for."""
    thread = _this()
    thread.depth += 1
    if _shut and thread.depth == 1:
        thread.depth = 0
        return False
    return True


def _wait(thread: Thread) -> None:
    global _alone
    while _shut:
        thread.depth = 0
        there = _opened.wait(2 * PATIENCE)
        thread.depth = 1
        if not there and _shut:
            # The fork waits for a lock that this thread holds, taken by another hook: the child is told of whoever
            # goes on in spite of it.
            _alone = False
            return


class AtWork:
    """A block that uses SQLite."""

    __slots__ = ()

    def __enter__(self) -> None:
        enter()

    def __exit__(self, *error: object) -> None:
        leave()


at_work = AtWork()


class Tracked(sqlite3.Connection):
    """A connection to a file, which a forked child closes. It is used inside `at_work`."""

    files: tuple[str, ...] = (MEMORY,)
    """Its file, and those that were attached to it."""
    readonly = False

    def close(self) -> None:
        with at_work:
            super().close()

    def __del__(self) -> None:
        # Whatever thread collects what nobody has closed.
        _end(self)


class _Left(Tracked):
    """In a child, a connection of the parent's, closed or one that cannot be: nothing is done by it any more.

    Whoever leaves the block that the fork came in would else commit, or undo, what is the parent's.
    """

    in_transaction = False

    def close(self) -> None:
        """Nothing: to close it would undo what is the parent's."""

    def cursor(self, factory: type[Any] = sqlite3.Cursor) -> Any:  # type: ignore[override]
        raise _refusal(self.files[0])

    def execute(self, *given: Any) -> sqlite3.Cursor:
        raise _refusal(self.files[0])

    def executemany(self, *given: Any) -> sqlite3.Cursor:
        raise _refusal(self.files[0])


def _end(found: Tracked | _Cursor) -> None:
    """Close what is being collected; if there is a fork, after that."""
    if not _entered():
        _uncollected.append(found)
        return
    try:
        found.close()
    except (sqlite3.Error, AttributeError):
        pass
    finally:
        leave()


def is_left(connection: sqlite3.Connection) -> bool:
    """Whether this is a child, and the connection one that its parent had in a transaction."""
    return isinstance(connection, _Left)


class _Cursor(sqlite3.Cursor):
    def __del__(self) -> None:
        # One that was not read to its end ends its statement; to do so outside would hold locks of SQLite's.
        _end(self)

    def execute(self, *given: Any) -> sqlite3.Cursor:  # type: ignore[override]
        with at_work:
            return super().execute(*given)

    def executemany(self, *given: Any) -> sqlite3.Cursor:  # type: ignore[override]
        with at_work:
            return super().executemany(*given)

    def fetchone(self) -> Any:
        with at_work:
            return super().fetchone()

    def fetchmany(self, *given: Any) -> list[Any]:
        with at_work:
            return super().fetchmany(*given)

    def fetchall(self) -> list[Any]:
        with at_work:
            return super().fetchall()

    def __next__(self) -> Any:
        with at_work:
            return super().__next__()


class Guarded(Tracked):
    """The same, each call of which is `at_work` by itself: for what is not called for every event."""

    cursors: type[sqlite3.Cursor] = _Cursor

    def cursor(self, factory: type[Any] | None = None) -> Any:  # type: ignore[override]
        return super().cursor(factory or self.cursors)

    def execute(self, *given: Any) -> sqlite3.Cursor:
        return self.cursor().execute(*given)  # type: ignore[no-any-return]

    def executemany(self, *given: Any) -> sqlite3.Cursor:
        return self.cursor().executemany(*given)  # type: ignore[no-any-return]

    def backup(self, *given: Any, **named: Any) -> None:
        with at_work:
            super().backup(*given, **named)


def opened(file: str, target: str | None = None, *, kind: type[Tracked] = Guarded, **options: Any) -> Tracked:
    """Open a file, or a database in memory (``:memory:``).

    Args:
        target: How SQLite is to be told of it, if not by its path.
        kind: `Tracked` for what is always used inside `at_work`.
        options: As `sqlite3.connect` takes them.

    Raises:
        StorageError: See `check`.
    """
    check(file)
    # The thread that closes it need not be the one that has opened it: that may not be here.
    options.setdefault("check_same_thread", False)
    with at_work:
        connection = sqlite3.connect(target or file, factory=kind, **options)
        if file != MEMORY:
            connection.files = (os.path.realpath(file),)
            connection.readonly = "mode=ro" in (target or "")
        _connections.add(connection)
    return connection


def note_attached(connection: sqlite3.Connection, file: str) -> None:
    """Say that a file was attached to a connection."""
    if isinstance(connection, Tracked):
        connection.files += (os.path.realpath(file),)


def check(file: str) -> None:
    """See that a file, or what is in memory, can be used in this process.

    Raises:
        StorageError: The process was forked while somebody was at work there, whose locks are taken for its own now.
    """
    if _lost and (file if file == MEMORY else os.path.realpath(file)) in _lost:
        raise _refusal(file)


def _refusal(file: str) -> StorageError:
    return StorageError(
        f"{file} was in use in the process that this one was forked from",
        hint="Fork when no transaction of it is open, or start processes by 'spawn'",
    )


def _before() -> None:
    global _alone
    thread = _this()
    # Whoever waits for its turn to fork is not inside SQLite, whatever blocks it is in: nobody is to wait for it.
    depth, thread.depth = thread.depth, 0
    try:
        _forking.acquire()
    finally:
        thread.depth = depth + 1  # what this thread collects meanwhile does not wait for its own fork
    _alone = False
    end = time.monotonic() + PATIENCE
    while not (_alone := _emptied()) and time.monotonic() < end:
        _open()
        time.sleep(_REST)
    if not _alone:
        _open()


def _emptied() -> bool:
    """Let nobody begin, and see whether all leave soon."""
    global _shut
    _opened.clear()
    _shut = True
    end = time.monotonic() + _SHUT_FOR
    while any(each.depth for each in _others()):
        if time.monotonic() > end:
            return False
        time.sleep(0.0002)
    return True


def _others() -> list[Thread]:
    this = _this()
    with _listing:
        return [each for each in _threads if each is not this]


def _open() -> None:
    global _shut
    _shut = False
    _opened.set()


def _in_parent() -> None:
    _uncollected.clear()
    _this().depth -= 1
    _open()
    _forking.release()


def _in_child() -> None:
    global _forking, _listing, _opened
    _forking, _listing, _opened = threading.Lock(), threading.RLock(), threading.Event()
    _this().depth -= 1
    for thread in _others():
        _threads.discard(thread)
    _open()
    connections = [*_connections, *(each for each in _uncollected if isinstance(each, Tracked))]
    if not _alone:
        _lost.add(MEMORY)
    if _alone:  # what is in memory is the child's own
        connections = [each for each in connections if each.files != (MEMORY,)]
    for each in connections:
        _connections.discard(each)
    _lose([each for each in connections if not (_alone and _closed(each))])
    if _alone:
        _uncollected.clear()
    if kept := _held({file for each in connections for file in each.files} - _lost - {MEMORY}):
        _end_cursors([each for each in connections if not kept.isdisjoint(each.files)])
        _lost.update(_held(kept))


def _closed(connection: Tracked) -> bool:
    """Close one of the parent's connections, unless it may have written: to undo that is the parent's."""
    try:
        if connection.in_transaction and not connection.readonly:
            return False
        connection.close()
    except sqlite3.ProgrammingError:
        pass  # the parent has closed it
    except sqlite3.Error:
        return False
    connection.__class__ = _Left
    return True


def _end_cursors(connections: list[Tracked]) -> None:
    """Have cursors that somebody has kept hold on no more to connections that were closed."""
    nowhere = sqlite3.connect(MEMORY)
    for each in gc.get_referrers(*connections):
        if isinstance(each, sqlite3.Cursor):
            with suppress(sqlite3.Error):
                sqlite3.Cursor.__init__(each, nowhere)  # one of a closed connection cannot be closed
    nowhere.close()


def _lose(connections: list[Tracked]) -> None:
    """Leave connections as they are for good, also when this process ends."""
    if connections:
        import ctypes
    for each in connections:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
        _lost.update(file for file in each.files if file != MEMORY)
        each.__class__ = _Left


def _held(files: set[str]) -> set[str]:
    """Which of some files this process has open."""
    there: dict[tuple[int, int], str] = {}
    for file in files:
        with suppress(OSError):
            found = os.stat(file)
            there[found.st_dev, found.st_ino] = file
    held = set()
    with suppress(OSError):  # where there is no such folder
        for name in os.listdir("/proc/self/fd") if there else ():
            with suppress(OSError, KeyError):
                found = os.fstat(int(name))
                held.add(there[found.st_dev, found.st_ino])
    return held


# What is registered last comes first before a fork. Others take locks there, which whoever is at work may wait for: so
# they are imported above, to take theirs when nobody is at work any more.
os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
