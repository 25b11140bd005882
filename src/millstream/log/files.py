"""Files of this machine that appear under their names whole and on disk, or not at all."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import DiskFull, StorageError, UsageError

_OS_ERROR = re.compile(r"\(os error (\d+)\)")

PARTIAL = ".part"
"""How the names of files end that are not whole yet; one that is left was left by a process that was killed."""


def path_of(given: object, hint: str = "Give the path of a file") -> str:
    """What was given as a path, as text.

    Raises:
        UsageError: It is none.
    """
    path = os.fspath(given) if isinstance(given, os.PathLike) else given
    try:
        if isinstance(path, str) and b"\0" not in os.fsencode(path):
            return path
    except UnicodeEncodeError:
        pass
    raise UsageError(f"{given!r:.60} is not a path", hint=hint)


def partial_name(path: str) -> str:
    """A name, beside that of a file, that nobody else uses."""
    return f"{path}.{uuid.uuid4().hex[:12]}{PARTIAL}"


@contextmanager
def whole(path: str) -> Iterator[str]:
    """A name to write a file under, which gets its own at the end of the block, in the place of what had it before.

    Then it is on disk. If the block fails, or the process is killed within it, what was there before stays.

    Yields:
        The path to write to.
    """
    partial = partial_name(path)
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        sync_folder(os.path.dirname(os.path.abspath(path)))
    finally:
        with suppress(OSError):
            os.remove(partial)


@contextmanager
def written(path: str) -> Iterator[None]:
    """Turns what the system says when a file cannot be written into a typed error that names the file.

    Raises:
        DiskFull: There is no room for it.
        StorageError: It cannot be written.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None:  # Polars tells it in its text alone
            told = _OS_ERROR.search(str(error))
            if told is None:
                raise
            number = int(told.group(1))
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(path) from error
        raise StorageError(
            f"{path} cannot be written: {os.strerror(number)}", hint="Check that its folder exists and is writable"
        ) from error


def make_folder(path: str) -> None:
    """Make a folder and those above it, so that they are there after a loss of power, too."""
    if not os.path.isdir(path):
        make_folder(os.path.dirname(path))
        with suppress(FileExistsError):
            os.mkdir(path)
        sync_folder(os.path.dirname(path))


def sync_folder(path: str) -> None:
    """Put a folder's list of names on disk: a new file is not safe before."""
    _sync(path)


def sync_file(path: str) -> None:
    """Put a file's content on disk."""
    _sync(path)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
