"""The past of read models, asked in the dialect of the database that they are kept in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import millstream as ms


class Poured(ms.Event, type="PastPoured"):
    glass: str
    drops: int


TOTAL = {
    "sqlite": "select group_concat(glass, ',') as all_of from (select glass from glasses order by glass)",
    "duckdb": "select array_to_string(list(glass order by glass), ',') as all_of from glasses",
    "postgresql": "select array_to_string(array_agg(glass order by glass), ',') as all_of from glasses",
}
"""Each is SQL of one of them alone."""


class Glasses(ms.Projection):
    schema = "create table glasses (glass varchar(50) primary key, drops bigint, spoken varchar(20))"

    @ms.on
    def poured(self, event: Poured, db: ms.Database) -> None:
        db.execute(
            "insert into glasses (glass, drops, spoken) values (?, ?, ?)"
            " on conflict (glass) do update set drops = glasses.drops + excluded.drops",
            (event.glass, event.drops, db.dialect),
        )


class Pours(ms.Projection):
    schema = "create table pours (position bigint primary key)"

    @ms.on
    def poured(self, event: Poured, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into pours values (?)", (recorded.position,))


class Ask(ms.Query[tuple[str, int, str, int]]):
    pass


@pytest.fixture(params=["sqlite", "duckdb", "postgresql", "in the log"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ms.Log, str | None, str]]:
    url = request.getfixturevalue("postgres") if request.param in ("postgresql", "in the log") else ""
    into = {"sqlite": "read.db", "duckdb": "read.duckdb"}.get(request.param)
    home = url if request.param == "in the log" else str(tmp_path / "log.db")
    with ms.open(home) as log:
        dialect = "postgresql" if url else request.param
        yield log, str(tmp_path / into) if into else url if request.param == "postgresql" else None, dialect
    if url:
        with psycopg.connect(url) as connection:
            left = connection.execute("select nspname from pg_namespace where nspname like 'millstream_apart%'")
            assert left.fetchall() == []


def test_the_past_speaks_the_dialect_of_the_present(place: Any, tmp_path: Path) -> None:
    log, into, dialect = place
    app = ms.App(log, projections=[Glasses.into(into), Pours.into(into)])

    @app.query
    def ask(query: Ask, db: ms.Database) -> tuple[str, int, str, int]:
        rows = db.query("select drops, spoken from glasses where glass = 'a'")
        names = db.query(TOTAL[db.dialect])[0]["all_of"]
        return names, rows[0]["drops"], rows[0]["spoken"], db.query("select count(*) as n from pours")[0]["n"]

    for glass in "abc":
        log.append("t", [Poured(glass=glass, drops=1), Poured(glass="a", drops=10)])
    with app:
        assert app.query(Ask(), fresh=True) == ("a,b,c", 31, dialect, 6)
        for _ in range(2):
            assert app.query(Ask(), at=ms.Position(2)) == ("a", 11, dialect, 2)
            assert app.query(Ask(), at=ms.Position(3)) == ("a,b", 11, dialect, 3)
            assert app.query(Ask(), at=ms.Position(6)) == ("a,b,c", 31, dialect, 6)
        assert app.query(Ask()) == ("a,b,c", 31, dialect, 6)
    if dialect == "duckdb":
        images = sorted(path.name.rpartition("-")[2] for path in (tmp_path / "read.duckdb.images").iterdir())
        assert images == ["2.duckdb", "3.duckdb", "6.duckdb"]


def test_a_failed_replay_of_the_past_leaves_nothing_behind(place: Any, tmp_path: Path) -> None:
    log, into, _ = place

    class Failing(Glasses):
        @ms.on
        def poured(self, event: Poured, db: ms.Database) -> None:
            raise ValueError("broken")

    app = ms.App(log, projections=[Failing.into(into)])

    @app.query
    def ask(query: Ask, db: ms.Database) -> Any: ...

    log.append("t", Poured(glass="a", drops=1))
    with pytest.raises(ms.ProjectionFailed):
        app.query(Ask(), at=ms.Position(1))
    app.stop()
    assert [path for path in tmp_path.glob("*.images/*") if path.name != "lock"] == []


class Joined(ms.Event, type="PastJoined"):
    name: str


class Bought(ms.Event, type="PastBought"):
    customer: str
    cents: int


class Customers(ms.Projection):
    schema = "create table past_customers (id varchar(40) primary key, name varchar(40) not null)"

    @ms.on
    def joined(self, event: Joined, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into past_customers values (?, ?)", (recorded.stream, event.name))


class Orders(ms.Projection):
    schema = """
    create table past_orders (
        customer varchar(40) not null references past_customers (id), who varchar(40) not null, cents bigint not null)
    """

    @ms.on
    def bought(self, event: Bought, db: ms.Database) -> None:
        # By name, as of the event: what is written depends on what the other table has then.
        db.execute(
            "insert into past_orders select id, name, ? from past_customers where id = ?", (event.cents, event.customer)
        )


class GetOrders(ms.Query[list]):
    pass


class CountOrders(ms.Query[int]):
    pass


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_inline_projections_that_refer_to_each_other_are_shown_as_they_stood_together(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    with ms.open(request.getfixturevalue("postgres") if kind == "postgres" else str(tmp_path / "log.db")) as log:
        app = ms.App(log, projections=[Customers.inline(), Orders.inline()])

        @app.query
        def get_orders(query: GetOrders, db: ms.Database) -> list[Any]:
            rows = db.query(
                "select c.name, o.who, o.cents from past_orders o join past_customers c on c.id = o.customer order by 3"
            )
            return [tuple(row.values()) for row in rows]

        @app.query(reads=[Orders])
        def count_orders(query: CountOrders, db: ms.Database) -> int:
            return db.query("select count(*) as n from past_orders")[0]["n"]  # type: ignore[no-any-return]

        log.append("ann", Joined(name="Ann"))
        log.append("till", Bought(customer="ann", cents=1))
        log.append("bob", [Joined(name="Bob")])
        log.append("till", [Bought(customer="bob", cents=2), Bought(customer="ann", cents=3)])
        assert app.query(GetOrders(), at=ms.Position(2)) == [("Ann", "Ann", 1)]
        assert app.query(GetOrders(), at=ms.Position(4)) == [("Ann", "Ann", 1), ("Bob", "Bob", 2)]
        assert [app.query(CountOrders(), at=ms.Position(n)) for n in (1, 3, 5)] == [0, 1, 3]
        assert app.query(GetOrders()) == app.query(GetOrders(), at=ms.Position(5))
        # Within a commit, customers have all of the events before orders have any: also in what is shown of the past.
        log.append("cid", [Bought(customer="cid", cents=9), Joined(name="Cid"), Bought(customer="cid", cents=8)])
        with log.transaction() as tx:
            tx.append("till", Bought(customer="dan", cents=7))
            tx.append("dan", Joined(name="Dan"))
        log.append("till", Bought(customer="dan", cents=6))
        now = app.query(GetOrders())
        assert [row[2] for row in now] == [1, 2, 3, 6, 7, 8, 9]
        seen = {n: [row[2] for row in app.query(GetOrders(), at=ms.Position(n))] for n in (6, 8, 9, 10, 11)}
        assert seen == {
            6: [1, 2, 3], 8: [1, 2, 3, 8, 9], 9: [1, 2, 3, 8, 9], 10: [1, 2, 3, 7, 8, 9], 11: [1, 2, 3, 6, 7, 8, 9]
        }  # fmt: skip
        assert app.query(GetOrders(), at=ms.Position(11)) == now
        app.stop()
