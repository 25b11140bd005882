"""Outboxes, processes, rebuilds and rollbacks, killed again and again: nothing is lost, and nothing happens twice.

MILLSTREAM_EXAMPLES=300 kills so many instead of 6, and MILLSTREAM_SEED says when.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fulfilment import Paid, Place, fulfilling
from kept import eventually
from mortal import all_died, dying

import millstream as ms
from millstream.cqrs import delivery

KILLS = int(os.environ.get("MILLSTREAM_EXAMPLES", "6"))
SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))

# --- messages to the outside -------------------------------------------------------------------------------


class Tell(ms.Command):
    n: int
    key: str


def telling(log: ms.Log, send: Any) -> ms.App:
    app = ms.App(log, outboxes=[ms.Outbox("mail", send, attempts=None)])

    @app.command
    def tell(command: Tell, mail: ms.Outbox) -> None:
        mail.post(command.n, key=command.key)

    return app


class Moody:
    """Sends to a file or a server; now and then it is away, or does not take a message."""

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._chance = random.Random(os.getpid())

    def __call__(self, message: ms.Message) -> None:
        chance = self._chance.random()
        if chance < 0.02:
            raise ms.SinkUnavailable("nobody is there")
        if chance < 0.06:
            raise ValueError("not this one")
        line = json.dumps([message.id, message.body, message.key])
        if self._sink.isdecimal():
            connection = HTTPConnection("127.0.0.1", int(self._sink), timeout=30)
            connection.request("POST", "/", line)
            assert connection.getresponse().status == 200
            connection.close()
        else:
            with open(self._sink, "a") as file:
                file.write(line + "\n")


def send_until_killed(home: str, sink: str) -> None:
    telling(ms.open(home), Moody(sink)).run()


class Receiver:
    """A server that keeps what it is sent, in the order in which it comes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.lines.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                with suppress(OSError):  # who has sent it is dead
                    self.send_response(200)
                    self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def test_no_message_is_lost_and_those_of_a_key_come_in_order_whoever_is_killed(
    shared_home: str, tmp_path: Path, receiver: Receiver
) -> None:
    to_file = not shared_home.startswith("postgresql")
    out = tmp_path / "sent.txt"
    sink = str(out) if to_file else str(receiver.server.server_port)
    with ms.open(shared_home) as log:
        app = telling(log, Moody(sink))
        kills = KILLS
        driver = dying(
            "test_kills", "send_until_killed", shared_home, sink, seed=SEED, kills=kills, at_once=2,
            points=["millstream.cqrs.delivery", "millstream.cqrs.lease", "millstream.log"],
        )  # fmt: skip
        posted = 0
        while driver.poll() is None:
            if app.status()[0].waiting < 80:
                app.execute_all([Tell(n, f"k{n % 5}" if n % 7 else "") for n in range(posted, posted + 9)])
                posted += 9
            time.sleep(0.02)
        all_died(driver, kills)
        with app:
            eventually(lambda: app.status()[0].waiting == 0, seconds=60)
        assert delivery.unsent(log) == []
    lines = [json.loads(line) for line in (out.read_text().splitlines() if to_file else receiver.lines)]
    assert {n for _, n, _ in lines} == set(range(posted))
    assert len({id for id, _, _ in lines}) == posted, "a message has two ids"
    for key in range(5):
        first = list(dict.fromkeys(n for _, n, k in lines if k == f"k{key}"))
        assert first == [n for n in range(posted) if n % 7 and n % 5 == key]


# --- processes ------------------------------------------------------------------------------------------------


