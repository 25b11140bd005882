"""What the triggers write, for everything that SQL can do to a row: strictly, against a shadow copy."""

from __future__ import annotations

import math
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .shadow import Shadow, changes_of, install_on, started_anew

SCHEMAS: dict[str, tuple[str, list[str]]] = {
    "integer key, unique columns": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE, b UNIQUE COLLATE NOCASE, c)",
        ["id", "a", "b", "c"],
    ),
    "text key": ("CREATE TABLE t (a TEXT PRIMARY KEY, b, c INT UNIQUE)", ["a", "b", "c"]),
    "without rowid": (
        "CREATE TABLE t (a, b COLLATE NOCASE, c UNIQUE, PRIMARY KEY (b, a)) WITHOUT ROWID",
        ["a", "b", "c"],
    ),
    "no key": ("CREATE TABLE t (a, b, c)", ["a", "b", "c", "rowid"]),
    "no key, unique": ("CREATE TABLE t (a, b, c, UNIQUE (a, b))", ["a", "b", "c"]),
    "conflict clauses": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY ON CONFLICT REPLACE, a UNIQUE ON CONFLICT REPLACE, "
        "b NOT NULL ON CONFLICT REPLACE DEFAULT 'd', c UNIQUE ON CONFLICT IGNORE)",
        ["id", "a", "b", "c"],
    ),
    "partial and expression indexes": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b, c);"
        "CREATE UNIQUE INDEX t1 ON t (a) WHERE b > 1;"
        "CREATE UNIQUE INDEX t2 ON t (lower(b) || ',(', c COLLATE NOCASE DESC);"
        "CREATE UNIQUE INDEX t3 ON t (abs(a) ASC)",
        ["id", "a", "b", "c"],
    ),
    "generated columns": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b, d GENERATED ALWAYS AS (a || b) VIRTUAL UNIQUE, "
        "e AS (lower(b)) STORED UNIQUE)",
        ["id", "a", "b"],
    ),
    "odd names": (
        'CREATE TABLE t ("select ""x""" INTEGER PRIMARY KEY, [a b.c] UNIQUE, `naïve;--` UNIQUE, rowid, old, new)',
        ['"select ""x"""', '"a b.c"', '"naïve;--"', "rowid", "old", "new"],
    ),
    "its own child": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE, p REFERENCES t (id) ON DELETE CASCADE ON UPDATE CASCADE)",
        ["id", "a", "p"],
    ),
    "its own child, set to null": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE, p REFERENCES t (id) ON DELETE SET NULL ON UPDATE CASCADE,"
        " q UNIQUE REFERENCES t (a) ON DELETE SET DEFAULT ON UPDATE SET NULL)",
        ["id", "a", "p", "q"],
    ),
    "stamped by a trigger": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE, n DEFAULT 0);"
        "CREATE TRIGGER stamp AFTER INSERT ON t BEGIN UPDATE t SET n = n + 1 WHERE id = NEW.id; END;"
        "CREATE TRIGGER early BEFORE INSERT ON t WHEN NEW.a = 2 BEGIN DELETE FROM t WHERE a = 2; END;"
        "CREATE TRIGGER gone AFTER DELETE ON t WHEN OLD.a = 3 BEGIN INSERT INTO t (a) VALUES ('from 3'); END",
        ["id", "a"],
    ),
}

values = st.sampled_from(["NULL", "1", "2", "3", "-1", "'a'", "'A'", "'b'", "1.0", "x'61'", "'1'"])


@st.composite
def statements(draw: st.DrawFn, columns: list[str]) -> str:
    conflict = draw(st.sampled_from(["", "", "OR REPLACE ", "OR REPLACE ", "OR IGNORE ", "OR FAIL ", "OR ROLLBACK "]))
    kind = draw(st.sampled_from(["insert", "insert", "insert", "update", "update", "delete", "upsert", "select"]))
    where = f"{draw(st.sampled_from(columns))} {draw(st.sampled_from(['=', '<', '>=', 'IS NOT']))} {draw(values)}"
    if kind == "delete":
        return f"DELETE FROM t WHERE {where}" if draw(st.integers(0, 9)) else "DELETE FROM t"
    if kind == "update":
        chosen = draw(st.lists(st.sampled_from(columns), min_size=1, max_size=2, unique=True))
        sets = ", ".join(f"{c} = {draw(st.sampled_from([c, f'{c} + 1']) | values)}" for c in chosen)
        return f"UPDATE {conflict}t SET {sets} WHERE {where}"
    chosen = draw(st.lists(st.sampled_from(columns), min_size=1, unique=True))
    names = ", ".join(chosen)
    if kind == "select":
        picked = ", ".join(draw(st.sampled_from(columns) | values) for _ in chosen)
        return f"INSERT {conflict}INTO t ({names}) SELECT {picked} FROM t WHERE {where}"
    rows = draw(st.lists(st.tuples(*[values for _ in chosen]), min_size=1, max_size=3))
    text = f"INSERT {conflict}INTO t ({names}) VALUES " + ", ".join(f"({', '.join(row)})" for row in rows)
    if kind == "upsert":
        column = draw(st.sampled_from(columns))
        action = draw(st.sampled_from(["NOTHING", f"UPDATE SET {column} = {draw(values)}"]))
        return f"{text} ON CONFLICT DO {action}"
    return text


