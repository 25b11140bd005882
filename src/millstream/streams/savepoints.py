"""Savepoints: what a flow held at a position, kept under a label; and what it held at any time, from the nearest."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ..errors import NotFound, UsageError
from ..log import checkpoints
from ..time import Moment, from_micros, to_micros
from .beginnings import begin
from .compatible import forget_told, lacking, saved_as, tell_again, writes
from .ends import name_of
from .errors import FlowChanged, FlowError
from .pausing import paused
from .pipeline import Pipeline
from .replay import played
from .steps import FlowState
from .store import INFO, SAVED, SAVEPOINTS, TABLES, info_of, read

if TYPE_CHECKING:
    from ..log.log import Log
    from ..storage.database import Database
    from .flow import Flow

_PARTS = "operator, part, low, high, body"
_ABOUT = "shape, high, late, columns"


class Savepoint(msgspec.Struct, frozen=True):
    """What a flow held at a position.

    Attributes:
        flow: The flow's name.
        label: What it is called.
        position: Up to which position of the log the flow had worked.
        time: When it was made (UTC).
    """

    flow: str
    label: str
    position: int
    time: datetime


def savepoint(flow: Flow, log: Log, label: str) -> Savepoint:
    """See `Flow.savepoint`."""
    name = name_of(flow)
    if not isinstance(label, str) or not label:
        raise UsageError(f"{label!r:.40} is no label", hint="Give a short text, such as 'before-august'")
    made = to_micros(log.now())
    with log.transaction() as tx:
        info, checkpoint = info_of(tx.db, name), checkpoints.peek(tx.db, f"flow:{name}")
        if info is None or checkpoint is None:
            raise FlowError(f"flow {name!r} has not been run", hint="Run it first: there is nothing to keep yet")
        for table in (SAVEPOINTS, SAVED):
            tx.db.ensure_table(table, TABLES[table])
        saved, parts = tx.db.own(SAVEPOINTS), tx.db.own(SAVED)
        if tx.db.one(f"select 1 as there from {saved} where flow = ? and label = ?", (name, label)) is not None:
            raise UsageError(f"flow {name!r} has a savepoint {label!r}", hint="Give another label, or drop that one")
        tx.db.execute(
            f"insert into {saved} (flow, label, position, made, {_ABOUT}) values (?, ?, ?, ?, ?, ?, ?, ?)",
            (name, label, checkpoint.position, made, *(info[each] for each in _ABOUT.split(", "))),
        )
        tx.db.execute(
            f"insert into {parts} (flow, label, {_PARTS}) select flow, ?, {_PARTS} from {tx.db.own('flow_state')}"
            " where flow = ?",
            (label, name),
        )
        tell_again(tx.db, name, saved_as(name, label))
    return Savepoint(name, label, checkpoint.position, from_micros(made))


def savepoints(flow: Flow, log: Log) -> list[Savepoint]:
    """See `Flow.savepoints`."""
    with log.connect() as database:
        return [_of(row) for row in _rows(database, name_of(flow))]


def _rows(database: Database, name: str) -> list[dict[str, Any]]:
    if not database.has_table(SAVEPOINTS):
        return []
    table = database.own(SAVEPOINTS)
    return database.query(f"select * from {table} where flow = ? order by position, made", (name,))


def _of(row: dict[str, Any]) -> Savepoint:
    return Savepoint(row["flow"], row["label"], row["position"], from_micros(row["made"]))


def drop_savepoint(flow: Flow, log: Log, label: str) -> None:
    """See `Flow.drop_savepoint`."""
    name = name_of(flow)
    with log.transaction() as tx:
        _saved(tx.db, name, label)
        for table in (SAVEPOINTS, SAVED):
            tx.db.execute(f"delete from {tx.db.own(table)} where flow = ? and label = ?", (name, label))
        forget_told(tx.db, saved_as(name, label))


def _saved(database: Database, name: str, label: str) -> dict[str, Any]:
    for row in _rows(database, name):
        if row["label"] == label:
            return row
    raise NotFound(f"flow {name!r} has no savepoint {label!r}", hint="List them with flow.savepoints(log)")


def start_from(flow: Flow, log: Log, saved: Savepoint) -> None:
    """See `Flow.start_from`."""
    name, pipeline = name_of(flow), Pipeline(flow)
    if not isinstance(saved, Savepoint):
        raise UsageError(f"{saved!r:.60} is no savepoint", hint="Give what savepoint(...) or savepoints(log) gave")
    with log.transaction() as tx:
        row = _saved(tx.db, saved.flow, saved.label)
        if row["shape"] != pipeline.shape:
            raise FlowChanged(saved.flow, row["shape"], pipeline.shape)
        if found := lacking(tx.db, pipeline, saved.flow, saved.label):
            raise FlowChanged(saved.flow, *found)
        if info_of(tx.db, name) is not None:
            raise FlowError(f"flow {name!r} has been run already", hint="Give this one a name of its own: name='...'")
        tx.db.execute(
            f"insert into {tx.db.own('flow_info')} (flow, {_ABOUT}) values (?, ?, ?, ?, ?)",
            (name, row["shape"], row["high"], row["late"], row["columns"]),
        )
        tx.db.execute(
            f"insert into {tx.db.own('flow_state')} (flow, {_PARTS}) select ?, {_PARTS} from {tx.db.own(SAVED)}"
            " where flow = ? and label = ?",
            (name, saved.flow, saved.label),
        )
        tell_again(tx.db, saved_as(saved.flow, saved.label), name)
        checkpoints.take(tx.db, f"flow:{name}", start=row["position"])
        begin(tx.db, name, row["position"], log.head)


def at(flow: Flow, log: Log, moment: Moment | None) -> pl.DataFrame:
    """See `Flow.at`."""
    pipeline = Pipeline(flow)
    position = log.position_at(moment) if moment is not None else None
    state, after = pipeline.start(), 0
    if flow.sink is not None:
        state, after = _nearest(pipeline, log, flow.sink.name, position)
    if position is None:
        position = after or log.head
    _, state = played(pipeline, log, after, position + 1, final=False, state=state)
    return pipeline.finish(state)[1]


def _nearest(pipeline: Pipeline, log: Log, name: str, position: int | None) -> tuple[FlowState, int]:
    """The latest state that is kept of a flow up to a position, and its place; that before the first row without."""
    with log.connect() as database, database.snapshot():
        kept: list[tuple[int, dict[str, Any], str | None]] = [
            (row["position"], row, row["label"]) for row in _rows(database, name)
        ]
        info, checkpoint = info_of(database, name), checkpoints.peek(database, f"flow:{name}")
        if info is not None and checkpoint is not None:
            kept.append((checkpoint.position, info, None))
        for place, about, label in sorted(kept, key=lambda each: each[0], reverse=True):
            fits = label is None if position is None else place <= position
            if fits and about["shape"] == pipeline.shape and lacking(database, pipeline, name, label) is None:
                return read(database, pipeline, name, about, label)[0], place
    return pipeline.start(), 0


def kept(pipeline: Pipeline, log: Log, name: str, until: int) -> Iterator[tuple[FlowState, int]]:
    """The states in the savepoints of a flow that are of its shape and up to a position, the latest first."""
    with log.connect() as database:
        rows = [row for row in _rows(database, name) if row["position"] <= until and row["shape"] == pipeline.shape]
    for row in reversed(rows):
        with log.connect() as database, database.snapshot():
            there = any(row == each for each in _rows(database, name))
            if there and lacking(database, pipeline, name, row["label"]) is None:
                yield read(database, pipeline, name, row, row["label"])[0], row["position"]


def _beyond(log: Log, stream: str, position: int) -> int:
    """How many events of a stream stand beyond a position."""
    first = next(log.runs(stream, after=position), None)
    return log.version(stream) - first.version + 1 if first is not None else 0


class FlowRecord(msgspec.Struct, frozen=True):
    """What a log knows of a flow that has been run on it.

    Attributes:
        name: The flow's name.
        position: Up to which position it has worked.
        behind: How many positions are beyond that, without what stands in the streams that it writes to.
        late: How many rows have come late, or had no time.
        paused: Whether it is to wait.
        savepoints: How many savepoints there are of it.
    """

    name: str
    position: int
    behind: int
    late: int
    paused: bool
    savepoints: int


def flows_of(log: Log) -> list[FlowRecord]:
    """The flows that have been run on a log, by name."""
    found = []
    with log.connect() as database:
        if not database.has_table(INFO):
            return []
        waiting = paused(database)
        for row in database.query(f"select flow, late from {database.own(INFO)} order by flow"):
            name = row["flow"]
            position = checkpoints.reached(database, f"flow:{name}")
            own = sum(_beyond(log, stream, position) for stream in writes(database, name))
            behind = max(log.head - position - own, 0)
            found.append(FlowRecord(name, position, behind, row["late"], name in waiting, len(_rows(database, name))))
    return found
