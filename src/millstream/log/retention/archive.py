"""Archiving: closed ranges of runs become Parquet files of an archive, and their headers point there.

A file is written, read back, each run's hash worked out from it anew, put into the archive, fetched from there, and
compared; only then do headers point to it, in small steps beside writers. Killed at any moment, it leaves at worst a
file that no header points to, which `Archives.verify` names.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from ...errors import DepotFileChanged, InvalidRetention
from ...storage.base import Encoding, Request, category_of
from ..depots import check_location, open_depot
from .fetched import Fetched
from .ledger import ArchiveAdded, RunsArchived, told
from .parquet import Content, contents, weight, write
from .reader import Pointer, checksum, name_of
from .relink import offsets_of, relink, steps
from .rules import Keep, Task, amount, check_by, check_known, once, tasks
from .trim import Old, Tally, old_runs

if TYPE_CHECKING:
    from ..log import Log

MAX_ROWS = 262_144
"""The most rows of a file."""
MAX_BYTES = 32_000_000
"""How many bytes of bodies in the log become one file at most (a single run may have more)."""
_ALL_BYTES = 96_000_000
_OWN_FILE = 16_384
"""A stream with so many rows gets files of its own; smaller ones of a category share them."""
_PATIENCE = 1_800.0
"""Seconds after which a file that is not pointed to yet is given up: by then cleaning may take it for left over."""


class Archiving(msgspec.Struct, frozen=True):
    """What was archived: so many runs with so many events, from so many streams."""

    streams: int
    runs: int
    events: int


def archive(
    log: Log,
    stream: str | None = None,
    *,
    to: str | None = None,
    keep: Keep = 0,
    by: str | None = None,
) -> Archiving:
    """See `Log.archive`."""
    who = check_by(by)
    ledger = log.archives.ledger.refresh()
    if to is None and stream is not None and len(ledger.archives) == 1:
        [to] = ledger.archives.values()
    if to is None:
        if stream is not None:
            raise InvalidRetention("it is not said where to archive to", hint="Give to='/a/folder' or 's3://bucket/…'")
        plan = [task for task in tasks(log, dict(ledger.rules), None) if task.archive is not None]
    else:
        if stream is None:
            raise InvalidRetention("it is not said what to archive", hint="Name a stream or category")
        pattern, limit = check_known(log, stream), amount(keep)
        plan = list(once(log, pattern, limit, archive_at(log, to, who, look=True)))
    done = [tally for _, tally in put_away(log, plan, who)]
    return Archiving(len(done), sum(tally.runs for tally in done), sum(tally.events for tally in done))


def archive_at(log: Log, location: str, by: str, *, look: bool = False) -> str:
    """The archive at a location; a new one when there is none yet.

    Args:
        look: See first that a place which is new can be reached: the log never forgets one.
    """
    location = check_location(location)
    ledger = log.archives.ledger.refresh()
    for archive, known in ledger.archives.items():
        if known == location:
            return archive
    archive = uuid.uuid4().hex[:12]
    if look:
        list(open_depot(location, timeout=log.archives.timeout).list(archive))
    ledger.tell(ArchiveAdded(archive=archive, location=location, by=by))
    return archive


def put_away(log: Log, plan: Iterable[Task], by: str) -> Iterator[tuple[Task, Tally]]:
    """Archive what tasks no longer keep.

    Yields:
        Each task of which something was archived, and how much.
    """
    plan = list(plan)
    done: list[tuple[Task, Tally]] = []
    for archive in dict.fromkeys(task.archive for task in plan):
        assert archive is not None
        filler = _Filler(log, archive, by)
        try:
            for task in plan:
                if task.archive == archive:
                    done.append((task, Tally()))
                    filler.task(*done[-1])
            filler.flush()
        finally:
            filler.end()
    yield from ((task, tally) for task, tally in done if tally.runs)


class _Filler:
    """Collects runs by kind, and makes files of them."""

    def __init__(self, log: Log, archive: str, by: str) -> None:
        self._log = log
        self._archive = archive
        self._by = by
        self._files = log.bodies.archived().files(archive)
        self._waiting: dict[int, list[tuple[Old, Tally]]] = {}
        self._bytes: dict[int, int] = {}
        self._rows: dict[int, int] = {}
        self._wrote = False

    def task(self, task: Task, done: Tally) -> None:
        """Take in what a task no longer keeps; what has been archived of it is counted in ``done``."""
        for kind in list(self._waiting):
            if self._rows[kind] >= _OWN_FILE:
                self._file(kind)
        for old in old_runs(self._log, task):
            kind = old.run.kind_id
            if self._waiting.get(kind) and (
                self._rows[kind] + old.run.count > MAX_ROWS or self._bytes[kind] + old.size > MAX_BYTES
            ):
                self._file(kind)
            self._waiting.setdefault(kind, []).append((old, done))
            self._bytes[kind] = self._bytes.get(kind, 0) + old.size
            self._rows[kind] = self._rows.get(kind, 0) + old.run.count
            if sum(self._bytes.values()) > _ALL_BYTES:
                self._file(max(self._bytes, key=self._bytes.__getitem__))

    def flush(self) -> None:
        """Make files of what is left."""
        for kind in list(self._waiting):
            self._file(kind)

    def end(self) -> None:
        """Bring the archive's manifest up to date."""
        if self._wrote:
            self._log.archives.write_manifest(self._archive)

    def _file(self, kind: int) -> None:
        waiting = self._waiting.pop(kind)
        del self._bytes[kind], self._rows[kind]
        found = contents(self._log, [old.run for old, _ in waiting])
        if not found:
            return
        with tempfile.TemporaryDirectory(prefix="millstream-archive-") as folder:
            local = Path(folder) / "rows.parquet"
            layout = write(found, local)
            pointer = Pointer(
                self._archive, _file_name(found), checksum(local), layout, 0, sum(c.run.count for c in found)
            )
            size = local.stat().st_size
            self._wrote = True
            _put(self._files, pointer, local)
        event = RunsArchived(
            archive=self._archive, file=pointer.file, sha256=pointer.sha256, size=size,
            stream=_streams_of(found), kind=found[0].run.type, layout=layout,
            first=min(c.run.position for c in found), last=max(c.run.last for c in found),
            rows=pointer.rows, runs=len(found), by=self._by,
        )  # fmt: skip
        moved = _point(self._log, found, pointer, told(event))
        if not moved:
            self._files.delete(name_of(self._archive, pointer.file))
        for old, done in waiting:
            if old.run.position in moved:
                done.add(old)