@pytest.mark.parametrize("recursive", [False, True], ids=["plain", "recursive triggers"])
@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
@settings(max_examples=30)  # of each of two dozen
@given(data=st.data())
def test_the_changes_applied_in_order_give_the_table(
    schema: tuple[str, list[str]], recursive: bool, data: st.DataObject
) -> None:
    sql, columns = schema
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("PRAGMA foreign_keys = ON")
    db.execute(f"PRAGMA recursive_triggers = {'ON' if recursive else 'OFF'}")
    db.executescript(sql)
    install_on(db, ["t"])
    open_savepoints = 0
    for statement in data.draw(st.lists(statements(columns), min_size=1, max_size=14)):
        step = data.draw(st.integers(0, 9))
        if step == 0 and db.in_transaction is False:
            db.execute("BEGIN")
        elif step == 1 and db.in_transaction:
            db.execute(data.draw(st.sampled_from(["COMMIT", "ROLLBACK"])))
            open_savepoints = 0
        elif step == 2:
            db.execute("SAVEPOINT s")
            open_savepoints += 1
        elif step == 3 and open_savepoints and db.in_transaction:
            db.execute("ROLLBACK TO s")
        try:
            db.execute(statement)
        except (sqlite3.IntegrityError, sqlite3.OperationalError):
            if not db.in_transaction:
                open_savepoints = 0
    if not started_anew(db):
        shadow = Shadow()
        shadow.apply(changes_of(db, ["t"])["t"])
        shadow.assert_equals(db, "t")
    db.close()


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT"])
@pytest.mark.parametrize("rowid", ["", " WITHOUT ROWID"])
@pytest.mark.parametrize("statement", ["UPDATE t SET id = -1 WHERE id = 1", "DELETE FROM t WHERE id = 1"])
def test_what_foreign_keys_do_to_other_rows_does_not_report_the_row_itself_once_more(
    action: str, rowid: str, statement: str
) -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("PRAGMA foreign_keys = ON")
    db.execute(
        "CREATE TABLE t (id INT PRIMARY KEY, p DEFAULT NULL REFERENCES t (id)"
        f" ON DELETE {action} ON UPDATE {action}){rowid}"
    )
    install_on(db, ["t"])
    db.execute("INSERT INTO t VALUES (1, NULL), (2, NULL), (3, 1)")
    # The row that is in its way is looked at, and stays.
    db.execute("INSERT INTO t (id) VALUES (1) ON CONFLICT DO NOTHING")
    db.execute(statement)
    db.execute("INSERT OR REPLACE INTO t (id) VALUES (2)")
    shadow = Shadow()
    shadow.apply(changes_of(db, ["t"])["t"])
    shadow.assert_equals(db, "t")
    db.close()


def test_a_row_that_goes_with_the_one_whose_place_it_takes_leaves_both_deletes() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, p REFERENCES t (id) ON DELETE CASCADE)")
    install_on(db, ["t"])
    db.execute("INSERT INTO t VALUES (1, NULL), (2, 1)")
    db.execute("UPDATE OR REPLACE t SET id = 1 WHERE id = 2")
    changes = changes_of(db, ["t"])["t"]
    assert [(c.operation, c.before and c.before["id"]) for c in changes[2:]] == [("DELETE", 1), ("DELETE", 2)]
    assert db.execute("SELECT * FROM t").fetchall() == []
    db.close()


def test_a_row_that_replaces_the_one_it_refers_to_has_its_table_read_anew() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE, p REFERENCES t (id) ON DELETE SET NULL)")
    install_on(db, ["t"])
    db.execute("INSERT INTO t VALUES (1, 1, NULL), (2, 2, 1), (3, 3, NULL), (4, 4, NULL)")
    db.execute("UPDATE OR REPLACE t SET a = 3 WHERE id = 4")
    assert not started_anew(db)
    db.execute("UPDATE OR REPLACE t SET a = 1 WHERE id = 2")
    assert started_anew(db)
    db.close()


