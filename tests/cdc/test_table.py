"""A captured table as it stood."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import polars as pl
import pytest

import millstream as ms
from millstream.cdc import table

from .conftest import Shop


def now() -> datetime:
    time.sleep(0.005)
    moment = datetime.now(UTC)
    time.sleep(0.005)
    return moment


def test_a_table_as_it_stood_at_a_moment(shop: Shop) -> None:
    before = now()
    shop.sql("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    users = shop.capture("users")
    users.catch_up(shop.log)
    first = now()
    shop.sql("UPDATE users SET email = 'c', id = 3 WHERE id = 1")
    second = now()
    shop.sql("DELETE FROM users WHERE id = 2")
    users.catch_up(shop.log)
    assert sorted(table(shop.log, "users", at=first).rows()) == [(1, "a"), (2, "b")]
    assert sorted(table(shop.log, "users", at=second.isoformat()).rows()) == [(2, "b"), (3, "c")]
    assert table(shop.log, "users").rows() == [(3, "c")]
    assert table(shop.log, "users", position=3).height == 2
    with pytest.raises(ms.NotCapturedYet, match="not captured completely at"):
        table(shop.log, "users", at=before)


def test_a_position_or_a_receipt_is_a_moment_too(shop: Shop) -> None:
    shop.sql("INSERT INTO users VALUES (1, 'a')")
    users = shop.capture("users")
    users.catch_up(shop.log)
    receipt = shop.log.append("audit", ms.Plain("Looked", {}))
    shop.sql("UPDATE users SET email = 'b'")
    users.catch_up(shop.log)
    for asked in ({"at": ms.Position(receipt.position)}, {"at": receipt}, {"position": receipt}):
        assert table(shop.log, "users", **asked).rows() == [(1, "a")]
    assert shop.log.table_diff("users", receipt, ms.Position(shop.log.head)).height == 1
    with pytest.raises(ms.NotCapturedYet, match="completely at position 1"):
        table(shop.log, "users", at=ms.Position(1))


@pytest.mark.parametrize("name", ['a"b', "back\\slash", "new\nline", "a'b", "ä ö", "$x", "0", "class", "_position"])
def test_a_column_may_have_any_name(shop: Shop, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    shop.sql(f"CREATE TABLE odd (id INTEGER PRIMARY KEY, {quoted} TEXT, more)")
    shop.sql("INSERT INTO odd VALUES (1, 'a', 1.5), (2, NULL, 'x')", f"UPDATE odd SET {quoted} = 'b' WHERE id = 1")
    odd = shop.capture("odd")
    odd.catch_up(shop.log)
    shop.sql(f"UPDATE odd SET {quoted} = 'c', id = 3 WHERE id = 1", "DELETE FROM odd WHERE id = 2")
    odd.catch_up(shop.log)
    assert table(shop.log, "odd").columns == ["id", name, "more"]
    assert table(shop.log, "odd").rows() == [(3, "c", 1.5)]
    assert shop.log.row_history("odd", 3)[-1].after[name] == "c"


def test_a_table_that_was_never_captured_is_told_with_those_that_were(shop: Shop) -> None:
    with pytest.raises(ms.StreamNotFound, match="No table was captured"):
        table(shop.log, "nope")
    shop.sql("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    shop.capture().catch_up(shop.log)
    with pytest.raises(ms.StreamNotFound, match=r"'nope'.*'orders', 'users'"):
        table(shop.log, "nope")
    with pytest.raises(ms.InvalidPosition, match="position=-1"):
        table(shop.log, "users", position=-1)


def test_columns_have_the_types_of_their_values(shop: Shop) -> None:
    shop.sql("CREATE TABLE t (i, r, t, b, mixed, n)", "INSERT INTO t VALUES (1, 2, 'x', x'00', 1, NULL)")
    shop.sql("INSERT INTO t VALUES (9007199254740993, 2.5, NULL, NULL, 'two', NULL)")
    shop.capture("t").catch_up(shop.log)
    seen = table(shop.log, "t")
    assert seen.schema == {
        "i": pl.Int64, "r": pl.Float64, "t": pl.String, "b": pl.Binary, "mixed": pl.String, "n": pl.Null,
    }  # fmt: skip
    assert seen["i"].to_list() == [1, 9007199254740993]


def test_an_empty_table_has_its_columns(shop: Shop) -> None:
    shop.capture("users").catch_up(shop.log)
    assert table(shop.log, "users").columns == ["id", "email"]


def test_equal_rows_of_a_table_without_a_key_are_counted(shop: Shop) -> None:
    shop.sql("CREATE TABLE t (a, b)", "INSERT INTO t VALUES (1, NULL), (1, NULL), (1.0, 'x')")
    t = shop.capture("t")
    t.catch_up(shop.log)
    shop.sql(
        "DELETE FROM t WHERE rowid = 1", "ALTER TABLE t ADD COLUMN c DEFAULT 5", "UPDATE t SET a = 2 WHERE b = 'x'"
    )
    t.catch_up(shop.log)
    assert sorted(table(shop.log, "t").rows()) == [(1, None, 5), (2, "x", 5)]


def test_rows_whose_key_holds_null_are_all_kept(shop: Shop) -> None:
    shop.sql("CREATE TABLE t (k TEXT PRIMARY KEY, a)", "INSERT INTO t VALUES (NULL, 1), (NULL, 2), (NULL, 2), ('x', 3)")
    t = shop.capture("t")
    t.catch_up(shop.log)

    def assert_seen(*statements: str) -> None:
        shop.sql(*statements)
        t.catch_up(shop.log)
        expected = shop.db.execute("SELECT * FROM t").fetchall()
        assert sorted(table(shop.log, "t").rows(), key=repr) == sorted(expected, key=repr)

    assert_seen()
    assert_seen("INSERT INTO t VALUES (NULL, 1)", "UPDATE t SET a = 5 WHERE k = 'x'")
    assert_seen("DELETE FROM t WHERE rowid = 2", "UPDATE t SET k = 'y' WHERE rowid = 1")
    assert_seen("ALTER TABLE t ADD COLUMN b DEFAULT 7")
    assert_seen("INSERT INTO t VALUES (NULL, 2, 8)")
    assert_seen("UPDATE t SET a = a + 1", "DELETE FROM t WHERE b = 8", "UPDATE t SET k = NULL WHERE k = 'y'")


def test_while_a_table_is_read_again_it_is_not_shown_half(shop: Shop) -> None:
    shop.sql("INSERT INTO users VALUES (1, 'a')")
    users = shop.capture("users")
    users.catch_up(shop.log)
    head = shop.log.head
    shop.sql("INSERT INTO users VALUES (2, 'b')")
    users.catch_up(shop.log, resync=True)
    assert table(shop.log, "users", position=head).rows() == [(1, "a")]
    with pytest.raises(ms.NotCapturedYet):
        table(shop.log, "users", position=head + 2)
    assert table(shop.log, "users").height == 2


def test_a_table_whose_changes_were_trimmed_is_not_shown_as_if_it_were_whole(shop: Shop) -> None:
    shop.sql("INSERT INTO users VALUES (1, 'a')")
    users = shop.capture("users")
    users.catch_up(shop.log)
    shop.sql("UPDATE users SET email = 'b'")
    users.catch_up(shop.log)
    assert table(shop.log, "users").rows() == [(1, "b")]
    shop.log.trim("users", keep=1)
    with pytest.raises(ms.Trimmed):
        table(shop.log, "users")
