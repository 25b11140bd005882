"""The history of a row, and what differs between two moments."""

from __future__ import annotations

from uuid import UUID

import pytest

import millstream as ms
from millstream.cdc import RowChange, diff, row_history

from .conftest import Shop
from .past import Made, shape


def told(history: list[RowChange]) -> list[tuple[object, ...]]:
    return [(each.operation, each.before and each.before["n"], each.after and each.after["n"]) for each in history]


@pytest.fixture
def made() -> Made:
    made = Made(shape(("id", "int"), ("n", "int"), ("note", "text")))
    made.read({"id": 1, "n": 10, "note": "a"}, {"id": 11, "n": 110, "note": "b"}, {"id": 2, "n": 20, "note": None})
    return made


def test_a_row_is_followed_through_its_keys_backwards_and_forwards(made: Made) -> None:
    made.write(made.change("UPDATE", None, {"id": 1, "n": 11, "note": {"$unchanged": True}}))
    made.write(made.change("UPDATE", {"id": 1}, {"id": 5, "n": 12, "note": "x"}))
    made.write(made.change("INSERT", None, {"id": 1, "n": 1, "note": "another row"}))
    made.write(made.change("UPDATE", {"id": 5}, {"id": 7, "n": 13, "note": "x"}))
    last = made.write(made.change("DELETE", {"id": 7}))
    made.write(made.change("INSERT", None, {"id": 7, "n": 70, "note": "a third"}))
    followed = [("READ", None, 10), ("UPDATE", 10, 11), ("UPDATE", 11, 12), ("UPDATE", 12, 13), ("DELETE", 13, None)]
    assert told(row_history(made.log, "users", 5)) == followed
    assert told(row_history(made.log, "users", 7)) == [*followed, ("INSERT", None, 70)]
    assert told(row_history(made.log, "users", (1,), position=last)) == [
        *followed[:3],
        ("INSERT", None, 1),
        *followed[3:],
    ]
    assert row_history(made.log, "users", 99) == []
    update = row_history(made.log, "users", {"id": 5})[1]
    assert (update.before, update.after) == ({"id": 1, "n": 10, "note": "a"}, {"id": 1, "n": 11, "note": "a"})
    assert (update.key, update.position, update.version, update.metadata) == ({"id": 1}, 5, 5, {"lsn": 1})


def test_a_truncation_ends_the_rows_that_were_there(made: Made) -> None:
    made.write(made.change("TRUNCATE"))
    made.write(made.change("INSERT", None, {"id": 1, "n": 3, "note": ""}))
    assert told(made.log.row_history("users", 1)) == [("READ", None, 10), ("TRUNCATE", 10, None), ("INSERT", None, 3)]


def test_keys_of_any_kind_are_found() -> None:
    id = UUID(int=7)
    made = Made(shape(("u", "uuid"), ("t", "text"), ("n", "int"), key=("u", "t")))
    made.read(*[{"u": str(UUID(int=n)), "t": text, "n": n} for n in (6, 7) for text in ('"q"/\u00e9', "plain")])
    for text in ('"q"/\u00e9', "plain"):
        assert told(row_history(made.log, "users", (id, text))) == [("READ", None, 7)]
        assert told(row_history(made.log, "users", {"t": text, "u": id})) == [("READ", None, 7)]
        assert told(row_history(made.log, "users", (str(id), text))) == [("READ", None, 7)]
    with pytest.raises(ms.UsageError, match="'seven' is no value of kind uuid"):
        row_history(made.log, "users", ("seven", "plain"))
    for wrong in (7, (id,), {"u": id}):
        with pytest.raises(ms.UsageError, match="key has"):
            row_history(made.log, "users", wrong)
    keyless = Made(shape(("n", "int"), key=()))
    keyless.read({"n": 1})
    with pytest.raises(ms.UsageError, match="no key"):
        row_history(keyless.log, "users", 1)


def test_the_history_of_a_row_of_sqlite(shop: Shop) -> None:
    shop.sql("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    users = shop.capture("users")
    users.catch_up(shop.log)
    shop.sql("UPDATE users SET id = 3, email = 'c' WHERE id = 1", "DELETE FROM users WHERE id = 3")
    users.catch_up(shop.log)
    history = shop.log.row_history("users", 3)
    assert [each.operation for each in history] == ["READ", "UPDATE", "DELETE"]
    assert history[1].before == {"id": 1, "email": "a"}


def test_what_differs_between_two_moments(made: Made) -> None:
    first = made.log.head
    made.write(made.change("UPDATE", None, {"id": 1, "n": 11, "note": "a"}), made.change("DELETE", {"id": 2}))
    made.write(made.change("UPDATE", None, {"id": 11, "n": 0, "note": None}))
    second = made.write(made.change("UPDATE", None, {"id": 11, "n": 110, "note": "b"}))
    made.write(made.change("INSERT", None, {"id": 3, "n": 3, "note": None}))
    seen = diff(made.log, "users", first)
    assert seen.rows(named=True) == [
        {"id": 1, "_change": "changed", "_columns": ["n"], "_before": {"id": 1, "n": 10, "note": "a"},
         "_after": {"id": 1, "n": 11, "note": "a"}},
        {"id": 2, "_change": "removed", "_columns": None, "_before": {"id": 2, "n": 20, "note": None}, "_after": None},
        {"id": 3, "_change": "added", "_columns": None, "_before": None, "_after": {"id": 3, "n": 3, "note": None}},
    ]  # fmt: skip
    assert made.log.table_diff("users", first, second)["id"].to_list() == [1, 2]
    assert diff(made.log, "users", second, first)["_change"].to_list() == ["changed", "added"]
    assert diff(made.log, "users", first, first).height == 0


def test_a_column_that_came_or_went_differs_in_every_row(made: Made) -> None:
    first = made.log.head
    made.reshape(shape(("id", "int"), ("n", "text")), dropped=["note"], retyped={"n": "text"})
    made.write(made.change("UPDATE", None, {"id": 1, "n": "x"}))
    seen = diff(made.log, "users", first)
    assert seen["_columns"].to_list() == [["n", "note"], ["note"], ["note"]]


def test_rows_without_a_key_are_added_and_removed() -> None:
    made = Made(shape(("a", "int"), ("b", "text"), key=()))
    first = made.read(*[{"a": 1, "b": "x"}] * 3)
    made.write(*[made.change("DELETE", {"a": 1, "b": "x"})] * 2, made.change("INSERT", None, {"a": 2, "b": None}))
    seen = diff(made.log, "users", first)
    assert sorted(seen["_change"]) == ["added", "removed", "removed"]
    assert seen.filter(seen["_change"] == "added")["_after"].to_list() == [{"a": 2, "b": None}]