EXTREMES: list[Any] = [
    None, 0, 1, -1, 2**63 - 1, -(2**63), 0.1, -0.0, 1e308, 5e-324, math.inf, -math.inf, math.nan, 1.0, "", "naïve ✓",
    "with\x00nul", "\x00", "quote ' \" ;", b"", b"\x00\xff\x00", "1e3", "null", '{"$bytes": "eA=="}', "x" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("declared", ["", "INTEGER", "REAL", "TEXT", "BLOB", "NUMERIC"])
def test_values_survive_exactly(declared: str) -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared})")
    install_on(db, ["t"])
    for value in EXTREMES:
        db.execute("INSERT INTO t (v) VALUES (?)", (value,))
    db.execute("INSERT INTO t (v) VALUES (CAST(x'ff00fe' AS TEXT)), (CAST(x'eda080' AS TEXT)), (9e999), (-9e999)")
    db.execute("UPDATE t SET id = -id")
    shadow = Shadow()
    shadow.apply(changes_of(db, ["t"])["t"])
    shadow.assert_equals(db, "t")
    db.close()


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_text_survives_in_every_encoding_of_the_file(encoding: str) -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute(f"PRAGMA encoding = '{encoding}'")
    db.execute("CREATE TABLE t (v)")
    install_on(db, ["t"])
    db.execute("INSERT INTO t VALUES ('naïve ✓ 𝄞'), ('a' || char(0) || 'b')")
    assert [c.after for c in changes_of(db, ["t"])["t"]] == [{"v": "naïve ✓ 𝄞"}, {"v": "a\0b"}]
    db.close()


def changes_after(setup: str, statement: str, **pragmas: str) -> list[tuple[str, Any, Any]]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("PRAGMA foreign_keys = ON")
    db.executescript(setup)
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    install_on(db, tables)
    (last,) = db.execute("SELECT max(id) FROM _millstream_changes").fetchone()
    db.executescript(statement)
    found = changes_of(db, tables, last)
    db.close()
    return [
        (c.operation, c.before and tuple(c.before.values()), c.after and tuple(c.after.values()))
        for name in tables
        for c in found[name]
    ]


USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, email UNIQUE); INSERT INTO users VALUES (1, 'a'), (2, 'b');"


def test_a_replace_deletes_every_row_in_its_way_first() -> None:
    assert changes_after(USERS, "REPLACE INTO users VALUES (1, 'b')") == [
        ("DELETE", (1, "a"), None),
        ("DELETE", (2, "b"), None),
        ("INSERT", None, (1, "b")),
    ]


def test_an_update_or_replace_deletes_the_row_in_its_way_first() -> None:
    assert changes_after(USERS, "UPDATE OR REPLACE users SET id = 2 WHERE id = 1") == [
        ("DELETE", (2, "b"), None),
        ("UPDATE", (1, "a"), (2, "a")),
    ]


def test_an_ignored_insert_leaves_no_change() -> None:
    statement = "INSERT OR IGNORE INTO users VALUES (1, 'z'), (7, 'b'); DELETE FROM users WHERE id = 1"
    assert changes_after(USERS, statement) == [("DELETE", (1, "a"), None)]


def test_an_upsert_is_an_update() -> None:
    statement = "INSERT INTO users VALUES (2, 'z') ON CONFLICT (id) DO UPDATE SET email = excluded.email"
    assert changes_after(USERS, statement) == [("UPDATE", (2, "b"), (2, "z"))]


def test_what_is_rolled_back_leaves_no_change() -> None:
    assert changes_after(USERS, "BEGIN; DELETE FROM users; ROLLBACK") == []


def test_cascades_are_changes_of_the_child() -> None:
    setup = (
        "CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE c (p REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE);"
        "INSERT INTO p VALUES (1), (2); INSERT INTO c VALUES (1), (2);"
    )
    assert changes_after(setup, "DELETE FROM p WHERE id = 1; UPDATE p SET id = 3 WHERE id = 2") == [
        ("DELETE", (1,), None),
        ("UPDATE", (2,), (3,)),
        ("DELETE", (1,), None),
        ("UPDATE", (2,), (3,)),
    ]


def test_a_replaced_parent_takes_its_children_along() -> None:
    setup = (
        "CREATE TABLE p (id INTEGER PRIMARY KEY, n); CREATE TABLE c (p REFERENCES p ON DELETE CASCADE);"
        "INSERT INTO p VALUES (1, 'x'); INSERT INTO c VALUES (1);"
    )
    assert changes_after(setup, "REPLACE INTO p VALUES (1, 'y')") == [
        ("DELETE", (1, "x"), None),
        ("INSERT", None, (1, "y")),
        ("DELETE", (1,), None),
    ]


def test_the_row_counts_and_ids_that_a_writer_sees_are_its_own() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(USERS)
    install_on(db, ["users"])
    assert db.execute("REPLACE INTO users VALUES (1, 'b')").lastrowid == 1
    assert db.execute("SELECT changes(), last_insert_rowid()").fetchone() == (1, 1)
    assert db.execute("UPDATE users SET email = 'q' WHERE id = 1").rowcount == 1
    assert db.execute("INSERT INTO users (email) VALUES ('r') RETURNING id").fetchall() == [(2,)]
    db.close()


def test_a_thousand_ignored_inserts_are_not_remembered() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    db.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(1000)])
    install_on(db, ["t"])
    db.executemany("INSERT OR IGNORE INTO t VALUES (?)", [(i,) for i in range(1000)])
    assert db.execute("SELECT count(*) FROM _millstream_saved").fetchone() == (1,)
    db.close()
