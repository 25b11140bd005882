"""Projections that look others up: what they find is as of each event, whenever they are built."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from kept import into_of

import millstream as ms


class Priced(ms.Event, type="LockPriced"):
    item: str
    cents: int


class Sold(ms.Event, type="LockSold"):
    item: str
    n: int


class Prices(ms.Projection):
    """By the frame: it is given frames of one event where it is read."""

    schema = "create table prices (item varchar(50) primary key, cents bigint not null)"

    @ms.on_batch(Priced)
    def priced(self, frame: pl.DataFrame, db: ms.Database) -> None:
        db.upsert("prices", frame.select("item", "cents").unique("item", keep="last"), key="item")


class Sales(ms.Projection):
    schema = "create table sales (position bigint primary key, cents bigint not null)"
    reads = (Prices,)

    @ms.on
    def sold(self, event: Sold, db: ms.Database, recorded: ms.Recorded) -> None:
        price = db.one("select cents from prices where item = ?", (event.item,))
        db.execute("insert into sales values (?, ?)", (recorded.position, event.n * (price["cents"] if price else 0)))


class Total(msgspec.Struct):
    cents: int = 0


class Totals(ms.Documents[Total]):
    key = "item"
    reads = (Prices, Sales)

    @ms.on
    def sold(self, event: Sold, total: Total, db: ms.Database, recorded: ms.Recorded) -> None:
        sale = db.one("select cents from sales where position = ?", (recorded.position,))
        total.cents += sale["cents"] if sale else 0


class GetSales(ms.Query[list[int]]):
    pass


class GetPrices(ms.Query[dict[str, int]]):
    pass


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ms.Log]:
    with ms.open(str(tmp_path / "log.db")) as log:
        for n in range(1, 40):
            for cents in (n, 100 * n):
                log.append("shop", [Priced(item="a", cents=cents), Sold(item="a", n=1)])
        log.append("bulk", [Sold(item="a", n=2), Sold(item="b", n=1)])
        yield log


EXPECTED = [cents for n in range(1, 40) for cents in (n, 100 * n)] + [7800, 0]


def app_of(log: ms.Log, *placements: Any) -> ms.App:
    app = ms.App(log, projections=placements)

    @app.query(reads=[Sales])
    def get_sales(query: GetSales, db: ms.Database) -> list[int]:
        return [row["cents"] for row in db.query("select cents from sales order by position")]

    @app.query(reads=[Prices])
    def get_prices(query: GetPrices, db: ms.Database) -> dict[str, int]:
        return {row["item"]: row["cents"] for row in db.query("select * from prices")}

    return app


@pytest.fixture(params=["file", "log", "live", "inline", "memory", "duckdb", "postgres"])
def placed(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kind = request.param
    if kind in ("live", "inline"):
        return getattr(Sales, kind)()
    return Sales.into(into_of(request, kind, tmp_path))


def test_a_lookup_finds_what_was_known_at_its_event_wherever_and_whenever_it_is_built(log: ms.Log, placed: Any) -> None:
    with app_of(log, placed) as app:
        assert app.query(GetSales(), fresh=True) == EXPECTED
        assert app.query(GetPrices()) == {"a": 3900}
        receipt = log.append("shop", [Priced(item="b", cents=3), Sold(item="b", n=2)])
        assert app.query(GetSales(), after=receipt)[-1] == 6
        if not placed.inline and not placed.live:
            assert app.compare(Sales).same
            app.rebuild(Sales)
            assert app.query(GetSales(), fresh=True) == [*EXPECTED, 6]
            app.rollback(Sales)
            assert app.query(GetSales(), fresh=True) == [*EXPECTED, 6]
        assert app.query(GetSales(), at=ms.Position(8)) == [1, 100, 2, 200]
        assert app.query(GetPrices(), at=ms.Position(5)) == {"a": 2}


def test_what_reads_a_reader_carries_both(log: ms.Log, tmp_path: Path) -> None:
    app = app_of(log, Totals.into(str(tmp_path / "totals.db")), Prices.into(str(tmp_path / "prices.db")))

    class GetTotals(ms.Query[dict[str, Total]]):
        pass

    @app.query(reads=[Totals])
    def totals(query: GetTotals, db: ms.Database) -> dict[str, Total]:
        return Totals.find(db)

    with app:
        assert app.query(GetTotals(), fresh=True) == {"a": Total(sum(EXPECTED)), "b": Total(0)}
        assert app.query(GetSales()) == EXPECTED
        assert app.query(GetPrices(), fresh=True) == {"a": 3900}
        assert app.compare(Totals).same


def test_other_code_of_what_is_read_builds_the_reader_anew(log: ms.Log, tmp_path: Path) -> None:
    path = str(tmp_path / "read.db")
    with app_of(log, Sales.into(path)) as app:
        app.query(GetSales(), fresh=True)

    class Dearer(Prices):
        name = "Prices"

        @ms.on_batch(Priced)
        def priced(self, frame: pl.DataFrame, db: ms.Database) -> None:
            db.upsert("prices", frame.select("item", pl.col("cents") * 2), key="item")

    class Again(Sales):
        name = "Sales"
        reads = (Dearer,)

    app = ms.App(log, projections=[Again.into(path)])

    @app.query
    def get_sales(query: GetSales, db: ms.Database) -> list[int]:
        return [row["cents"] for row in db.query("select cents from sales order by position")]

    with app:
        deadline = time.monotonic() + 10
        while [each.state for each in app.read_models()[0].versions] != ["previous", "live"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert app.query(GetSales(), fresh=True) == [2 * cents for cents in EXPECTED]


LOOKUPS = [
    "prices where item = ?",
    "[prices] where item = ?",
    "main.prices where item = ?",
    "(select 1) as one, prices where item = ?",
    "seen_prices where item = ?",
]
"""Ways to name a table, the last one by a view."""


@pytest.mark.parametrize("where", ["file", "log"])
@pytest.mark.parametrize("lookup", LOOKUPS)
def test_a_lookup_that_was_not_declared_is_refused(log: ms.Log, tmp_path: Path, where: str, lookup: str) -> None:
    class Careless(ms.Projection):
        schema = """
        create table careless (position integer primary key, prices integer);
        create view if not exists seen_prices as select * from prices;
        """

        @ms.on
        def sold(self, event: Sold, db: ms.Database, recorded: ms.Recorded) -> None:
            db.execute(
                f"insert into careless (position, prices) values (?, (select cents from {lookup}))",
                (recorded.position, event.item),
            )

    into = None if where == "log" else str(tmp_path / "read.db")
    with ms.App(log, projections=[Prices.into(into), Careless.into(into)]) as app:
        deadline = time.monotonic() + 10
        while not app.failures(Careless):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "'Careless' uses the table 'prices' of 'Prices'" in app.failures(Careless)[0].error
    assert app.failures(Careless)[0].position == 2


@pytest.mark.parametrize(
    "statement",
    [
        "delete from main.prices",
        "delete from [prices]",
        "drop table main.prices",
        "/* why */ select count(*) from main . prices",
        "; -- why\nselect count(*) from 'main'.prices",
        "create temp table copied as select * from main.[prices]",
        "alter table main.prices rename to others",
        "alter table 'prices' add column more integer",
        "create index by_cents on [prices] (cents)",
        "create temp trigger odd after insert on main.prices begin select 1; end",
        "with p as (select * from prices) select 1 from p",
        "insert into careless select 1 where exists (select 1 from PRICES)",
    ],
)
@pytest.mark.parametrize("script", [False, True])
def test_so_is_any_other_statement_on_such_a_table(log: ms.Log, tmp_path: Path, statement: str, script: bool) -> None:
    class Careless(ms.Projection):
        schema = "create table careless (position integer)"

        @ms.on
        def sold(self, event: Sold, db: ms.Database) -> None:
            if script:
                db.executescript(f"create temp table one (n); insert into one values (';'); {statement}")
            else:
                db.execute(statement)

    into = str(tmp_path / "read.db")
    app = ms.App(log, projections=[Prices.into(into), Careless.into(into)])
    with app:
        deadline = time.monotonic() + 10
        while not app.failures(Careless):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "'Careless' uses the table 'prices' of 'Prices'" in app.failures(Careless)[0].error


@pytest.mark.parametrize("where", ["file", "log", "memory"])
@pytest.mark.parametrize(
    "statement",
    [
        "commit", "rollback", "savepoint mine", "pragma writable_schema = on", "pragma main.journal_mode = delete",
        "attach '{path}' as again", "/* why */ end",
    ],
)  # fmt: skip
def test_a_handler_ends_no_transaction_and_opens_no_database(
    log: ms.Log, tmp_path: Path, statement: str, where: str
) -> None:
    path = str(tmp_path / "read.db")

    class Careless(ms.Projection):
        schema = "create table careless (position integer)"

        @ms.on
        def sold(self, event: Sold, db: ms.Database, recorded: ms.Recorded) -> None:
            db.execute("insert into careless values (?)", (recorded.position,))
            if event.item == "odd":
                db.execute(statement.format(path=path))

    before = log.head
    log.append("x", [Sold(item="fine", n=1), Sold(item="odd", n=1), Sold(item="fine", n=1)])
    with ms.App(log, projections=[Careless.into({"file": path, "log": None, "memory": ":memory:"}[where])]) as app:
        deadline = time.monotonic() + 10
        while not app.failures(Careless):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        [failure] = app.failures(Careless)
        assert (failure.position, failure.error.partition(":")[0]) == (before + 2, "UsageError")

        @app.query
        def get_sales(query: GetSales, db: ms.Database) -> list[int]:
            return [row["position"] for row in db.query("select position from careless")]

        assert app.query(GetSales())[-1] == before + 1


@pytest.mark.parametrize("where", ["file", "log", "memory", "duckdb"])
@pytest.mark.parametrize(
    "statement",
    [
        "delete from millstream_checkpoints",
        "update Millstream_Checkpoints set position = 0",
        "drop table millstream_projections",
    ],
)
def test_the_librarys_own_tables_are_not_for_a_handler(log: ms.Log, tmp_path: Path, statement: str, where: str) -> None:
    class Careless(ms.Projection):
        schema = "create table careless (position integer)"

        @ms.on
        def sold(self, event: Sold, db: ms.Database, recorded: ms.Recorded) -> None:
            if event.item == "odd":
                db.execute(statement)
            db.execute("insert into careless values (?)", (recorded.position,))

    places = {"file": str(tmp_path / "read.db"), "log": None, "memory": ":memory:", "duckdb": str(tmp_path / "a.ddb")}
    log.append("x", [Sold(item="fine", n=1), Sold(item="odd", n=1)])
    with ms.App(log, projections=[Careless.into(places[where])]) as app:
        deadline = time.monotonic() + 10
        while not app.failures(Careless):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        [failure] = app.failures(Careless)
        assert failure.position == log.head
        assert failure.error.startswith("UsageError: the table 'millstream_")
        assert "the library's own" in failure.error


def test_nor_are_they_for_one_in_the_commits_of_the_log(log: ms.Log) -> None:
    class Careless(ms.Projection):
        schema = "create table careless (n integer)"

        @ms.on
        def sold(self, event: Sold, db: ms.Database) -> None:
            if event.item == "odd":
                db.execute("delete from millstream_checkpoints")
            db.execute("insert into careless values (?)", (event.n,))

    ms.App(log, projections=[Careless.inline()])
    before = log.head
    log.append("x", Sold(item="fine", n=1))
    with pytest.raises(ms.UsageError, match="'millstream_checkpoints' is the library's own"):
        log.append("x", Sold(item="odd", n=2))
    assert log.head == before + 1
    log.append("x", Sold(item="fine", n=3))
    with log.connect() as db:
        assert db.query("select n from careless")[-2:] == [{"n": 1}, {"n": 3}]


def test_a_checkpoint_that_was_deleted_all_the_same_is_told(log: ms.Log) -> None:
    ms.App(log, projections=[Prices.inline()])
    log.append("x", Priced(item="a", cents=1))
    with log.transaction() as tx:
        tx.db.execute("delete from millstream_checkpoints")
        tx.append("y", Sold(item="a", n=1))
    with pytest.raises(ms.DatabaseError, match="the checkpoint of inline projection 'Prices' is gone"):
        log.append("x", Priced(item="a", cents=2))


def test_what_is_its_own_or_passing_is_a_handlers_to_use(log: ms.Log, tmp_path: Path) -> None:
    class Careful(ms.Projection):
        schema = """
        create table careful (position integer primary key, price integer, parent integer references careful);
        create view if not exists seen as select * from careful;
        """

        @ms.on
        def sold(self, event: Sold, db: ms.Database, recorded: ms.Recorded) -> None:
            db.execute("pragma defer_foreign_keys = on")
            assert next(row["name"] for row in db.query("pragma table_info('careful')")) == "position"
            db.execute("create temp table if not exists prices (n integer)")  # not that of the other one
            db.execute("insert into prices values (?)", (recorded.position,))
            db.executescript("create table if not exists extra (n); insert into extra select n from prices;")
            db.execute("alter table extra add column more integer")
            db.upsert("careful", pl.DataFrame({"position": [recorded.position], "price": [1]}), key="position")
            db.execute("drop table prices")
            db.execute("drop table extra")
            assert db.one("select count(*) as n from seen where price = 1") is not None

    into = str(tmp_path / "read.db")
    written = log.append("x", [Sold(item="a", n=1), Sold(item="b", n=1), Priced(item="a", cents=3)])
    with ms.App(log, projections=[Prices.into(into), Careful.into(into)]) as app:

        @app.query(reads=[Careful])
        def get_sales(query: GetSales, db: ms.Database) -> list[int]:
            return [row["position"] for row in db.query("select position from careful")]

        assert app.query(GetSales(), after=written)[-2:] == [written.first, written.first + 1]


def test_declarations_that_cannot_be_kept_are_refused(log: ms.Log, tmp_path: Path) -> None:
    with pytest.raises(ms.UsageError, match="kept twice in one database"):
        ms.App(log, projections=[Prices.into(str(tmp_path / "a.db")), Sales.into(str(tmp_path / "a.db"))])

    class Framed(ms.Projection):
        reads = (Prices,)

        @ms.on_batch(Sold)
        def sold(self, frame: pl.DataFrame, db: ms.Database) -> None: ...

    with pytest.raises(ms.UsageError, match="takes events by the frame"):
        Framed.into()
    with pytest.raises(ms.UsageError, match="is no list"):
        type("Bare", (Sales,), {"reads": Prices}).into()
    with pytest.raises(ms.UsageError, match="is no projection"):
        type("Odd", (Sales,), {"reads": [int]}).into()
    one = type("One", (Sales,), {"reads": ()})
    other = type("Other", (Sales,), {"reads": (one,)})
    one.reads = (other,)
    with pytest.raises(ms.UsageError, match="read each other"):
        one.into()