def _streams_of(found: list[Content]) -> str:
    names = sorted({content.run.stream for content in found})
    return names[0] if len(names) == 1 else f"{category_of(names[0])}*"


def _file_name(found: list[Content]) -> str:
    """A name that no other file has, and that tells what is in it."""
    stream = quote(_streams_of(found).rstrip("*"), safe=" ")[:80].replace(".", "%2E")
    kind = quote(found[0].run.type, safe=" ")[:40].replace(".", "%2E")
    first = min(content.run.position for content in found)
    return f"{stream}/{kind}-{first:012}-{uuid.uuid4().hex[:8]}.parquet"


def _put(files: Fetched, pointer: Pointer, local: Path) -> None:
    """Put a file into an archive, and see that it is there as it should be."""
    name = name_of(pointer.archive, pointer.file)
    files.put(name, local)
    if checksum(files.file(name)) != pointer.sha256:
        raise DepotFileChanged(files.depot.location, name, "it did not arrive as it was sent")


def _point(log: Log, found: list[Content], pointer: Pointer, request: Request) -> set[int]:
    """Point runs to the rows of a file, step by step; the first one appends what is to be told.

    Returns:
        The positions of the runs that were.
    """
    began = time.monotonic()
    moved: set[int] = set()
    row = 0
    for step in steps(found, weight):
        if time.monotonic() - began > _PATIENCE:
            break
        runs = [content.run for content in step]
        count = sum(run.count for run in runs)
        body = msgspec.json.encode(msgspec.structs.replace(pointer, row=row, rows=count))
        row += count
        first = not moved
        pointed = relink(
            log, Encoding.ARCHIVED, body, runs, offsets_of(runs),
            lambda left, first=first: request if first else None,  # type: ignore[misc]
            gone=(Encoding.ARCHIVED, Encoding.TRIMMED),
        )  # fmt: skip
        moved.update(run.position for run in pointed)
    return moved
