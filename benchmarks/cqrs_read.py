"""The read side of CQRS beside `eventsourcing` and plain SQL, both on SQLite. ``python benchmarks/cqrs_read.py``.

Give names of sections to run only those: rebuild visible query hundred.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.sqlite import SQLiteDatastore, SQLiteTrackingRecorder

import millstream as ms
from timing import Report, folder, percentile

FRAMES = 10_000_000
SINGLES = 500_000
ROWS = 200_000
THEIRS = 10_000
CUSTOMERS = 1_000


class Paid(ms.Event):
    customer: int
    cents: int
    shop: str


class Totals(ms.Projection):
    """Turnover per customer, from frames."""

    schema = "create table totals (customer integer primary key, n integer not null, cents integer not null)"

    @ms.on_batch(Paid)
    def paid(self, frame: pl.DataFrame, db: ms.Database) -> None:
        sums = frame.group_by("customer").agg(n=pl.len(), cents=pl.col("cents").sum())
        db.upsert("totals", sums, key="customer", add=["n", "cents"])


UPSERT = (
    "insert into totals values (?, 1, ?)"
    " on conflict (customer) do update set n = totals.n + 1, cents = totals.cents + excluded.cents"
)


class TotalsByRow(ms.Projection):
    """The same, event by event."""

    schema = Totals.schema

    @ms.on
    def paid(self, event: Paid, db: ms.Database) -> None:
        db.execute(UPSERT, (event.customer, event.cents))


class Till(Aggregate):
    def __init__(self) -> None:
        self.n = 0

    @event("Paid")
    def pay(self, customer: int, cents: int, shop: str) -> None:
        self.n += 1


class Bank(Application[Any]):
    pass


class TheirTotals(SQLiteTrackingRecorder):
    """Their read model: rows and tracking in one transaction for each event, as their projections do it."""

    def add(self, customer: int, cents: int, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            cursor.execute(UPSERT, (customer, cents))
            self._insert_tracking(cursor, tracking)


def kept(log: ms.Log, placement: ms.Placement) -> float:
    """How long a read model takes to become level with a log, in seconds."""
    app = ms.App(log, projections=[placement])
    follower = app._followers[placement.name]
    began = time.perf_counter()
    with app:
        assert follower.wait(log.head, 600)
        return time.perf_counter() - began


def rebuild(report: Report, path: Path) -> None:
    customers = pl.int_range(FRAMES, eager=True) * 7_919 % CUSTOMERS
    shops = pl.Series([f"shop {i}" for i in range(50)])
    with ms.open(str(path / "frames.db")) as log:
        step = 1_000_000
        for at in range(0, FRAMES, step):
            part = customers.slice(at, step)
            log.append(
                "till", pl.DataFrame({"customer": part, "cents": part + 5, "shop": shops[part % 50]}), type="Paid"
            )
        rates = [FRAMES / kept(log, Totals.into(path / f"frames-{i}.db")) for i in range(3)]
    rate = statistics.median(rates)
    report.row("rebuild, `on_batch`, from frames", f"{rate / 1e6:.1f} M events/s", "≥ 3 M", rate >= 3e6)

    with ms.open(str(path / "singles.db")) as log:
        for at in range(0, SINGLES, 5_000):
            log.commit(
                [
                    log.stage(f"till-{n % 5_000}", Paid(customer=n % CUSTOMERS, cents=n % 500, shop="shop 7"))
                    for n in range(at, at + 5_000)
                ]
            )
        rates = [SINGLES / kept(log, Totals.into(path / f"singles-{i}.db")) for i in range(5)]
        rate = statistics.median(rates)
        report.row("the same, from single-event runs", f"{rate / 1e6:.2f} M events/s", "≥ 0.5 M", rate >= 5e5)
        rates = [SINGLES / kept(log, TotalsByRow.into(path / f"rows-{i}.db")) for i in range(3)]
        rows = statistics.median(rates)
        report.row("row by row", f"{rows / 1e3:.0f}k events/s", "≥ 100k", rows >= 1e5)

    bank = Bank(env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path / "theirs.db")})
    for at in range(0, THEIRS, 100):
        till = Till()
        for n in range(at, at + 99):
            till.pay(n % CUSTOMERS, n % 500, "shop 7")
        bank.save(till)
    view = TheirTotals(SQLiteDatastore(str(path / "their-view.db")))
    view.create_table()
    with view.datastore.transaction(commit=True) as cursor:
        cursor.execute(Totals.schema)
    began, start, done = time.perf_counter(), 1, 0
    while page := bank.recorder.select_notifications(start, 1_000):
        for notification in page:
            found: Any = bank.mapper.to_domain_event(notification)
            if hasattr(found, "customer"):
                view.add(found.customer, found.cents, Tracking(bank.name, notification.id))
                done += 1
        start = page[-1].id + 1
    theirs = done / (time.perf_counter() - began)
    report.row(
        "single-event runs by the frame, beside `eventsourcing`",
        f"{rate / theirs:.0f} × its {theirs:,.0f} events/s",
        "≥ 10 ×",
        rate >= 10 * theirs,
    )
    report.row("row by row, beside it", f"{rows / theirs:.0f} ×", "", None)


def visible(report: Report, path: Path) -> None:
    """From the call of an append until a query could see it, at 1,000 a second."""
    raw = []
    with closing(sqlite3.connect(path / "raw.db", isolation_level=None)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
        db.execute("create table t (n integer primary key, body text)")
        for n in range(2_000):
            began = time.perf_counter()
            db.execute("insert into t values (?, ?)", (n, "x" * 60))
            raw.append(time.perf_counter() - began)
    with ms.open(str(path / "visible.db")) as log:
        app = ms.App(log, projections=[TotalsByRow.into(path / "visible-read.db")])
        follower = app._followers["TotalsByRow"]
        begun: dict[int, float] = {}
        took: list[float] = []
        count = 5_000

        def watch() -> None:
            seen = 0
            while seen < count:
                follower.wait(seen + 1, 10)
                reached, now = follower._seen, time.perf_counter()
                took.extend(now - begun[n] for n in range(seen + 1, reached + 1))
                seen = reached

        with app:
            watcher = threading.Thread(target=watch)
            watcher.start()
            start = time.perf_counter()
            for n in range(count):
                due = start + n / 1_000
                while (now := time.perf_counter()) < due:
                    time.sleep(max(0.0, due - now))
                begun[n + 1] = now
                log.append("till", Paid(customer=n % CUSTOMERS, cents=5, shop="shop 7"))
            watcher.join()
    for share, mark in ((0.5, 5.0), (0.99, 20.0)):
        ours, base = 1e3 * percentile(took, share), 2e3 * percentile(raw, share)
        report.row(
            f"append → visible, p{share * 100:.0f}, at 1,000/s",
            f"{ours:.2f} ms; two raw commits {base:.2f} ms",
            f"< {mark:g} ms beyond these",
            ours - base < mark,
        )


class GetTotal(ms.Query[dict[str, Any]]):
    customer: int


def query(report: Report, path: Path) -> None:
    sql = "select * from totals where customer = ?"
    with ms.open(str(path / "query.db")) as log:
        ids = list(range(CUSTOMERS)) * 20
        log.append("till", pl.DataFrame({"customer": ids, "cents": ids, "shop": ["x"] * len(ids)}), type="Paid")
        app = ms.App(log, projections=[Totals.into(path / "query-read.db")])

        @app.query(reads=[Totals])
        def get_total(query: GetTotal, db: ms.Database) -> dict[str, Any]:
            found = db.one(sql, (query.customer,))
            assert found is not None
            return found

        with app, closing(sqlite3.connect(path / "query-read.db", isolation_level=None)) as plain:
            app.query(GetTotal(1), fresh=True)
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(15):
                began = time.perf_counter()
                for n in range(2_000):
                    app.query(GetTotal(n % CUSTOMERS))
                ours.append((time.perf_counter() - began) / 2_000)
                began = time.perf_counter()
                for n in range(2_000):
                    plain.execute("begin")
                    cursor = plain.execute(sql, (n % CUSTOMERS,))
                    dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))
                    plain.execute("rollback")
                theirs.append((time.perf_counter() - began) / 2_000)
    one, other = statistics.median(ours), statistics.median(theirs)
    report.row(
        "query by key through `app.query`",
        f"{1e6 * one:.1f} µs; plain SQL in a transaction {1e6 * other:.1f} µs: {one / other:.2f} ×",
        "≤ 1.3 ×",
        one <= 1.3 * other,
    )


KINDS = [type(f"Kind{k}", (ms.Event,), {"__annotations__": {"n": int}, "__module__": __name__}) for k in range(100)]


def counting(k: int) -> type[ms.Projection]:
    def handle(self: Any, event: Any, db: ms.Database) -> None:
        db.execute(f"insert into counted{k} values (?)", (event.n,))

    handle.__annotations__["event"] = KINDS[k]
    body = {"schema": f"create table counted{k} (n integer)", "handle": ms.on(KINDS[k])(handle)}
    return type(f"Counting{k}", (ms.Projection,), body)


def appended(log: ms.Log, seconds: float) -> tuple[float, float]:
    """The rate, and the median time of an append in ms, at 1,000 appends a second."""
    began, n, times = time.perf_counter(), 0, []
    while (now := time.perf_counter()) - began < seconds:
        if (due := began + n / 1_000) > now:
            time.sleep(due - now)
        first = time.perf_counter()
        log.append("s", KINDS[n % 100](n=n))
        times.append(time.perf_counter() - first)
        n += 1
    return n / (time.perf_counter() - began), 1e3 * statistics.median(times)


def hundred(report: Report, path: Path) -> None:
    with ms.open(str(path / "hundred.db")) as log:
        alone, alone_ms = appended(log, 4)
        app = ms.App(log, projections=[counting(k).into(path / f"counted{k}.db") for k in range(100)])
        with app:
            for follower in app._followers.values():
                assert follower.wait(log.head, 60)
            beside, beside_ms = appended(log, 8)
            for follower in app._followers.values():
                assert follower.wait(log.head, 1)  # none has fallen behind
    report.row(
        "100 projections, 1 % of the events each, 1,000 appends/s",
        f"{beside:,.0f}/s, {beside_ms:.2f} ms each; alone {alone:,.0f}/s, {alone_ms:.2f} ms",
        "lose < 20 %",
        beside > 0.8 * alone,
    )


SECTIONS = {"rebuild": rebuild, "visible": visible, "query": query, "hundred": hundred}


def main(names: list[str]) -> None:
    report = Report("CQRS, the read side")
    with folder() as path:
        for name in names or SECTIONS:
            SECTIONS[name](report, path)
    print()
    print(report.markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
