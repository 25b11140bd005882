"""The past of read models: as they stood at a position, replayed from the nearest image that was kept."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import closing, suppress

from ..errors import InvalidPosition
from ..events import Event
from ..evolution import definition
from ..log import Log
from ..log.positions import Position
from ..personal import shape_of
from ..storage.base import Receipt
from ..storage.duckdb.database import open_database as open_duck
from ..time import Moment, to_micros
from .comparing import replay
from .homes import Kind, kind_of
from .lockstep import Together
from .places import InDuck, OwnFile
from .projection import Placement
from .versions import fingerprint

_DUCK = "duckdb"

KEPT = 8
"""How many images are kept of one projection."""

At = Moment | Position | Receipt
"""A moment of the past: a time, a position (``ms.Position(120)``), or what a receipt stands for."""


def position_of(log: Log, at: object) -> int:
    """The last position that a moment of the past takes in.

    Raises:
        InvalidPosition: It is none, or beyond the log.
        InvalidTime: It is a time without an offset.
    """
    if isinstance(at, Receipt):
        at = Position(at.position)
    if isinstance(at, int):
        if not isinstance(at, Position) or at < 0:
            raise InvalidPosition(f"at={at!r:.60} is no moment", hint="Give a time, ms.Position(…) or a receipt")
        if at > (head := log.head):
            raise InvalidPosition(f"at={at} is beyond the log, which ends at {head}", hint="Leave out at= for now")
        return int(at)
    # The moment itself is taken in.
    return log.store.position_at(to_micros(at) + 1)  # type: ignore[arg-type]


class Images:
    """Images of a log's read models in the past: files in a folder, of which the last used are kept.

    They are only a cache: made by a replay, found by what would make them, deleted at will. Of a projection that
    handles personal data none is kept, so that what is forgotten stays nowhere.

    Args:
        folder: Where they are kept; None: in a folder that goes with this object.
    """

    def __init__(self, log: Log, folder: str | None) -> None:
        self._log = log
        self._temporary = tempfile.TemporaryDirectory(prefix="millstream-") if folder is None else None
        self.folder = folder if folder is not None else self._temporary.name  # type: ignore[union-attr]

    def at(self, placement: Placement, position: int) -> Image:
        """A projection's read model as it stood at a position; replays what is missing.

        Raises:
            ProjectionFailed: A handler raised.
            Trimmed: Events that made it were trimmed.
        """
        os.makedirs(self.folder, exist_ok=True)
        stem = self._stem([placement])
        known = self._known(stem)
        if position in known:
            path = self._path(stem, position)
            with suppress(FileNotFoundError):
                os.utime(path)
                return Image(path, None)
        handle, path = tempfile.mkstemp(prefix=f"{stem}-", suffix=".making", dir=self.folder)
        os.close(handle)
        try:
            before = max((each for each in known if each < position), default=None)
            if before is not None:
                self._copy(self._path(stem, before), path)
            replay(self._log, placement, OwnFile(path), position)
            _settle(path)
            if is_personal(placement):
                return Image(path, path)
            os.replace(path, self._path(stem, position))
        except BaseException:
            for end in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(path + end)
            raise
        self._prune(stem, position)
        return Image(self._path(stem, position), None)

    def in_duckdb(self, placements: Sequence[Placement], position: int) -> Image:
        """Read models of one DuckDB file as they stood at a position, in a file of one's own, by the same SQL.

        A file that DuckDB has open belongs to one process: images are only copied.

        Raises:
            ProjectionFailed: A handler raised.
            Trimmed: Events that made them were trimmed.
        """
        os.makedirs(self.folder, exist_ok=True)
        stem = self._stem(placements)
        path = os.path.join(self.folder, f"{stem}-{uuid.uuid4().hex}.making")
        image = Image(path, path)
        try:
            before = max((each for each in self._known(stem, _DUCK) if each <= position), default=-1)
            if before >= 0:
                with suppress(FileNotFoundError):  # deleted meanwhile: then it is replayed from the beginning
                    shutil.copyfile(self._path(stem, before, _DUCK), path)
                    os.utime(self._path(stem, before, _DUCK))
            if before < position or not os.path.exists(path):
                with closing(open_duck(path)):  # to open it again costs nothing then
                    for placement in placements:
                        replay(self._log, placement, InDuck(path), position)
                if not any(is_personal(placement) for placement in placements):
                    part = f"{path}.part"
                    shutil.copyfile(path, part)
                    os.replace(part, self._path(stem, position, _DUCK))
                    self._prune(stem, position, _DUCK)
        except BaseException:
            image.done()
            raise
        return image

    def _stem(self, placements: Sequence[Placement]) -> str:
        names = "+".join(re.sub(r"[^A-Za-z0-9_-]", "_", placement.name) for placement in placements)[:80]
        marks = [self._made_by(placement) for placement in placements]
        made_by = marks[0] if len(marks) == 1 else hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]
        return f"{names}-{made_by}"

    def _made_by(self, placement: Placement) -> str:
        shapes = [definition(cls) for cls in placement.events if issubclass(cls, Event)]
        projections = placement.projections if isinstance(placement, Together) else [placement.projection]
        text = "\n".join([self._log.id, *map(fingerprint, projections), *shapes])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _path(self, stem: str, position: int, suffix: str = "db") -> str:
        return os.path.join(self.folder, f"{stem}-{position}.{suffix}")

    def _known(self, stem: str, suffix: str = "db") -> dict[int, float]:
        """The positions that there are images of, and when each was last used."""
        found = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                match = re.fullmatch(re.escape(stem) + rf"-(\d+)\.{suffix}", entry.name)
                if match is not None:
                    with suppress(FileNotFoundError):
                        found[int(match[1])] = entry.stat().st_mtime
        return found

    def _copy(self, source: str, target: str) -> None:
        with (
            suppress(sqlite3.Error),  # deleted meanwhile: then it is replayed from the beginning
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)

    def _prune(self, stem: str, made: int, suffix: str = "db") -> None:
        known = self._known(stem, suffix)
        known.pop(made, None)
        for position in sorted(known, key=lambda each: known[each], reverse=True)[KEPT - 1 :]:
            with suppress(FileNotFoundError):
                os.unlink(self._path(stem, position, suffix))

    def close(self) -> None:
        """Delete what goes with this object."""
        if self._temporary is not None:
            self._temporary.cleanup()


class Image:
    """A file with a read model as it stood; deleted when done with, if it is not to be kept."""

    def __init__(self, path: str, owned: str | None) -> None:
        self.path = path
        self._owned = owned

    def done(self) -> None:
        """Say that it is not needed any more."""
        if self._owned is not None:
            for end in ("", ".wal"):
                with suppress(FileNotFoundError):
                    os.unlink(self._owned + end)


def is_personal(placement: Placement) -> bool:
    """Whether there is personal data in what a projection handles."""
    return any(issubclass(cls, Event) and shape_of(cls) is not None for cls in placement.events)


def _settle(path: str) -> None:
    """Have a database in one file, without a log beside it, so that it can be moved."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma journal_mode = delete")


def folder_of(paths: Sequence[str | None], log: Log) -> str | None:
    """Where the images of an app's read models are kept: beside the first read model, or else beside the log."""
    for path in (*paths, log.path):
        if path and (path is log.path or kind_of(path) in (Kind.FILE, Kind.DUCKDB)):
            return f"{path}.images"
    return None
