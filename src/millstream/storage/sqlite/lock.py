"""The writer lock between processes: a file beside the database that writers queue on.

SQLite's own back-off sleeps longer and longer while others barge in. Two `flock`s make a turnstile instead:
who holds *turn* is next in line for *lock*, so a process that has just committed cannot overtake those
that wait. The kernel frees both when a process dies.
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref

from ...errors import LogLocked, ReadOnlyLog, StorageError


class WriterLock:
    """Exclusive between processes, fair among those that wait. Not reentrant; one holder a process."""

    def __init__(self, path: str, file: str) -> None:
        self._path = path
        self._file = file
        self._turn = _open(file + "-turn")
        self._lock = _open(file + "-lock")
        _locks.add(self)

    def acquire(self, timeout: float) -> None:
        """Wait for the lock.

        Raises:
            LogLocked: Another process held it for longer than ``timeout`` seconds.
        """
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            got = False
            try:
                got = _waited(self._turn, timeout)
            finally:
                if not got:
                    self._turn = _reopen(self._turn, self._file + "-turn")
            if not got:
                raise LogLocked(self._path, timeout) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            got = False
            try:
                got = _waited(self._lock, timeout)
            finally:
                # Also when a Ctrl-C ends the wait: nobody else may wait for this process's turn then.
                if not got:
                    self._lock = _reopen(self._lock, self._file + "-lock")
                    fcntl.flock(self._turn, fcntl.LOCK_UN)
            if not got:
                raise LogLocked(self._path, timeout) from None
        fcntl.flock(self._turn, fcntl.LOCK_UN)

    def release(self) -> None:
        """Let the next one in."""
        if self._lock >= 0:  # closed: this is a child that was forked in a transaction
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give up the files (their locks go with them). Idempotent."""
        for descriptor in (self._turn, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._turn = self._lock = -1


_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()
_waiting: set[int] = set()


def _close_in_child() -> None:
    # A forked child shares its parent's locks, and would keep them alive beyond the parent's death.
    for lock in list(_locks):
        lock.close()
    for descriptor in list(_waiting):
        os.close(descriptor)
    _waiting.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _waited(descriptor: int, timeout: float) -> bool:
    waiter = _Waiter(descriptor)
    try:
        return waiter.wait(timeout)
    except BaseException:
        waiter.abandon()
        raise


class _Waiter:
    """flock has no time limit of its own, so a thread waits in it and the caller waits for the thread."""

    def __init__(self, descriptor: int) -> None:
        # A duplicate shares the lock with the original, and outlives it should the wait be abandoned.
        self._descriptor = os.dup(descriptor)
        _waiting.add(self._descriptor)
        self._state = threading.Lock()
        self._abandoned = False
        self._acquired = threading.Event()
        threading.Thread(target=self._run, name="millstream-lock", daemon=True).start()

    def _run(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        with self._state:
            if self._abandoned:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            else:
                self._acquired.set()
        _waiting.discard(self._descriptor)
        os.close(self._descriptor)

    def wait(self, timeout: float) -> bool:
        return self._acquired.wait(timeout) or not self.abandon()

    def abandon(self) -> bool:
        """Give up the wait; False when the lock has come all the same, and is the caller's."""
        with self._state:
            if self._acquired.is_set():
                return False
            self._abandoned = True
            return True


def _reopen(descriptor: int, path: str) -> int:
    # An abandoned waiter may still get the lock of the old description, and will free it: use a new one.
    os.close(descriptor)
    return _open(path)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as error:
        raise ReadOnlyLog(path) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}", hint="Check the folder") from error


_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "fuse.sshfs",
    "fuse.glusterfs",
    "glusterfs",
}


def network_filesystem(path: str, table: str = "/proc/mounts") -> str | None:
    """The type of the network file system that a path lies on, or None for a local one.

    Args:
        table: The system's list of mounts; where there is none, every file system is taken for a local one.
    """
    try:
        with open(table, encoding="utf-8", errors="replace") as mounts:
            entries = [line.split() for line in mounts]
    except OSError:
        return None
    real = os.path.realpath(path)
    best = ("", "")
    for _, mount, kind, *_ in entries:
        mount = mount.replace("\\040", " ")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1] if best[1] in _NETWORK else None
