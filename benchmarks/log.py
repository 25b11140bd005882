"""The log beside its peers, at equal durability (synchronous=FULL everywhere). `make bench`.

Give names of sections to run only those: one many processes batches frames read scan follow memory; `big` runs only
when named (it writes some 10 GB).
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import resource
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import polars as pl
from eventsourcing.persistence import StoredEvent
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

import millstream as ms
from timing import Report, folder, percentile, race

ROWS = 65_536
INSERT = "insert into runs values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Deposited(ms.Event):
    account: str
    amount: int
    note: str


KINDS: list[Any] = [
    type(f"Kind{k}", (ms.Event,), {"__annotations__": dict(Deposited.__annotations__), "__module__": __name__})
    for k in range(5)
]


def deposit(n: int) -> Deposited:
    return Deposited(account=f"account-{n % 100}", amount=n, note="a few words about it")


def clicks(rows: int = ROWS) -> pl.DataFrame:
    """Five columns, as a stream of clicks has them."""
    rng = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "user": rng.zipf(1.3, rows) % 100_000,
            "kind": rng.choice(["click", "purchase", "view"], rows),
            "ts": pl.Series(np.arange(rows) * 1000).cast(pl.Datetime("us", "UTC")),
            "price": rng.random(rows),
            "page": [f"/p/{i % 500}" for i in range(rows)],
        }
    )


def peer(path: Path) -> SQLiteApplicationRecorder:
    """The recorder of `eventsourcing` on a SQLite file."""
    recorder = SQLiteApplicationRecorder(SQLiteDatastore(str(path)))
    recorder.create_table()
    with recorder.datastore.transaction(commit=False) as cursor:
        cursor.execute("pragma synchronous")
        assert cursor.fetchone()[0] == 2, "the peer must be measured at synchronous=FULL"
    return recorder


def stored(stream: str, version: int, state: bytes, topic: str = "bench:Deposited") -> StoredEvent:
    return StoredEvent(originator_id=uuid5(NAMESPACE_URL, stream), originator_version=version, topic=topic, state=state)


def header_rows(path: Path) -> list[tuple[Any, ...]]:
    """What a log wrote, to be written again without it."""
    connection = sqlite3.connect(path)
    rows = connection.execute("select * from runs order by position").fetchall()
    connection.close()
    return rows


def raw(path: Path) -> sqlite3.Connection:
    """An empty database with the log's tables, used by hand."""
    ms.open(str(path)).close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma synchronous = full")
    connection.execute("pragma wal_autocheckpoint = 4000")
    return connection


def one(report: Report) -> None:
    """One appender, one event per commit, beside a raw loop that commits the very same rows.

    The disk's mood changes within a second, so that the turns are short and many.
    """
    count, rounds = 200, 40
    with folder() as here:
        sample = ms.open(str(here / "sample.db"))
        for n in range(count * (rounds + 2)):
            sample.append(f"account-{n % 100}", deposit(n))
        sample.close()
        rows = header_rows(here / "sample.db")
        log, connection = ms.open(str(here / "log.db")), raw(here / "raw.db")
        recorder = peer(here / "peer.db")
        done = {"log": 0, "raw": 0, "peer": 0}

        def ours() -> int:
            for n in range(done["log"], done["log"] + count):
                log.append(f"account-{n % 100}", deposit(n))
            done["log"] += count
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
                recorder.insert_events([stored(f"account-{n % 100}", n, b"x" * 80)])
            done["peer"] += count
            return count

        rates = race({"log": ours, "raw": by_hand, "peer": theirs}, rounds)
        log.close()
        connection.close()
    extra = 1e6 / rates["log"] - 1e6 / rates["raw"]
    report.row(
        "one appender, one event per commit",
        f"{rates['log']:,.0f}/s; {extra:.0f} µs beyond raw SQLite ({rates['raw']:,.0f}/s); "
        f"eventsourcing {rates['peer']:,.0f}/s",
        "≤ 40 µs beyond raw",
        extra <= 40,
    )


