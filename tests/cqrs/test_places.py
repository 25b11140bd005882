"""The contract of a place: rows and checkpoint in one transaction, queries, versions; of every place alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import psycopg
import pytest

import millstream as ms
from millstream.storage.duckdb.database import open_database as open_duck


class Poured(ms.Event, type="PlacePoured"):
    glass: str
    drops: int


class Glasses(ms.Projection):
    schema = "create table glasses (glass varchar(50) primary key, drops bigint not null check (drops < 1000))"

    @ms.on
    def poured(self, event: Poured, db: ms.Database) -> None:
        db.execute(
            "insert into glasses (glass, drops) values (?, ?)"
            " on conflict (glass) do update set drops = glasses.drops + excluded.drops",
            (event.glass, event.drops),
        )


class Doubled(ms.Projection):
    """The same read model by other code and other tables, from frames."""

    name = "Glasses"
    schema = Glasses.schema + "; create table pours (n bigint)"

    @ms.on_batch(Poured)
    def poured(self, frame: pl.DataFrame, db: ms.Database) -> None:
        sums = frame.group_by("glass").agg(pl.col("drops").sum() * 2)
        db.upsert("glasses", sums, key="glass", add=["drops"])
        db.insert("pours", frame.select(n="_position"))


class GetGlasses(ms.Query[dict[str, int]]):
    pass


class Place(NamedTuple):
    log: ms.Log
    into: str | None


@pytest.fixture(
    params=[
        ("sqlite", "file"),
        ("sqlite", "log"),
        ("sqlite", "memory"),
        ("sqlite", "duckdb"),
        ("sqlite", "postgres"),
        ("sqlite", "postgres schema"),
        ("postgres", "log"),
        ("memory", "memory"),
        ("memory", "postgres"),
    ],
    ids=lambda param: "-".join(param).replace(" ", "-"),
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    home, kind = request.param
    url = request.getfixturevalue("postgres") if "postgres" in home + kind else ""
    into = {
        "file": str(tmp_path / "read.db"),
        "log": None,
        "memory": ":memory:",
        "duckdb": str(tmp_path / "read.duckdb"),
        "postgres": url,
        "postgres schema": f"{url}?schema=shop",
    }[kind]
    with ms.open({"sqlite": str(tmp_path / "log.db"), "memory": None, "postgres": url}[home]) as log:
        yield Place(log, into)


def app_of(place: Place, projection: Any = Glasses) -> ms.App:
    app = ms.App(place.log, projections=[projection.into(place.into)])

    @app.query
    def get_glasses(query: GetGlasses, db: ms.Database) -> dict[str, int]:
        return {row["glass"]: row["drops"] for row in db.query("select * from glasses order by glass")}

    return app


def eventually(app: ms.App, states: list[str]) -> None:
    deadline = time.monotonic() + 5
    while [version.state for version in app.read_models()[0].versions] != states:
        assert time.monotonic() < deadline, app.read_models()
        time.sleep(0.02)


def test_a_query_sees_the_write_it_was_told_to_wait_for(place: Place) -> None:
    app = app_of(place)
    place.log.append("a", Poured(glass="red", drops=3))
    app.start()
    try:
        receipt = place.log.append("a", [Poured(glass="red", drops=4), Poured(glass="blue", drops=1)])
        assert app.query(GetGlasses(), after=receipt) == {"blue": 1, "red": 7}
    finally:
        app.stop()
    assert app.query(GetGlasses()) == {"blue": 1, "red": 7}


def test_what_was_kept_is_gone_on_with_and_nothing_is_applied_twice(place: Place) -> None:
    for _ in range(2):
        app = app_of(place)
        app.start()
        receipt = place.log.append("a", Poured(glass="red", drops=1))
        app.query(GetGlasses(), after=receipt)
        app.stop()
    app.start()
    assert app.query(GetGlasses(), fresh=True) == {"red": 2}
    app.stop()


def test_rows_and_checkpoint_are_of_one_transaction(place: Place) -> None:
    app = app_of(place)
    place.log.append(
        "a", [Poured(glass="red", drops=900), Poured(glass="blue", drops=1), Poured(glass="red", drops=200)]
    )
    app.start()
    try:
        with pytest.raises(ms.ProjectionFailed) as caught:
            app.query(GetGlasses(), fresh=True)
        assert caught.value.position == 3
        assert app.query(GetGlasses()) == {"blue": 1, "red": 900}
        assert app.read_models()[0].position == 2
        app.skip(Glasses)
        receipt = place.log.append("a", Poured(glass="red", drops=50))
        assert app.query(GetGlasses(), after=receipt, timeout=20) == {"blue": 1, "red": 950}
    finally:
        app.stop()


def test_a_handler_that_catches_the_error_of_a_statement_fails_where_that_has_spoiled_the_transaction(
    place: Place,
) -> None:
    class Catching(Glasses):
        name = "Glasses"

        @ms.on
        def poured(self, event: Poured, db: ms.Database) -> None:
            with suppress(ms.ConstraintViolated):
                db.execute("insert into glasses (glass, drops) values (?, ?)", (event.glass, event.drops))

    app = app_of(place, Catching)
    glasses = ["a", "b", "b", "c"]
    place.log.append("a", [Poured(glass=glass, drops=n) for n, glass in enumerate(glasses)])
    with app:
        home = str(place.into or place.log.location)
        if "postgresql" not in home and "duckdb" not in home:
            assert app.query(GetGlasses(), fresh=True) == {"a": 0, "b": 1, "c": 3}
            return
        with pytest.raises(ms.ProjectionFailed, match="its error was caught") as caught:
            app.query(GetGlasses(), fresh=True)
        assert caught.value.position == 3
        assert app.query(GetGlasses()) == {"a": 0, "b": 1}
        app.skip(Catching)
        assert app.query(GetGlasses(), fresh=True, timeout=20) == {"a": 0, "b": 1, "c": 3}


def test_what_is_parked_waits_with_its_stream_and_is_retried(place: Place) -> None:
    class Parking(Glasses):
        name = "Glasses"
        on_failure = "park"

    app = app_of(place, Parking)
    for stream, drops in (("a", 900), ("a", 200), ("a", 1), ("b", 5)):
        place.log.append(stream, Poured(glass=stream, drops=drops))
    app.start()
    try:
        assert app.query(GetGlasses(), fresh=True) == {"a": 900, "b": 5}
        with pytest.raises(ms.ProjectionFailed):
            app.retry(Parking)
        app._follower(Parking).target.transact(lambda db: db.execute("update glasses set drops = 0 where glass = 'a'"))
        assert app.retry(Parking) == 2
        assert app.query(GetGlasses()) == {"a": 201, "b": 5}
    finally:
        app.stop()


def test_a_query_cannot_write(place: Place) -> None:
    app = app_of(place)

    class Spill(ms.Query[None]):
        pass

    @app.query
    def spill(query: Spill, db: ms.Database) -> None:
        db.execute("delete from glasses")

    with pytest.raises(ms.UsageError, match="writes"):
        app.query(Spill())


def test_changed_code_is_built_beside_takes_the_place_and_is_rolled_back(place: Place) -> None:
    app = app_of(place)
    for number in range(30):
        place.log.append(f"a-{number}", [Poured(glass=f"g{number}", drops=1), Poured(glass="red", drops=2)])
    app.start()
    before = app.query(GetGlasses(), fresh=True)
    if place.into != ":memory:":  # each process fills its own: there is nothing of older code
        app.stop()
        app = app_of(place, Doubled)
        assert app.query(GetGlasses()) == before
        app.start()
        eventually(app, ["previous", "live"])
        place.log.append("a", Poured(glass="red", drops=1))
        assert app.query(GetGlasses(), fresh=True) == {name: 2 * n + 2 * (name == "red") for name, n in before.items()}
        assert app.compare(Doubled).same
    else:
        assert app.rebuild(Glasses).number == 2
        place.log.append("a", Poured(glass="red", drops=1))
        assert app.query(GetGlasses(), fresh=True) == {**before, "red": before["red"] + 1}
        assert app.compare(Glasses).same
    app.stop()
    assert app.rollback(Glasses).number == 1
    assert app.query(GetGlasses()) == before
    assert app.rebuild(Glasses).number == 3
    assert [version.number for version in app.read_models()[0].versions] == [1, 3]
    app.stop()


def test_a_comparison_tells_rows_that_no_replay_would_make(place: Place) -> None:
    app = app_of(place)
    place.log.append("a", Poured(glass="red", drops=3))
    app.start()
    app.query(GetGlasses(), fresh=True)
    app.stop()
    app._follower(Glasses).target.transact(lambda db: db.execute("update glasses set drops = 4"))
    found = app.compare(Glasses)
    assert [(each.missing, each.surplus) for each in found.differences] == [(1, 1)]
    app.stop()


def test_frames_go_to_postgresql_by_copy_in_one_statement(postgres: str) -> None:
    said: list[str] = []
    with ms.open() as log:
        app = app_of(Place(log, postgres), Doubled)
        log.append("a", pl.DataFrame({"glass": [f"g{n}" for n in range(500)], "drops": [1] * 500}), type="PlacePoured")
        copy = psycopg.Cursor.copy

        def seen(self: Any, statement: Any, *args: Any, **options: Any) -> Any:
            said.append(str(statement))
            return copy(self, statement, *args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(psycopg.Cursor, "copy", seen)
            app.start()
            try:
                found = app.query(GetGlasses(), fresh=True)
            finally:
                app.stop()
        assert found == {f"g{n}": 2 for n in range(500)}
    assert any("pg_temp.millstream_upsert" in each for each in said)
    assert any('"pours"' in each for each in said)


def test_a_schema_of_somebody_else_is_not_dropped_for_a_version(postgres: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("create schema public_glasses_2; create table public_glasses_2.dear (n int)")
        with ms.open() as log:
            app = app_of(Place(log, postgres))
            with pytest.raises(ms.UsageError, match="no read model's"):
                app.rebuild(Glasses)
            app.stop()
        assert connection.execute("select count(*) from public_glasses_2.dear").fetchone() == (0,)


def test_read_models_in_several_databases_are_not_shown_together(tmp_path: Path) -> None:
    class Other(ms.Projection):
        schema = "create table other (n integer)"

        @ms.on
        def poured(self, event: Poured, db: ms.Database) -> None:
            db.execute("insert into other values (1)")

    with ms.open() as log:
        app = ms.App(
            log, projections=[Glasses.into(str(tmp_path / "a.duckdb")), Other.into(str(tmp_path / "b.duckdb"))]
        )
        with pytest.raises(ms.UsageError, match="no connection shows them all"):

            @app.query(reads=[Glasses, Other])
            def both(query: GetGlasses, db: ms.Database) -> dict[str, int]:
                return {}

        app.stop()


class Pours(ms.Projection):
    schema = "create table pours (n bigint)"

    @ms.on
    def poured(self, event: Poured, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into pours values (?)", (recorded.position,))


class Both(ms.Query[tuple[int, int]]):
    pass


def test_read_models_of_one_duckdb_file_are_shown_together_whichever_versions_answer(tmp_path: Path) -> None:
    def app_of_both(log: ms.Log) -> ms.App:
        into = str(tmp_path / "a.duckdb")
        app = ms.App(log, projections=[Glasses.into(into), Pours.into(into)])

        @app.query
        def both(query: Both, db: ms.Database) -> tuple[int, int]:
            found = db.one("select (select count(*) from glasses) as g, (select count(*) from pours) as p")
            assert found is not None
            return found["g"], found["p"]

        return app

    with ms.open(tmp_path / "log.db") as log:
        with app_of_both(log) as app:
            for change in (app.rebuild, app.rollback, app.rebuild, app.rebuild):  # the first one to be deleted at last
                change(Glasses)
                log.append("t", [Poured(glass=f"g{log.head}", drops=1)])
                assert app.query(Both(), fresh=True) == (log.head, log.head)
        with app_of_both(log) as app:
            app.rebuild(Pours)
            assert app.query(Both(), fresh=True) == (log.head, log.head)


def test_a_url_of_nothing_that_keeps_read_models_is_refused() -> None:
    with ms.open() as log, pytest.raises(ms.UsageError, match="no place for a read model"):
        ms.App(log, projections=[Glasses.into("mysql://root@localhost/shop")])


def test_a_duckdb_file_is_opened_while_another_thread_closes_it_last(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(40):
                with closing(open_duck(str(tmp_path / "read.duckdb"))) as db:
                    db.execute("select 1")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
