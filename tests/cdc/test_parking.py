"""What a sink cannot take: tried again, parked, listed, retried and skipped; rows keep the order of their changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import millstream as ms
from millstream.cdc import Callback, SinkBase, parked, retry, skip, sync
from millstream.cdc.attempts import pause

from .following import Source, change, put, shape, until


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    source = Source(tmp_path)
    yield source
    source.close()


class Picky(SinkBase):
    """Takes batches, all or nothing, and refuses what it was told to refuse."""

    name = "picky"

    def __init__(self, *bad: Any, size: int = 100, retries: int | None = 0, permanent: bool = True) -> None:
        self.bad = set(bad)
        self.size, self.retries, self.permanent = size, retries, permanent
        self.taken: list[tuple[str, Any]] = []
        self.calls: list[int] = []

    def apply(self, changes: Any, db: Any) -> None:
        self.calls.append(len(changes))
        for c, _ in changes:
            row = c.after or c.before or {}
            if row.get("email") in self.bad:
                raise ms.Rejected(f"{row['email']} is not wanted") if self.permanent else OSError("try again")
        self.taken += [(c.operation, (c.after or c.before or {}).get("id")) for c, _ in changes]


def test_a_change_that_can_never_be_taken_is_parked_at_once_and_the_rest_goes_on(source: Source) -> None:
    source.sql(*(f"INSERT INTO users VALUES ({i}, 'u{i}')" for i in range(1, 101)))
    sink = Picky("u37")
    followers = sync(source.log, "users", sink, start=False)
    assert followers.catch_up() == 99
    assert [id for _, id in sink.taken] == [i for i in range(1, 101) if i != 37]
    [one] = followers.parked()
    assert (one.sink, one.stream, one.state, one.attempts) == ("picky", "users", "parked", 1)
    assert one.error == "Rejected: u37 is not wanted"
    assert next(source.log.read("users", since_position=one.position)).data["after"]["id"] == 37
    assert len(sink.calls) < 20, "halved down to it, not tried one by one"
    assert followers.catch_up() == 0


def test_a_change_that_goes_on_failing_is_parked_when_its_retries_are_used_up(source: Source) -> None:
    source.sql("INSERT INTO users VALUES (1, 'good')", "INSERT INTO users VALUES (2, 'bad')")
    source.sql("INSERT INTO users VALUES (3, 'good')")
    sink = Picky("bad", retries=2, permanent=False)
    followers = sync(source.log, "users", sink, start=False)
    for _ in range(2):
        with pytest.raises(OSError, match="try again"):
            followers.catch_up()
        assert followers.parked() == []
    assert followers.catch_up() == 1
    [one] = followers.parked()
    assert (one.attempts, one.error) == (3, "OSError: try again")
    assert sorted(id for _, id in sink.taken) == [1, 3]


def test_without_a_limit_a_change_is_tried_for_ever(source: Source) -> None:
    source.sql("INSERT INTO users VALUES (1, 'bad')")
    sink = Picky("bad", retries=None, permanent=False)
    followers = sync(source.log, "users", sink, start=False)
    for _ in range(20):
        with pytest.raises(OSError):
            followers.catch_up()
    assert followers.parked() == []


def test_a_sink_that_is_away_is_waited_for_and_nothing_is_parked(source: Source) -> None:
    source.sql("INSERT INTO users VALUES (1, 'a')")
    away = [True]
    seen: list[object] = []

    def index(change: ms.Change) -> None:
        if away:
            raise ms.SinkUnavailable("the index is being upgraded")
        seen.append(change)

    followers = sync(source.log, "users", Callback(index, name="index", retries=0), start=False)
    for _ in range(5):
        with pytest.raises(ms.SinkUnavailable):
            followers.catch_up()
    assert followers.parked() == []
    away.clear()
    assert followers.catch_up() == 1


def test_pauses_double_are_spread_and_have_a_cap() -> None:
    for failures, most in ((1, 0.1), (2, 0.2), (5, 1.6), (9, 25.6), (10, 30), (10_000, 30)):
        found = {pause(failures) for _ in range(50)}
        assert most / 2 <= min(found)
        assert max(found) <= most
        assert len(found) > 1
    assert pause(1, ms.SinkUnavailable("busy", after=7.0)) == 7.0
    assert pause(1, ms.SinkUnavailable("busy", after=1e9)) == 600.0


def test_a_later_change_of_a_parked_row_waits_behind_it(source: Source) -> None:
    source.sql("INSERT INTO users VALUES (1, 'bad')", "INSERT INTO users VALUES (2, 'b')")
    source.sql("UPDATE users SET email = 'good' WHERE id = 1", "UPDATE users SET email = 'c' WHERE id = 2")
    source.sql("UPDATE users SET id = 9 WHERE id = 1", "DELETE FROM users WHERE id = 9")
    sink = Picky("bad")
    followers = sync(source.log, "users", sink, start=False)
    assert followers.catch_up() == 2
    assert sink.taken == [("INSERT", 2), ("UPDATE", 2)]
    assert [p.state for p in followers.parked()] == ["parked", "waiting", "waiting", "waiting"]
    sink.bad.clear()
    assert followers.retry() == 1
    assert followers.catch_up() == 4
    assert sink.taken[2:] == [("INSERT", 1), ("UPDATE", 1), ("UPDATE", 9), ("DELETE", 9)]
    assert followers.parked() == []


def test_what_waits_follows_when_the_parked_one_is_skipped(source: Source) -> None:
    source.sql("INSERT INTO users VALUES (1, 'bad')", "UPDATE users SET email = 'good' WHERE id = 1")
    sink = Picky("bad")
    followers = sync(source.log, "users", sink, start=False)
    followers.catch_up()
    first = followers.parked()[0].position
    with pytest.raises(ms.UsageError, match="no position"):
        followers.skip()
    # As another process does it, which has the log alone.
    assert skip(source.log, first, table="users", sink="picky") == 1
    assert followers.catch_up() == 1
    assert sink.taken == [("UPDATE", 1)]
    assert parked(source.log) == []


def test_a_retry_that_fails_parks_the_change_again(source: Source) -> None:
    source.sql("INSERT INTO users VALUES (1, 'bad')", "UPDATE users SET email = 'good' WHERE id = 1")
    sink = Picky("bad")
    followers = sync(source.log, "users", sink, start=False)
    followers.catch_up()
    assert followers.retry(followers.parked()[0].position) == 1
    assert [p.state for p in followers.parked()] == ["retry", "waiting"]
    followers.catch_up()
    assert [(p.state, p.attempts) for p in followers.parked()] == [("parked", 2), ("waiting", 0)]
    assert sink.taken == []


def test_a_running_follower_takes_a_retry_up(source: Source) -> None:
    source.sql("INSERT INTO users VALUES (1, 'bad')")
    sink = Picky("bad")
    with sync(source.log, "users", sink) as followers:
        until(followers.parked)
        sink.bad.clear()
        assert retry(source.log, table="users") == 1
        until(lambda: not followers.parked())
    assert sink.taken == [("INSERT", 1)]


def test_a_truncate_waits_for_what_is_parked_and_all_after_it_waits_for_the_truncate(tmp_path: Path) -> None:
    with ms.open(str(tmp_path / "log.db")) as log:
        users = shape(("id", "int"), ("email", "text"))
        put(log, users, change("INSERT", None, {"id": 1, "email": "bad"}, users))
        put(log, users, change("TRUNCATE", None, None, users))
        put(log, users, change("INSERT", None, {"id": 2, "email": "b"}, users))
        sink = Picky("bad")
        followers = sync(log, "users", sink, start=False)
        followers.catch_up()
        assert [p.state for p in followers.parked()] == ["parked", "waiting", "waiting"]
        sink.bad.clear()
        followers.retry()
        followers.catch_up()
        assert sink.taken == [("INSERT", 1), ("TRUNCATE", None), ("INSERT", 2)]


def test_rows_without_a_key_wait_for_the_same_row_alone(tmp_path: Path) -> None:
    with ms.open(str(tmp_path / "log.db")) as log:
        rows = shape(("id", "int"), ("email", "text"), key=())
        put(log, rows, change("INSERT", None, {"id": 1, "email": "bad"}, rows))
        put(log, rows, change("INSERT", None, {"id": 2, "email": "b"}, rows))
        put(log, rows, change("DELETE", {"id": 1, "email": "bad"}, None, rows))
        followers = sync(log, "users", Picky("bad"), start=False)
        assert followers.catch_up() == 1
        assert [p.state for p in followers.parked()] == ["parked", "waiting"]


def test_a_function_in_the_logs_own_transaction_parks_too_and_is_retried_exactly_once(source: Source) -> None:
    broken = [True]

    def note(change: ms.Change, db: ms.Database) -> None:
        db.execute("create table if not exists seen (id integer)")
        db.execute("insert into seen values (?)", (change.after["id"],))  # type: ignore[index]
        if change.after["id"] == 2 and broken:  # type: ignore[index]
            raise ms.Rejected("not that one")

    source.sql(*(f"INSERT INTO users VALUES ({i}, 'a')" for i in range(1, 6)))
    followers = sync(source.log, "users", note, start=False)
    assert followers.catch_up() == 4
    broken.clear()
    followers.retry()
    assert followers.catch_up() == 1
    with source.log.connect() as db:
        assert [row["id"] for row in db.query("select id from seen")] == [1, 3, 4, 5, 2]


def test_many_small_transactions_are_given_together(source: Source) -> None:
    for i in range(1, 301):
        source.sql(f"INSERT INTO users VALUES ({i}, 'u')")
    sink = Picky(size=1000)
    assert sync(source.log, "users", sink, start=False).catch_up() == 300
    assert sink.calls == [300]


def test_a_sink_hears_of_columns_in_order_between_the_changes(source: Source) -> None:
    heard: list[object] = []

    class Listener(SinkBase):
        name = "listener"

        def apply(self, changes: Any, db: Any) -> None:
            heard.extend(c.operation for c, _ in changes)

        def notice(self, event: Any, recorded: ms.Recorded) -> None:
            heard.append((type(event).__name__, tuple(event.columns)))

    source.sql("INSERT INTO users VALUES (1, 'a')", "ALTER TABLE users ADD COLUMN age INTEGER DEFAULT 7")
    source.sql("INSERT INTO users VALUES (2, 'b', 3)")
    sync(source.log, "users", Listener(), start=False).catch_up()
    assert heard == [
        ("SnapshotCompleted", ("id", "email")), "INSERT", ("SchemaChanged", ("id", "email", "age")), "INSERT"
    ]  # fmt: skip


def test_a_sink_that_wants_no_more_ends_its_follower_and_no_other(source: Source) -> None:
    source.sql("INSERT INTO users VALUES (1, 'a')")
    seen = threading.Event()

    def gone(change: ms.Change) -> None:
        raise ms.SinkGone("unsubscribed")

    followers = sync(source.log, "users", Callback(gone, name="gone"), Callback(lambda c: seen.set(), name="other"))
    until(lambda: "gone" in followers.errors)
    source.sql("INSERT INTO users VALUES (2, 'b')")
    assert seen.wait(10)
    until(lambda: followers.positions["other"] == source.log.head)
    with pytest.raises(ms.SinkGone):
        followers.stop()
    assert followers.parked() == []


def test_what_is_parked_goes_along_when_the_log_moves(source: Source, tmp_path: Path) -> None:
    source.sql("INSERT INTO users VALUES (1, 'bad')")
    sync(source.log, "users", Picky("bad"), start=False).catch_up()
    source.log.copy_to(str(tmp_path / "copy.db"))
    with ms.open(str(tmp_path / "copy.db"), readonly=True) as copy:
        assert parked(copy) == parked(source.log)


@pytest.mark.parametrize("home", ["sqlite", "postgres"], indirect=True)
def test_a_log_in_any_place_parks(home: str) -> None:
    with ms.open(home) as log:
        users = shape(("id", "int"), ("email", "text"))
        put(log, users, *(change("INSERT", None, {"id": i, "email": e}, users) for i, e in enumerate(("a", "bad"))))
        put(log, users, change("DELETE", {"id": 1, "email": "x"}, None, users))
        sink = Picky("bad")
        followers = sync(log, "users", sink, start=False)
        assert followers.catch_up() == 1
        assert [p.state for p in followers.parked("picky")] == ["parked", "waiting"]
        sink.bad.clear()
        assert followers.retry() == 1
        assert followers.catch_up() == 2
        assert followers.parked() == []
