"""Queries: how handlers are bound, and what the database shows them."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest

import millstream as ms


class Added(ms.Event):
    n: int


class Write(ms.Projection):
    schema = "create table written (n integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database) -> None:
        db.execute("insert into written values (?)", (event.n,))


class One(ms.Projection):
    schema = "create table one (n integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database) -> None:
        db.execute("insert into one values (?)", (event.n,))


class Two(ms.Projection):
    schema = "create table two (n integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database) -> None:
        if event.n < 0:
            raise ValueError("negative")
        db.execute("insert into two values (?)", (event.n,))


class Sums(ms.Query[dict[str, int]]):
    least: int = 0


class Number(ms.Query[int]):
    pass


@pytest.fixture(params=["files", "the log's database", "the log's PostgreSQL"])
def places(request, tmp_path):
    """Where the log is, and where the read models One and Two are."""
    log = request.getfixturevalue("postgres") if "PostgreSQL" in request.param else str(tmp_path / "log.db")
    if request.param == "files":
        return log, tmp_path / "one's 100%.db", str(tmp_path / "two.db")
    return log, None, None


@pytest.fixture
def log(places):
    with ms.open(places[0]) as log:
        yield log


@pytest.fixture
def app(log, places):
    with ms.App(log, projections=[Write.inline(), One.into(places[1]), Two.into(places[2])]) as app:
        yield app


def test_the_tables_of_all_read_models_are_at_hand(log, app):
    @app.query
    def sums(query: Sums, db: ms.Database) -> dict[str, int]:
        row = db.one(
            "select (select sum(n) from written where n >= :least) as written,"
            " (select sum(n) from one where n >= :least) as one,"
            " (select sum(n) from two where n >= :least) as two",
            {"least": query.least},
        )
        assert row is not None
        return row

    receipt = log.append("a", [Added(n=1), Added(n=2)])
    assert app.query(Sums(), after=receipt) == {"written": 3, "one": 3, "two": 3}
    assert app.query(Sums(least=2), after=receipt.position) == {"written": 2, "one": 2, "two": 2}


@pytest.mark.parametrize("reads", [None, [Write]], ids=["all", "the log's database alone"])
def test_all_statements_of_a_handler_see_one_moment(log, app, reads):
    @app.query(reads=reads)
    def number(query: Number, db: ms.Database) -> int:
        before = db.one("select count(*) as n from written")
        log.append("a", Added(n=1))
        after = db.one("select count(*) as n from written")
        assert before == after
        return after["n"]

    assert [app.query(Number()) for _ in range(3)] == [0, 1, 2]


def test_an_error_of_a_handler_leaves_the_connection_usable(log, app):
    @app.query
    def number(query: Number, db: ms.Database) -> int:
        found = db.one("select n from one")
        if found is None:
            raise ms.NotFound("there is none")
        return found["n"]

    with pytest.raises(ms.NotFound):
        app.query(Number())
    assert app.query(Number(), after=log.append("a", Added(n=5))) == 5


def test_a_query_that_says_what_it_reads_waits_for_that_alone(log, app):
    @app.query(reads=[One])
    def number(query: Number, db: ms.Database) -> int:
        return db.one("select sum(n) as n from one")["n"]

    @app.query
    def sums(query: Sums, db: ms.Database) -> dict[str, int]:
        return {}

    receipt = log.append("a", Added(n=-1))
    assert app.query(Number(), after=receipt) == -1
    with pytest.raises(ms.ProjectionFailed, match="'Two'"):
        app.query(Sums(), after=receipt)


def test_a_query_that_only_reads_the_write_side_does_not_wait(log, app):
    @app.query(reads=[Write])
    def number(query: Number, db: ms.Database) -> int:
        return db.one("select sum(n) as n from written")["n"]

    app.stop()
    assert app.query(Number(), after=log.append("a", Added(n=3)), timeout=0) == 3


@pytest.mark.parametrize("places", ["files"], indirect=True)
def test_a_query_is_shown_only_what_it_says_it_reads(app):
    @app.query(reads=[One, Write])
    def number(query: Number, db: ms.Database) -> int:
        db.query("select * from one, written")
        return len(db.query("select * from two"))

    with pytest.raises(ms.DatabaseError, match="no such table: two"):
        app.query(Number())


class TestReadModelsInFilesBesideALogThatIsNone:
    """A log in PostgreSQL or in memory: no connection shows its tables and those of a file at once."""

    @pytest.fixture(params=["memory", "postgres"])
    def log(self, request):
        with ms.open(request.getfixturevalue("postgres") if request.param == "postgres" else None) as log:
            yield log

    @pytest.fixture
    def app(self, log, tmp_path):
        with ms.App(log, projections=[Write.inline(), One.into(tmp_path / "one.db")]) as app:
            yield app

    def test_each_is_shown_to_a_query_that_says_it_reads_it(self, log, app):
        @app.query(reads=[One])
        def number(query: Number, db: ms.Database) -> int:
            return db.one("select sum(n) as n from one")["n"]

        @app.query(reads=[Write])
        def sums(query: Sums, db: ms.Database) -> dict[str, int]:
            return db.one("select sum(n) as n from written where n >= :least", {"least": query.least})

        receipt = log.append("a", Added(n=3))
        assert app.query(Number(), after=receipt) == 3
        assert app.query(Sums(), after=receipt) == {"n": 3}

    def test_a_query_that_says_it_reads_both_is_refused(self, app):
        with pytest.raises(
            ms.UsageError, match=r"Number reads tables of several databases, .*all: file, log.*two quer"
        ):

            @app.query(reads=[One, Write])
            def number(query: Number, db: ms.Database) -> int:
                raise AssertionError("not to be asked")

    def test_a_query_that_finds_no_table_is_told_to_say_what_it_reads(self, app):
        @app.query
        def number(query: Number, db: ms.Database) -> int:
            db.query("select * from one")
            return len(db.query("select * from written"))

        with pytest.raises(ms.DatabaseError, match=r"no such table: written.*in SQLite alone.*reads="):
            app.query(Number())


def test_reading_a_projection_of_another_app_is_refused(log):
    with pytest.raises(ms.UsageError, match="One is not a projection of this app"):

        @ms.App(log).query(reads=[One])
        def number(query: Number) -> int:
            return 1


def test_a_query_without_a_handler_is_refused(app):
    with pytest.raises(ms.UnknownQuery, match="Number"):
        app.query(Number())


def test_a_query_has_one_handler(app):
    @app.query
    def number(query: Number) -> int:
        return 1

    with pytest.raises(ms.DuplicateHandler, match="Number"):

        @app.query
        def again(query: Number) -> int:
            return 2

    assert app.query(Number()) == 1


def test_a_parameter_of_an_unknown_kind_is_refused(app):
    with pytest.raises(ms.InvalidHandler, match="parameter 'cache'"):

        @app.query
        def number(query: Number, cache: dict) -> int:  # type: ignore[type-arg]
            return 1


def test_what_is_neither_query_nor_function_is_refused(app):
    with pytest.raises(ms.InvalidHandler, match="neither a query nor a function"):
        app.query({"order": "o-1"})


def test_a_log_in_memory_has_queries_too():
    log = ms.open()
    app = ms.App(log, projections=[Write.inline()])

    @app.query
    def number(query: Number, db: ms.Database) -> int:
        return db.one("select sum(n) as n from written")["n"]

    assert app.query(Number(), after=log.append("a", Added(n=3))) == 3


def test_many_threads_may_ask_at_once(log, app):
    @app.query
    def number(query: Number, db: ms.Database) -> int:
        return db.one("select count(*) as n from one")["n"]

    results: list[Any] = []

    def ask() -> None:
        for _ in range(10):
            receipt = log.append("a", Added(n=1))
            results.append(app.query(Number(), after=receipt) >= 1)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 120


TYPED = """
from __future__ import annotations
from decimal import Decimal
from typing import Any
import millstream as ms

