"""Where a flow's state is kept: tables in the log's own database, changed in the commit of the output.

``flow_info`` has a row per flow, ``flow_state`` one per part of an operator's state. A commit inserts the
parts that are new and deletes those that are gone, so that it costs what the batch did to the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import polars as pl

from ..frames import schema_columns, schema_text
from ..storage.database import Database
from .errors import FlowChanged
from .packing import pack, unpack
from .pipeline import Pipeline
from .spilling import Spill
from .state import Part, Parts
from .steps import FlowState, SourceState

INFO, STATE, TOLD = "flow_info", "flow_state", "flow_told"
SAVEPOINTS, SAVED = "flow_savepoints", "flow_saved_state"
TABLES = {
    INFO: (
        "flow text primary key, shape text not null, high bigint not null, late bigint not null, columns text not null"
    ),
    STATE: (
        "flow text not null, operator bigint not null, part bigint not null, low bigint not null,"
        " high bigint not null, body {blob} not null, primary key (flow, operator, part)"
    ),
    TOLD: "flow text primary key, declared text not null, paused bigint not null",
    SAVEPOINTS: (
        "flow text not null, label text not null, position bigint not null, made bigint not null, shape text not null,"
        " high bigint not null, late bigint not null, columns text not null, primary key (flow, label)"
    ),
    SAVED: (
        "flow text not null, label text not null, operator bigint not null, part bigint not null, low bigint not null,"
        " high bigint not null, body {blob} not null, primary key (flow, label, operator, part)"
    ),
}
"""The tables that flows keep: their columns by their names."""

Stored = frozenset[tuple[int, int]]
"""The parts that are in the store: operator and id."""


class Change(msgspec.Struct, frozen=True, eq=False):
    """What a commit does to a flow's stored state; ready to be applied, once or again."""

    gone: list[tuple[str, int, int]]
    new: list[tuple[str, int, int, int, int, bytes]]
    info: tuple[int, int, str, str]
    stored: Stored
    """What is in the store afterwards."""

    def apply(self, database: Database) -> None:
        """Write it. Call inside the transaction of the output and the checkpoint."""
        parts = database.own(STATE)
        database.executemany(f"delete from {parts} where flow = ? and operator = ? and part = ?", self.gone)
        database.executemany(
            f"insert into {parts} (flow, operator, part, low, high, body) values (?, ?, ?, ?, ?, ?)",
            self.new,
        )
        database.execute(f"update {database.own(INFO)} set high = ?, late = ?, columns = ? where flow = ?", self.info)


def change(name: str, state: FlowState, stored: Stored) -> Change:
    """The difference between a state and what is in the store."""
    held = {(number, part.id): part for number, operator in enumerate(state.operators) for part in operator.parts.items}
    gone = [(name, *key) for key in stored if key not in held]
    new = [(name, *key, part.low, part.high, pack(part.stored)) for key, part in held.items() if key not in stored]
    high, columns = _sources_text(state.sources)
    return Change(gone, new, (high, state.late, columns, name), frozenset(held))


def _sources_text(sources: Sequence[SourceState]) -> tuple[int, str]:
    """What is remembered of the sources, as a number and a text: of several, all of it is in the text."""
    texts = [schema_text(pl.Schema(source.columns)) for source in sources]
    if len(sources) == 1:
        return sources[0].high, texts[0]
    held = [{"high": source.high, "columns": text} for source, text in zip(sources, texts, strict=True)]
    return max(source.high for source in sources), msgspec.json.encode({"sources": held}).decode()


def _sources(high: int, text: str) -> list[SourceState]:
    held = msgspec.json.decode(text)
    if not isinstance(held, dict):
        return [SourceState(high, schema_columns(text))]
    return [SourceState(each["high"], schema_columns(each["columns"])) for each in held["sources"]]


def sources_told(info: Mapping[str, Any]) -> tuple[SourceState, ...]:
    """What a row of ``flow_info`` says of the sources."""
    return tuple(_sources(info["high"], info["columns"]))


def load(database: Database, name: str, pipeline: Pipeline, spill: Spill | None = None) -> tuple[FlowState, Stored]:
    """A flow's state as it is in the store; its first state when there is none. Call inside a transaction.

    Raises:
        FlowChanged: The state in the store is of a flow of another shape.
    """
    for table, columns in TABLES.items():
        database.ensure_table(table, columns)
    info = database.own(INFO)
    row = database.one(f"select shape, high, late, columns from {info} where flow = ?", (name,))
    state = pipeline.start()
    if row is None:
        high, columns = _sources_text(state.sources)
        database.execute(
            f"insert into {info} (flow, shape, high, late, columns) values (?, ?, ?, 0, ?)",
            (name, pipeline.shape, high, columns),
        )
        return state, frozenset()
    return read(database, pipeline, name, row, spill=spill)


def read(
    database: Database,
    pipeline: Pipeline,
    name: str,
    info: Mapping[str, Any],
    label: str | None = None,
    spill: Spill | None = None,
) -> tuple[FlowState, Stored]:
    """The state that a row of ``flow_info``, or of a savepoint, is about; what is beyond a limit goes to disk.

    Raises:
        FlowChanged: It is of a flow of another shape.
    """
    if info["shape"] != pipeline.shape:
        raise FlowChanged(name, info["shape"], pipeline.shape)
    table, where = database.own(STATE), "flow = ? and operator = ?"
    params: tuple[Any, ...] = (name,)
    if label is not None:
        table, where, params = database.own(SAVED), "flow = ? and label = ? and operator = ?", (name, label)
    held, stored = [], set()
    for number in range(len(pipeline.operators)):
        items: list[Part] = []
        rows = database.query(f"select part, low, high from {table} where {where} order by part", (*params, number))
        for row in rows:
            # One at a time: together their bodies may be more than there is to be in memory.
            body = database.query(
                f"select body from {table} where {where} and part = ?", (*params, number, row["part"])
            )
            items.append(Part(row["part"], row["low"], row["high"], unpack(body[0]["body"])))
            if spill is not None:
                spill.add(name, items[-1].body)
            stored.add((number, row["part"]))
        held.append(Parts.of(items))
    return pipeline.restored(_sources(info["high"], info["columns"]), info["late"], held), frozenset(stored)


def parts_of(database: Database, name: str, operator: int, low: int = 0, high: int = 2**63 - 1) -> Iterator[Part]:
    """The parts of an operator's state that are stored under numbers from one up to another, oldest first, each read
    when its turn comes. Iterate inside a transaction."""
    table, where = database.own(STATE), "flow = ? and operator = ?"
    found = database.query(
        f"select part, low, high from {table} where {where} and part >= ? and part < ? order by part",
        (name, operator, low, high),
    )
    for each in found:
        body = database.query(f"select body from {table} where {where} and part = ?", (name, operator, each["part"]))
        yield Part(each["part"], each["low"], each["high"], unpack(body[0]["body"]))


def forget_parts(database: Database, name: str) -> None:
    """Remove all that is stored of a flow's operators, in the transaction that stores them anew."""
    database.execute(f"delete from {database.own(STATE)} where flow = ?", (name,))


def info_of(database: Database, name: str) -> dict[str, Any] | None:
    """The row of ``flow_info`` of a flow; None when it has not been run."""
    if not database.has_table(INFO):
        return None
    return database.one(f"select shape, high, late, columns from {database.own(INFO)} where flow = ?", (name,))
