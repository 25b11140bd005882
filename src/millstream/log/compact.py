"""Compaction: the bodies of many small runs of a stream become few large ones.

Headers, positions, versions, ids and hashes stay as they are: a header then says where in the larger body its
events are. It runs beside writers, holds the writer lock for one small step at a time, and can be killed between
any two of them. A reader that finds a body gone asks the header again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ..errors import StreamNotFound, Trimmed
from ..frames import MAX_ROWS, encode_frame
from ..storage.base import Encoding, Scope
from ..storage.forked import check_frames
from .records import Run

if TYPE_CHECKING:
    from .log import Log

_SMALL_ROWS = 16_384
"""Frames of fewer rows than this are worth merging."""
_MAX_BYTES = 1_000_000
"""The most bytes of JSON in one merged body."""
_MERGED = (Encoding.JSON, Encoding.NDJSON, Encoding.ARROW)
"""Not what was archived or trimmed: its body is not in the log."""
_LINKS = 250
"""The most headers changed in one step."""


class Compacted(msgspec.Struct, frozen=True):
    """What a compaction did: so many runs' bodies became so many."""

    runs: int
    bodies: int


def compact(log: Log, stream: str | None = None) -> Compacted:
    """Merge small bodies of frames and of many-event JSON runs.

    Args:
        stream: Only this stream, or a category such as ``"sensor-*"``; by default all streams. Single events,
            kept inline, are merged only for a stream that is named: aggregates are best left as they are.

    Raises:
        StreamNotFound: A stream is named that is not there.
    """
    runs = bodies = 0
    names = [s.name for s in log.streams(stream)] if stream is not None else None
    if stream is not None and not names and not stream.endswith("*"):
        raise StreamNotFound(stream)
    found = (s.name for s in log.streams()) if names is None else iter(names)
    for name in found:
        for group in _groups(log, name, inline=names is not None):
            try:
                merged = _merged(group)
            except Trimmed:  # meanwhile, beside this
                continue
            if log.store.move_bodies(*merged):
                runs += len(group)
                bodies += 1
    log.bodies.forget()
    return Compacted(runs, bodies)


def _groups(log: Log, stream: str, *, inline: bool) -> Iterator[list[Run]]:
    """Neighbours in a stream that can share a body: the same kind, none of them large."""
    group: list[Run] = []
    rows = size = 0
    for run in chain.from_iterable(log.stored(Scope(stream))):
        small = _is_small(log, run, inline)
        weight = len(run.body or "") if small else 0
        fits = (
            bool(group)
            and run.kind_id == group[0].kind_id
            and rows + run.count <= MAX_ROWS
            and len(group) < _LINKS
            and size + weight <= _MAX_BYTES
        )
        if group and not (small and fits):
            if _worth(group):
                yield group
            group, rows, size = [], 0, 0
        if small:
            group.append(run)
            rows += run.count
            size += weight if run.body is not None else run.count * 100
    if _worth(group):
        yield group


def _worth(group: list[Run]) -> bool:
    refs = {run.body_ref for run in group}
    return len(group) > 1 and (len(refs) > 1 or refs == {None})


def _is_small(log: Log, run: Run, inline: bool) -> bool:
    if run.body is not None:
        return inline
    if run.body_ref is None:
        return False
    whole = log.store.body_infos([run.body_ref]).get(run.body_ref)
    return whole is not None and whole.encoding in _MERGED and whole.rows < _SMALL_ROWS


def _merged(group: list[Run]) -> tuple[Encoding, int, bytes, list[tuple[int, int | None, int]]]:
    """The body of a group, and for each header: its position, its body until now, its offset in the new one."""
    links: list[tuple[int, int | None, int]] = []
    offset = 0
    for run in group:
        links.append((run.position, run.body_ref, offset))
        offset += run.count
    if group[0].is_frame:
        check_frames()
        body = encode_frame(pl.concat([run.frame() for run in group]).rechunk())
        return Encoding.ARROW, offset, body, links
    lines = (line if isinstance(line, bytes) else line.encode() for run in group for line in run.lines())
    return Encoding.NDJSON, offset, b"\n".join(lines), links
