"""Images of a table: its rows as of a position, in columns, so that `table` replays only what came after it.

They stand at distances that grow with the table: one is made once the changes since the last are half as many as its
rows. Of many, those go first whose neighbours are nearest to one another, so that the rest stay spread over the whole
past, and the way from an image to any position is bounded by the length of the past over `KEPT`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ...conversion import ready
from ...events import sealed_in_rows
from ...log.images import Image, drop_images, images_of, parts_of, write_image
from ...storage.base import Scope
from .state import About, TableState

if TYPE_CHECKING:
    from ...log import Log

KEPT = 16
"""The most images that are kept of a table."""

AT_LEAST = 100_000
"""Fewer changes than that are replayed faster than an image is read."""

_PART_ROWS = 250_000
_PART_BYTES = 6 << 20
"""About the most that a part takes before it is compressed, so that no commit is long."""

_FORMAT = 1


class _Said(msgspec.Struct):
    format: int
    about: About


def is_due(changes: int, rows: int) -> bool:
    """Whether so many changes after an image of so many rows are worth another one."""
    return changes >= max(AT_LEAST, rows // 2)


def nearest(log: Log, stream: str, position: int) -> tuple[int, TableState] | None:
    """The last image not after a position: its position, and the table."""
    for image in reversed(images_of(log, stream)):
        if image.position <= position and (found := _read(log, image)) is not None:
            return found
    return None


def _read(log: Log, image: Image) -> tuple[int, TableState] | None:
    try:
        said = msgspec.json.decode(image.about, type=ready(_Said))
    except msgspec.MsgspecError:
        return None  # of another version of this library
    if said.format != _FORMAT:
        return None
    schema = {name: held.dtype for name, held in said.about.held.items()}
    parts = []
    for data in parts_of(log, image):
        try:
            parts.append(pl.read_parquet(io.BytesIO(data)))
        except (pl.exceptions.PolarsError, OSError):
            return None
    if sum(part.height for part in parts) != image.rows or any(dict(part.schema) != schema for part in parts):
        return None  # it is being removed, or damaged: the log tells the same
    frame = pl.concat(parts, rechunk=False) if parts else pl.DataFrame(schema=schema)
    return image.position, TableState(said.about, frame)


def keep(log: Log, stream: str, position: int, state: TableState) -> bool:
    """Keep an image of a table as of a position, unless the log is only read; whether it is kept."""
    if log.store.readonly or holds_sealed(log, stream):
        return False
    frame = state.stored
    said = msgspec.json.encode(_Said(_FORMAT, state.about))
    kept = write_image(log, stream, position, frame.height, said, _parts(frame))
    drop_images(log, ids=_too_many(images_of(log, stream)))
    return kept


def holds_sealed(log: Log, stream: str) -> bool:
    """Whether a table has, or had, columns whose values are sealed: an image would hold them in the clear."""
    store = log.store
    return any(sealed_in_rows(store.kind(kind).schema) for kind in store.kinds(Scope(stream=stream)))


def _parts(frame: pl.DataFrame) -> Iterator[bytes]:
    rows = _PART_ROWS
    if frame.height:
        rows = max(1, min(rows, _PART_BYTES * frame.height // max(1, int(frame.estimated_size()))))
    for first in range(0, frame.height, rows):
        buffer = io.BytesIO()
        frame.slice(first, rows).write_parquet(buffer, compression="zstd", compression_level=1, statistics=False)
        yield buffer.getvalue()


def _too_many(images: list[Image]) -> list[str]:
    """Which images go: those of a position that another one has, and those without which the gaps grow least."""
    by_position = {image.position: image for image in images}
    gone = [image.id for image in images if by_position[image.position] is not image]
    left = [by_position[position] for position in sorted(by_position)]
    while len(left) > KEPT:
        # The newest stays: it is the one that most readers begin at.
        befores = [0, *(image.position for image in left)]
        gaps = [left[i + 1].position - befores[i] for i in range(len(left) - 1)]
        gone.append(left.pop(gaps.index(min(gaps))).id)
    return gone
