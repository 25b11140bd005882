"""Columns that come, go and change while a table is captured: no row is ever decoded by another table's columns."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pymysql
import pytest

import millstream as ms
from millstream.cdc.mysql.layout import Layout, LayoutColumn
from millstream.cdc.mysql.statement import altered, understand
from servers import MariaDBServer

from .conftest import Shop, kept, only_mariadb, replay


@contextmanager
def names_in_the_log(shop: Shop, setting: str) -> Iterator[None]:
    """How much the server's log tells of columns."""
    [(before,)] = shop.rows("select @@global.binlog_row_metadata")
    shop.sql(f"set global binlog_row_metadata = '{setting}'")
    try:
        yield
    finally:
        shop.sql(f"set global binlog_row_metadata = '{before}'")


def schema_changes(shop: Shop, table: str = "users") -> list[Any]:
    return [e for e in shop.events(table) if isinstance(e, ms.SchemaChanged)]


@pytest.mark.parametrize("live", [True, False], ids=["at once", "behind"])
@pytest.mark.parametrize("setting", ["MINIMAL", "FULL"])
def test_columns_added_dropped_and_renamed_in_mid_stream(users: Shop, live: bool, setting: str) -> None:
    with names_in_the_log(users, setting):
        users.sql("insert into users values (1, 'a', 'A')")
        capture = users.capture("users")
        capture.catch_up(users.log)
        for statements in (
            ["insert into users values (2, 'b', 'B')", "alter table users add column age int not null default 7"],
            [
                "insert into users values (3, 'c', 'C', 3)",
                "ALTER TABLE users ADD note varchar(20) FIRST, DROP COLUMN name",
            ],
            ["insert into users values ('n', 4, 'd', 4)", "alter table `users` change email mail varchar(100)"],
            [
                "insert into users values ('o', 5, 'e', 5)",
                "alter table users add extra varchar(9) default 'x' after id",
            ],
            ["insert into users values ('p', 6, 'x', 'f', 6)", "update users set age = age + 1 where id < 3"],
        ):
            users.sql(*statements)
            if live:
                capture.catch_up(users.log)
        capture.catch_up(users.log)
        kept(users)
        changes = schema_changes(users)
        assert [change.columns for change in changes] == [
            ["id", "email", "name", "age"],
            ["note", "id", "email", "age"],
            ["note", "id", "mail", "age"],
            ["note", "id", "extra", "mail", "age"],
        ]
        assert [change.added for change in changes] == [{"age": 7}, {"note": None}, {}, {"extra": "x"}]
        assert [change.dropped for change in changes] == [[], ["name"], [], []]
        assert changes[2].renamed == {"email": "mail"}
        assert "TRUNCATE" not in [operation for operation, _, _ in users.changes()], "nothing was read again"


