"""What the statements of `millstream postgres grants` let a role do, and what they do not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import polars as pl
import psycopg
import pytest

import millstream as ms
from millstream.cli.postgres import consumer_tables
from millstream.storage.postgres.place import parse_url
from millstream.storage.postgres.roles import Ability, grants

_numbers = count(1)


class Added(ms.Event):
    n: int


class Numbers(ms.Projection):
    schema = "create table numbers (n integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database) -> None:
        db.execute("insert into numbers values (?)", (event.n,))


@pytest.fixture
def log(postgres):
    """The owner's."""
    with ms.open(postgres + "?schema=shop") as log:
        log.append("a", [Added(n=1), Added(n=2)])
        log.append("clicks", pl.DataFrame({"user": ["ann"]}), type="Click")
        yield log


@pytest.fixture
def as_role(postgres, postgres_server, log) -> Callable[..., str]:
    """The log's URL for a new role that may do so much."""

    def make(ability: Ability | None = None) -> str:
        role = f"Role {next(_numbers)}"
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(f'create role "{role}" login')
            if ability is not None:
                for statement in grants(parse_url(postgres, "shop"), role, ability, CONSUMERS):
                    connection.execute(statement)
        database = postgres.rpartition("/")[2]
        return postgres_server.url(database, user=role.replace(" ", "%20"), schema="shop")

    return make


CONSUMERS = consumer_tables()
WRITES = [
    "update shop.runs set body = '{}'",
    "delete from shop.runs",
    "truncate shop.runs",
    "insert into shop.runs select * from shop.runs",
    "insert into shop.streams (name) values ('x')",
    "alter table shop.runs add column mine text",
    "alter table shop.runs disable trigger all",
    "drop table shop.runs",
    "create table shop.mine (n int)",
    "create or replace function shop.head() returns int language sql as 'select 1'",
    "drop schema shop cascade",
]


def refused(url: str, statement: str) -> bool:
    with psycopg.connect(url.partition("?")[0], autocommit=True) as connection:
        try:
            connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            return True
    return False


def test_a_role_without_grants_is_denied_with_a_hint(as_role):
    for options in ({}, {"readonly": True}):
        with pytest.raises(ms.PermissionDenied, match=r"permission denied for schema shop.*postgres grants"):
            ms.open(as_role(), **options)


# --- append ----------------------------------------------------------------------------------------


def test_a_role_that_may_append_appends_whatever_there_is(log, as_role):
    with ms.open(as_role(Ability.APPEND)) as writer:
        first = writer.append("b", [Added(n=3), Added(n=4)], expect=0, id="x", tags=["t"])
        assert writer.append("b", [Added(n=3), Added(n=4)], expect=0, id="x", tags=["t"]) == first
        with pytest.raises(ms.VersionConflict):
            writer.append("b", Added(n=5), expect=7)
        with pytest.raises(ms.ConditionFailed):
            writer.append("b", Added(n=5), unless=ms.Matching(tags=["t"]))
        writer.append("clicks", pl.DataFrame({"user": ["bob"], "page": ["/"]}), type="Click")
        with pytest.raises(ms.SchemaConflict):
            writer.append("clicks", pl.DataFrame({"user": [7]}), type="Click")
        writer.append("large", ms.Plain("Large", {"text": "x" * 2_000_000}))
        with writer.transaction(id="y") as tx:
            tx.append("c", Added(n=6))
            tx.append("d", Added(n=7))
            tx.db.execute("select 1")
        assert writer.head == log.head == tx.receipt.position
    assert [e.data["n"] for e in log.read(types=Added)] == [1, 2, 3, 4, 6, 7]
    assert log.scan("clicks").collect()["user"].to_list() == ["ann", "bob"]
    log.verify()


def test_it_finds_out_what_became_of_a_commit_whose_answer_was_lost(log, as_role):
    with ms.open(as_role(Ability.APPEND)) as writer:
        writer.append("b", Added(n=3))
        with log.connect() as db:
            db.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename like 'Role %'")
        assert writer.append("b", Added(n=4)).version == 2
    assert [e.data["n"] for e in log.read("b")] == [3, 4]


def test_it_reads_nothing_and_changes_nothing(log, as_role):
    url = as_role(Ability.APPEND)
    with ms.open(url) as writer:
        for read in (
            lambda: list(writer.read()),
            lambda: list(writer.read("a")),
            lambda: list(writer.read(types=Added)),
            lambda: list(writer.streams()),
            lambda: writer.scan("clicks").collect(),
            lambda: writer.version("a"),
            lambda: writer.verify(),
        ):
            with pytest.raises(ms.PermissionDenied, match="permission denied for"):
                read()
    names = ["runs", "bodies", "streams", "kinds", "tags", "appends", "catalogue", "ranges", "events"]
    reads = [f"select * from shop.{name}" for name in names]
    assert [statement for statement in [*reads, *WRITES] if not refused(url, statement)] == []
    assert log.head == 3


# --- read ------------------------------------------------------------------------------------------


def test_a_role_that_may_read_reads_scans_and_follows(log, as_role):
    url = as_role(Ability.READ)
    for options in ({}, {"readonly": True}):
        with ms.open(url, **options) as reader:
            following = reader.follow(after=0, timeout=10)
            assert [next(following).position for _ in range(3)] == [1, 2, 3]
            log.append("a", Added(n=3))
            assert next(following).stream == "a"
            following.close()
            assert reader.scan("clicks").collect()["user"].to_list() == ["ann"]
            assert [info.name for info in reader.streams()] == ["a", "clicks"]
            assert [e.data["n"] for e in reader.read("a", until_version=3)] == [1, 2]
            assert reader.version("a") == log.version("a")
            assert next(reader.read_until(log.now())).position == 1
            reader.verify()


