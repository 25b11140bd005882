"""Arguments that nobody should give: each is told by a typed error, and leaves nothing."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import millstream as ms


class Added(ms.Event, type="OddAdded"):
    n: int


class Heap(ms.Aggregate):
    @ms.on
    def added(self, event: Added) -> None: ...


class Heaps(ms.Projection):
    schema = "create table heaps (n integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database) -> None:
        db.execute("insert into heaps values (?)", (event.n,))


class Add(ms.Command):
    heap: ms.Ref[Heap]
    n: int


class Count(ms.Query[int]):
    pass


@pytest.fixture
def app() -> Iterator[Any]:
    with ms.open() as log:
        app = ms.App(log, projections=[Heaps.live()])

        @app.command
        def add(command: Add, heap: Heap) -> None:
            heap.record(Added(n=command.n))

        @app.query
        def count(query: Count, db: ms.Database) -> int:
            return int(db.query("select count(*) as n from heaps")[0]["n"])

        yield app
        app.stop()


ODD: dict[str, Callable[[Any], object]] = {
    "no list": lambda app: app.execute_all(None),
    "one command for a list": lambda app: app.execute_together(Add("a", 1)),
    "ids in a set": lambda app: app.execute_all([Add("a", 1)], ids={"k"}),
    "a correlation that is no text": lambda app: app.execute(Add("a", 1), correlation=3),
    "a correlation that cannot be stored": lambda app: app.execute(Add("a", 1), correlation="\ud800"),
    "a causation that is no text": lambda app: app.execute(Add("a", 1), causation=object()),
    "metadata in a list": lambda app: app.execute(Add("a", 1), metadata=[1]),
    "a time limit in words": lambda app: app.query(Count(), fresh=True, timeout="a while"),
    "no time limit": lambda app: app.query(Count(), fresh=True, timeout=None),
    "a time limit that is no number": lambda app: app.query(Count(), fresh=True, timeout=math.nan),
    "half a surrogate pair in JSON": lambda app: app.parse("Add", '{"heap":"\ud800","n":1}'),
    "a command of a number": lambda app: app.parse("Add", 3),
    "a query's class for a query": lambda app: app.query(Count),
    "a subscription for no time": lambda app: app.subscribe(Count(), timeout=math.nan),
    "a stop in words": lambda app: app.stop(timeout="soon"),
    "a place of a number": lambda app: Heaps.into(3),  # type: ignore[arg-type]
    "a place of bytes": lambda app: Heaps.into(b"read.db"),  # type: ignore[arg-type]
    "a place with a zero": lambda app: Heaps.into("read\0.db"),
    "a place without a name": lambda app: Heaps.into(""),
    "no log": lambda app: ms.App(None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_it_is_a_typed_error_and_leaves_nothing(app: Any, odd: Callable[[Any], object]) -> None:
    with pytest.raises((ms.UsageError, ms.Rejected)) as caught:
        odd(app)
    assert caught.value.hint or isinstance(caught.value, ms.Rejected)
    assert app.log.head == 0
    assert app.query(Count()) == 0


@pytest.mark.parametrize("method", ["execute", "executescript", "query", "one", "frame", "executemany"])
def test_a_statement_that_is_no_text_is_a_typed_error(app: Any, method: str) -> None:
    rows = ([],) if method == "executemany" else ()
    with pytest.raises(ms.DatabaseError, match="no SQL"), app.log.transaction() as tx:
        getattr(tx.db, method)(5, *rows)
    with pytest.raises(ms.DatabaseError, match="no SQL"), app.log.connect() as db:
        getattr(db, method)(5, *rows)


@pytest.mark.parametrize("rows", [5, None], ids=str)
@pytest.mark.parametrize("where", ["inline", "file", "duckdb"])
def test_what_is_no_rows_or_no_parameters_is_a_typed_error_that_shows_the_right_shape(
    log: ms.Log, tmp_path: Path, where: str, rows: Any
) -> None:
    told: list[ms.DatabaseError] = []

    class Shapes(ms.Projection):
        schema = "create table shapes (n integer)"

        @ms.on
        def added(self, event: Added, db: ms.Database) -> None:
            for run in (db.executemany, db.execute, db.query, db.one, db.frame):
                with pytest.raises(ms.DatabaseError) as caught:
                    run("select ?", rows)
                told.append(caught.value)

    path = tmp_path / ("read.duckdb" if where == "duckdb" else "read.db")
    with ms.App(log, projections=[Shapes.inline() if where == "inline" else Shapes.into(path)]):
        log.append("s", Added(n=5))
        deadline = time.monotonic() + 10
        while len(told) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(told) >= 5
    assert f"{rows} is no list of rows" in told[0].message
    assert "[(1, 'a'), (2, 'b')]" in told[0].hint
    assert all(each.hint for each in told)


def test_rows_that_cannot_be_made_leave_with_their_own_error(log: ms.Log) -> None:
    with pytest.raises(TypeError, match="unsupported operand"), log.transaction() as tx:
        tx.db.execute("create table odd (n integer)")
        tx.db.executemany("insert into odd values (?)", ((n + "a",) for n in [1]))  # type: ignore[operator]


def test_a_handler_that_gives_a_number_for_sql_is_told_so(log: ms.Log) -> None:
    class Numbers(ms.Projection):
        schema = "create table numbers (n integer)"

        @ms.on
        def added(self, event: Added, db: ms.Database) -> None:
            db.execute(event.n)  # type: ignore[arg-type]

    ms.App(log, projections=[Numbers.inline()])
    with pytest.raises(ms.DatabaseError, match="5 is no SQL"):
        log.append("s", Added(n=5))


def test_a_query_waits_without_end_if_it_is_told_to(log: ms.Log) -> None:
    app = ms.App(log, projections=[Heaps.into(":memory:")])

    @app.query
    def count(query: Count, db: ms.Database) -> int:
        return int(db.query("select count(*) as n from heaps")[0]["n"])

    with app:
        for timeout in (math.inf, 1e12):
            receipt = log.append("s", [Added(n=n) for n in range(20_000)])
            assert app.query(Count(), after=receipt, timeout=timeout) == receipt.position


def test_middleware_that_gives_no_receipt_back_is_told_so(app: Any) -> None:
    def forgets(context: ms.Context, execute: Callable[[], ms.Receipt]) -> Any:
        execute()

    app.middleware(forgets)
    with pytest.raises(ms.UsageError, match=r"forgets gave None"):
        app.execute(Add("a", 1))
    (outcome,) = app.execute_all([Add("a", 1)])
    assert isinstance(outcome, ms.UsageError)


def test_a_wrapped_handler_is_called_as_what_wraps_it_can_be(app: Any) -> None:
    def by_name(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(**given: Any) -> Any:
            return function(**given)

        return wrapper

    def by_any(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*given: Any, **named: Any) -> Any:
            return function(*given, **named)

        return wrapper

    class Named(ms.Query[int]):
        pass

    class Any_(ms.Query[int]):
        pass

    @app.query
    @by_name
    def named(query: Named, db: ms.Database) -> int:
        return 1

    @app.query
    @by_any
    def anyhow(query: Any_, *, db: ms.Database) -> int:
        return 2

    assert (app.query(Named()), app.query(Any_())) == (1, 2)


@pytest.mark.parametrize("sql", ["commit", "attach ':memory:' as other", "pragma cache_size = 0"])
def test_a_handler_is_told_which_statements_are_not_for_it(log: ms.Log, tmp_path: Path, sql: str) -> None:
    class Odd(ms.Projection):
        schema = "create table odd (n integer)"

        @ms.on
        def added(self, event: Added, db: ms.Database) -> None:
            db.execute(sql)

    app = ms.App(log, projections=[Odd.into(tmp_path / "read.db")])

    @app.query
    def count(query: Count, db: ms.Database) -> int:
        return 0

    with app, pytest.raises(ms.ProjectionFailed, match="not for a handler of a projection"):
        app.query(Count(), after=log.append("s", Added(n=1)))


def test_a_loop_that_is_closed_under_a_command_keeps_no_program_from_ending() -> None:
    code = """
        import asyncio
        import millstream as ms

        class Wait(ms.Command):
            pass

        app = ms.App(ms.open())

        @app.command
        async def wait(command: Wait) -> None:
            begun.set()
            await asyncio.sleep(1)

        begun = asyncio.Event()
        loop = asyncio.new_event_loop()
        task = loop.create_task(app.aexecute(Wait()))
        loop.run_until_complete(begun.wait())
        loop.close()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=30, capture_output=True)
