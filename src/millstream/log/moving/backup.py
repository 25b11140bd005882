"""Online backups: the log as it is at one moment, as a SQLite file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...errors import StorageError
from ..files import partial_name, path_of, sync_folder

if TYPE_CHECKING:
    from ..log import Log


def backup(log: Log, path: str | os.PathLike[str]) -> None:
    """Copy the whole log, as it is at one moment, to a new file, while others go on reading and writing.

    The copy is made beside its place and given its name once it is whole and on disk. It is a SQLite file: of a log
    in one, with every other table that the file holds; of another home, what `millstream.log.moving.copy` copies.

    Raises:
        StorageError: There is a file at that path already.
        DiskFull: There is no room for the copy; nothing is left behind.
        UsageError: That is no path.
    """
    path = path_of(path, "Give the path of a file that is not there yet")
    if os.path.exists(path):
        raise _there(path)
    partial = partial_name(path)
    try:
        if not log.store.copy_to(partial):
            _copy_pages(log, partial)
        try:
            os.link(partial, path)  # unlike a rename, it never writes over what another has put there meanwhile
        except FileExistsError as error:
            raise _there(path) from error
        sync_folder(os.path.dirname(os.path.abspath(path)))
    finally:
        _remove(partial)


def _copy_pages(log: Log, path: str) -> None:
    from ..log import open
    from .copy import copy

    draft = f"{path}.draft"
    try:
        with open(draft) as target:
            copy(log, target)
            target.store.set_role(None)
            # Once more, into one file that needs none beside it.
            target.store.copy_to(path)
    finally:
        _remove(draft)


def _remove(path: str) -> None:
    for end in ("", "-journal", "-wal", "-shm", "-turn", "-lock"):
        if os.path.exists(path + end):
            os.remove(path + end)


def _there(path: str) -> StorageError:
    return StorageError(f"{path} is there already", hint="Give a new name, or remove the old backup first")
