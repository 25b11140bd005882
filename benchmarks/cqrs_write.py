"""The write side: a command, its event and its rows beside a raw SQLite transaction, at synchronous=FULL.

`make bench-cqrs_write`. Give names of sections to run only those: one many.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import millstream as ms
from log import INSERT, raw
from timing import Report, folder, race

LINES = 2
ARTICLES = 100
SCHEMA = """
create table orders (id text primary key, customer text not null, total text not null);
create table order_lines (
    "order" text not null references orders (id), line integer not null, article integer not null,
    count integer not null, primary key ("order", line)
);
create table stock (article integer primary key, free integer not null check (free >= 0));
"""


class OrderPlaced(ms.Event, type="BenchOrderPlaced"):
    customer: str
    total: Decimal
    articles: list[int]


class Order(ms.Aggregate):
    placed: bool = False

    def place(self, customer: str, total: Decimal, articles: list[int]) -> None:
        if self.placed:
            raise ms.Rejected("the order was placed before")
        self.record(OrderPlaced(customer=customer, total=total, articles=articles))

    @ms.on
    def on_placed(self, event: OrderPlaced) -> None:
        self.placed = True


class PlaceOrder(ms.Command):
    order: ms.Ref[Order]
    customer: str
    total: Decimal
    articles: list[int]


class Orders(ms.Projection):
    name = "BenchOrders"
    schema = SCHEMA

    @ms.on
    def on_placed(self, event: OrderPlaced, db: ms.Database, recorded: ms.Recorded) -> None:
        write_rows(db.execute, recorded.stream, event.customer, str(event.total), event.articles)


def write_rows(execute: Callable[..., object], order: str, customer: str, total: str, articles: list[int]) -> None:
    execute("insert into orders values (?, ?, ?)", (order, customer, total))
    for line, article in enumerate(articles):
        execute("insert into order_lines values (?, ?, ?, ?)", (order, line, article, 1))
        execute("update stock set free = free - ? where article = ?", (1, article))


def shop(path: Path) -> ms.App:
    log = ms.open(str(path))
    app = ms.App(log, projections=[Orders.inline()])
    with log.transaction() as tx:
        tx.db.executemany("insert into stock values (?, ?)", [(n, 10**9) for n in range(ARTICLES)])

    @app.command
    def place(command: PlaceOrder, order: Order) -> None:
        order.place(command.customer, command.total, command.articles)

    return app


def command(number: int) -> PlaceOrder:
    articles = [number % ARTICLES, (number * 7 + 1) % ARTICLES]
    return PlaceOrder(f"order-{number}", f"customer {number % 500}", Decimal("19.90"), articles)


class Raw:
    """The same rows by hand: the header of the event, its stream, the rows, the checkpoint; no checks, no hashes."""

    def __init__(self, path: Path) -> None:
        self.db = raw(path)
        self.db.executescript(
            SCHEMA + "create table checkpoints (name text primary key, position integer, epoch integer);"
        )
        self.db.executemany("insert into stock values (?, ?)", [(n, 10**9) for n in range(ARTICLES)])
        self.db.execute("insert into checkpoints values ('orders', 0, 1)")
        self.number = 0

    def place(self, command: PlaceOrder) -> None:
        self.number += 1
        n = self.number
        body = f'{{"customer":"{command.customer}","total":"19.90","articles":{command.articles}}}'
        metadata = '{"causation":"0123456789abcdef","correlation":"0123456789abcdef"}'
        execute = self.db.execute
        execute("begin immediate")
        execute("insert into streams (name) values (?)", (command.order,))
        execute(INSERT, (n, 1, n, 1, 1, time.time_ns() // 1000, None, 1, HASH, HASH, metadata, None, 0, body))
        write_rows(execute, command.order, command.customer, "19.90", command.articles)
        execute("update checkpoints set position = ? where name = 'orders' and position = ? and epoch = 1", (n, n - 1))
        execute("commit")


HASH = b"\0" * 32
BURST = 400


def one(report: Report) -> None:
    """One thread: execute a command, one commit each."""
    with folder() as here:
        app, hand = shop(here / "shop.db"), Raw(here / "raw.db")
        numbers = iter(range(10**9))

        def ours() -> int:
            for _ in range(BURST):
                app.execute(command(next(numbers)))
            return BURST

        def theirs() -> int:
            for _ in range(BURST):
                hand.place(command(next(numbers)))
            return BURST

        rates = race({"ours": ours, "raw": theirs}, 9)
        app.log.close()
    ratio = rates["ours"] / rates["raw"]
    beyond = 1e6 / rates["ours"] - 1e6 / rates["raw"]
    report.row(
        "command → event → inline write model (5 rows), one thread",
        f"{rates['ours']:,.0f}/s; {ratio:.2f} × a raw transaction of the same rows ({rates['raw']:,.0f}/s),"
        f" {beyond:.0f} µs beyond it",
        "≥ 0.8 × raw",
        ratio >= 0.8,
    )


def many(report: Report) -> None:
    """64 threads, and 64 coroutines, beside one thread; among commands some that a constraint refuses, alone."""
    threads, each = 64, 25
    with folder() as here:
        app = shop(here / "shop.db")
        numbers = iter(range(10**9))
        lock = threading.Lock()
        refused: list[int] = []
        lost: list[int] = []

        def next_number() -> int:
            with lock:
                return next(numbers)

        def alone() -> int:
            for _ in range(BURST):
                app.execute(command(next(numbers)))
            return BURST

        def work(share: float) -> None:
            for n in range(each):
                number = next_number()
                bad = share and n % int(1 / share) == 0
                given = command(number)
                if bad:
                    given = PlaceOrder(given.order, given.customer, given.total, [1, 10**6, 1])
                    given = PlaceOrder(f"order-{number % 50}", given.customer, given.total, given.articles)
                try:
                    app.execute(given)
                    if bad:
                        lost.append(number)
                except (ms.Rejected, ms.ConstraintViolated):
                    (refused if bad else lost).append(number)

        def together(share: float = 0.0) -> int:
            crowd = [threading.Thread(target=work, args=(share,)) for _ in range(threads)]
            for thread in crowd:
                thread.start()
            for thread in crowd:
                thread.join()
            return threads * each

        async def awaited() -> None:
            async def some() -> None:
                for _ in range(each):
                    await app.aexecute(command(next(numbers)))

            await asyncio.gather(*[some() for _ in range(threads)])

        def coroutines() -> int:
            asyncio.run(awaited())
            return threads * each

        rates = race({"one": alone, "many": together, "coroutines": coroutines}, 7)
        before = app.log.head
        together(0.2)
        right = not lost and app.log.head - before == threads * each - len(refused) and len(refused) == threads * 5
        with app.log.connect() as db:
            rows = db.one("select count(*) as n from orders")
        right = right and rows == {"n": app.log.head}
        app.log.close()
    for name, what in (("many", "threads"), ("coroutines", "coroutines")):
        ratio = rates[name] / rates["one"]
        report.row(
            f"64 concurrent commands, {what}",
            f"{rates[name]:,.0f}/s; {ratio:.1f} × one thread ({rates['one']:,.0f}/s)",
            "≥ 3 × one",
            ratio >= 3,
        )
    report.row(
        "one command in five of them refused",
        f"{len(refused)} refused, each alone: {'no other command was' if right else 'NOT SO'}",
        "only itself",
        right,
    )


SECTIONS = {"one": one, "many": many}

if __name__ == "__main__":
    report = Report("The write side")
    for name in sys.argv[1:] or SECTIONS:
        SECTIONS[name](report)
    print(f"\n{report.markdown()}\n(SQLite {sqlite3.sqlite_version})")
