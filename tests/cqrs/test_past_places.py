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
