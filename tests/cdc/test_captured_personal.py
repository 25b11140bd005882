"""Personal values of captured rows: sealed in the log, readable to all, and gone once their subject is forgotten."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import millstream as ms

MASK = {"users.email": "personal", "users.born": "personal"}
SUBJECTS = {"users": "customer-{id}"}


class Place:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.shop = sqlite3.connect(path / "shop.sqlite", isolation_level=None)
        self.shop.execute("create table users (id integer primary key, email text, born integer, plan text)")
        self.log = ms.open(str(path / "log.db"))

    def capture(self, **options: Any) -> ms.Capture:
        given = {"mask": MASK, "subjects": SUBJECTS, **options}
        return ms.capture(f"sqlite:///{self.path / 'shop.sqlite'}", tables=["users"], **given)

    def stored(self) -> bytes:
        with self.log.connect() as db:
            db.execute("select 1")
        self.shop.execute("select 1")
        return b"".join((self.path / name).read_bytes() for name in ("log.db", "log.db-wal"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.log.close()
    made.shop.close()


def test_personal_values_are_sealed_in_the_file_and_plain_to_every_reader(place: Place) -> None:
    place.shop.execute("insert into users values (7, 'ann@example.org', 1990, 'free'), (8, null, 1991, 'free')")
    capture = place.capture()
    capture.catch_up(place.log)
    place.shop.execute("update users set email = 'ann@example.com' where id = 7")
    capture.catch_up(place.log)
    assert b"ann@example" not in place.stored()
    assert [e.event.after for e in place.log.read("users", types=[ms.Change])] == [
        {"id": 7, "email": "ann@example.org", "born": 1990, "plan": "free"},
        {"id": 8, "email": None, "born": 1991, "plan": "free"},
        {"id": 7, "email": "ann@example.com", "born": 1990, "plan": "free"},
    ]
    assert place.log.table("users").rows() == [(7, "ann@example.com", 1990, "free"), (8, None, 1991, "free")]
    assert [c.before and c.before["email"] for c in place.log.row_history("users", 7)] == [None, "ann@example.org"]
    seen: list[Any] = []
    ms.sync(
        place.log, "users", ms.Callback(lambda change: seen.append(change.after["email"]), name="s"), start=False
    ).catch_up()
    assert seen == ["ann@example.org", None, "ann@example.com"]
    assert place.log.verify().position == place.log.head


def test_a_forgotten_subject_is_erased_from_rows_before_and_after_and_stays_so(place: Place) -> None:
    place.shop.execute(
        "insert into users values (7, 'ann@example.org', 1990, 'free'), (8, 'bob@example.org', 1991, 'free')"
    )
    capture = place.capture()
    capture.catch_up(place.log)
    place.shop.execute("update users set plan = 'gold'")
    capture.catch_up(place.log)
    found = place.log.forget("customer-7")
    assert [(each.stream, each.events) for each in found.streams] == [("users", 2)]
    assert place.log.table("users")["email"].to_list() == ["[erased]", "bob@example.org"]
    # The source still has them, and a capture goes on: what it tells of them is erased from the beginning.
    place.shop.execute("update users set email = 'ann@example.net' where id = 7")
    assert capture.catch_up(place.log) == 1
    assert b"ann@example.net" not in place.stored()
    [*_, last] = place.log.read("users")
    assert last.event.after["email"] == ms.Erased
    assert last.event.after["plan"] == "gold"
    assert ms.cdc.decoded(last).before["email"] == ms.Erased


def test_no_image_holds_personal_values_in_the_clear(place: Place) -> None:
    place.shop.execute("insert into users values (7, 'ann@example.org', 1990, 'free')")
    place.capture().catch_up(place.log)
    with pytest.raises(ms.UsageError, match="no image is kept of 'users'"):
        ms.cdc.image(place.log, "users")


def test_the_source_and_the_log_are_compared_by_what_the_values_say(place: Place) -> None:
    place.shop.execute(
        "insert into users values (7, 'ann@example.org', 1990, 'free'), (8, 'bob@example.org', 1991, 'free')"
    )
    capture = place.capture()
    capture.catch_up(place.log)
    assert ms.cdc.verify(capture, place.log).differences == ()
    place.log.forget("customer-7")
    assert ms.cdc.verify(capture, place.log).differences == ()
    place.log.append("users", _change(8, "eve@example.org"))
    [difference] = ms.cdc.verify(capture, place.log, repair=True).differences
    assert (difference.key, difference.columns) == ({"id": 8}, ("email",))
    assert place.log.table("users")["email"].to_list()[1] == "bob@example.org"
    assert place.stored().count(b"bob@example.org") == 0


def _change(id: int, email: str) -> ms.Change:
    from datetime import UTC, datetime

    row = {"id": id, "email": email, "born": 1991, "plan": "free"}
    return ms.Change(operation="READ", table="users", before=None, after=row, timestamp=datetime.now(UTC))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": None}, "nothing says whose it is"),
        ({"subjects": {"users": "everybody"}}, "gives 'everybody'"),
        ({"subjects": {"users": "{"}}, "gives '{'"),
        ({"subjects": {"users": "{id:>3}"}}, "gives '{id:>3}'"),
        ({"mask": {}}, "nothing is personal"),
    ],
)
def test_what_cannot_be_sealed_is_refused_at_once(place: Place, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.UsageError, match=message):
        place.capture(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": {"users.id": "personal"}, "subjects": {"users": "{plan}"}}, "is of the key"),
        ({"subjects": {"users": "{email}"}}, "has not in the clear"),
        ({"subjects": {"users": "{nobody}"}}, "has not in the clear"),
    ],
)
def test_what_would_not_stay_readable_is_refused_with_the_first_row(
    place: Place, options: dict[str, Any], message: str
) -> None:
    place.shop.execute("insert into users values (7, 'ann@example.org', 1990, 'free')")
    with pytest.raises(ms.UsageError, match=message):
        place.capture(**options).catch_up(place.log)


def test_a_row_that_does_not_say_whose_it_is_stops_the_capture_and_nothing_is_in_the_log(place: Place) -> None:
    place.shop.execute("insert into users values (7, 'ann@example.org', 1990, null)")
    with pytest.raises(ms.CaptureError, match="does not say by 'plan' whose"):
        place.capture(subjects={"users": "{plan}"}).catch_up(place.log)
    assert place.log.head == 0
