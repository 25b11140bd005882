"""The past of read models: as they stood at a position, replayed from the nearest image that was kept."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from urllib.parse import quote

from ..errors import InvalidPosition, StorageError
from ..events import Event
from ..evolution import definition
from ..log import Log
from ..log.positions import Position
from ..personal import shape_of
from ..storage.base import Receipt
from ..storage.duckdb.database import open_database as open_duck
from ..storage.sqlite.database import attached
from ..storage.sqlite.faults import translated
from ..storage.sqlite.forks import opened
from ..time import Moment, to_micros
from .comparing import replay
from .homes import Kind, kind_of
from .lockstep import Together
from .places import InDuck, OwnFile
from .projection import Placement
from .shelf import MAKING, Claim, sweep
from .versions import fingerprint

_DUCK = "duckdb"

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
    """Images of a log's read models in the past: files in a folder, of which the last used are kept (see `shelf`).

    They are only a cache: made by a replay, found by what would make them, deleted at will. Of a projection that
    handles personal data none is kept, so that what is forgotten stays nowhere.

    Args:
        folder: Where they are kept; None: in a folder that goes with this object.
    """

    def __init__(self, log: Log, folder: str | None) -> None:
        self._log = log
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="millstream-", ignore_cleanup_errors=True) if folder is None else None
        )
        self.folder = folder if folder is not None else self._temporary.name  # type: ignore[union-attr]
        self._swept = False

    def at(self, placement: Placement, position: int) -> Image:
        """A projection's read model as it stood at a position; replays what is missing.

        Raises:
            ProjectionFailed: A handler raised.
            Trimmed: Events that made it were trimmed.
            StorageError: The folder cannot be used, or images were deleted in that moment.
        """
        with self._told():
            return self._at(placement, position)

    def _at(self, placement: Placement, position: int) -> Image:
        stem = self._stem([placement])
        kept = self._path(stem, position)
        self._begin()
        found = self._used(kept)
        if found is not None:
            return Image(kept, found)
        image = self._begun(stem)
        try:
            for before in sorted((each for each in self._known(stem) if each < position), reverse=True)[:1]:
                self._copy(self._path(stem, before), image.path)
            replay(self._log, placement, OwnFile(image.path), position)
            _settle(image.path)
            if is_personal(placement) or (isinstance(placement, Together) and placement.is_within(position)):
                return image
            claim = self._keep(image.path, kept)
        except BaseException:
            image.done()
            raise
        image.done()
        return Image(kept, claim)

    def in_duckdb(self, placements: Sequence[Placement], position: int) -> Image:
        """Read models of one DuckDB file as they stood at a position, in a file of one's own, by the same SQL.

        A file that DuckDB has open belongs to one process: images are only copied.

        Raises:
            ProjectionFailed: A handler raised.
            Trimmed: Events that made them were trimmed.
            StorageError: The folder cannot be used, or images were deleted in that moment.
        """
        with self._told():
            return self._in_duckdb(placements, position)

    def _in_duckdb(self, placements: Sequence[Placement], position: int) -> Image:
        stem = self._stem(placements)
        self._begin()
        image = self._begun(stem)
        path = image.path
        try:
            before = max((each for each in self._known(stem, _DUCK) if each <= position), default=-1)
            claim = self._used(self._path(stem, before, _DUCK)) if before >= 0 else None
            if claim is not None:
                try:
                    shutil.copyfile(self._path(stem, before, _DUCK), path)
                finally:
                    claim.free()
            if before < position or claim is None:
                with closing(open_duck(path)):  # to open it again costs nothing then
                    for placement in placements:
                        replay(self._log, placement, InDuck(path), position)
                if not any(is_personal(placement) for placement in placements):
                    part = f"{path}.part"
                    shutil.copyfile(path, part)
                    self._keep(part, self._path(stem, position, _DUCK)).free()
        except BaseException:
            image.done()
            raise
        return image

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what goes wrong with files into a typed error."""
        try:
            with translated(self.folder):
                yield
        except OSError as error:
            raise StorageError(
                f"images of read models cannot be kept in {self.folder}: {error.strerror or error}",
                hint="Check the disk and the folder's permissions; what is in it may be deleted",
            ) from error

    def _begin(self) -> None:
        os.makedirs(self.folder, exist_ok=True)  # it may be deleted at any time
        if not self._swept:
            sweep(self.folder, "")  # what processes have left that were killed
            self._swept = True

    def _begun(self, stem: str) -> Image:
        """A file to make an image in, which is nobody else's."""
        path = os.path.join(self.folder, f"{stem}-{uuid.uuid4().hex}{MAKING}")
        claim = Claim.take(path, alone=True)
        assert claim is not None
        return Image(path, claim, owned=True)

    def _used(self, path: str) -> Claim | None:
        """Claim an image that is kept, and note that it was used; None when there is none."""
        if not os.path.exists(path):
            return None
        claim = Claim.take(path)
        assert claim is not None
        try:
            os.utime(path)
        except FileNotFoundError:  # deleted meanwhile
            claim.free()
            return None
        return claim

    def _keep(self, made: str, path: str) -> Claim:
        """Give an image that was made its name, and claim it; those that are too many go."""
        claim = Claim.take(path)
        assert claim is not None
        try:
            os.replace(made, path)
            sweep(self.folder, os.path.basename(path))
        except BaseException:
            claim.free()
            raise
        return claim

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

    def _known(self, stem: str, suffix: str = "db") -> list[int]:
        """The positions that there are images of."""
        found = (re.fullmatch(re.escape(stem) + rf"-(\d+)\.{suffix}", name) for name in os.listdir(self.folder))
        return [int(match[1]) for match in found if match is not None]

    def _copy(self, source: str, target: str) -> None:
        claim = self._used(source)
        if claim is None:
            return  # deleted meanwhile: then it is replayed from the beginning
        try:
            with (
                closing(opened(source, attached(source), uri=True)) as old,
                closing(opened(target)) as new,
            ):
                old.backup(new)
        finally:
            claim.free()

    def close(self) -> None:
        """Delete what goes with this object."""
        if self._temporary is not None:
            self._temporary.cleanup()


class Image:
    """A file with a read model as it stood, which stays until it is done with; deleted then, if it is not kept."""

    def __init__(self, path: str, claim: Claim, *, owned: bool = False) -> None:
        self.path = path
        self._claim = claim
        self._owned = owned

    def done(self) -> None:
        """Say that it is not needed any more."""
        if self._owned:
            for end in ("", "-wal", "-shm", ".wal", ".part"):
                with suppress(FileNotFoundError):
                    os.unlink(self.path + end)
        self._claim.free()


def is_personal(placement: Placement) -> bool:
    """Whether there is personal data in what a projection handles."""
    return any(issubclass(cls, Event) and shape_of(cls) is not None for cls in placement.events)


def _settle(path: str) -> None:
    """Have a database that is there still in one file, without a log beside it, so that it can be moved."""
    with closing(opened(path, f"file:{quote(path)}?mode=rw", uri=True, isolation_level=None)) as connection:
        connection.execute("pragma journal_mode = delete")


def folder_of(paths: Sequence[str | None], log: Log) -> str | None:
    """Where the images of an app's read models are kept: beside the first read model, or else beside the log."""
    for path in (*paths, log.path):
        if path and (path is log.path or kind_of(path) in (Kind.FILE, Kind.DUCKDB)):
            return f"{path}.images"
    return None
