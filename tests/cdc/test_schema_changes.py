"""What happens to a table while it is captured: columns added are followed, all else is read again."""

from __future__ import annotations

import sqlite3

import pytest

import millstream as ms
from millstream.cdc import Capture, table

from .conftest import Shop


@pytest.fixture
def users(shop: Shop) -> Capture:
    shop.sql("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    users = shop.capture("users")
    users.catch_up(shop.log)
    return users


def assert_converged(shop: Shop, name: str = "users") -> None:
    columns = [row[1] for row in shop.db.execute("SELECT * FROM pragma_table_info(?)", (name,))]
    seen = table(shop.log, name)
    assert seen.columns == columns
    assert sorted(seen.rows(), key=repr) == sorted(shop.db.execute(f"SELECT * FROM {name}").fetchall(), key=repr)


def test_an_added_column_is_followed_and_rows_keep_flowing(shop: Shop, users: Capture) -> None:
    shop.sql("ALTER TABLE users ADD COLUMN age INTEGER DEFAULT 7")
    users.catch_up(shop.log)
    shop.sql("UPDATE users SET age = 8 WHERE id = 1")
    users.catch_up(shop.log)
    assert shop.changes()[-1] == ("UPDATE", (1, "a", 7), (1, "a", 8))
    [said] = [e.event for e in shop.log.read("users", types=["SchemaChanged"])]
    assert (said.columns, said.added) == (["id", "email", "age"], {"age": 7})
    assert_converged(shop)


def test_what_was_written_to_a_new_column_before_the_capture_saw_it_is_made_good(shop: Shop, users: Capture) -> None:
    shop.sql(
        "ALTER TABLE users ADD COLUMN age",
        "INSERT INTO users VALUES (3, 'c', 30)",
        "UPDATE users SET age = 10, id = 11 WHERE id = 1",
        "ALTER TABLE users ADD COLUMN city DEFAULT 'Rome'",
        "INSERT INTO users VALUES (4, 'd', 40, 'Oslo'), (5, 'e', NULL, 'Rome')",
        "DELETE FROM users WHERE id = 3",
    )
    users.catch_up(shop.log)
    assert_converged(shop)
    assert "TRUNCATE" not in [c[0] for c in shop.changes()]


def test_a_column_added_while_the_capture_runs_loses_nothing(shop: Shop, users: Capture) -> None:
    users.start(shop.log)
    for i in range(10):
        shop.sql(f"ALTER TABLE users ADD COLUMN c{i} DEFAULT {i}", f"UPDATE users SET c{i} = -1 WHERE id = 1")
    users.stop()
    users.catch_up(shop.log)
    assert_converged(shop)
    assert "TRUNCATE" not in [c[0] for c in shop.changes()]


@pytest.mark.parametrize(
    "statements",
    [
        ["ALTER TABLE users RENAME COLUMN email TO mail", "UPDATE users SET mail = 'z' WHERE id = 1"],
        ["CREATE UNIQUE INDEX u ON users (email)", "REPLACE INTO users VALUES (3, 'b')"],
        [
            "CREATE TRIGGER low AFTER INSERT ON users BEGIN UPDATE users SET email = 'low' WHERE id = NEW.id; END",
            "INSERT INTO users VALUES (3, 'HIGH')",
        ],
        [
            "BEGIN",
            "CREATE TABLE copy (id INTEGER PRIMARY KEY, email TEXT NOT NULL)",
            "INSERT INTO copy SELECT * FROM users",
            "DROP TABLE users",
            "ALTER TABLE copy RENAME TO users",
            "COMMIT",
            "DELETE FROM users WHERE id = 1",
        ],
        ['DROP TRIGGER "_millstream_after_delete_users"', "DELETE FROM users WHERE id = 1"],
    ],
    ids=["column renamed", "unique index", "trigger", "rebuilt", "our trigger dropped"],
)
def test_what_may_have_hidden_changes_makes_the_table_be_read_again(
    shop: Shop, users: Capture, statements: list[str]
) -> None:
    shop.sql(*statements)
    users.catch_up(shop.log)
    assert_converged(shop)
    shop.sql("UPDATE users SET id = id + 10", "INSERT INTO users VALUES (1, 'new')")
    users.catch_up(shop.log)
    assert_converged(shop)
    assert [c[0] for c in shop.changes()].count("TRUNCATE") == 1


def test_a_column_can_be_dropped_once_the_capture_is_uninstalled(shop: Shop, users: Capture) -> None:
    with pytest.raises(sqlite3.OperationalError, match="trigger"):
        shop.sql("ALTER TABLE users DROP COLUMN email")
    shop.sql("UPDATE users SET email = 'z' WHERE id = 1")
    users.catch_up(shop.log)
    users.uninstall()
    shop.sql("ALTER TABLE users DROP COLUMN email")
    users.catch_up(shop.log, resync=True)
    assert_converged(shop)
    shop.sql("INSERT INTO users VALUES (3)")
    users.catch_up(shop.log)
    assert_converged(shop)


def test_a_vacuum_changes_nothing(shop: Shop, users: Capture) -> None:
    shop.sql("VACUUM", "UPDATE users SET email = 'z' WHERE id = 2")
    users.catch_up(shop.log)
    assert shop.changes()[2:] == [("UPDATE", (2, "b"), (2, "z"))]


def test_a_dropped_table_ends_the_capture(shop: Shop, users: Capture) -> None:
    shop.sql("DROP TABLE users")
    with pytest.raises(ms.CaptureError, match="no table 'users'"):
        users.catch_up(shop.log)


def test_another_table_can_be_changed_without_effect(shop: Shop, users: Capture) -> None:
    shop.sql("CREATE TABLE other (id)", "DROP TABLE other", "UPDATE users SET email = 'z' WHERE id = 2")
    assert users.catch_up(shop.log) == 1
