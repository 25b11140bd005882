"""Moving house: how fast a log is copied, restored and kept off the machine. `make bench-moving`.

Give names of sections to run only those: singles columns depot follow switch.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

import millstream as ms
from millstream.log.moving import Segments, copy, restore, switch
from timing import Report, folder, percentile, race

ROWS = 65_536


def singles(report: Report) -> None:
    """Events of a thousand streams, each a run of its own, to a new file; beside reading and placing alone."""
    count = 200_000
    with folder() as here:
        source = ms.open(str(here / "source.db"))
        fill(source, count)
        rates = race(
            {
                "copy": lambda: into_new(here, lambda target: copy(source, target).events),
                "read": lambda: read_pages(source),
                "backup": lambda: backup(source, here),
            },
            rounds=3,
        )
        source.close()
    report.row(
        "copy single events, SQLite to SQLite",
        f"{rates['copy']:,.0f} events/s; pages alone are read at {rates['read']:,.0f}/s; "
        f"a backup (pages of the file) goes at {rates['backup']:,.0f}/s",
        "≥ 150,000/s",
        rates["copy"] >= 150_000,
    )


def columns(report: Report) -> None:
    """Frames of 65,536 rows and 5 columns to a new file."""
    count = 60
    with folder() as here:
        source = ms.open(str(here / "source.db"))
        frame = clicks()
        for _ in range(count):
            source.append("clicks", frame, type="Click")
        rates = race(
            {
                "copy": lambda: into_new(here, lambda target: copy(source, target).events),
                "read": lambda: read_pages(source),
            },
            rounds=3,
        )
        source.close()
    report.row(
        "copy columns, SQLite to SQLite",
        f"{rates['copy'] / 1e6:.1f} M events/s; pages alone are read at {rates['read'] / 1e6:.1f} M/s",
        "≥ 3 M/s",
        rates["copy"] >= 3e6,
    )


def depot(report: Report) -> None:
    """To a folder of segments, and back."""
    count = 100_000
    with folder() as here:
        source = ms.open(str(here / "source.db"))
        fill(source, count)
        serial = [0]

        def away() -> int:
            serial[0] += 1
            return copy(source, Segments(str(here / f"depot-{serial[0]}"))).events

        away()
        rates = race(
            {
                "away": away,
                "back": lambda: into_new(here, lambda new: restore(Segments(str(here / "depot-1")), new).events),
            },
            rounds=3,
        )
        source.close()
    report.row(
        "single events to a folder of segments, and back",
        f"{rates['away']:,.0f} events/s; {rates['back']:,.0f} events/s",
        "",
        None,
    )


def follow(report: Report) -> None:
    """A live copy beside an appender: how old what it does not have yet becomes."""
    with folder() as here:
        source, target = ms.open(str(here / "source.db")), ms.open(str(here / "target.db"))
        fill(source, 1_000)
        stop, lags = threading.Event(), []
        worker = threading.Thread(
            target=copy,
            args=(source, target),
            kwargs={"follow": True, "progress": lambda step: lags.append(step.lag), "stop": stop},
        )
        worker.start()
        beside = appended(source, 5)
        stop.set()
        worker.join()
        alone = appended(source, 5)
        source.close()
        target.close()
    report.row(
        "live copy beside a writer, in one process",
        f"{beside:,.0f} appends/s ({alone:,.0f}/s without); "
        f"lag p50 {percentile(lags, 0.5) * 1e3:.0f} ms, p99 {percentile(lags, 0.99) * 1e3:.0f} ms",
        "",
        None,
    )


def pause(report: Report) -> None:
    """The switch, with appends until the last moment."""
    with folder() as here:
        source, target = ms.open(str(here / "source.db")), ms.open(str(here / "target.db"))
        fill(source, 50_000)
        copy(source, target)
        ended = threading.Event()

        def write() -> None:
            try:
                while True:
                    source.append("live", ms.Plain("T", {}))
            except ms.LogMoved:
                ended.set()

        worker = threading.Thread(target=write)
        worker.start()
        time.sleep(0.5)
        done = switch(source, target)
        worker.join()
        source.close()
        target.close()
    report.row(
        "switch, with a writer", f"neither takes appends for {done.pause * 1e3:.0f} ms", "≤ 1 s", done.pause <= 1
    )


def appended(log: ms.Log, seconds: float) -> float:
    end, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        log.append(f"account-{count % 100}", ms.Plain("Deposited", {"n": count}))
        count += 1
    return count / seconds


def fill(log: ms.Log, count: int) -> None:
    for start in range(0, count, 5_000):
        log.commit(
            [
                log.stage(f"account-{n % 1000}", ms.Plain("Deposited", {"account": f"account-{n % 1000}", "amount": n}))
                for n in range(start, min(start + 5_000, count))
            ]
        )


def clicks() -> pl.DataFrame:
    """Five columns, as a stream of clicks has them."""
    rng = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "user": rng.zipf(1.3, ROWS) % 100_000,
            "kind": rng.choice(["click", "purchase", "view"], ROWS),
            "ts": pl.Series(np.arange(ROWS) * 1000).cast(pl.Datetime("us", "UTC")),
            "price": rng.random(ROWS),
            "page": [f"/p/{i % 500}" for i in range(ROWS)],
        }
    )


def into_new(here: Path, work: Callable[[ms.Log], int]) -> int:
    path = here / "new.db"
    with ms.open(str(path)) as target:
        count = work(target)
    for end in ("", "-wal", "-shm", "-turn", "-lock"):
        if os.path.exists(f"{path}{end}"):
            os.remove(f"{path}{end}")
    return count


def read_pages(source: ms.Log) -> int:
    after = 0
    while True:
        page = source.store.raw_page(after)
        after = page.head.position
        if page.level:
            return after


def backup(source: ms.Log, here: Path) -> int:
    path = here / "backup.db"
    source.backup(str(path))
    path.unlink()
    return source.head


SECTIONS = {"singles": singles, "columns": columns, "depot": depot, "follow": follow, "switch": pause}

if __name__ == "__main__":
    report = Report("Moving house")
    for name in sys.argv[1:] or SECTIONS:
        SECTIONS[name](report)
    print()
    print(report.markdown())
