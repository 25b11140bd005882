"""Images: what a stream came to at a position, kept beside the log so that less of it has to be replayed.

An image is a cache and never the truth: it may be deleted at any time, and is when events that it was made of are
trimmed or a subject's data may be in it. It is written in several short commits, part by part, and counts only once
the last one has said that it is whole; what a kill leaves behind is removed when the next one is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from ..storage.database import Database

if TYPE_CHECKING:
    from .log import Log
    from .reading import Reader

TABLE = "millstream_images"
PARTS = "millstream_image_parts"
TABLES = {
    TABLE: "image text primary key, stream text not null, position bigint not null, began bigint not null,"
    " whole integer not null, rows bigint not null, parts bigint not null, about {blob}",
    PARTS: "image text not null, part bigint not null, data {blob} not null, primary key (image, part)",
}
"""The tables that images are kept in, in the log's own database, made when first needed."""

ABANDONED = 3_600_000_000
"""Microseconds after which an image that was never finished is taken for one whose writer has died."""

_REMOVED_AT_ONCE = 8
"""How many parts, each of a few MB, one commit removes."""


class Image(msgspec.Struct, frozen=True):
    """A whole image at a glance.

    Attributes:
        id: Names it.
        position: The position of the log that it is of.
        rows: How many rows it holds.
        parts: In how many parts it is kept.
        about: What its maker has said of it.
    """

    id: str
    position: int
    rows: int
    parts: int
    about: bytes


def images_of(log: Reader, stream: str) -> list[Image]:
    """The whole images of a stream, by position. One that holds what was trimmed is left out."""
    with log.connect() as db:
        if not db.has_table(TABLE):
            return []
        rows = db.query(
            f"select image, position, rows, parts, about from {db.own(TABLE)} where stream = ? and whole = 1"
            " order by position, image",
            (stream,),
        )
    found = [Image(r["image"], r["position"], r["rows"], r["parts"], bytes(r["about"])) for r in rows]
    trims = log.bodies.archived().ledger.refresh().trims.get(stream) if found else None
    if trims is None or not trims.ranges:
        return found
    first = trims.ranges[0][0]
    return [image for image in found if image.position < first]


def parts_of(log: Reader, image: Image) -> Iterator[bytes]:
    """The parts of an image, in order; one is missing (the iterator ends early) if it was removed meanwhile."""
    for part in range(image.parts):
        with log.connect() as db:
            row = db.one(f"select data from {db.own(PARTS)} where image = ? and part = ?", (image.id, part))
        if row is None:
            return
        yield bytes(row["data"])


def write_image(log: Log, stream: str, position: int, rows: int, about: bytes, parts: Iterable[bytes]) -> bool:
    """Keep an image. Other writers wait for one part at most.

    Returns:
        Whether it is kept: False when all images of the stream were dropped meanwhile.
    """
    id = uuid4().hex
    began = log.store.now()

    def begin(db: Database) -> None:
        for name, columns in TABLES.items():
            db.ensure_table(name, columns)
        db.execute(
            f"insert into {db.own(TABLE)} (image, stream, position, began, whole, rows, parts, about)"
            " values (?, ?, ?, ?, 0, ?, 0, ?)",
            (id, stream, position, began, rows, about),
        )

    _commit(log, begin)
    _remove(log, _abandoned(log, began))
    count = 0
    for data in parts:
        _commit(log, _Insert(id, count, data))
        count += 1
    done: list[int] = []

    def finish(db: Database) -> None:
        done.clear()
        cursor = db.execute(f"update {db.own(TABLE)} set whole = 1, parts = ? where image = ?", (count, id))
        done.append(cursor.rowcount)

    _commit(log, finish)
    if done == [1]:
        return True
    _remove(log, [id])
    return False


class _Insert:
    def __init__(self, id: str, part: int, data: bytes) -> None:
        self._row = (id, part, data)

    def __call__(self, db: Database) -> None:
        db.execute(f"insert into {db.own(PARTS)} (image, part, data) values (?, ?, ?)", self._row)


def drop_images(log: Log, streams: Iterable[str] | None = None, *, ids: Iterable[str] | None = None) -> int:
    """Remove images: those of some streams, or some of them; None for all. How many there were.

    Those that are being written are removed, too, and their writers find that out.
    """
    with log.connect() as db:
        if not db.has_table(TABLE):
            return 0
        rows = db.query(f"select image, stream from {db.own(TABLE)}")
    if ids is not None:
        gone = sorted(set(ids))
    else:
        wanted = None if streams is None else set(streams)
        gone = [row["image"] for row in rows if wanted is None or row["stream"] in wanted]
    _remove(log, gone)
    return len(gone)


def _abandoned(log: Log, now: int) -> list[str]:
    with log.connect() as db:
        rows = db.query(f"select image from {db.own(TABLE)} where whole = 0 and began < ?", (now - ABANDONED,))
        lost = db.query(
            f"select distinct image from {db.own(PARTS)} where image not in (select image from {db.own(TABLE)})"
        )
    return [row["image"] for row in (*rows, *lost)]


def _remove(log: Log, ids: list[str]) -> None:
    """The rows that say what is whole go first; then the parts, some at a time."""
    if not ids:
        return

    def headers(db: Database) -> None:
        db.executemany(f"delete from {db.own(TABLE)} where image = ?", [(id,) for id in ids])

    _commit(log, headers)
    for id in ids:
        with log.connect() as db:
            found = db.query(f"select part from {db.own(PARTS)} where image = ? order by part", (id,))
        parts = [row["part"] for row in found]
        for first in range(0, len(parts), _REMOVED_AT_ONCE):
            _commit(log, _Delete(id, parts[first : first + _REMOVED_AT_ONCE]))


class _Delete:
    def __init__(self, id: str, parts: list[int]) -> None:
        self._rows = [(id, part) for part in parts]

    def __call__(self, db: Database) -> None:
        db.executemany(f"delete from {db.own(PARTS)} where image = ? and part = ?", self._rows)


def _commit(log: Log, work: Any) -> None:
    log.commit(work=lambda db, receipt: work(db))
