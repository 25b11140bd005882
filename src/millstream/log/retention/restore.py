"""Restoring: archived events back into the log, each run's hash compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ...frames import encode_frame
from ...storage.base import Encoding, Request
from ..records import Run
from .ledger import STREAM, RunsRestored, told
from .parquet import Content, contents, weight
from .relink import LINKS, headers, offsets_of, relink, sizes, steps
from .rules import check_by, check_known

if TYPE_CHECKING:
    from ..log import Log

_BODY_ROWS = 65_536


class Restored(msgspec.Struct, frozen=True):
    """What was put back into the log."""

    runs: int
    events: int


def restore(log: Log, stream: str | None, by: str | None) -> Restored:
    """See `Archives.restore`."""
    who = check_by(by)
    pattern = "*" if stream is None else check_known(log, stream)
    runs = events = 0
    for info in log.streams(pattern):
        if info.name == STREAM:
            continue
        for group in _groups(log, info.name):
            moved = _restored(log, info.name, group, who)
            runs += len(moved)
            events += sum(run.count for run in moved)
    return Restored(runs, events)


def _groups(log: Log, stream: str) -> Iterator[list[Run]]:
    """Neighbours of a kind that are archived, few enough for one body."""
    group: list[Run] = []
    rows = 0
    for page in headers(log, stream, 0, log.head + 1):
        found = sizes(log, page)
        for run in page:
            wanted = found[run.position][0] == Encoding.ARCHIVED
            fits = group and run.kind_id == group[0].kind_id and rows + run.count <= _BODY_ROWS
            if group and not (wanted and fits and len(group) < LINKS):
                yield group
                group, rows = [], 0
            if wanted:
                group.append(run)
                rows += run.count
    if group:
        yield group


def _restored(log: Log, stream: str, group: list[Run], by: str) -> list[Run]:
    def request(left: list[Run]) -> Request:
        return told(
            RunsRestored(
                stream=stream, first=left[0].position, last=left[-1].last, runs=len(left),
                events=sum(run.count for run in left), by=by,
            )
        )  # fmt: skip

    moved: list[Run] = []
    gone = (Encoding.JSON, Encoding.NDJSON, Encoding.ARROW, Encoding.TRIMMED)
    for step in steps(contents(log, group), weight):
        runs = [content.run for content in step]
        moved += relink(log, *_body(step), runs, offsets_of(runs), request, gone=gone)
    return moved


def _body(step: list[Content]) -> tuple[Encoding, bytes]:
    if step[0].run.is_frame:
        return Encoding.ARROW, encode_frame(pl.concat([content.data for content in step]).rechunk())
    return Encoding.NDJSON, "\n".join(line for content in step for line in content.data).encode()
