"""Restore a log from a backup or a copy, as it is there or as it was at a moment before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from ...errors import StorageError
from ..positions import Place
from ..staging import RETENTION
from .copy import Copied, Report, copy
from .segments import Segments

if TYPE_CHECKING:
    from ..log import Log


def restore(
    backup: Log | Segments,
    target: Log,
    *,
    until: Place | None = None,
    verify: bool = False,
    progress: Report | None = None,
) -> Copied:
    """Copy a backup to a new log, which then takes appends. Interrupted, it is done again from where it was.

    Captures, syncs and flows go on where they were in the backup; with ``until`` they begin anew, for what they were
    at that moment is not kept. Inline projections are made anew.

    Args:
        backup: A log (a backup, or one that is still in use), or the `Segments` of a continuous copy.
        target: An empty log, or one that a restore of the same backup was cut short in.
        until: Only what lies before this place: a moment falls between commits, a position inside a run is refused.
        verify: Walk the target afterwards: each header, each body.

    Raises:
        StorageError: The target holds another log, or more than was asked for.
        NotFound: There is no backup at the place of the `Segments`.
        InvalidPosition: ``until`` is inside a run.
        DamagedLog: The backup is damaged; what stands before that position is in the target.
    """
    found = target.store.raw_head()
    if found.role is None and found.head.position:
        raise StorageError(f"{target.location} is a log already", hint="Restore to a new file")
    if until is None:
        done = copy(backup, target, verify=verify, progress=progress)
        target.store.set_role(None)
        return done
    done = copy(backup, target, until=until, progress=progress)
    target.store.set_role(None)
    # Bodies come as they are now: where they are, or why they are gone, may have been said after that moment.
    target.archives.take_over(_told_after(backup, done.position))
    head = target.store.raw_head().head
    if verify:
        target.verify(head=done.hash)
    return msgspec.structs.replace(done, position=head.position, hash=head.hash.hex(), verified=verify)


def _told_after(backup: Log | Segments, position: int) -> Iterator[tuple[str, bytes]]:
    """Types and JSON of what a log says of its past after a position."""
    if not isinstance(backup, Segments):
        for recorded in backup.read(RETENTION, after=position):
            yield recorded.type, msgspec.json.encode(recorded.data)
        return
    while True:
        page = backup.raw_page(position)
        for run in page.runs:
            if run.stream != RETENTION:
                continue
            if run.body is not None:
                yield run.type, run.body.encode()
            elif run.ref in page.bodies:
                lines = page.bodies[run.ref].data.split(b"\n")
                yield from ((run.type, line) for line in lines[run.offset : run.offset + run.count])
        if page.level:
            return
        position = page.head.position


def restore_file(backup: Log, path: str) -> Log:
    """Restore all of a log in a SQLite file to a new SQLite file, with every other table that the file holds.

    Raises:
        StorageError: There is a file at that path already.
    """
    from ..log import open
    from .backup import backup as copy_file

    copy_file(backup, path)
    restored = open(path)
    restored.store.set_role(None)
    return restored
