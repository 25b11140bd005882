"""What a flow's rows will look like, before any is made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from referee import clicks

import millstream as ms
from millstream.streams import Flow, FlowError, MissingColumn, run, stream, tumbling

source = stream("clicks", time="ts", lateness="2s")
CLICK = pl.col("kind") == "click"
FLOWS: dict[str, Flow] = {
    "shaped": source.filter(CLICK).select("user", half=pl.col("amount") / 2),
    "counted": source.group_by("user")
    .window(ms.hopping("5m", every="1m"))
    .agg(n=pl.len(), most=pl.col("amount").max()),
    "sliding": source.group_by("user").window(ms.sliding("5m")).agg(total=pl.col("amount").sum()),
    "session": source.group_by("user", "kind").window(ms.session("1m")).agg(mean=pl.col("amount").mean()),
    "match": source.group_by("user").match(
        "click !purchase",
        within="5m",
        contiguity="relaxed",
        define={"click": CLICK, "purchase": pl.col("kind") == "purchase"},
        measures={"amount": ms.matched.first("click.amount")},
    ),
    "mapped": source.map_rows(lambda row: 1.5, schema={"score": pl.Float32}, reads=["kind"]),
    "alerts": source.group_by("user").window(ms.tumbling("1m")).agg(n=pl.len()).alert(pl.col("n") > 3, on="enter"),
    "merged": source.select("user").merge(stream("others").select("name")),
    "joined": source.join(stream("others", time="at"), on="user", ahead="1m", prefix="other_"),
}


@pytest.mark.parametrize("name", list(FLOWS))
def test_the_schema_that_is_told_is_that_of_the_rows_that_come(name: str) -> None:
    flow = FLOWS[name]
    with ms.open() as log:
        log.append("clicks", clicks(1, 500), type="Click")
        others = pl.DataFrame({"user": [1, 2], "name": ["a", "b"], "at": clicks(1, 2)["ts"]})
        log.append("others", others, type="Other")
        told = flow.schema(log)
        assert told == flow.over(log).schema
        assert told.names()


def test_the_schema_over_objects_is_told_too() -> None:
    with ms.open() as log:
        log.append("orders", [ms.Plain("Order", {"id": 1, "total": 9.5}), ms.Plain("Order", {"id": 2, "note": "x"})])
        orders = stream("orders")
        assert dict(orders.schema(log)) == {"id": pl.Int64(), "total": pl.Float64(), "note": pl.String()}
        counts = orders.group_by("note").window(ms.tumbling("1h")).agg(n=pl.len())
        assert counts.schema(log).names() == ["note", "window_start", "window_end", "n"]
        assert log.head == 2


def test_what_nobody_can_know_is_an_error_that_says_so() -> None:
    with ms.open() as log:
        with pytest.raises(ms.StreamNotFound):
            source.schema(log)
        with pytest.raises(FlowError, match="no event yet"):
            stream("nothing-*").schema(log)
        log.append("clicks", clicks(1, 5), type="Click")
        with pytest.raises(MissingColumn, match="'nowhere'"):
            source.filter(pl.col("nowhere") > 1).schema(log)


@pytest.mark.parametrize("rows", ["frames", "objects"])
@pytest.mark.parametrize(
    ("verb", "wrong"),
    [
        (lambda s: stream("names", time="at").filter(pl.col(s) == "a"), "knid"),
        (lambda s: stream("names", time="at").group_by(s).window(tumbling("1m")).agg(n=pl.len()), "knid"),
        (lambda s: stream("names", time=s).select("kind"), "ats"),
    ],
    ids=["filter", "group_by", "time"],
)
def test_who_misspells_a_column_is_told_all_that_the_source_has(rows: str, verb: Any, wrong: str) -> None:
    at = datetime(2024, 1, 1, tzinfo=UTC)
    data = {"user": 1, "kind": "a", "at": at}
    with ms.open() as log:
        if rows == "frames":
            log.append("names", pl.DataFrame([data]), type="Named")
        else:
            log.append("names", ms.Plain("Named", {**data, "at": at.isoformat()}))
        flow = verb(wrong)
        right = "at" if wrong == "ats" else "kind"
        for attempt in (flow.over, flow.schema, lambda log: run(log, flow.to("out", type="NamedOut"), until="head")):
            with pytest.raises(MissingColumn, match=f"there are 'user', 'kind', 'at'. Write '{right}'") as raised:
                attempt(log)
            assert raised.value.columns == ["user", "kind", "at"]