class Placed(ms.Event):
    total: Decimal

class Order(ms.Aggregate):
    total: Decimal = Decimal(0)

    def place(self, total: Decimal) -> None:
        self.record(Placed(total=total))

    @ms.on
    def placed(self, event: Placed) -> None:
        self.total += event.total

    @ms.on(Placed)
    def placed_again(self, event: Placed) -> None: ...

class PlaceOrder(ms.Command):
    order: ms.Ref[Order]
    total: Decimal

class GetOrder(ms.Query[dict[str, Any]]):
    order: str

class Orders(ms.Projection):
    @ms.on
    def placed(self, event: Placed, db: ms.Database, recorded: ms.Recorded) -> None: ...

log = ms.open()
app = ms.App(log, projections=[Orders.inline(), Orders.into("read.db")])

@app.command
def place_order(command: PlaceOrder, order: Order) -> None:
    order.place(command.total)

@app.query
def get_order(query: GetOrder, db: ms.Database) -> dict[str, Any]:
    return {}

@app.query(reads=[Orders])
def get_it(query: GetOrder, db: ms.Database) -> dict[str, Any]:
    return {}

receipt = app.execute(PlaceOrder("order-1", Decimal(1)), id="r")
orders = ms.Repository(log, Order)
reveal_type(app.query(GetOrder("o-1"), after=receipt))
reveal_type(orders.get("order-1", at=ms.Position(1)).total)
reveal_type(orders.update("order-1", lambda order: order.place(Decimal(1))))
with orders.edit("order-1") as order:
    reveal_type(order.total)
