"""Event sourcing beside `eventsourcing`, both on SQLite at synchronous=FULL. `make bench-sourcing`.

Give names of sections to run only those: rebuild save flat threads travel asof guard.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

import millstream as ms
from guard import guard
from log import INSERT, header_rows, raw
from timing import Report, folder, percentile, race


class MoneyDeposited(ms.Event):
    amount: Decimal
    note: str


class MoneyWithdrawn(ms.Event):
    amount: Decimal
    note: str


class Account(ms.Aggregate):
    balance: Decimal = Decimal(0)
    movements: int = 0

    def deposit(self, amount: Decimal) -> None:
        if amount <= 0:
            raise ms.Rejected("a deposit must be positive")
        self.record(MoneyDeposited(amount=amount, note="a few words about it"))

    @ms.on
    def deposited(self, event: MoneyDeposited) -> None:
        self.balance += event.amount
        self.movements += 1

    @ms.on
    def withdrawn(self, event: MoneyWithdrawn) -> None:
        self.balance -= event.amount
        self.movements += 1


class TheirAccount(Aggregate):
    def __init__(self) -> None:
        self.balance = Decimal(0)
        self.movements = 0

    @event("MoneyDeposited")
    def deposited(self, amount: Decimal, note: str) -> None:
        self.balance += amount
        self.movements += 1

    def deposit(self, amount: Decimal) -> None:
        if amount <= 0:
            raise ValueError("a deposit must be positive")
        self.deposited(amount, "a few words about it")


class TheirBank(Application[Any]):
    pass


ONE = Decimal(1)


def their_bank(path: Path) -> TheirBank:
    bank = TheirBank(env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)})
    with bank.recorder.datastore.transaction(commit=False) as cursor:  # type: ignore[attr-defined]
        cursor.execute("pragma synchronous")
        assert cursor.fetchone()[0] == 2, "the peer must be measured at synchronous=FULL"
    return bank


def movement(n: int) -> ms.Event:
    cls = MoneyDeposited if n % 3 else MoneyWithdrawn
    return cls(amount=Decimal(n % 1000), note="a few words about it")


def filled(log: ms.Log, stream: Callable[[int], str], count: int, start: int = 0) -> None:
    """Append single events, each a run of its own, many in a commit."""
    for begin in range(start, count, 5_000):
        with log.transaction() as tx:
            for n in range(begin, min(begin + 5_000, count)):
                tx.append(stream(n), movement(n))


def rebuild(report: Report) -> None:
    """An aggregate of 10,000 events: read, decoded, applied; without snapshots and cache."""
    count = 10_000
    with folder() as here:
        log, bank = ms.open(str(here / "log.db")), their_bank(here / "peer.db")
        filled(log, lambda n: "account-1", count)
        accounts = ms.Repository(log, Account, snapshot_every=None, cache=0)
        account = TheirAccount()
        for _ in range(count - 1):
            account.deposit(ONE)
        bank.save(account)

        def ours() -> int:
            return accounts.get("account-1").movements

        def theirs() -> int:
            found: TheirAccount = bank.repository.get(account.id)
            return found.movements + 1

        rates = race({"ours": ours, "peer": theirs}, 11)
        log.close()
    ratio = rates["ours"] / rates["peer"]
    report.row(
        "rebuild an aggregate of 10,000 events",
        f"{rates['ours']:,.0f} events/s; {ratio:.1f} × eventsourcing ({rates['peer']:,.0f}/s)",
        "≥ 10 ×",
        ratio >= 10,
    )


def save(report: Report) -> None:
    """Load, command, save: one thread, 1,000 aggregates in turn, beside a raw loop that commits the very same rows."""
    aggregates, count, rounds = 1_000, 200, 30
    with folder() as here:
        sample = ms.open(str(here / "sample.db"))
        for n in range(count * (rounds + 2)):
            sample.append(f"account-{n % aggregates}", MoneyDeposited(amount=ONE, note="a few words about it"))
        sample.close()
        rows = header_rows(here / "sample.db")
        log, connection, bank = ms.open(str(here / "log.db")), raw(here / "raw.db"), their_bank(here / "peer.db")
        accounts = ms.Repository(log, Account)
        known = [TheirAccount() for _ in range(aggregates)]
        for account in known:
            bank.save(account)
        filled(log, lambda n: f"account-{n}", aggregates)
        done = {"ours": 0, "raw": 0, "peer": 0}

        def ours() -> int:
            for n in range(done["ours"], done["ours"] + count):
                accounts.update(f"account-{n % aggregates}", lambda account: account.deposit(ONE))
            done["ours"] += count
            return count

        def by_hand() -> int:
            for row in rows[done["raw"] : done["raw"] + count]:
                connection.execute("begin immediate")
                connection.execute(INSERT, row)
                connection.execute("commit")
            done["raw"] += count
            return count

        def theirs() -> int:
            for n in range(done["peer"], done["peer"] + count):
                account: TheirAccount = bank.repository.get(known[n % aggregates].id)
                account.deposit(ONE)
                bank.save(account)
            done["peer"] += count
            return count

        rates = race({"ours": ours, "raw": by_hand, "peer": theirs}, rounds)
        log.close()
        connection.close()
    extra, theirs_ = (1e6 / rates[name] - 1e6 / rates["raw"] for name in ("ours", "peer"))
    report.row(
        "load + command + save, one thread, 1,000 aggregates",
        f"{rates['ours']:,.0f}/s, eventsourcing {rates['peer']:,.0f}/s, raw commits {rates['raw']:,.0f}/s: "
        f"{extra:.0f} µs beyond a raw commit, theirs {theirs_:.0f} µs; {extra / theirs_:.2f} ×",
        "≤ 0.33 × beyond a raw commit",
        extra <= theirs_ / 3,
    )


def flat(report: Report) -> None:
    """The same on aggregates of 10 and of 100,000 events: with the cache, and once without."""
    with folder() as here:
        log = ms.open(str(here / "log.db"))
        filled(log, lambda n: "account-long", 100_000)
        filled(log, lambda n: f"account-{n % 100}", 1_000)
        cached, bare = ms.Repository(log, Account), ms.Repository(log, Account, cache=0)
        cached.snapshots.rebuild("account-long")

        def turns(accounts: Any, long: bool, count: int) -> Callable[[], int]:
            def work() -> int:
                for n in range(count):
                    name = "account-long" if long else f"account-{n % 100}"
                    accounts.update(name, lambda account: account.deposit(ONE))
                return count

            return work

        rates = race(
            {
                "short": turns(cached, False, 100), "long": turns(cached, True, 100),
                "bare short": turns(bare, False, 50), "bare long": turns(bare, True, 50),
            },
            30,
        )  # fmt: skip
        log.close()
    ratio = rates["long"] / rates["short"]
    report.row(
        "the same at 100,000 events per aggregate, beside 10",
        f"{rates['long']:,.0f}/s beside {rates['short']:,.0f}/s: {ratio:.2f} × (without the cache, from snapshots: "
        f"{rates['bare long']:,.0f}/s beside {rates['bare short']:,.0f}/s)",
        "within 20 %",
        ratio >= 0.8,
    )


def threads(report: Report) -> None:
    """32 threads on 32 aggregates, beside one thread of the peer."""
    crowd, count = 32, 60
    with folder() as here:
        log, bank = ms.open(str(here / "log.db")), their_bank(here / "peer.db")
        accounts = ms.Repository(log, Account)
        known = [TheirAccount() for _ in range(crowd)]
        for account in known:
            bank.save(account)

        def ours() -> int:
            def work(k: int) -> None:
                for _ in range(count):
                    accounts.update(f"account-{k}", lambda account: account.deposit(ONE))

            workers = [threading.Thread(target=work, args=(k,)) for k in range(crowd)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            return crowd * count

        def theirs() -> int:
            for n in range(300):
                account: TheirAccount = bank.repository.get(known[n % crowd].id)
                account.deposit(ONE)
                bank.save(account)
            return 300

        rates = race({"ours": ours, "peer": theirs}, 11)
        log.close()
    ratio = rates["ours"] / rates["peer"]
    report.row(
        "32 threads on 32 aggregates",
        f"{rates['ours']:,.0f}/s; {ratio:.1f} × one thread of eventsourcing ({rates['peer']:,.0f}/s)",
        "≥ 5 ×",
        ratio >= 5,
    )


def travel(report: Report) -> None:
    """`get(at=)` in the middle of a stream of 1 M events, by version and by time; snapshots made while it grew."""
    count = 1_000_000
    start = datetime(2024, 1, 1, tzinfo=UTC)
    now = [start]
    with folder() as here:
        log = ms.open(str(here / "log.db"), clock=lambda: now[0])
        for begin in range(0, count, 5_000):
            now[0] = start + timedelta(seconds=begin)
            with log.transaction() as tx:
                for n in range(begin, begin + 5_000):
                    tx.append("account-1", movement(n))
        accounts = ms.Repository(log, Account, cache=0)
        begin_ = time.perf_counter()
        made = accounts.snapshots.rebuild("account-1")
        took = time.perf_counter() - begin_
        plain = ms.Repository(log, Account, cache=0, snapshot_every=None)
        begin_ = time.perf_counter()
        expected = plain.get("account-1", at=count // 2 + 499).balance
        without = time.perf_counter() - begin_
        assert accounts.get("account-1", at=count // 2 + 499).balance == expected
        times: dict[str, list[float]] = {"version": [], "time": []}
        for k in range(200):
            version = 400_000 + k * 997
            begin_ = time.perf_counter()
            assert accounts.get("account-1", at=version).version == version
            times["version"].append(time.perf_counter() - begin_)
            moment = start + timedelta(seconds=version)
            begin_ = time.perf_counter()
            assert accounts.get("account-1", at=moment).version == version // 5_000 * 5_000 + 5_000
            times["time"].append(time.perf_counter() - begin_)
        log.close()
    figures = {name: (percentile(v, 0.5) * 1e3, percentile(v, 0.99) * 1e3) for name, v in times.items()}
    report.row(
        "get(at=) in the middle of 1 M events of one stream",
        f"by version {figures['version'][0]:.1f} ms (p99 {figures['version'][1]:.1f}), by time {figures['time'][0]:.1f}"
        f" ms (p99 {figures['time'][1]:.1f}); without snapshots {without * 1e3:,.0f} ms; {made:,} snapshots made from"
        f" the events in {took:.1f} s",
        "< 20 ms",
        max(each[0] for each in figures.values()) < 20,
    )


def asof(report: Report) -> None:
    """`as_of(t)` over 100,000 accounts of 10 events each, all single and shuffled; no snapshots."""
    with folder() as here:
        log = ms.open(str(here / "log.db"))
        filled(log, lambda n: f"account-{n * 7_919 % 100_000}", 1_000_000)
        moment = log.now()
        accounts = ms.Repository(log, Account, snapshot_every=None, cache=0)
        filled(log, lambda n: f"account-{n % 100_000}", 1_050_000, 1_000_000)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            frame = accounts.as_of(moment)
            times.append(time.perf_counter() - begin)
            assert frame.height == 100_000
            assert frame["version"].sum() == 1_000_000
        connection = sqlite3.connect(here / "log.db")
        begin = time.perf_counter()
        connection.execute("select stream, kind, body from runs order by position limit 1000000").fetchall()
        bare = time.perf_counter() - begin
        connection.close()
        log.close()
    took = sorted(times)[len(times) // 2]
    report.row(
        "as_of(t) over 100,000 accounts of 10 events each",
        f"{took:.2f} s, {1 / took:.2f} M events/s (SQLite gives out the bare rows in {bare:.2f} s)",
        "< 3 s",
        took < 3,
    )


SECTIONS = {
    "rebuild": rebuild, "save": save, "flat": flat, "threads": threads, "travel": travel, "asof": asof, "guard": guard,
}  # fmt: skip


def main(names: list[str]) -> None:
    unknown = set(names) - set(SECTIONS)
    if unknown:
        sys.exit(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    report = Report("Event sourcing")
    for name, section in SECTIONS.items():
        if name in names or not names:
            section(report)
    print()
    print(report.markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
