"""Followers: every change in order, at least once outside the log and exactly once inside it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import millstream as ms
from millstream.cdc import Callback, Change, sync

from .conftest import Shop


@pytest.fixture
def captured(shop: Shop) -> Shop:
    users = shop.capture("users")
    users.catch_up(shop.log)
    shop.sql("INSERT INTO users VALUES (1, 'a'), (2, 'b')", "UPDATE users SET email = 'c' WHERE id = 1")
    shop.sql("DELETE FROM users WHERE id = 2")
    users.catch_up(shop.log)
    return shop


def test_a_function_follows_a_table(captured: Shop) -> None:
    seen: list[Change] = []
    follower = sync(captured.log, "users", seen.append, start=False)
    assert follower.catch_up() == 4
    assert [c.operation for c in seen] == ["INSERT", "INSERT", "UPDATE", "DELETE"]
    assert follower.catch_up() == 0


def test_a_follower_that_would_do_nothing_is_refused(captured: Shop) -> None:
    async def waits(change: Change) -> None: ...

    def yields(change: Change):
        yield

    for function in (waits, yields):
        with pytest.raises(ms.UsageError, match="does nothing by itself"):
            sync(captured.log, "users", function, start=False)
    with pytest.raises(ms.UsageError, match="'users' is no log"):
        sync("users", captured.log, print)
    with pytest.raises(ms.UsageError, match="is no table's name"):
        sync(captured.log, print, print)
    assert repr(sync(captured.log, "users", print, start=False)) == "<millstream.cdc.Sync of users: builtins.print>"


def test_a_follower_goes_on_where_it_was(captured: Shop) -> None:
    seen: list[Change] = []
    sync(captured.log, "users", Callback(seen.append, name="index"), start=False).catch_up()
    sync(captured.log, "users", Callback(seen.append, name="index"), start=False).catch_up()
    assert len(seen) == 4
    sync(captured.log, "users", Callback(seen.append, name="another"), start=False).catch_up()
    assert len(seen) == 8


def test_values_reach_a_follower_as_the_source_holds_them(captured: Shop) -> None:
    captured.sql("CREATE TABLE odd (v)", "INSERT INTO odd VALUES (x'00ff'), (9e999), (CAST(x'ff' AS TEXT))")
    captured.capture("users", "odd").catch_up(captured.log)
    seen: list[object] = []
    sync(captured.log, "odd", Callback(lambda c: seen.append(c.after["v"]), name="v"), start=False).catch_up()
    assert seen == [b"\x00\xff", math.inf, b"\xff"]
    raw = [e.data["after"]["v"] for e in captured.log.read("odd", types=["Change"])]
    assert raw == [{"$bytes": "AP8="}, {"$real": "Infinity"}, {"$text": "/w=="}]


@pytest.mark.parametrize("function", [lambda change: None, partial(print, end="")], ids=["lambda", "partial"])
def test_a_function_without_a_name_needs_one_for_its_checkpoint(
    captured: Shop, function: Callable[..., object]
) -> None:
    with pytest.raises(ms.UsageError, match="no name of its own"):
        sync(captured.log, "users", function, start=False)
    assert Callback(function, name="mine").name == "mine"


def test_a_failing_callback_stops_before_the_change_at_fault_and_gets_it_again(captured: Shop) -> None:
    seen: list[str] = []
    broken = [True]

    def index(change: Change) -> None:
        if change.operation == "UPDATE" and broken:
            raise OSError("the index is down")
        seen.append(change.operation)

    follower = sync(captured.log, "users", index, start=False)
    with pytest.raises(OSError, match="down"):
        follower.catch_up()
    broken.clear()
    assert follower.catch_up() == 2
    assert seen == ["INSERT", "INSERT", "UPDATE", "DELETE"]


def test_in_the_background_a_failing_callback_is_tried_again_and_holds_up_no_other(captured: Shop) -> None:
    healthy: list[Change] = []
    attempts: list[int] = []
    done = threading.Event()

    def flaky(change: Change, recorded: ms.Recorded) -> None:
        attempts.append(recorded.position)
        if len(attempts) < 3:
            raise OSError("down")
        if change.operation == "DELETE":
            done.set()

    with sync(captured.log, "users", flaky, healthy.append) as follower:
        assert done.wait(10)
        name = next(n for n in follower.positions if n.endswith("flaky"))
        deadline = time.monotonic() + 5
        while name in follower.errors and time.monotonic() < deadline:
            time.sleep(0.01)
        assert name not in follower.errors
    first = attempts[0]
    assert attempts == [first, first, first, first + 1, first + 2, first + 3]
    assert len(healthy) == 4


def test_what_a_callback_writes_to_the_logs_database_is_there_exactly_once(captured: Shop) -> None:
    broken = [True]

    def count(change: Change, db: ms.Database) -> None:
        db.execute("create table if not exists seen (id integer)")
        db.execute("insert into seen values (?)", ((change.after or change.before or {})["id"],))
        if change.operation == "DELETE" and broken:
            raise OSError("killed")

    follower = sync(captured.log, "users", count, start=False)
    with pytest.raises(OSError, match="killed"):
        follower.catch_up()
    broken.clear()
    follower.catch_up()
    with captured.log.connect() as db:
        assert [row["id"] for row in db.query("select id from seen")] == [1, 2, 1, 2]


def test_a_second_worker_of_one_name_fences_the_first(captured: Shop) -> None:
    seen: list[Change] = []
    first = sync(captured.log, "users", Callback(seen.append, name="x"))
    deadline = time.monotonic() + 5
    while len(seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    sync(captured.log, "users", Callback(seen.append, name="x"), start=False).catch_up()
    captured.sql("INSERT INTO users VALUES (9, 'z')")
    captured.capture("users").catch_up(captured.log)
    while not first.errors and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(ms.ConsumerFenced):
        first.stop()


def test_changes_follow_live(shop: Shop) -> None:
    arrived = threading.Event()
    users = shop.capture("users")
    users.start(shop.log)
    with sync(shop.log, "users", Callback(lambda change: arrived.set(), name="live")):
        shop.sql("INSERT INTO users VALUES (1, 'a')")
        assert arrived.wait(5)
    users.stop()


def test_other_streams_do_not_wake_a_follower_into_commits(captured: Shop) -> None:
    with sync(captured.log, "users", Callback(lambda change: None, name="quiet")) as follower:
        for i in range(200):
            captured.log.append("clicks", ms.Plain("Click", {"n": i}))
        deadline = time.monotonic() + 5
        while follower.positions["quiet"] < captured.log.head and time.monotonic() < deadline:
            time.sleep(0.01)
        assert follower.positions["quiet"] == captured.log.head


def test_unusable_sinks_are_refused(captured: Shop, tmp_path: Path) -> None:
    with pytest.raises(ms.UsageError, match="nothing"):
        sync(captured.log, "users")
    with pytest.raises(ms.UsageError, match="one name"):
        sync(captured.log, "users", print, print, start=False)
    with pytest.raises(ms.UsageError, match="cannot be called"):
        sync(captured.log, "users", 7, start=False)  # type: ignore[arg-type]
