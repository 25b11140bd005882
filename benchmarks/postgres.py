"""The log in PostgreSQL beside its peers, at equal durability (synchronous_commit=on, fsync on). `make bench-postgres`.

Give names of sections to run only those: one threads processes batches frames read follow followers copy.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import psycopg
from eventsourcing.domain import DomainEvent
from eventsourcing.persistence import DatetimeAsISO, JSONTranscoder, Mapper, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

import millstream as ms
from log import ROWS, clicks, deposit
from timing import Report, folder, percentile, race

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import PostgresServer

COLUMNS = "position, count, stream, version, kind, recorded, effective, origin, format, body_hash, hash, metadata, body"


class Bench:
    """The server, and new logs and peers in it."""

    def __init__(self) -> None:
        self.server = PostgresServer()
        with psycopg.connect(self.server.url()) as connection:
            for setting in ("synchronous_commit", "fsync"):
                row = connection.execute(f"show {setting}").fetchone()
                assert row == ("on",), f"{setting} must be on"
        self._schemas = 0

    def url(self) -> str:
        """The URL of a log that is not there yet."""
        self._schemas += 1
        return self.server.url(schema=f"log_{self._schemas}")

    def peer(self) -> PostgresApplicationRecorder:
        """The recorder of `eventsourcing` on the same server."""
        self._schemas += 1
        datastore = PostgresDatastore(
            dbname="postgres", host="127.0.0.1", port=str(self.server.port), user="postgres", password=""
        )
        recorder = PostgresApplicationRecorder(datastore, events_table_name=f"peer_{self._schemas}")
        recorder.create_table()
        return recorder


def stored(stream: str, version: int, state: bytes) -> StoredEvent:
    return StoredEvent(
        originator_id=uuid5(NAMESPACE_URL, stream), originator_version=version, topic="bench:Deposited", state=state
    )


def one(bench: Bench, report: Report) -> None:
    """One appender, one event per commit, beside a raw loop that inserts the very same rows and commits."""
    count, rounds = 200, 15
    sample_url = bench.url()
    sample = ms.open(sample_url)
    for n in range(count * (rounds + 2)):
        sample.append(f"account-{n % 100}", deposit(n))
    sample.close()
    raw_url = bench.url()
    ms.open(raw_url).close()
    log, recorder = ms.open(bench.url()), bench.peer()
    raw = psycopg.connect(bench.server.url())
    schema = sample_url.partition("schema=")[2]
    rows = raw.execute(f"select {COLUMNS} from {schema}.runs order by position").fetchall()
    raw.commit()
    insert = f"insert into {raw_url.partition('schema=')[2]}.runs ({COLUMNS}) values ({', '.join(['%s'] * 13)})"
    done = {"log": 0, "raw": 0, "peer": 0}

    def ours() -> int:
        for n in range(done["log"], done["log"] + count):
            log.append(f"account-{n % 100}", deposit(n))
        done["log"] += count
        return count

    def by_hand() -> int:
        for row in rows[done["raw"] : done["raw"] + count]:
            raw.execute(insert, row)
            raw.commit()
        done["raw"] += count
        return count

    def theirs() -> int:
        for n in range(done["peer"], done["peer"] + count):
            recorder.insert_events([stored(f"account-{n % 100}", n, b"x" * 80)])
        done["peer"] += count
        return count

    rates = race({"log": ours, "raw": by_hand, "peer": theirs}, rounds)
    log.close()
    raw.close()
    ratio = rates["log"] / rates["raw"]
    report.row(
        "one appender",
        f"{rates['log']:,.0f}/s; {ratio:.2f} × raw INSERT and COMMIT ({rates['raw']:,.0f}/s); "
        f"eventsourcing {rates['peer']:,.0f}/s",
        "≥ 0.9 × raw",
        ratio >= 0.9,
    )


def threads(bench: Bench, report: Report) -> None:
    """64 threads of one process."""
    log = ms.open(bench.url())
    numbers = iter(range(1 << 40))

    def alone() -> int:
        for _ in range(200):
            log.append("account-1", deposit(next(numbers)))
        return 200

    rates = race({"one": alone, "many": lambda: _threads(log, 64, 40)}, 5)
    log.close()
    ratio = rates["many"] / rates["one"]
    report.row(
        "64 threads in one process", f"{rates['many']:,.0f}/s; {ratio:.1f} × one ({rates['one']:,.0f}/s)", "≥ 4 ×",
        ratio >= 4,
    )  # fmt: skip


def _threads(log: ms.Log, count: int, each: int) -> int:
    def work(k: int) -> None:
        for n in range(each):
            log.append(f"account-{k}", deposit(n))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return count * each


def processes(bench: Bench, report: Report) -> None:
    """Processes, with one thread and with eight each, beside one alone. Each expects the version that it knows."""
    context = multiprocessing.get_context("spawn")
    shapes = ((1, 1), (8, 1), (8, 8))
    rates: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    conflicts = 0
    for _ in range(5):
        for count, per in shapes:
            url = bench.url()
            ms.open(url).close()
            barrier, results = context.Barrier(count + 1), context.Queue()
            workers = [
                context.Process(target=_appender, args=(url, k, per, 3.0, barrier, results)) for k in range(count)
            ]
            for worker in workers:
                worker.start()
            barrier.wait(120)
            found = [results.get(timeout=120) for _ in workers]
            for worker in workers:
                worker.join()
            rates[count, per].append(sum(rate for rate, _ in found))
            conflicts += sum(failed for _, failed in found)
    # The disk's mood changes within a minute: ratios are of neighbours.
    figures = {shape: statistics.median(found) for shape, found in rates.items()}
    eight, many = (
        statistics.median(a / b for a, b in zip(rates[shape], rates[1, 1], strict=True)) for shape in shapes[1:]
    )
    alone = figures[(1, 1)]
    report.row("8 processes", f"{figures[(8, 1)]:,.0f}/s; {eight:.2f} × one ({alone:,.0f}/s)", "≥ 1.1 ×", eight >= 1.1)
    report.row(
        "8 processes × 8 threads",
        f"{figures[(8, 8)]:,.0f}/s; {many:.2f} × one; {conflicts} version conflicts",
        "≥ 3 ×; no conflict that was not real",
        many >= 3 and not conflicts,
    )


def _appender(url: str, number: int, per: int, seconds: float, barrier: Any, results: Any) -> None:
    log = ms.open(url)
    done, failed = [0] * per, [0] * per

    def work(k: int, until: float) -> None:
        stream = f"account-{number}x{k}"
        while time.perf_counter() < until:
            try:
                log.append(stream, deposit(done[k]), expect=done[k])
                done[k] += 1
            except ms.VersionConflict:
                failed[k] += 1

    log.append(f"warm-{number}", deposit(0))
    barrier.wait(120)
    begin = time.perf_counter()
    workers = [threading.Thread(target=work, args=(k, begin + seconds)) for k in range(per)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    results.put((sum(done) / (time.perf_counter() - begin), sum(failed)))
    log.close()


def batches(bench: Bench, report: Report) -> None:
    """1,000 typed events per append."""
    log, recorder = ms.open(bench.url()), bench.peer()
    events = [deposit(n) for n in range(1_000)]
    done = {"peer": 0}

    def ours() -> int:
        for _ in range(10):
            log.append("account-1", events)
        return 10_000

    def theirs() -> int:
        for _ in range(3):
            first = done["peer"]
            recorder.insert_events([stored("account-1", first + n, b"x" * 80) for n in range(1_000)])
            done["peer"] += 1_000
        return 3_000

    rates = race({"log": ours, "peer": theirs})
    log.close()
    ratio = rates["log"] / rates["peer"]
    report.row(
        "1,000 typed events per append",
        f"{rates['log']:,.0f} events/s; {ratio:.1f} × eventsourcing ({rates['peer']:,.0f}/s)",
        "≥ 5 ×",
        ratio >= 5,
    )


def frames(bench: Bench, report: Report) -> None:
    """Frames of 65,536 rows and 5 columns, one a commit."""
    log = ms.open(bench.url())
    frame = clicks()

    def ours() -> int:
        for _ in range(5):
            log.append("clicks", frame.clone(), type="Click")
        return 5 * ROWS

    rates = race({"log": ours})
    log.close()
    report.row("frames", f"{rates['log'] / 1e6:.2f} M events/s", "≥ 0.5 M/s", rates["log"] >= 500_000)


class PeerDeposited(DomainEvent):
    """The same event as the peer has it."""

    account: str
    amount: int
    note: str


def read(bench: Bench, report: Report) -> None:
    """Read all as typed objects: runs of one event. The peer reads its rows alone, and maps them to objects."""
    count = 50_000
    log, recorder = ms.open(bench.url()), bench.peer()
    transcoder = JSONTranscoder()
    transcoder.register(DatetimeAsISO())
    mapper = Mapper(transcoder)
    for n in range(0, count, 500):
        log.commit([log.stage(f"account-{k % 100}", deposit(k)) for k in range(n, n + 500)])
        events = [(k, deposit(k)) for k in range(n, n + 500)]
        recorder.insert_events(
            [
                mapper.to_stored_event(
                    PeerDeposited(
                        originator_id=uuid5(NAMESPACE_URL, e.account), originator_version=k // 100,
                        timestamp=datetime.now(UTC), account=e.account, amount=e.amount, note=e.note,
                    )
                )
                for k, e in events
            ]
        )  # fmt: skip

    def ours() -> int:
        total = sum(1 for e in log.read() if e.event.amount >= 0)
        assert total == count
        return total

    def rows() -> list[StoredEvent]:
        found: list[StoredEvent] = []
        start = 0
        while more := recorder.select_notifications(start + 1, 1_000):
            found.extend(more)
            start = more[-1].id
        assert len(found) == count
        return found

    def theirs() -> int:
        return len(rows())

    def typed() -> int:
        return sum(1 for row in rows() if mapper.to_domain_event(row).amount >= 0)  # type: ignore[attr-defined]

    rates = race({"log": ours, "rows": theirs, "typed": typed})
    log.close()
    ratio = rates["log"] / rates["typed"]
    report.row(
        "read typed objects, runs of one",
        f"{rates['log']:,.0f} events/s; {ratio:.1f} × eventsourcing's typed objects ({rates['typed']:,.0f}/s),"
        f" {rates['log'] / rates['rows']:.1f} × its rows alone ({rates['rows']:,.0f}/s)",
        "≥ 3 ×",
        ratio >= 3,
    )


def follow(bench: Bench, report: Report) -> None:
    """From the begin of an append until a follower in another process has the event."""
    url = bench.url()
    log = ms.open(url)
    log.append("s", ms.Plain("T", {"at": 0}))
    context = multiprocessing.get_context("spawn")
    ready, results = context.Event(), context.Queue()
    worker = context.Process(target=_watch, args=(url, 500, ready, results))
    worker.start()
    ready.wait(60)
    for _ in range(500):
        log.append("s", ms.Plain("T", {"at": time.time_ns()}))
        time.sleep(0.005)
    waits = results.get(timeout=60)
    worker.join()
    log.close()
    p50, p99 = percentile(waits, 0.5) * 1e3, percentile(waits, 0.99) * 1e3
    report.row(
        "append → seen by a follower in another process", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms", "p99 < 20 ms",
        p99 < 20,
    )  # fmt: skip


def _watch(url: str, count: int, ready: Any, results: Any) -> None:
    log = ms.open(url, readonly=True)
    waits: list[float] = []
    for event in log.follow():
        at = event.data["at"]
        if not at:
            ready.set()
            continue
        waits.append((time.time_ns() - at) / 1e9)
        if len(waits) == count:
            break
    results.put(waits)
    log.close()


def followers(bench: Bench, report: Report) -> None:
    """What appends lose when another process has 200 followers, each of which sees every event."""
    context = multiprocessing.get_context("spawn")
    url = bench.url()
    log = ms.open(url)
    log.append("s", deposit(0))

    def appends() -> int:
        begin = time.perf_counter()
        done = 0
        while time.perf_counter() - begin < 3:
            log.append("s", deposit(done))
            done += 1
        return done

    alone, beside, seen = [], [], []
    for _ in range(3):
        begin = time.perf_counter()
        alone.append(appends() / (time.perf_counter() - begin))
        ready, stop, results = context.Event(), context.Event(), context.Queue()
        worker = context.Process(target=_crowd, args=(url, log.head, 200, ready, stop, results))
        worker.start()
        ready.wait(60)
        begin = time.perf_counter()
        done = appends()
        beside.append(done / (time.perf_counter() - begin))
        stop.set()
        seen.append(results.get(timeout=120) / (200 * done))
        worker.join()
    log.close()
    ratio = sorted(beside)[1] / sorted(alone)[1]
    report.row(
        "200 followers in one process",
        f"appends {sorted(beside)[1]:,.0f}/s beside them, {sorted(alone)[1]:,.0f}/s alone: {1 - ratio:.0%} lost;"
        f" {min(seen):.0%} of all seen at the end",
        "lose < 20 %",
        ratio > 0.8,
    )


def _crowd(url: str, after: int, count: int, ready: Any, stop: Any, results: Any) -> None:
    log = ms.open(url, readonly=True)
    seen = [0] * count

    def follow(k: int) -> None:
        for _ in log.follow(after=after, timeout=5):
            seen[k] += 1

    workers = [threading.Thread(target=follow, args=(k,), daemon=True) for k in range(count)]
    for worker in workers:
        worker.start()
    time.sleep(1)
    ready.set()
    stop.wait(120)
    for worker in workers:
        worker.join(60)
    results.put(sum(seen))
    log.close()


def copy(bench: Bench, report: Report) -> None:
    """A log in SQLite copied to PostgreSQL: single events, and columns."""
    with folder() as here:
        with ms.open(str(here / "single.db")) as log:
            for n in range(0, 100_000, 500):
                log.commit([log.stage(f"account-{k % 1000}", deposit(k)) for k in range(n, n + 500)])
        with ms.open(str(here / "columns.db")) as log:
            for _ in range(40):
                log.append("clicks", clicks(), type="Click")
        rates = {}
        for name in ("single", "columns"):
            found = []
            for _ in range(3):
                with ms.open(str(here / f"{name}.db")) as source, ms.open(bench.url()) as target:
                    begin = time.perf_counter()
                    source.copy_to(target)
                    found.append(target.head / (time.perf_counter() - begin))
            rates[name] = sorted(found)[1]
    report.row(
        "copy SQLite → PostgreSQL, single events", f"{rates['single']:,.0f}/s", "≥ 50k/s", rates["single"] >= 5e4
    )
    report.row(
        "copy SQLite → PostgreSQL, columns", f"{rates['columns'] / 1e6:.1f} M/s", "≥ 0.5 M/s", rates["columns"] >= 5e5
    )


SECTIONS = {
    "copy": copy,
    "one": one,
    "threads": threads,
    "processes": processes,
    "batches": batches,
    "frames": frames,
    "read": read,
    "follow": follow,
    "followers": followers,
}


def main() -> None:
    wanted = sys.argv[1:] or list(SECTIONS)
    bench = Bench()
    report = Report("The log in PostgreSQL 18")
    try:
        for name in wanted:
            SECTIONS[name](bench, report)
    finally:
        bench.server.close()
    print()
    print(report.markdown())


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parent))
    main()