def many(report: Report) -> None:
    """64 appenders at once, threads and coroutines, beside raw batches of 64 rows and the peer's threads."""
    workers, each = 64, 100
    with folder() as here:
        log = ms.open(str(here / "log.db"))
        recorder = peer(here / "peer.db")
        connection = raw(here / "raw.db")
        serial = [0]

        def one_appender() -> int:
            for n in range(1_000):
                log.append(f"one-{n % 64}", deposit(n))
            return 1_000

        def by_threads() -> int:
            in_threads(workers, lambda k: [log.append(f"account-{k}", deposit(n)) for n in range(each)])
            return workers * each

        async def gather() -> None:
            asynchronous = ms.aio.Log(log)

            async def run(k: int) -> None:
                for n in range(each):
                    await asynchronous.append(f"account-{k}", deposit(n))

            await asyncio.gather(*(run(k) for k in range(workers)))

        def by_coroutines() -> int:
            asyncio.run(gather())
            return workers * each

        def theirs() -> int:
            serial[0] += 1
            base = serial[0] * 10_000

            def run(k: int) -> None:
                for n in range(each // 4):
                    recorder.insert_events([stored(f"account-{k}", base + n, b"x" * 80)])

            in_threads(workers, run)
            return workers * (each // 4)

        by_threads()
        log.store.writer.connection.execute("pragma wal_checkpoint(truncate)")
        template = header_rows(here / "log.db")[-64:]
        at = [0]

        def by_hand() -> int:
            for _ in range(each):
                connection.execute("begin immediate")
                rows = [(at[0] + i, 1, i, at[0] // 64 + 1, *template[i % len(template)][4:]) for i in range(1, 65)]
                connection.executemany(INSERT, rows)
                connection.execute("commit")
                at[0] += 64
            return 64 * each

        def syncs() -> int:
            with open(here / "sync", "wb") as file:
                for _ in range(200):
                    file.write(b"x" * 4096)
                    file.flush()
                    os.fsync(file.fileno())
            return 200

        rates = race(
            {
                "one": one_appender, "threads": by_threads, "coroutines": by_coroutines, "peer": theirs,
                "raw": by_hand, "fsync": syncs,
            }
        )  # fmt: skip
        log.close()
        connection.close()
    print(f"fsync: {rates['fsync']:,.0f}/s; raw batches of 64: {rates['raw']:,.0f} rows/s")
    for name in ("threads", "coroutines"):
        alone, theirs_, hand = (rates[name] / rates[other] for other in ("one", "peer", "raw"))
        report.row(
            f"64 appenders, {name}",
            f"{rates[name]:,.0f}/s; {alone:.1f} × one appender, {theirs_:.1f} × eventsourcing "
            f"({rates['peer']:,.0f}/s), {hand:.2f} × raw batches ({rates['raw']:,.0f}/s); "
            f"fsync {rates['fsync']:,.0f}/s",
            "≥ 3 ×, ≥ 6 ×, ≥ 0.5 ×",
            alone >= 3 and theirs_ >= 6 and hand >= 0.5,
        )


def in_threads(count: int, work: Any) -> None:
    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _append_for(path: str, k: int, seconds: float, results: Any) -> None:
    log = ms.open(path)
    waits = []
    end = time.perf_counter() + seconds
    n = 0
    while (begin := time.perf_counter()) < end:
        log.append(f"process-{k}", deposit(n))
        waits.append(time.perf_counter() - begin)
        n += 1
    log.close()
    results.put(waits)


def processes(report: Report) -> None:
    """8 processes that append to one file."""
    with folder() as here:
        path = str(here / "log.db")
        ms.open(path).close()
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        workers = [context.Process(target=_append_for, args=(path, k, 8.0, results)) for k in range(8)]
        for worker in workers:
            worker.start()
        all_waits = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
    waits = [wait for one in all_waits for wait in one]
    counts = [len(one) for one in all_waits]
    p99, longest, ratio = percentile(waits, 0.99), max(waits), min(counts) / max(counts)
    report.row(
        "8 processes appending",
        f"{len(waits) / 8:,.0f}/s together; p50 {percentile(waits, 0.5) * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, "
        f"longest {longest * 1e3:.0f} ms, slowest {ratio:.2f} × fastest",
        "p99 < 100 ms, longest < 1 s, ≥ 0.3 ×",
        p99 < 0.1 and longest < 1 and ratio >= 0.3,
    )


def batches(report: Report) -> None:
    """1,000 typed events per append: of one type, and of five types shuffled."""
    count, appends = 1_000, 20
    random.seed(1)
    same = [deposit(n) for n in range(count)]
    mixed = [random.choice(KINDS)(account=f"account-{n}", amount=n, note="a few words about it") for n in range(count)]
    with folder() as here:
        log, recorder = ms.open(str(here / "log.db")), peer(here / "peer.db")
        serial = [0]

        def ours(events: list[Any], stream: str) -> int:
            for _ in range(appends):
                log.append(stream, events)
            return count * appends

        def theirs() -> int:
            # Its recorder is given bytes; what encodes them is not counted against it.
            for _ in range(appends):
                serial[0] += 1
                recorder.insert_events([stored(f"s-{serial[0]}", n, b"x" * 80) for n in range(count)])
            return count * appends

        rates = race({"same": lambda: ours(same, "same"), "mixed": lambda: ours(mixed, "mixed"), "peer": theirs})
        log.close()
    for name, mark in (("same", 5.0), ("mixed", 1.0)):
        ratio = rates[name] / rates["peer"]
        report.row(
            f"1,000 typed events per append, {'one type' if name == 'same' else 'five types shuffled'}",
            f"{rates[name]:,.0f} events/s; {ratio:.1f} × eventsourcing ({rates['peer']:,.0f}/s)",
            f"≥ {mark:g} ×",
            ratio >= mark,
        )


def frames(report: Report) -> None:
    """Frames of 65,536 rows and 5 columns, durable, beside Arrow IPC files with an fsync each."""
    frame, count = clicks(), 20
    with folder() as here:
        log = ms.open(str(here / "log.db"))

        def ours() -> int:
            for _ in range(count):
                log.append("clicks", frame, type="Click")
            return count * ROWS

        def files() -> int:
            for n in range(count):
                with open(here / f"{n}.arrows", "wb") as file:
                    frame.write_ipc_stream(file, compression="lz4")
                    file.flush()
                    os.fsync(file.fileno())
            return count * ROWS

        rates = race({"log": ours, "files": files})
        log.close()
    ratio = rates["log"] / rates["files"]
    report.row(
        "frames of 65,536 rows, 5 columns",
        f"{rates['log'] / 1e6:.1f} M events/s; {ratio:.2f} × Arrow IPC files ({rates['files'] / 1e6:.1f} M/s)",
        "≥ 0.5 ×",
        ratio >= 0.5,
    )


def read(report: Report) -> None:
    """Read everything as typed objects, beside the raw rows of the peer's recorder."""
    count = 100_000
    with folder() as here:
        single, batched = ms.open(str(here / "single.db")), ms.open(str(here / "batched.db"))
        recorder = peer(here / "peer.db")
        for start in range(0, count, 1_000):
            events = [deposit(n) for n in range(start, start + 1_000)]
            batched.append("deposits", events)
            single.commit([single.stage(f"account-{n % 100}", event) for n, event in enumerate(events)])
            recorder.insert_events([stored(f"s-{start}", n, b"x" * 80) for n in range(1_000)])

        def ours(log: ms.Log) -> int:
            return sum(1 for recorded in log.read() if recorded.event)

        def theirs() -> int:
            seen = 0
            while page := recorder.select_notifications(start=seen + 1, limit=1_000):
                seen += len(page)
            return seen

        assert ours(single) == ours(batched) == theirs() == count
        rates = race({"single": lambda: ours(single), "batched": lambda: ours(batched), "peer": theirs})
        single.close()
        batched.close()
    for name, text, mark in (("single", "single-event runs", 2.5), ("batched", "runs of 1,000", 8.0)):
        ratio = rates[name] / rates["peer"]
        report.row(
            f"read all as typed objects, {text}",
            f"{rates[name] / 1e6:.2f} M events/s; {ratio:.1f} × eventsourcing's raw rows ({rates['peer']:,.0f}/s)",
            f"≥ {mark:g} ×",
            ratio >= mark,
        )


def scan(report: Report) -> None:
    """Scan a bulk stream into a frame, beside one lz4 Arrow IPC file of the same rows."""
    frame, count = clicks(), 60
    with folder() as here:
        log = ms.open(str(here / "log.db"))
        for _ in range(count):
            log.append("clicks", frame, type="Click")
        pl.concat([frame] * count).write_ipc_stream(here / "all.arrows", compression="lz4")
        rates = race(
            {
                "log": lambda: log.scan("clicks").collect().height,
                "column": lambda: log.scan("clicks").select("user").collect().height,
                "file": lambda: pl.read_ipc_stream(here / "all.arrows").height,
            }
        )
        log.close()
    ratio = rates["log"] / rates["file"]
    report.row(
        "scan a bulk stream to a frame",
        f"{rates['log'] / 1e6:.1f} M events/s ({rates['column'] / 1e6:.0f} M/s for one column); "
        f"{ratio:.2f} × one lz4 Arrow IPC file ({rates['file'] / 1e6:.1f} M/s)",
        "≥ 0.6 ×",
        ratio >= 0.6,
    )


def _append_stamps(path: str, count: int, ready: Any) -> None:
    log = ms.open(path)
    ready.wait()
    for _ in range(count):
        time.sleep(random.uniform(0.005, 0.03))
        log.append("stamps", ms.Plain("Stamp", {"ns": time.monotonic_ns()}))
    log.close()


def follow(report: Report) -> None:
    """How long after an append is begun a follower has seen its event: in the process, and in another."""
    count = 300
    with folder() as here:
        for where, mark in (("in process", 5), ("across processes", 20)):
            path = str(here / f"{mark}.db")
            log = ms.open(path)
            context = multiprocessing.get_context("spawn")
            ready = context.Event() if mark == 20 else threading.Event()
            starter: Any = context.Process if mark == 20 else threading.Thread
            target: Any = _append_stamps if mark == 20 else _append_stamps_here
            writer = starter(target=target, args=(path if mark == 20 else log, count, ready))
            writer.start()
            delays = []
            ready.set()
            for event in log.follow(timeout=20):
                delays.append((time.monotonic_ns() - event.data["ns"]) / 1e6)
                if len(delays) == count:
                    break
            writer.join()
            log.close()
            p99 = percentile(delays, 0.99)
            report.row(
                f"follower, append → seen, {where}",
                f"p50 {percentile(delays, 0.5):.2f} ms, p99 {p99:.2f} ms (fsync included)",
                f"p99 < {mark} ms",
                p99 < mark,
            )


def _append_stamps_here(log: ms.Log, count: int, ready: Any) -> None:
    ready.wait()
    for _ in range(count):
        time.sleep(random.uniform(0.005, 0.03))
        log.append("stamps", ms.Plain("Stamp", {"ns": time.monotonic_ns()}))


def _peak() -> float:
    """The most memory that this process has held since `_reset_peak`, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _read_all(path: str, results: Any) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the parent
    before = _peak()
    log = ms.open(path, readonly=True)
    count = sum(1 for _ in log.read())
    results.put((count, _peak(), before))


def memory(report: Report) -> None:
    """Memory of a process that reads 10 M events, one by one."""
    with folder() as here:
        path = str(here / "log.db")
        log = ms.open(path)
        frame = clicks()
        for n in range(120):
            log.append("clicks", frame, type="Click")
            log.append(f"deposits-{n}", [deposit(i) for i in range(20_000)])
        total = log.head
        log.close()
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        worker = context.Process(target=_read_all, args=(path, results))
        worker.start()
        count, peak, before = results.get()
        worker.join()
        assert count == total >= 10_000_000
    report.row(
        f"memory while reading {count / 1e6:.1f} M events",
        f"peak {peak:.0f} MB (of which {before:.0f} MB before the log was opened)",
        "< 300 MB",
        peak < 300,
    )


def big(report: Report) -> None:
    """One file with 100 M events in frames and 10 M single-event runs in 1 M streams."""
    with folder() as here:
        path = str(here / "big.db")
        log = ms.open(path)
        begin = time.perf_counter()
        frame = clicks()
        for _ in range(100_000_000 // ROWS + 1):
            log.append("clicks", frame, type="Click")
        frames_took = time.perf_counter() - begin
        staged = log.stage
        rng = random.Random(1)
        for start in range(0, 10_000_000 - 1_000_000, 5_000):
            log.commit([staged(f"account-{rng.randrange(1_000_000)}", deposit(n)) for n in range(start, start + 5_000)])
        for start in range(0, 1_000_000, 5_000):
            log.commit([staged(f"account-{n}", deposit(n)) for n in range(start, start + 5_000)])
        for n in range(1_000):
            log.append("account-the-one", deposit(n))
            log.append(f"account-{rng.randrange(1_000_000)}", deposit(n))
        print(f"written in {time.perf_counter() - begin:.0f} s (the frames in {frames_took:.0f} s)")
        streams = sum(1 for _ in log.streams("account-*"))
        head = log.head
        log.close()
        size = os.path.getsize(path) / 1e9
        opening, last, stream = [], [], []
        for _ in range(5):
            gc.collect()
            begin = time.perf_counter()
            log = ms.open(path)
            assert log.head == head
            opening.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            assert len([e.event for e in log.read(backwards=True, limit=100)]) == 100
            last.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            assert len([e.event for e in log.read("account-the-one")]) == 1_000
            stream.append(time.perf_counter() - begin)
            log.close()
    figures = [sorted(values)[2] * 1e3 for values in (opening, last, stream)]
    report.row(
        f"one file of {size:.1f} GB: {head / 1e6:.0f} M events, {streams / 1e6:.2f} M streams",
        f"open {figures[0]:.1f} ms, last 100 events {figures[1]:.1f} ms, a stream of 1,000 events {figures[2]:.1f} ms",
        "< 500, < 10, < 10 ms",
        figures[0] < 500 and figures[1] < 10 and figures[2] < 10,
    )


SECTIONS = {
    "one": one, "many": many, "processes": processes, "batches": batches, "frames": frames, "read": read,
    "scan": scan, "follow": follow, "memory": memory, "big": big,
}  # fmt: skip


def main(names: list[str]) -> None:
    unknown = set(names) - set(SECTIONS)
    if unknown:
        sys.exit(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    report = Report("The log")
    for name, section in SECTIONS.items():
        if name in names or (not names and name != "big"):
            section(report)
    print()
    print(report.markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
