"""Where a flow's state is kept: tables in the log's own database, changed in the commit of the output.

``flow_info`` has a row per flow, ``flow_state`` one per part of an operator's state. A commit inserts the
parts that are new and deletes those that are gone, so that it costs what the batch did to the state.
"""

from __future__ import annotations

import msgspec
import polars as pl

from ..frames import decode_frame, encode_frame, schema_columns, schema_text
from ..storage.database import Database
from .errors import FlowChanged
from .pipeline import FlowState, Pipeline
from .state import Part, Parts

_INFO, _STATE = "flow_info", "flow_state"


def _create(db: Database) -> None:
    db.execute(
        f"create table if not exists {db.own(_INFO)} (flow text primary key, shape text not null,"
        " high bigint not null, late bigint not null, columns text not null)"
    )
    db.execute(
        f"create table if not exists {db.own(_STATE)} (flow text not null, operator bigint not null,"
        f" part bigint not null, low bigint not null, high bigint not null, body {db.blob} not null,"
        " primary key (flow, operator, part))"
    )


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
        parts = database.own(_STATE)
        database.executemany(f"delete from {parts} where flow = ? and operator = ? and part = ?", self.gone)
        database.executemany(
            f"insert into {parts} (flow, operator, part, low, high, body) values (?, ?, ?, ?, ?, ?)",
            self.new,
        )
        database.execute(f"update {database.own(_INFO)} set high = ?, late = ?, columns = ? where flow = ?", self.info)


def change(name: str, state: FlowState, stored: Stored) -> Change:
    """The difference between a state and what is in the store."""
    held = {(number, part.id): part for number, operator in enumerate(state.operators) for part in operator.parts.items}
    gone = [(name, *key) for key in stored if key not in held]
    new = [
        (name, *key, part.low, part.high, encode_frame(part.frame)) for key, part in held.items() if key not in stored
    ]
    columns = schema_text(pl.Schema(state.columns))
    return Change(gone, new, (state.high, state.late, columns, name), frozenset(held))


def load(database: Database, name: str, pipeline: Pipeline) -> tuple[FlowState, Stored]:
    """A flow's state as it is in the store; its first state when there is none. Call inside a transaction.

    Raises:
        FlowChanged: The state in the store is of a flow of another shape.
    """
    _create(database)
    info, parts = database.own(_INFO), database.own(_STATE)
    row = database.one(f"select shape, high, late, columns from {info} where flow = ?", (name,))
    state = pipeline.start()
    if row is None:
        database.execute(
            f"insert into {info} (flow, shape, high, late, columns) values (?, ?, ?, 0, '[]')",
            (name, pipeline.shape, state.high),
        )
        return state, frozenset()
    if row["shape"] != pipeline.shape:
        raise FlowChanged(name, row["shape"], pipeline.shape)
    state = msgspec.structs.replace(state, high=row["high"], late=row["late"], columns=schema_columns(row["columns"]))
    watermark = pipeline.watermark(state)
    operators, stored = [], set()
    for number, operator in enumerate(pipeline.operators):
        items = []
        for found in database.query(
            f"select part, low, high, body from {parts} where flow = ? and operator = ? order by part",
            (name, number),
        ):
            items.append(Part(found["part"], found["low"], found["high"], decode_frame(found["body"])))
            stored.add((number, found["part"]))
        following = max((part.id for part in items), default=0) + 1
        operators.append(operator.restore(Parts(tuple(items), following), watermark))
    return msgspec.structs.replace(state, operators=tuple(operators)), frozenset(stored)