@pytest.mark.parametrize("live", [True, False], ids=["at once", "behind"])
def test_a_type_that_changes_values_reads_the_table_again_and_one_that_does_not_does_not(
    users: Shop, live: bool
) -> None:
    users.sql("insert into users values (1, '12', 'A'), (2, '34', 'B')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("alter table users modify email varchar(200)", "alter table users modify name mediumtext")
    if live:
        capture.catch_up(users.log)
        assert len([e for e in users.log.read("users", types=["Change"]) if e.data["operation"] == "READ"]) == 2
    users.sql("alter table users modify email int", "insert into users values (3, 56, 'C')")
    capture.catch_up(users.log)
    kept(users)
    assert schema_changes(users)[-1].retyped["email"] == "int"
    assert replay(users.log, "users", ("id",))[0]["email"] in (12, 34, 56)


def test_a_default_that_only_the_table_knows_is_read_from_it(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("alter table users add column at datetime(6) not null default now(6)")
    capture.catch_up(users.log)
    kept(users)


def test_a_table_that_is_truncated_dropped_and_made_anew(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("truncate table users", "insert into users values (2, 'b', 'B')")
    capture.catch_up(users.log)
    assert [operation for operation, _, _ in users.changes()] == ["TRUNCATE", "INSERT"]
    kept(users)
    users.sql("drop table users")
    capture.catch_up(users.log)
    assert replay(users.log, "users", ("id",)) == []
    users.sql("create table users (id int primary key, other int)", "insert into users values (1, 2)")
    capture.catch_up(users.log)
    users.sql("update users set other = 3")
    capture.catch_up(users.log)
    kept(users)
    assert schema_changes(users)[-1].columns == ["id", "other"]


def test_the_same_while_nobody_captures(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql(
        "insert into users values (2, 'b', 'B')", "truncate users", "insert into users values (3, 'c', 'C')",
        "drop table users", "create table users (id int primary key, n int, t text)",
        "insert into users values (4, 4, 'd')", "alter table users drop column n", "insert into users values (5, 'e')",
    )  # fmt: skip
    capture.catch_up(users.log)
    kept(users)
    users.sql("insert into users values (6, 'f')")
    assert capture.catch_up(users.log) == 1
    kept(users)


def test_a_table_is_exchanged_for_another_as_online_migrations_do(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A'), (2, 'b', 'B')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql(
        "create table _users_new (id bigint primary key, email varchar(100), name text, age int)",
        "insert into _users_new (id, email, name) select * from users where id > 1",
        "insert into _users_new values (9, 'z', 'Z', 9)",
        "rename table users to _users_old, _users_new to users",
        "insert into users values (10, 'y', 'Y', 10)",
    )
    capture.catch_up(users.log)
    kept(users)
    users.sql("drop table _users_old", "delete from users where id = 9")
    capture.catch_up(users.log)
    kept(users)


def test_the_key_changes(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A'), (2, 'b', 'B')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("alter table users drop primary key, modify email varchar(100) not null, add primary key (email)")
    users.sql("insert into users values (1, 'c', 'C')", "delete from users where email = 'a'")
    capture.catch_up(users.log)
    kept(users, key=("email",))


def test_columns_changed_behind_the_logs_back_are_noticed(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("set sql_log_bin = 0", "alter table users add column age int first", "set sql_log_bin = 1")
    users.sql("insert into users values (5, 2, 'b', 'B')", "delete from users where id = 1")
    capture.catch_up(users.log)
    kept(users)
    users.sql("insert into users values (6, 3, 'c', 'C')")
    assert capture.catch_up(users.log) == 1
    kept(users)


def test_after_a_restart_old_rows_are_decoded_by_the_columns_that_they_had(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    users.capture("users").catch_up(users.log)
    users.sql("insert into users values (2, 'b', 'B')")
    users.sql("alter table users drop column email, add column email varchar(100)")  # the same types, other places
    users.sql("insert into users values (3, 'C', 'c')")
    users.reopen()
    users.capture("users").catch_up(users.log)
    assert users.changes()[0] == ("INSERT", None, {"id": 2, "email": "b", "name": "B"})
    assert replay(users.log, "users", ("id",))[-1] == {"id": 3, "name": "C", "email": "c"}


def test_changes_of_columns_at_random_moments(users: Shop) -> None:
    """Statements and rows in any order, captured now and then: the log gives the table in the end."""
    random.seed(42)
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    n = 1
    for _ in range(60):
        columns = [row[0] for row in users.rows("show columns from users")]
        free = [name for name in columns if name != "id"]
        n += 1
        choice = random.random()
        if choice < 0.15:
            place = random.choice(["", " first", " after id"])
            users.sql(f"alter table users add column c{n} varchar(20) default 'd{n}'{place}")
        elif choice < 0.25 and free:
            users.sql(f"alter table users drop column {random.choice(free)}")
        elif choice < 0.35 and free:
            users.sql(f"alter table users rename column {random.choice(free)} to c{n}")
        elif choice < 0.4 and free:
            users.sql(f"alter table users modify {random.choice(free)} varchar(30) after id")
        elif choice < 0.45:
            users.sql("truncate table users")
        elif choice < 0.8:
            users.sql(f"insert into users (id) values ({n})")
        elif free:
            users.sql(f"update users set {random.choice(free)} = '{n}' where id % 3 = {n % 3}")
        if random.random() < 0.25:
            capture.catch_up(users.log)
    capture.catch_up(users.log)
    kept(users)


def test_statements_that_change_rows_without_telling_them_stop_the_capture(users: Shop) -> None:
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("set session binlog_format = 'STATEMENT'", "insert into users values (1, 'a', 'A')")
    users.sql("set session binlog_format = 'ROW'", "insert into users values (2, 'b', 'B')")
    with pytest.raises(ms.CaptureError, match="changed by a statement") as caught:
        capture.catch_up(users.log)
    assert "resync=True" in caught.value.hint
    users.capture("users").catch_up(users.log, resync=True)
    kept(users)


def test_partial_rows_stop_the_capture(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("set session binlog_row_image = 'MINIMAL'", "update users set name = 'B' where id = 1")
    with pytest.raises(ms.CaptureError, match="does not hold whole rows") as caught:
        capture.catch_up(users.log)
    assert "SET GLOBAL binlog_row_image = 'FULL'" in caught.value.hint
    users.sql("set session binlog_row_image = 'FULL'")
    users.capture("users").catch_up(users.log, resync=True)
    kept(users)


def test_a_memory_table_that_a_restart_has_emptied(own_server: Callable[..., MariaDBServer], tmp_path: Any) -> None:
    server = own_server()
    shop = Shop(server, tmp_path / "log.db")
    shop.sql("create table users (id int primary key) engine = memory", "insert into users values (1)")
    shop.capture("users").catch_up(shop.log)
    server.stop()
    server.start()
    shop.db = shop.connect()
    shop.sql("insert into users values (2)")
    shop.capture("users").catch_up(shop.log)
    kept(shop)
    shop.log.close()


@only_mariadb
def test_an_alter_table_that_is_told_in_two_parts_counts_once_and_only_if_it_is_done(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("set session binlog_alter_two_phase = on", "alter table users add column b int default 3")
    users.sql("insert into users values (2, 'b', 'B', 2)")
    with pytest.raises(pymysql.MySQLError):
        users.sql("alter table users drop column name, add constraint c check (id > 1), algorithm = copy")
    users.sql("insert into users values (3, 'c', 'C', 3)")
    assert capture.catch_up(users.log) == 3
    kept(users)
    assert [change.columns for change in schema_changes(users)] == [["id", "email", "name", "b"]]


# --- what is understood of statements --------------------------------------------------------------------------

LAYOUT = Layout(
    (
        LayoutColumn("id", "int(11)", None, False),
        LayoutColumn("email", "varchar(100)", "utf8mb4"),
        LayoutColumn("n", "decimal(10,2)"),
    ),
    ("id",),
)


@pytest.mark.parametrize(
    ("text", "does", "tables"),
    [
        ("TRUNCATE users", "truncate", [("shop", "users")]),
        ("truncate table `other`.`us``ers`", "truncate", [("other", "us`ers")]),
        ("/* a */ DROP TABLE IF EXISTS `a`, shop.b /* generated by server */", "drop", [("shop", "a"), ("shop", "b")]),
        ("drop temporary table a", "other", []),
        ("CREATE TABLE IF NOT EXISTS users (id int)", "create", [("shop", "users")]),
        ("create unique index i on users (n)", "alter", [("shop", "users")]),
        ("DROP INDEX i ON `users`", "alter", [("shop", "users")]),
        ("SET STATEMENT max_statement_time=1 FOR ALTER TABLE users ADD x int", "alter", [("shop", "users")]),
        ("-- note\nALTER /*!50 ONLINE */ TABLE users ADD x int", "alter", [("shop", "users")]),
        ("alter database shop character set latin1", "other", []),
        ("drop schema shop", "drop-database", [("shop", "")]),
        ("insert into users values (1, 'drop table users')", "write", []),
        ("DELETE FROM `shop`.`users`", "truncate", [("shop", "users")]),
        ("delete from users where id = 1", "write", []),
        ("GRANT ALL ON *.* TO a", "other", []),
        ("", "other", []),
    ],
)
def test_statements_are_understood(text: str, does: str, tables: list[tuple[str, str]]) -> None:
    found = understand(text, "shop")
    assert (found.does, found.tables) == (does, tables)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("add x int", ["id", "email", "n", "x"]),
        ("add column x varchar(5) not null default 'a,b' first, comment = 'add y int'", ["x", "id", "email", "n"]),
        ("add x decimal after id, drop email", ["id", "x", "n"]),
        ("change column `email` `mail` text", ["id", "mail", "n"]),
        ("rename column n to m, add index (m)", ["id", "email", "m"]),
        ("modify n int unsigned first", ["n", "id", "email"]),
        ("engine = InnoDB, algorithm = inplace", ["id", "email", "n"]),
        ("rename index a to b", ["id", "email", "n"]),
        ("drop primary key", None),
        ("add primary key (n)", None),
        ("add x int default (1 + 1)", None),
        ("add (a int, b int)", None),
        ("convert to character set latin1", None),
        ("add x geometry", None),
        ("drop nothing", None),
        ("add x int generated always as (n) stored", None),
    ],
)
def test_an_alter_table_is_done_to_a_layout_or_said_to_be_unknown(spec: str, names: list[str] | None) -> None:
    statement = understand(f"alter table users {spec}", "shop")
    assert statement.specs is not None
    found = altered(LAYOUT, statement.specs, "utf8mb4", True)
    assert (found and [column.name for column in found.columns]) == names
