"""What does not come into the log as it is: columns, rows and values that are filtered or masked."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import millstream as ms
from millstream.cdc import Capture, capture, table
from millstream.cdc.filters import Filters
from millstream.cdc.shape import shape_of
from millstream.cdc.source import Batch, State, pieces_of

from .conftest import Shop
from .past import Made, shape


@pytest.fixture
def people(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    shop.sql("CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT, age INTEGER)")
    shop.sql("INSERT INTO users VALUES (1, 'ann@x', 20), (2, 'bob@x', 60)")
    yield shop
    shop.log.close()
    shop.db.close()


def filtered(shop: Shop, **filters: Any) -> Capture:
    made = capture(shop.url, tables=["users"], **filters)
    made.catch_up(shop.log)
    return made


def shapes(shop: Shop) -> set[tuple[str, ...]]:
    return {found.names for run in shop.log.runs("users") if (found := shape_of(run.schema)) is not None}


def test_only_the_columns_that_are_named_come(people: Shop) -> None:
    users = filtered(people, columns={"users": ["id", "age"]})
    people.sql("UPDATE users SET email = 'secret' WHERE id = 1", "DELETE FROM users WHERE id = 2")
    users.catch_up(people.log)
    assert shapes(people) == {("id", "age")}
    assert table(people.log, "users").rows() == [(1, 20)]
    assert all(b"@x" not in run.text() and b"secret" not in run.text() for run in people.log.runs("users"))


def test_a_row_that_enters_or_leaves_what_is_wanted_is_inserted_or_deleted(people: Shop) -> None:
    users = filtered(people, rows={"users": lambda row: row["age"] >= 50})
    assert table(people.log, "users")["id"].to_list() == [2]
    head = people.log.head
    people.sql(
        "UPDATE users SET age = 55 WHERE id = 1",
        "UPDATE users SET age = 56 WHERE id = 1",
        "UPDATE users SET age = 6 WHERE id = 2",
        "UPDATE users SET age = 7 WHERE id = 2",
        "DELETE FROM users WHERE id = 2",
        "INSERT INTO users VALUES (3, 'c', 1), (4, 'd', 99)",
        "DELETE FROM users WHERE id = 4",
    )
    users.catch_up(people.log)
    changes = list(people.log.read("users", types=["Change"], after=head))
    assert [(e.data["operation"], (e.data["after"] or e.data["before"])["id"]) for e in changes] == [
        ("INSERT", 1), ("UPDATE", 1), ("DELETE", 2), ("INSERT", 4), ("DELETE", 4),
    ]  # fmt: skip
    numbers = [n for first, last in changes[0].metadata["changes"] for n in range(first, last + 1)]
    assert len(numbers) == len(changes), "each event keeps the source's number of it"
    assert numbers[1:3] == [numbers[0] + 1, numbers[0] + 2]
    assert numbers[3] - numbers[2] == 4
    assert table(people.log, "users").rows() == [(1, "ann@x", 56)]


def test_masked_values_are_hashed_redacted_dropped_or_made_anew(people: Shop) -> None:
    people.sql("ALTER TABLE users ADD COLUMN phone", "ALTER TABLE users ADD COLUMN note", "UPDATE users SET note = 'n'")
    mask = {
        "users.email": "hash", "users.phone": "drop", "users.note": "redact",
        "users.age": lambda age: age // 10 * 10,
    }  # fmt: skip
    users = filtered(people, mask=mask, mask_key=b"secret")
    people.sql("UPDATE users SET email = 'bob@x', note = NULL WHERE id = 1")
    users.catch_up(people.log)
    hashed = hmac.new(b"secret", b'"bob@x"', hashlib.sha256).hexdigest()
    assert table(people.log, "users").rows(named=True) == [
        {"id": 1, "email": hashed, "age": 20, "note": None},
        {"id": 2, "email": hashed, "age": 60, "note": "***"},
    ]
    assert shapes(people) == {("id", "email", "age", "note")}


def test_columns_that_are_added_later_are_filtered_too(people: Shop) -> None:
    with pytest.warns(ms.CaptureWarning, match="names 'city', and table 'users' has no such column.* email, age"):
        users = filtered(people, columns={"users": ["id", "city"]})
    people.sql("ALTER TABLE users ADD COLUMN zip DEFAULT 7", "ALTER TABLE users ADD COLUMN city DEFAULT 'Rome'")
    users.catch_up(people.log)
    said = [e.event for e in people.log.read("users", types=["SchemaChanged"])]
    assert said[-1].columns == ["id", "city"]
    assert all("zip" not in one.added for one in said)
    assert table(people.log, "users").rows() == [(1, "Rome"), (2, "Rome")]


def test_filters_that_cannot_be_meant_are_refused(people: Shop) -> None:
    for wrong, message in [
        ({"mask": {"users.email": "hash"}}, "without a key"),
        ({"mask": {"email": "drop"}}, "names 'email'"),
        ({"mask": {"users.email": "blur"}}, "cannot be masked by 'blur'"),
        ({"columns": {"users": "id"}}, "columns= gives 'id'"),
        ({"rows": {"users": "age > 5"}}, "rows= gives"),
        ({"columns": {"user": ["id"]}}, "'user', which is not captured"),
    ]:
        with pytest.raises(ms.UsageError, match=message):
            capture(people.url, tables=["users"], **wrong)
    with pytest.raises(ms.UsageError, match="'id' of 'users' is of the key"):
        filtered(people, columns={"users": ["email"]})


def test_what_is_to_be_masked_never_comes_in_the_clear(people: Shop) -> None:
    with pytest.raises(ms.CaptureError, match="no column 'mail', which is to be masked"):
        filtered(people, mask={"users.mail": "redact"})
    users = filtered(people, mask={"users.email": "redact"})
    people.sql("ALTER TABLE users RENAME COLUMN email TO mail", "INSERT INTO users VALUES (3, 'cleartext', 1)")
    with pytest.raises(ms.CaptureError, match="no column 'email', which is to be masked"):
        users.catch_up(people.log)
    assert all(b"cleartext" not in run.text() for run in people.log.runs())


def test_a_filter_of_a_table_that_is_not_there_lets_nothing_in(people: Shop) -> None:
    for filters in ({"mask": {"user.email": "redact"}}, {"rows": {"user": bool}}, {"columns": {"user": ["id"]}}):
        with pytest.raises(ms.CaptureError, match="no table 'user'"):
            capture(people.url, **filters).catch_up(people.log)
    assert people.log.head == 0
    capture(people.url, mask={"users.email": "redact"}).catch_up(people.log)
    assert table(people.log, "users")["email"].to_list() == ["***", "***"]


def test_a_filter_that_fails_stops_the_capture_and_tells_no_value(people: Shop) -> None:
    people.sql("INSERT INTO users VALUES (3, 'private', NULL)")
    with pytest.raises(ms.CaptureError, match="row filter of 'users' fails"):
        filtered(people, rows={"users": lambda row: row["age"] > 3})
    with pytest.raises(ms.CaptureError, match=r"mask of users\.email fails \(ValueError\)") as failed:
        filtered(people, mask={"users.email": int})
    assert "private" not in str(failed.value)
    assert "ann@x" not in repr(failed.value)


def test_where_the_source_tells_only_the_key_before_followers_stay_right() -> None:
    made = Made(shape(("id", "int"), ("age", "int"), ("bio", "text")))
    filters = Filters(None, {"users": lambda row: row["age"] > 40}, {"users.bio": "redact"}, None)
    left = {"$unchanged": True}
    changes = [
        made.change("UPDATE", None, {"id": 1, "age": 50, "bio": left}),
        made.change("UPDATE", None, {"id": 2, "age": 4, "bio": "x"}),
        made.change("UPDATE", {"id": 3}, {"id": 4, "age": 4, "bio": None}),
        made.change("DELETE", {"id": 5}),
        made.change("TRUNCATE"),
    ]
    pieces = pieces_of("users", made.shape, changes, {"sequence": [[0, 4]]})
    [piece] = filters.batch(Batch(pieces, 1, State(slot="s")), ms.open().keys).pieces
    lines = [json.loads(line) for line in piece.body.split(b"\n")]
    assert [(line["operation"], line["before"], line["after"]) for line in lines] == [
        ("UPDATE", None, {"id": 1, "age": 50, "bio": left}),
        ("DELETE", {"id": 2}, None),
        ("DELETE", {"id": 3}, None),
        ("DELETE", {"id": 5}, None),
        ("TRUNCATE", None, None),
    ]


def test_what_was_put_ahead_is_filtered_once() -> None:
    made = Made(shape(("id", "int"), ("age", "int")))
    filters = Filters(None, {"users": lambda row: row["age"] > 40}, {"users.age": lambda age: age - 20}, None)
    rows = [{"id": 1, "age": 50}, {"id": 2, "age": 5}]
    pieces = [pieces_of("users", made.shape, [made.change("READ", None, row)])[0] for row in rows]
    ahead = filters.batch(Batch([], 1, State(slot="s"), ahead=pieces), ms.open().keys).ahead
    assert [json.loads(piece.body)["after"] for piece in ahead] == [{"id": 1, "age": 30}]
    for piece in ahead:
        piece.ref, piece.body = 7, b""
    [left] = filters.batch(Batch(pieces, 1, State(slot="s")), ms.open().keys).pieces
    assert (left.ref, left.count) == (7, 1)
