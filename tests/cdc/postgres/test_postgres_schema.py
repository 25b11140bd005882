"""Columns that are added, dropped, renamed and retyped while the table is captured."""

from __future__ import annotations

import millstream as ms
from millstream.cdc.shape import shape_of

from .conftest import Database, replay


def last_schema_change(shop: Database, table: str = "users") -> ms.SchemaChanged:
    return [e for e in shop.events(table) if isinstance(e, ms.SchemaChanged)][-1]


def test_an_added_column_gives_old_rows_the_value_that_they_have_in_the_source(users: Database) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.together(
        "insert into users values (2, 'b', 'B')",
        "alter table users add age int default 7, add city text, add tags text[] default '{x,\"y z\"}'",
        "insert into users values (3, 'c', 'C', 30, 'Rome')",
    )
    capture.catch_up(users.log)
    changed = last_schema_change(users)
    assert changed.added == {"age": 7, "city": None, "tags": ["x", "y z"]}
    assert changed.columns == ["id", "email", "name", "age", "city", "tags"]
    operations = [(op, after and len(after)) for op, _, after in users.changes()]
    assert operations == [("INSERT", 3), ("INSERT", 6)]


def test_a_dropped_and_a_renamed_column(users: Database) -> None:
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("insert into users values (1, 'a', 'A')", "alter table users rename email to mail")
    users.sql("update users set name = 'B'", "alter table users drop name", "delete from users")
    capture.catch_up(users.log)
    renamed, dropped = [e for e in users.events() if isinstance(e, ms.SchemaChanged)]
    assert renamed.renamed == {"email": "mail"}
    assert (renamed.added, renamed.dropped) == ({}, [])
    assert dropped.dropped == ["name"]
    assert [(op, before, after) for op, before, after in users.changes()] == [
        ("INSERT", None, {"id": 1, "email": "a", "name": "A"}),
        ("UPDATE", {"id": 1, "mail": "a", "name": "A"}, {"id": 1, "mail": "a", "name": "B"}),
        ("DELETE", {"id": 1, "mail": "a"}, None),
    ]


def test_a_retyped_column_is_read_again_and_old_rows_keep_their_old_type(users: Database) -> None:
    users.sql("alter table users add n int", "insert into users values (1, 'a', 'A', 5), (2, 'b', 'B', 6)")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("alter table users alter n type text using 'n' || n", "update users set name = 'C' where id = 1")
    capture.catch_up(users.log)
    assert last_schema_change(users).retyped == {"n": "text"}
    kinds = [shape_of(run.schema).columns[3].kind for run in users.log.runs("users", types=["Change"])]  # type: ignore[union-attr]
    assert kinds[0] == "int"
    assert set(kinds[1:]) == {"text"}
    assert sorted(row["n"] for row in replay(users.log, "users", ("id",))) == ["n5", "n6"]


def test_a_column_whose_default_differs_from_row_to_row_is_read_from_the_table(users: Database) -> None:
    users.sql("insert into users select g, 'e', 'n' from generate_series(1, 5) g")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("alter table users add token uuid default gen_random_uuid()", "insert into users values (6, 'e', 'n')")
    capture.catch_up(users.log)
    found = {row["id"]: row["token"] for row in replay(users.log, "users", ("id",))}
    assert found == dict(users.rows("select id, token from users"))


def test_columns_that_changed_while_nobody_captured_are_noticed(users: Database) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("update users set name = 'old shape'", "alter table users add n int default 3")
    users.sql("update users set name = 'new shape'")
    users.reopen()
    users.capture("users").catch_up(users.log)
    assert [after and after.get("n") for _, _, after in users.changes()] == [None, 3]
    assert last_schema_change(users).added == {"n": 3}


def test_a_renamed_table_goes_on_in_its_stream_and_a_new_one_of_its_name_is_read_anew(users: Database) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("alter table users rename to people", "insert into people values (2, 'b', 'B')")
    capture.catch_up(users.log)
    users.capture("users").catch_up(users.log)
    assert [row["id"] for row in replay(users.log, "users", ("id",))] == [1, 2]
    users.sql("drop table people", "create table users (id int primary key)", "insert into users values (9)")
    users.capture("users").catch_up(users.log)
    assert replay(users.log, "users", ("id",)) == [{"id": 9}]