def test_it_cannot_append_and_changes_nothing(log, as_role):
    url = as_role(Ability.READ)
    with ms.open(url) as reader:
        with pytest.raises(ms.ReadOnlyLog, match=r"read-only.*postgres grants"):
            reader.append("a", Added(n=3))
        with pytest.raises(ms.ReadOnlyLog), reader.transaction() as tx:
            tx.db.execute("select 1")
    calls = ["select shop.append('[]', '{}', null, null, '1s')", "select shop.lock('1s')"]
    assert [statement for statement in [*calls, *WRITES] if not refused(url, statement)] == []


def test_it_reads_what_consumers_keep_later(log, as_role):
    url = as_role(Ability.READ)
    flow = ms.stream("clicks").select("user").to("users", type="User")
    ms.run(log, flow, until="head")
    with ms.open(url) as reader, reader.connect() as db:
        assert [row["name"] for row in db.query("select name from shop.millstream_checkpoints")] == ["flow:users/User"]


# --- consume ---------------------------------------------------------------------------------------


def test_a_role_that_may_consume_runs_flows_captures_and_projections(log, as_role, tmp_path):
    import sqlite3

    source = tmp_path / "shop.sqlite"
    with sqlite3.connect(source) as db:
        db.execute("create table users (id integer primary key)")
        db.execute("insert into users values (7)")
    db.close()
    url = as_role(Ability.CONSUME)
    with ms.open(url) as consumer:
        ms.run(consumer, ms.stream("clicks").select("user").to("users-of", type="User"), until="head")
        ms.capture(f"sqlite:///{source}").catch_up(consumer)
        with ms.App(consumer, projections=[Numbers.into(tmp_path / "read.db")]) as app:

            class Count(ms.Query[int]):
                pass

            @app.query
            def number(query: Count, db: ms.Database) -> int:
                return db.one("select count(*) as n from numbers")["n"]

            assert app.query(Count(), after=consumer.append("a", Added(n=3))) == 3
        assert consumer.scan("users-of").collect()["user"].to_list() == ["ann"]
        assert ms.cdc.table(consumer, "users").rows() == [(7,)]
    assert [statement for statement in WRITES if not refused(url, statement)] == []


def test_it_keeps_read_models_in_the_logs_database_in_a_schema_of_its_own(log, as_role, postgres):
    url = as_role(Ability.CONSUME)
    role = parse_url(url).conninfo["user"]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f'create schema authorization "{role}"')
    with ms.open(url) as consumer:
        ms.App(consumer, projections=[Numbers.inline()])
        consumer.append("a", Added(n=3))
        with consumer.connect() as db:
            assert db.query("select n from numbers order by n") == [{"n": 1}, {"n": 2}, {"n": 3}]
            assert db.find_table("numbers") == f'"{role}"."numbers"'


def test_a_reader_reads_by_query(as_role, log):
    log.append("a", Added(n=3), tags=["t"])
    with ms.open(as_role(Ability.READ), readonly=True) as reader:
        assert [e.event.n for e in reader.read(matching=ms.Matching(types=[Added], tags=["t"]))] == [3]


def test_an_appender_guards_by_query_without_reading(as_role, log):
    with ms.open(as_role(Ability.APPEND)) as writer:
        with pytest.raises(ms.ConditionFailed):
            writer.append("a", Added(n=3), unless=ms.Matching(types=[Added]))


def made_older(postgres: str) -> None:
    """The log of schema version 1."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("drop function shop.matched, shop.register_inline, shop.refuse_unseen cascade")
        connection.execute("update shop.meta set value = '1' where key = 'millstream'")


@pytest.mark.parametrize("ability", Ability)
@pytest.mark.parametrize("readonly", [False, True])
def test_who_may_not_migrate_an_older_schema_is_told_who_may(as_role, log, postgres, ability, readonly):
    place = as_role(ability)
    log.close()
    made_older(postgres)
    with pytest.raises(ms.StorageError, match=r"has schema 1, and this version needs 3.*as its owner"):
        ms.open(place, readonly=readonly)


def test_an_administrator_may_migrate_for_the_owner(as_role, log, postgres):
    place = as_role()
    log.close()
    made_older(postgres)
    owner = psycopg.conninfo.conninfo_to_dict(place.partition("?")[0])["user"]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f'alter schema shop owner to "{owner}"')
        for kind, names in (
            ("table", "select relname from pg_class where relnamespace = 'shop'::regnamespace and relkind = 'r'"),
            ("function", "select proname from pg_proc where pronamespace = 'shop'::regnamespace and prokind = 'f'"),
        ):
            for (name,) in connection.execute(names).fetchall():
                connection.execute(f'alter {kind} shop.{name} owner to "{owner}"')
    ms.open(postgres + "?schema=shop").close()
    with ms.open(place) as log:
        log.append("a", Added(n=3), tags=["t"], unless=ms.Matching(tags=["t"]))
        assert [e.event.n for e in log.read(matching=ms.Matching(tags=["t"]))] == [3]


def test_a_reader_of_an_older_schema_reads_by_query_once_it_is_migrated(as_role, log, postgres):
    place = as_role(Ability.READ)
    log.close()
    made_older(postgres)
    ms.open(postgres + "?schema=shop").close()
    with ms.open(place, readonly=True) as reader:
        assert len(list(reader.read(matching=ms.Matching(types=[Added])))) == 2
    with psycopg.connect(postgres, autocommit=True) as connection:
        granted = connection.execute(
            "select p.proacl::text from pg_proc p where p.oid = (select oid from pg_proc where proname = 'matched')"
        ).fetchone()
    assert ",=X" not in granted[0]
    assert not granted[0].startswith("{=X")
