"""What the tests of flows with several sources share: a log in any order of its streams, and flows played over it."""

from __future__ import annotations

import random
from collections.abc import Mapping

import polars as pl
from referee import revived

from millstream.streams import Flow
from millstream.streams.pipeline import Pipeline
from millstream.streams.state import widened


def in_time(seed: int, time: str, **streams: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Rows of several streams in one log, side by side as their times are."""
    r = random.Random(seed)
    order = sorted(
        (
            (at + r.random() * 1.5e6, name, number)
            for name, rows in streams.items()
            for number, at in enumerate(rows[time].dt.epoch("us").cum_max().to_list())
        ),
    )
    positions: dict[str, list[int]] = {name: [] for name in streams}
    for position, (_, name, _) in enumerate(order, 1):
        positions[name].append(position)
    return {
        name: rows.with_columns(pl.Series("_position", sorted(positions[name]), dtype=pl.Int64))
        for name, rows in streams.items()
    }


def play_tree(
    flow: Flow, rows: Mapping[str, pl.DataFrame], seed: int | None = None, *, final: bool = True
) -> pl.DataFrame:
    """What a flow gives when the log comes in stretches of random lengths, and its state is put away now and then."""
    return played(flow, rows, seed, final=final)[0]


def played(
    flow: Flow, rows: Mapping[str, pl.DataFrame], seed: int | None = None, *, final: bool = True
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that come out, and those that are late."""
    r = random.Random(seed)
    pipeline = Pipeline(flow)
    state, results, late, low = pipeline.start(), [], [], 0
    head = max(frame["_position"].max() for frame in rows.values())  # type: ignore[type-var]
    assert isinstance(head, int)
    while low <= head:
        high = head + 1 if seed is None else low + r.choice([1, 2, 3, 10, 50, 400])
        stretch = [rows[s.stream].filter(pl.col("_position").is_between(low, high - 1)) for s in pipeline.sources]
        state, result, aside = pipeline.step(state, [part if part.height else None for part in stretch])
        results.append(result)
        if aside is not None:
            late.append(aside)
        low = high
        if seed is not None and r.random() < 0.2:
            state = revived(pipeline, state)
    if final:
        results.append(pipeline.finish(state)[1])
    some = [result for result in results if result.height]
    return pl.concat(some) if some else pl.DataFrame(), widened(late) if late else pl.DataFrame()
