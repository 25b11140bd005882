"""Captured tables as the other side of joins."""

from __future__ import annotations

import random
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import START
from test_idle import catch_up
from test_join_latest import cut

import millstream as ms
from millstream.errors import UsageError
from millstream.log.log import Log
from millstream.streams import FlowError, run, stream, table, tumbling
from millstream.streams.replay import replay
from millstream.streams.runner import Worker
from millstream.testing import FakeClock

orders = stream("orders", time="at", lateness="30s")
users = table("users", key="id")


class Model:
    """A table that changes, its log, and what was so when."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.rows: dict[int, dict[str, Any]] = {}
        self.log = ms.open()
        self.said: list[tuple[int, float, dict[int, dict[str, Any]]]] = []
        """Position, time by the clock of the source, and the table then."""
        self.second = 0.0

    def change(self) -> None:
        r, rows = self.r, self.rows
        key = r.randrange(5)
        row = {"id": key, "name": r.choice(["Ann", "Bob", None]), "level": r.randrange(4)}
        before = rows.get(key)
        what = r.random()
        if what < 0.03:
            operation, before, after = "TRUNCATE", None, None
            rows.clear()
        elif before is None:
            operation, after = r.choice(["INSERT", "READ"]), row
            rows[key] = row
        elif what < 0.3:
            operation, after = "DELETE", None
            del rows[key]
        else:
            operation, after = "UPDATE", row
            free = [other for other in range(5) if other not in rows]
            del rows[key]
            if what < 0.5 and free:
                row["id"] = r.choice(free)
            rows[row["id"]] = row
        # Commits may be stamped a little out of order.
        stamp = START + timedelta(seconds=self.second - r.choice([0, 0, 0, 4]))
        data = {
            "operation": operation,
            "table": "users",
            "before": before,
            "after": after,
            "timestamp": stamp.isoformat(),
        }
        position = self.log.append("users", ms.Plain("Change", data)).position
        reached = max([stamp.timestamp(), *(at for _, at, _ in self.said[-1:])])
        self.said.append((position, reached, {key: dict(row) for key, row in rows.items()}))

    def play(self, count: int) -> Log:
        for n in range(count):
            self.second += self.r.choice([0, 1, 5])
            if self.r.random() < 0.5:
                self.change()
            elif self.r.random() < 0.05:
                self.log.append("users", ms.Plain("SnapshotCompleted", {"table": "users", "rows": 1}))
            else:
                at = START + timedelta(seconds=self.second - self.r.choice([0, 0, 7, 20]))
                self.log.append("orders", ms.Plain("TableOrder", {"n": n, "user": self.r.randrange(6), "at": at}))
        return self.log

    def then(self, at: float) -> dict[int, dict[str, Any]]:
        return next((rows for _, when, rows in reversed(self.said) if when <= at), {})

    def known(self, position: int) -> dict[int, dict[str, Any]]:
        return next((rows for place, _, rows in reversed(self.said) if place < position), {})


@settings(max_examples=5)
@given(st.integers(0, 10_000))
def test_a_row_meets_the_table_as_it_stood_at_its_time(seed: int) -> None:
    model = Model(seed)
    with model.play(90) as log:
        flow = orders.join_asof(users, on="user", prefix="u_").select("n", "user", "u_name", "u_level")
        found = cut(log, flow, seed)
        assert found.equals(flow.over(log))
        expected = {}
        for event in log.read("orders"):
            row = model.then(datetime.fromisoformat(event.data["at"]).timestamp()).get(event.data["user"], {})
            expected[event.data["n"]] = (event.data["user"], row.get("name"), row.get("level"))
        assert {n: tuple(rest) for n, *rest in found.rows()} == expected


@settings(max_examples=5)
@given(st.integers(0, 10_000))
def test_a_row_meets_the_table_as_the_log_had_it_and_what_the_filter_keeps_of_it(seed: int) -> None:
    model = Model(seed)
    with model.play(90) as log:
        some = users.filter(pl.col("level") >= 1).with_columns(twice=pl.col("level") * 2).select("id", "twice")
        flow = orders.join_latest(some, on="user").select("n", "twice")
        found = cut(log, flow, seed)
        assert found.equals(flow.over(log))
        expected = []
        for event in log.read("orders"):
            row = model.known(event.position).get(event.data["user"], {"level": 0})
            expected.append((event.data["n"], row["level"] * 2 if row["level"] >= 1 else None))
        assert found.rows() == expected


def test_a_table_that_is_empty_or_silent_gives_nulls() -> None:
    with ms.open() as log:
        log.append("orders", ms.Plain("TableOrder", {"n": 1, "user": 1, "at": START}))
        flow = orders.join_latest(users.filter(pl.col("active")).select("email"), on="user")
        assert flow.select("n", "email").over(log).rows() == [(1, None)]
        row = {"id": 1, "email": "a@example.com", "active": True}
        data = {"operation": "INSERT", "before": None, "after": row, "timestamp": START.isoformat()}
        log.append("users", ms.Plain("Change", data))
        log.append("orders", ms.Plain("TableOrder", {"n": 2, "user": 1, "at": START}))
        assert flow.select("n", "email").over(log).rows() == [(1, None), (2, "a@example.com")]
        assert flow.schema(log)["email"] == pl.String


def test_a_table_that_was_said_to_be_silent_may_still_change() -> None:
    clock = FakeClock(START)
    slow = table("users", key="id", idle="10s")
    flow = orders.join_asof(slow, on="user").select("n", "name").to("named", type="NamedOrder")
    with ms.open(clock=clock) as log:

        def change(name: str, second: int) -> None:
            data = {"operation": "READ", "before": None, "after": {"id": 1, "name": name}}
            log.append("users", ms.Plain("Change", {**data, "timestamp": START + timedelta(seconds=second)}))

        def order(n: int, second: int) -> None:
            log.append("orders", ms.Plain("TableOrder", {"n": n, "user": 1, "at": START + timedelta(seconds=second)}))

        worker = Worker(log, flow)
        change("Ann", 0)
        for n, second in enumerate((1, 40, 80)):
            order(n, second)
            clock.advance("35s")
            catch_up(worker, log)
        # What was committed before the time that the log has gone on to is told late, and counts from that time on.
        reached = [datetime.fromisoformat(event.data["reached"]) for event in log.read("$idle")][-1]
        assert reached > START + timedelta(seconds=40)
        change("Bea", 20)
        order(3, 200)
        order(4, 300)
        change("Cleo", 301)
        catch_up(worker, log)
        times = [START + timedelta(seconds=second) for second in (1, 40, 80, 200, 300)]
        expected = ["Ann" if at < reached else "Bea" for at in times]
        assert [event.data["name"] for event in log.read("named")] == expected[:4]
        assert flow.over(log)["name"].to_list() == expected
        assert replay(flow, log, rows=1).equals(flow.over(log))


def test_a_key_of_several_columns_and_of_text(home: str | None) -> None:
    with ms.open(home) as log:
        prices = table("prices", key=["country", "part"])
        flow = orders.join_latest(prices, on=["land", "part"]).select("n", "price").to("priced", type="PricedOrder")
        for n, (land, part, price) in enumerate([("it", 1, 5), ("de", 1, 6), ("it", 1, 7)]):
            after = {"country": land, "part": part, "price": price}
            data = {"operation": "READ", "before": None, "after": after, "timestamp": START.isoformat()}
            log.append("prices", ms.Plain("Change", data))
            log.append("orders", ms.Plain("TableOrder", {"n": n, "land": "it", "part": 1, "at": START}))
            run(log, flow, until="head")
        assert [event.data["price"] for event in log.read("priced")] == [5, 5, 7]


def test_a_real_capture_is_joined_and_an_update_of_a_key_moves_the_row(tmp_path: Path) -> None:
    shop = sqlite3.connect(tmp_path / "shop.sqlite")
    shop.execute("create table users (id integer primary key, email text)")
    shop.execute("insert into users values (1, 'old@example.com'), (2, 'bob@example.com')")
    shop.commit()
    with ms.open(tmp_path / "log.db") as log:
        capture = ms.capture(f"sqlite:///{tmp_path / 'shop.sqlite'}", tables=["users"])
        names = orders.join_latest(users, on="user").select("n", "email").to("named", type="NamedOrder")

        def order(n: int, user: int) -> list[tuple[int, str | None]]:
            capture.catch_up(log)
            log.append("orders", ms.Plain("TableOrder", {"n": n, "user": user, "at": START}))
            run(log, names, until="head")
            return [(event.data["n"], event.data["email"]) for event in log.read("named")]

        order(1, 1)
        shop.execute("update users set email = 'new@example.com' where id = 1")
        shop.execute("update users set id = 9 where id = 2")
        shop.commit()
        order(2, 1)
        order(3, 2)
        order(4, 9)
        shop.execute("delete from users")
        shop.commit()
        assert order(5, 1) == [
            (1, "old@example.com"),
            (2, "new@example.com"),
            (3, None),
            (4, "bob@example.com"),
            (5, None),
        ]
        now = log.scan("orders").select("n", "user").collect()
        assert now.height == 5
    shop.close()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"operation": "MERGE", "before": None, "after": {"id": 1}}, "no change of a table"),
        ({"operation": "INSERT", "before": None, "after": {"number": 1}}, "has no column 'id'"),
        ({"operation": "INSERT", "before": None, "after": "a row"}, "which is no row of a table"),
    ],
)
def test_what_is_no_change_of_the_table_is_refused(data: dict[str, Any], says: str) -> None:
    with ms.open() as log:
        log.append("users", ms.Plain("Change", {**data, "timestamp": START.isoformat()}))
        log.append("orders", ms.Plain("TableOrder", {"n": 1, "user": 1, "at": START}))
        with pytest.raises(FlowError, match=says):
            orders.join_latest(users, on="user").over(log)


def test_a_table_is_joined_by_its_whole_key_and_only_as_of_or_latest() -> None:
    with pytest.raises(UsageError, match="whole key"):
        orders.join_latest(users, on=["user", "country"])
    with pytest.raises(UsageError, match="is no flow"):
        orders.join(users, on="id")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no forward row"):
        orders.join_asof(users, strategy="forward", within="1s")
    with pytest.raises(UsageError, match="names no columns"):
        table("users", key=[])
    counts = orders.group_by("user").window(tumbling("1m")).agg(n=pl.len())
    assert counts.join_latest(users, on="user").keys == ("user",)


def test_a_row_is_explained_by_the_change_that_it_met() -> None:
    with ms.open() as log:
        for n, name in enumerate(["Ann", "Bea"]):
            data = {"operation": "READ", "before": None, "after": {"id": 1, "name": name}, "timestamp": START}
            log.append("users", ms.Plain("Change", data))
            log.append("orders", ms.Plain("TableOrder", {"n": n, "user": 1, "at": START}))
        flow = orders.join_latest(users, on="user").select("n", "name")
        assert flow.explain(log, {"n": 1}).positions == [3, 4]
        assert flow.explain(log, {"n": 0}).positions == [1, 2]


def test_a_table_that_is_given_in_the_place_of_a_flow_is_refused_and_what_to_do_is_said() -> None:
    table, flow = ms.table("users", key="id"), stream("orders", time="at")
    given: list[Any] = [table]
    with ms.open() as log:
        for made in (
            lambda: flow.join(*given, on="id", back="1m"),
            lambda: flow.join(*given, on="id", window=ms.tumbling("1m")),
            lambda: flow.merge(*given),
            lambda: ms.run(log, *given),
            lambda: ms.Running(log, *given),
            *(
                lambda verb=verb: getattr(table, verb)()
                for verb in ("join", "group_by", "match", "window", "over", "to")
            ),
        ):
            with pytest.raises(ms.UsageError, match="captured table 'users'") as raised:
                made()
            assert "join_asof(" in str(raised.value.hint)
        with pytest.raises(AttributeError):
            table.nothing  # type: ignore[attr-defined]  # noqa: B018
        with pytest.raises(ms.UsageError, match="no flow"):
            ms.run(log, flow.group_by("id"))  # type: ignore[arg-type]
