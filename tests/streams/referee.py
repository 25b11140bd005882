"""What the tests of flows share: rows out of order, batches of any size, states put away and taken up."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import duckdb
import polars as pl

from millstream.frames import decode_frame, encode_frame
from millstream.streams import Flow
from millstream.streams.pipeline import Pipeline
from millstream.streams.spilling import Spill
from millstream.streams.state import Part, Parts
from millstream.streams.steps import FlowState

START = datetime(2024, 1, 15, 12, tzinfo=UTC)


def clicks(
    seed: int, count: int = 2_000, *, users: int = 12, minutes: float = 60, late: float = 2.0, texts: bool = False
) -> pl.DataFrame:
    """Clicks and purchases of few users, in an order of arrival that is off by less than ``late`` seconds.

    Times are whole seconds, so that many rows share one; some users are null.
    """
    r = random.Random(seed)
    rows = []
    for _ in range(count):
        at = START + timedelta(seconds=r.randrange(int(minutes * 60)))
        user = None if r.random() < 0.05 else min(int(r.expovariate(0.4)), users)
        kind = r.choices(["click", "purchase", "view"], [0.7, 0.15, 0.15])[0]
        rows.append((at.timestamp() + r.random() * late * 0.99, user, at, kind, r.randrange(-50, 100)))
    rows.sort(key=lambda row: row[0])
    frame = pl.DataFrame(
        [row[1:] for row in rows],
        schema={"user": pl.Int64, "ts": pl.Datetime("us", "UTC"), "kind": pl.String, "amount": pl.Int32},
        orient="row",
    )
    return frame.with_columns(pl.format("user-{}", "user").alias("user")) if texts else frame


def play(
    flow: Flow,
    rows: pl.DataFrame,
    seed: int | None = None,
    *,
    final: bool = True,
    spill: Callable[[], Spill] | None = None,
) -> pl.DataFrame:
    """What a flow gives when rows come in batches of random sizes, and its state is put away now and then.

    Without a seed: all in one batch.

    Args:
        spill: Keeps what is held within a limit; made anew with each restart.
    """
    r = random.Random(seed)
    rows = rows.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("_position"))
    pipeline = Pipeline(flow)
    state, results, at = pipeline.start(), [], 0
    kept = spill() if spill is not None else None
    while at < rows.height:
        size = rows.height if seed is None else r.choice([1, 2, 3, 10, 50, 400])
        # As a worker does that keeps to a limit, which takes what is much in pieces.
        stepping = pipeline.stepping(state, rows.slice(at, size), put=None if kept is None else kept.put_aside)
        while True:
            try:
                results.append(next(stepping))
            except StopIteration as done:
                state, _ = done.value
                break
        at += size
        if kept is not None:
            kept.keep("flow", state.bodies)
        if seed is not None and r.random() < 0.2:
            state = revived(pipeline, state)
            kept = spill() if spill is not None else None
    if final:
        results.append(pipeline.finish(state)[1])
    some = [result for result in results if result.height]
    return pl.concat(some) if some else pl.DataFrame()


def revived(pipeline: Pipeline, state: FlowState) -> FlowState:
    """A state as it is after a restart: only its parts were kept, as bytes."""
    held = []
    for operator in state.operators:
        held.append(
            Parts.of(
                Part(part.id, part.low, part.high, decode_frame(encode_frame(part.stored)))
                for part in operator.parts.items
            )
        )
    return pipeline.restored(state.sources, state.late, held)


def agree(result: pl.DataFrame, query: str, **frames: pl.DataFrame) -> None:
    """Assert that DuckDB's answer to a query has the very same rows, each as often."""
    with duckdb.connect() as db:
        db.execute("set timezone = 'UTC'")
        for name, frame in frames.items():
            db.register(name, frame.to_arrow())
        db.register("result", result.to_arrow())
        columns = ", ".join(f'"{name}"' for name in result.columns)
        db.execute(f"create temp table expected as select {columns} from ({query})")
        missing = db.sql(f"select * from expected except all select {columns} from result").pl()
        excess = db.sql(f"select {columns} from result except all select * from expected").pl()
    assert not missing.height, f"rows are missing: {missing}"
    assert not excess.height, f"rows are in excess: {excess}"