class SharedClock:
    """A clock that several processes have: it runs, and is moved forward by what stands in a file."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + timedelta(minutes=int(self._path.read_text()))

    def set(self, minutes: int) -> None:
        beside = self._path.with_suffix(".new")
        beside.write_text(str(minutes))
        beside.replace(self._path)


def react_until_killed(home: str, clock: str) -> None:
    fulfilling(ms.open(home, clock=SharedClock(clock))).run()


def test_each_reaction_command_and_timer_happens_once_whoever_is_killed(shared_home: str, tmp_path: Path) -> None:
    clock = SharedClock(str(tmp_path / "minutes"))
    clock.set(0)
    with ms.open(shared_home, clock=clock) as log:
        app = fulfilling(log)
        kills = KILLS
        driver = dying(
            "test_kills", "react_until_killed", shared_home, str(tmp_path / "minutes"), seed=SEED, kills=kills,
            at_once=2,
            points=["millstream.cqrs.reactor", "millstream.cqrs.timers", "millstream.cqrs.lease", "millstream.log",
                    "millstream.app.write"],
        )  # fmt: skip
        orders: list[str] = []
        minutes = 0
        while driver.poll() is None:
            if app.status()[0].behind > 60:
                time.sleep(0.02)
                continue
            for fate in ("paid", "unpaid", "stuck", "none", "paid"):
                order = f"order-{fate}{len(orders)}"
                app.execute(Place(order, "article-none" if fate == "none" else "article-1"))
                if fate in ("paid", "stuck"):
                    log.append("payments", Paid(order=order))
                orders.append(order)
            minutes += 4
            clock.set(minutes)
            time.sleep(0.03)
        all_died(driver, kills)
        clock.set(minutes + 16)
        with app:
            eventually(
                lambda: sum(1 for _ in log.read(types=["FulfilShipped", "FulfilCancelled"])) == len(orders), seconds=60
            )
            eventually(lambda: app.status()[0].behind == 0)
            # Once more what was not due yet: timers that were stopped.
            clock.set(minutes + 40)
            time.sleep(0.5)
        with log.connect() as db:
            assert db.query(f"select * from {db.own('millstream_timers')}") == []
        check_fates(log, orders)


ENDS = {"paid": "FulfilShipped", "unpaid": "FulfilCancelled", "stuck": "FulfilCancelled", "none": "FulfilCancelled"}


def check_fates(log: ms.Log, orders: list[str]) -> None:
    moved = Counter((e.type, e.data["order"]) for e in log.read("article-1"))
    posted = Counter(e.data["body"]["shipped"] for e in log.read("outbox-mail"))
    for order in orders:
        fate = order.removeprefix("order-").rstrip("0123456789")
        assert [e.type for e in log.read(order)] == ["FulfilPlaced", ENDS[fate]]
        own = list(log.read(f"Fulfilment-{order}"))
        reactions = Counter(e.data["position"] for e in own if e.type == "ProcessReacted")
        assert set(reactions.values()) == {1}
        overdue = [e for e in own if e.type == "FulfilOverdue"]
        rejected = [e for e in own if e.type == "CommandRejected"]
        assert len(reactions) == 2 if fate != "stuck" else 3
        assert len(overdue) == 1 if fate == "unpaid" else len(overdue) <= 1
        assert len(rejected) == (fate in ("stuck", "none"))
        assert posted[order] == (fate in ("paid", "stuck"))
        assert moved[("FulfilReserved", order)] == (fate != "none")
        assert moved[("FulfilReleased", order)] == (fate in ("unpaid", "stuck"))


# --- read models ----------------------------------------------------------------------------------------------


class Counted(ms.Event, type="KillsCounted"):
    name: str
    n: int


class Rows(ms.Projection):
    name = "KillsRows"
    schema = "create table kills_rows (name text primary key, n bigint not null)"

    @ms.on
    def counted(self, event: Counted, db: ms.Database) -> None:
        db.execute(
            "insert into kills_rows values (?, ?) on conflict (name) do update set n = kills_rows.n + excluded.n",
            (event.name, event.n),
        )


class Framed(ms.Projection):
    name = "KillsFramed"
    schema = "create table kills_framed (name text primary key, n bigint not null)"

    @ms.on_batch(Counted)
    def counted(self, frame: pl.DataFrame, db: ms.Database) -> None:
        db.upsert("kills_framed", frame.group_by("name").agg(pl.col("n").sum()), key="name", add=["n"])


class Parted(ms.Projection):
    name = "KillsParted"
    schema = "create table kills_parted (name text primary key, n bigint not null)"
    partitions = 2

    @ms.on
    def counted(self, event: Counted, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute(
            "insert into kills_parted values (?, ?) on conflict (name) do update set n = kills_parted.n + excluded.n",
            (recorded.stream, event.n),
        )


class Told(ms.Projection):
    name = "KillsTold"
    schema = "create table kills_told (name text primary key, n bigint not null)"
    out = ""

    @ms.on
    def counted(self, event: Counted, db: ms.Database, recorded: ms.Recorded, effects: ms.Effects) -> None:
        db.execute(
            "insert into kills_told values (?, ?) on conflict (name) do update set n = kills_told.n + excluded.n",
            (event.name, event.n),
        )
        if event.n % 3 == 0:
            effects.add(recorded.position)

    def perform(self, effect: ms.Effect) -> None:
        with open(type(self).out, "a") as file:
            file.write(f"{effect.position}\n")


MODELS = (Rows, Framed, Parted, Told)


class RowsOf(ms.Query[dict[str, int]]):
    pass


class FramedOf(ms.Query[dict[str, int]]):
    pass


class PartedOf(ms.Query[dict[str, int]]):
    pass


class ToldOf(ms.Query[dict[str, int]]):
    pass


def counting(log: ms.Log, folder: str) -> ms.App:
    Told.out = f"{folder}/told.txt"
    server = log.location if log.location.startswith("postgresql") else ""
    app = ms.App(
        log,
        projections=[
            Rows.into(f"{server}?schema=kills" if server else f"{folder}/rows.db"),
            Framed.into(),
            Parted.into(f"{folder}/parted.db"),
            Told.into(f"{server}?schema=told" if server else f"{folder}/effects.db"),
        ],
    )

    def sums(db: ms.Database, table: str) -> dict[str, int]:
        return {row["name"]: row["n"] for row in db.query(f"select * from {table}")}

    @app.query(reads=[Rows])
    def rows(query: RowsOf, db: ms.Database) -> dict[str, int]:
        return sums(db, "kills_rows")

    @app.query(reads=[Framed])
    def framed(query: FramedOf, db: ms.Database) -> dict[str, int]:
        return sums(db, "kills_framed")

    @app.query(reads=[Parted])
    def parted(query: PartedOf, db: ms.Database) -> dict[str, int]:
        return sums(db, "kills_parted")

    @app.query(reads=[Told])
    def told(query: ToldOf, db: ms.Database) -> dict[str, int]:
        return sums(db, "kills_told")

    return app


QUERIES = (RowsOf, FramedOf, PartedOf, ToldOf)


def rebuild_until_killed(home: str, folder: str) -> None:
    r = random.Random(os.getpid())
    app = counting(ms.open(home), folder)
    with app:
        while True:
            of = r.choice(MODELS)
            # Another process may have begun the same after this one; there may be nothing to go back to.
            with suppress(ms.ConsumerFenced, ms.NotFound):
                app.rebuild(of) if r.random() < 0.6 else app.rollback(of)
            time.sleep(r.choice([0.0, 0.0, 0.02]))


def test_read_models_are_the_fold_of_the_log_whoever_is_killed_while_they_are_rebuilt(
    shared_home: str, tmp_path: Path
) -> None:
    folder = str(tmp_path)
    with ms.open(shared_home) as log:
        app = counting(log, folder)
        fold: Counter[str] = Counter()
        folds: set[frozenset[tuple[str, int]]] = {frozenset()}
        effects = []
        driver = dying(
            "test_kills", "rebuild_until_killed", shared_home, folder, seed=SEED, kills=KILLS, at_once=2,
            points=["millstream.cqrs.building", "millstream.cqrs.versions", "millstream.cqrs.follower",
                    "millstream.cqrs.places", "millstream.cqrs.homes", "millstream.cqrs.keeping",
                    "millstream.cqrs.lease"],
        )  # fmt: skip
        n = 0
        while driver.poll() is None:
            name = f"name-{n % 11}"
            events = [Counted(name=name, n=n + k) for k in range(1 + n % 7)]
            receipt = log.append(name, events)
            for k, event in enumerate(events):
                fold[name] += event.n
                folds.add(frozenset(fold.items()))
                if event.n % 3 == 0:
                    effects.append(receipt.first + k)
            n += 7
            time.sleep(0.01)
            if n % 70 == 0:  # what answers does so whatever is done to it, with what was so after some event
                for query in (RowsOf, FramedOf, ToldOf):
                    assert frozenset(app.query(query()).items()) in folds, query
                assert set(app.query(PartedOf())) <= set(fold)
        all_died(driver, KILLS)
        told = tmp_path / "told.txt"
        with app:
            for query in QUERIES:
                assert app.query(query(), after=log.head, timeout=60) == fold
            # All who began it may have been killed before the first.
            eventually(lambda: told.exists() and set(effects) <= set(map(int, told.read_text().split())), seconds=60)
        # Effects may be repeated, but not come before those of earlier events.
        assert list(dict.fromkeys(map(int, told.read_text().split()))) == effects
        for each in MODELS:
            assert app.compare(each).same, each
        for model in app.read_models():
            states = Counter(str(version.state) for version in model.versions)
            assert states["live"] == 1
