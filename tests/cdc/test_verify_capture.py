"""What the log says of a table, compared with the source, and made to agree."""

from __future__ import annotations

from pathlib import Path

import pytest

import millstream as ms
from millstream.cdc import Change, capture, table, verify

from .conftest import Shop
from .past import write_pieces


def falsify(shop: Shop, *events: tuple[str, object, object], stream: str = "users") -> None:
    """Put changes into the log that never happened."""
    from millstream.cdc.shape import shape_of
    from millstream.cdc.source import pieces_of

    [*_, last] = shop.log.runs(stream)
    shape = shape_of(last.schema)
    assert shape is not None
    changes = [
        Change(operation=operation, table=stream, before=before, after=after, timestamp=shop.log.now())  # type: ignore[arg-type]
        for operation, before, after in events
    ]
    write_pieces(shop.log, stream, pieces_of(stream, shape, changes, last.metadata))


def rows(shop: Shop, name: str = "users") -> list[tuple[object, ...]]:
    return shop.db.execute(f"SELECT * FROM {name}").fetchall()


def test_every_row_that_differs_is_named_and_repaired(shop: Shop) -> None:
    shop.sql("INSERT INTO users VALUES " + ", ".join(f"({n}, 'u{n}')" for n in range(1, 30)))
    users = shop.capture("users")
    users.catch_up(shop.log)
    assert verify(users, shop.log, chunk=7).ok
    falsify(
        shop,
        ("DELETE", {"id": 3, "email": "u3"}, None),
        ("UPDATE", {"id": 9, "email": "u9"}, {"id": 9, "email": None}),
        ("INSERT", None, {"id": 99, "email": "ghost"}),
    )
    found = verify(users, shop.log, "users", chunk=7)
    assert [(d.kind, d.key, d.columns) for d in found.differences] == [
        ("missing", {"id": 3}, ()),
        ("different", {"id": 9}, ("email",)),
        ("extra", {"id": 99}, ()),
    ]
    assert (found.rows, found.ok, bool(found)) == (29, False, False)
    assert "users different: id=9: email is 'u9', in the log None" in str(found)
    assert table(shop.log, "users").height == 29, "looking changes nothing"

    found = verify(users, shop.log, repair=True, chunk=7)
    assert (len(found.differences), found.repaired, found.ok) == (3, 3, True)
    assert table(shop.log, "users").rows() == rows(shop)
    assert [e.metadata for e in shop.log.read("users", backwards=True, limit=1)] == [{"repair": True}]
    assert not verify(users, shop.log).differences
    shop.sql("UPDATE users SET email = 'later' WHERE id = 99 OR id = 9")
    users.catch_up(shop.log)
    assert verify(users, shop.log).ok
    assert table(shop.log, "users").rows() == rows(shop)


def test_rows_without_a_key_are_counted(shop: Shop) -> None:
    shop.sql("CREATE TABLE t (a, b)", "INSERT INTO t VALUES (1, 'x'), (1, 'x'), (1.0, x'00'), (NULL, NULL)")
    shop.sql("CREATE TABLE k (k TEXT PRIMARY KEY, a)", "INSERT INTO k VALUES (NULL, 1), (NULL, 1), ('x', 2)")
    every = shop.capture("t", "k")
    every.catch_up(shop.log)
    assert verify(every, shop.log).ok
    falsify(shop, ("DELETE", {"a": 1, "b": "x"}, None), ("INSERT", None, {"a": 5, "b": None}), stream="t")
    falsify(shop, ("DELETE", {"k": None, "a": 1}, None), stream="k")
    found = verify(every, shop.log, repair=True)
    assert sorted((d.table, d.kind) for d in found.differences) == [("k", "missing"), ("t", "extra"), ("t", "missing")]
    assert found.ok
    assert verify(every, shop.log).ok
    assert not verify(every, shop.log).differences


def test_what_happens_after_the_rows_were_read_is_no_difference(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from millstream.cdc.sqlite.reader import SQLiteReader

    if shop.db.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        pytest.skip("a reader keeps writers out of such a file")
    shop.sql("INSERT INTO users VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    users = shop.capture("users")
    users.catch_up(shop.log)
    falsify(shop, ("DELETE", {"id": 3, "email": "c"}, None), ("DELETE", {"id": 2, "email": "b"}, None))
    shape = SQLiteReader.shape

    def and_then(reader: SQLiteReader, name: str) -> object:
        shop.sql("UPDATE users SET email = 'new' WHERE id <> 3", "INSERT INTO users VALUES (4, 'd')")
        users.catch_up(shop.log)
        return shape(reader, name)

    monkeypatch.setattr(SQLiteReader, "shape", and_then)
    found = verify(users, shop.log, repair=True)
    assert [(d.kind, d.key["id"]) for d in found.differences] == [("missing", 2), ("missing", 3)]
    assert found.repaired == 1, "row 2 has changed since, and is told by its change"
    monkeypatch.undo()
    assert verify(users, shop.log).ok
    assert table(shop.log, "users").rows() == rows(shop)


def test_a_log_that_is_behind_is_waited_for_and_then_said_to_be(shop: Shop) -> None:
    shop.sql("INSERT INTO users VALUES (1, 'a')")
    users = shop.capture("users")
    with pytest.raises(ms.CaptureError, match="is not captured"):
        verify(users, shop.log)
    users.catch_up(shop.log)
    with pytest.raises(ms.CaptureError, match="'nope' is not captured into this log"):
        verify(users, shop.log, "nope")
    shop.sql("INSERT INTO users VALUES (2, 'b')")
    with pytest.raises(ms.CaptureError, match="and the source is at"):
        verify(users, shop.log, patience=0.05)
    users.start(shop.log)
    try:
        assert verify(users, shop.log).ok
    finally:
        users.stop()


def test_a_source_is_verified_through_the_filters_of_its_capture(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.sql("CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT, age)")
    shop.sql("INSERT INTO users VALUES (1, 'a', 5), (2, 'b', 50), (3, NULL, 51)")
    users = capture(
        shop.url,
        tables=["users"],
        rows={"users": lambda row: row["age"] > 40},
        mask={"users.email": "hash"},
        mask_key="k",
    )
    users.catch_up(shop.log)
    found = verify(users, shop.log)
    assert found.ok
    assert found.rows == 2
    shop.log.close()
    shop.db.close()
