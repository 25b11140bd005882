"""Handlers of batches: frames of events, in the order of the log, equal to what the rows one by one would give."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

import millstream as ms
from millstream.log.handlers import InvalidHandler


class Sold(ms.Event, type="BatchSold"):
    sku: str
    n: int
    price: Decimal = Decimal(0)
    at: datetime | None = None
    gift: bool = False


class Counted(ms.Event, type="BatchCounted"):
    sku: str
    n: int


class Nested(ms.Event, type="BatchNested"):
    names: list[str]


class Movements(ms.Projection):
    schema = "create table movements (position integer, stream text, version integer, type text, sku text, n integer)"

    @ms.on_batch(Sold, Counted)
    def moved(self, frame: pl.DataFrame, db: ms.Database) -> None:
        named = frame.select(
            pl.col("_position").alias("position"),
            pl.col("_stream").alias("stream"),
            pl.col("_version").alias("version"),
            pl.col("_type").alias("type"),
            "sku",
            "n",
        )
        db.insert("movements", named)


class Stock(ms.Projection):
    schema = "create table stock (sku text primary key, n integer not null)"

    @ms.on_batch(Sold)
    def sold(self, frame: pl.DataFrame, db: ms.Database) -> None:
        if frame["n"].max() == 666:
            raise ValueError("nobody sells 666")
        sums = frame.group_by("sku").agg(n=-pl.col("n").sum())
        db.upsert("stock", sums, key="sku", add=["n"])

    @ms.on
    def counted(self, event: Counted, db: ms.Database) -> None:
        db.execute("insert into stock values (?, ?) on conflict do update set n = excluded.n", (event.sku, event.n))


def level(log: ms.Log, *placements: ms.Placement) -> ms.App:
    app = ms.App(log, projections=placements)
    with app:
        for follower in app._followers.values():
            assert follower.wait(log.head, 30)
    return app


def rows(path: Any, sql: str) -> list[dict[str, Any]]:
    from millstream.storage.sqlite.database import open_database

    db = open_database(str(path), readonly=True)
    try:
        return db.query(sql)
    finally:
        db.close()


def test_single_events_many_at_once_and_frames_all_come_as_frames_in_the_order_of_the_log(
    log: ms.Log, tmp_path: Any
) -> None:
    log.append("s-1", Sold(sku="a", n=1))
    log.append("s-2", [Sold(sku="b", n=2), Counted(sku="b", n=9), Sold(sku="c", n=3)])
    log.append("s-1", pl.DataFrame({"sku": ["d", "e"], "n": [4, 5]}), type="BatchSold")
    log.append("s-3", [Sold(sku="f", n=6), Sold(sku="g", n=7)])
    level(log, Movements.into(tmp_path / "read.db"))
    found = rows(tmp_path / "read.db", "select * from movements order by rowid")
    assert [tuple(row.values()) for row in found] == [
        (e.position, e.stream, e.version, e.type, e.data["sku"], e.data["n"]) for e in log.read()
    ]


def test_the_order_between_types_is_kept_when_one_is_handled_by_the_frame_and_one_by_the_row(
    log: ms.Log, tmp_path: Any
) -> None:
    expected: dict[str, int] = {}
    for i in range(200):
        sku = f"sku-{i % 7}"
        if i % 11 == 3:
            log.append("stock", Counted(sku=sku, n=i))
            expected[sku] = i
        else:
            log.append("stock", Sold(sku=sku, n=i % 5))
            expected[sku] = expected.get(sku, 0) - i % 5
    level(log, Stock.into(tmp_path / "read.db"), Movements.into())
    found = {row["sku"]: row["n"] for row in rows(tmp_path / "read.db", "select * from stock")}
    assert found == expected


def test_columns_have_the_types_of_the_fields_and_those_that_an_event_lacks_its_defaults(log: ms.Log) -> None:
    seen: list[pl.DataFrame] = []

    class Watched(ms.Projection):
        @ms.on_batch(Sold)
        def sold(self, frame: pl.DataFrame, db: ms.Database) -> None:
            seen.append(frame)

    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    log.append("s", Sold(sku="a", n=1, price=Decimal("1.50"), at=noon))
    log.append("s", Sold(sku="b", n=2, price=Decimal("2.125")))
    level(log, Watched.into())
    frame = pl.concat(seen, how="diagonal_relaxed")
    assert frame.select("sku", "n", "gift").rows() == [("a", 1, False), ("b", 2, False)]
    assert frame["price"].to_list() == [Decimal("1.500"), Decimal("2.125")]
    assert frame["at"].to_list() == [noon, None]
    assert frame.schema["_time"] == pl.Datetime("us", "UTC")


def test_fields_that_are_lists_and_numbers_beyond_64_bits_are_read_as_well(log: ms.Log) -> None:
    seen: list[dict[str, Any]] = []

    class Lists(ms.Projection):
        @ms.on_batch(Nested, Sold)
        def nested(self, frame: pl.DataFrame, db: ms.Database) -> None:
            seen.extend(frame.to_dicts())

    log.append("n", [Nested(names=["x", "y"]), Nested(names=[])])
    log.append("n", Sold(sku="a", n=1 << 70))
    level(log, Lists.into())
    assert [row["names"] for row in seen] == [["x", "y"], [], None]
    assert str(seen[2]["n"]) == str(1 << 70)


def test_a_failing_batch_stops_at_the_event_at_fault_and_keeps_all_before_it(log: ms.Log, tmp_path: Any) -> None:
    log.append("s", [Sold(sku="a", n=1) for _ in range(50)])
    log.append("s", [Sold(sku="a", n=666), Sold(sku="a", n=1)])
    app = ms.App(log, projections=[Stock.into(tmp_path / "read.db")])
    with app, pytest.raises(ms.ProjectionFailed) as failed:
        app._followers["Stock"].wait(log.head, 30)
    assert failed.value.position == 51
    assert rows(tmp_path / "read.db", "select n from stock") == [{"n": -50}]


def test_an_event_that_does_not_fit_its_class_stops_the_batch_right_before_it(log: ms.Log, tmp_path: Any) -> None:
    log.append("s", [Sold(sku="a", n=1), Sold(sku="a", n=1)])
    log.append("s", ms.Plain("BatchSold", {"sku": "a", "n": "many"}))
    app = ms.App(log, projections=[Stock.into(tmp_path / "read.db")])
    with app, pytest.raises(ms.ProjectionFailed) as failed:
        app._followers["Stock"].wait(log.head, 30)
    assert failed.value.position == 3
    assert rows(tmp_path / "read.db", "select n from stock") == [{"n": -2}]


def test_an_inline_projection_takes_frames_inside_the_commit_and_catches_up_by_them(log: ms.Log) -> None:
    log.append("s", pl.DataFrame({"sku": ["a"] * 10_000, "n": [1] * 10_000}), type="BatchSold")
    ms.App(log, projections=[Stock.inline()])
    log.append("s", [Sold(sku="a", n=2), Sold(sku="b", n=3)])
    with log.connect() as db:
        assert db.query("select * from stock order by sku") == [{"sku": "a", "n": -10_002}, {"sku": "b", "n": -3}]
    with pytest.raises(ValueError, match="nobody sells"):
        log.append("s", Sold(sku="a", n=666))


def test_an_inline_projection_names_the_event_of_a_batch_that_was_there_before_and_fails(log: ms.Log) -> None:
    log.append("s", [Sold(sku="a", n=1) for _ in range(9)])
    log.append("s", Sold(sku="a", n=666))
    with pytest.raises(ms.ProjectionFailed) as failed:
        ms.App(log, projections=[Stock.inline()])
    assert failed.value.position == 10
    with log.connect() as db:
        assert db.query("select n from stock") == [{"n": -9}]


def test_frames_are_written_as_rows_with_times_and_decimals_as_text(log: ms.Log) -> None:
    frame = pl.DataFrame(
        {
            "id": [1, 2],
            "price": [Decimal("1.50"), None],
            "at": [datetime(2024, 1, 1, tzinfo=UTC), None],
            "day": [date(2024, 1, 2), None],
            "took": [timedelta(seconds=1), None],
            "names": [["a", "b"], None],
        }
    )
    with log.transaction() as tx:
        tx.db.execute("create table things (id integer primary key, price, at, day, took, names)")
        tx.db.insert("things", frame)
        tx.db.upsert("things", frame.select("id", price=pl.lit("9")), key="id")
        found = tx.db.query("select * from things")
    assert found[0] == {
        "id": 1, "price": "9", "at": "2024-01-01T00:00:00.000000Z", "day": "2024-01-02", "took": 1_000_000,
        "names": '["a","b"]',
    }  # fmt: skip
    assert list(found[1].values()) == [2, "9", None, None, None, None]


def test_what_an_upsert_cannot_do_is_refused(log: ms.Log) -> None:
    frame = pl.DataFrame({"id": [1], "price": [Decimal("1.5")]})
    with log.transaction() as tx:
        tx.db.execute("create table things (id integer primary key, price)")
        with pytest.raises(ms.UsageError, match="no column 'name'"):
            tx.db.upsert("things", frame, key="name")
        with pytest.raises(ms.UsageError, match="not add exactly"):
            tx.db.upsert("things", frame, key="id", add=["price"])
        with pytest.raises(ms.DatabaseError):
            tx.db.insert("nothing", frame)


def test_a_handler_of_batches_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(InvalidHandler, match="names no type"):
        ms.on_batch()

    class Asks(ms.Projection):
        @ms.on_batch(Sold)
        def sold(self, frame: pl.DataFrame, recorded: ms.Recorded) -> None: ...

    with pytest.raises(InvalidHandler, match="'recorded'"):
        Asks.into()

    class Thing(ms.Aggregate):
        @ms.on_batch(Sold)
        def sold(self, frame: pl.DataFrame) -> None: ...

    with ms.open() as log, pytest.raises(InvalidHandler, match="only projections"):
        ms.Repository(log, Thing).get("thing-1")