for step in orders.history("order-1"):
    reveal_type(step.state.total)
reveal_type(place_order)
PlaceOrder(order=1, total=Decimal(1))
Placed(Decimal(1))
Placed(total=Decimal(1)).total = Decimal(2)
PlaceOrder("order-1", Decimal(1)).total = Decimal(2)
GetOrder("order-1").order = "order-2"
"""


def test_type_checkers_see_through_it(tmp_path):
    (tmp_path / "typed.py").write_text(TYPED)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "typed.py"]
    env = {"PYTHONPATH": "", "MYPYPATH": ms.__file__.rpartition("/millstream/")[0], "PATH": ""}
    out = subprocess.run(mypy, capture_output=True, text=True, cwd=tmp_path, env=env).stdout
    shown = [line.partition(": ")[2] for line in out.splitlines() if "typed.py" in line]
    assert shown == [
        'note: Revealed type is "dict[str, Any]"',
        'note: Revealed type is "decimal.Decimal"',
        'note: Revealed type is "millstream.storage.base.Receipt"',
        'note: Revealed type is "decimal.Decimal"',
        'note: Revealed type is "decimal.Decimal"',
        'note: Revealed type is "def (command: typed.PlaceOrder, order: typed.Order)"',
        'error: Argument "order" to "PlaceOrder" has incompatible type "int"; expected "str | Reference[Order]"'
        "  [arg-type]",
        'error: Too many positional arguments for "Placed"  [call-arg]',
        'error: Property "total" defined in "Placed" is read-only  [misc]',
        'error: Property "total" defined in "PlaceOrder" is read-only  [misc]',
        'error: Property "order" defined in "GetOrder" is read-only  [misc]',
    ]


@pytest.mark.parametrize("after", ["x", -1, 1, True, 1.5])
def test_what_is_no_position_of_the_log_is_not_waited_for(log, app, after):
    @app.query
    def number(query: Number) -> int:
        return 1

    with pytest.raises(ms.InvalidPosition, match="after="):
        app.query(Number(), after=after)
    assert app.query(Number(), after=0) == 1


@pytest.mark.parametrize("kind", ["files", "the log's database", "memory"])
def test_a_query_that_writes_is_told_that_queries_only_read(log, app, kind):
    if kind == "memory":
        log = ms.open()
        app = ms.App(log, projections=[Write.inline()])

    @app.query(reads=[One] if kind == "files" else [Write])
    def number(query: Number, db: ms.Database) -> int:
        db.execute(f"insert into {'one' if kind == 'files' else 'written'} values (1)")
        return 1

    with pytest.raises(ms.UsageError, match="handler of Number writes, and queries only read"):
        app.query(Number())
    log.append("a", Added(n=1))
    with log.connect() as db:
        assert db.query("select * from written") == [{"n": 1}]
    if kind == "memory":
        log.close()


@pytest.mark.parametrize("place", ["inline", "log", "file"])
def test_a_cursor_that_a_query_leaves_open_shows_the_next_one_no_past(tmp_path, place):
    class Numbers(ms.Projection):
        schema = "create table numbers (n integer)"

        @ms.on
        def added(self, event: Added, db: ms.Database) -> None:
            db.execute("insert into numbers values (?)", (event.n,))

    class HowMany(ms.Query[int]):
        pass

    class Broken(ms.Query[int]):
        pass

    kept = {"inline": Numbers.inline(), "log": Numbers.into(), "file": Numbers.into(tmp_path / "read.db")}[place]
    log = ms.open(tmp_path / "log.db")
    with ms.App(log, projections=[kept]) as app:

        @app.query
        def how_many(query: HowMany, db: ms.Database) -> int:
            return int(db.query("select count(*) as n from numbers")[0]["n"])

        @app.query
        def broken(query: Broken, db: ms.Database) -> int:
            rows = db.execute("select n from numbers")
            rows.fetchone()
            raise ValueError("its traceback keeps the cursor")

        receipt = log.append("s", [Added(n=n) for n in range(10)])
        assert app.query(HowMany(), after=receipt) == 10
        with pytest.raises(ValueError, match="cursor") as raised:
            app.query(Broken())
        for count in range(11, 14):
            receipt = log.append("s", Added(n=count))
            assert app.query(HowMany(), after=receipt) == count
        assert raised.value.__traceback__ is not None
