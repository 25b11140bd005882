"""Archives and retention, beside the log itself. `python benchmarks/archive.py`.

Give names of sections to run only those: scan objects steps.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import millstream as ms
from timing import Report, folder, percentile, race

ROWS = 65_536


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


def scan(report: Report) -> None:
    """Scan a bulk stream from an archive in a local folder, beside the same scan from the log."""
    count = 60
    with folder() as here:
        kept, gone = ms.open(str(here / "kept.db")), ms.open(str(here / "gone.db"))
        for log in (kept, gone):
            for _ in range(count):
                log.append("clicks", clicks(), type="Click")
        begin = time.perf_counter()
        gone.archive("clicks", to=str(here / "old"))
        archiving = count * ROWS / (time.perf_counter() - begin)
        size = sum(file.stat().st_size for file in (here / "old").rglob("*.parquet"))

        def first() -> int:
            with ms.open(str(here / "gone.db")) as fresh:
                return fresh.scan("clicks").collect().height

        rates = race(
            {
                "log": lambda: kept.scan("clicks").collect().height,
                "archive": lambda: gone.scan("clicks").collect().height,
                "first": first,
                "log column": lambda: kept.scan("clicks").select("user").collect().height,
                "archive column": lambda: gone.scan("clicks").select("user").collect().height,
            }
        )
        kept.close()
        gone.close()
    for name, text in (("archive", "again"), ("first", "the first time in a process, checksums and all")):
        ratio = rates[name] / rates["log"]
        report.row(
            f"scan an archived stream, {text}",
            f"{rates[name] / 1e6:.1f} M events/s; {ratio:.2f} × the same from the log ({rates['log'] / 1e6:.1f} M/s)",
            "≥ 0.5 ×",
            ratio >= 0.5,
        )
    ratio = rates["archive column"] / rates["log column"]
    report.row(
        "scan one column of an archived stream",
        f"{rates['archive column'] / 1e6:.0f} M events/s; {ratio:.2f} × the same from the log",
        "≥ 0.5 ×",
        ratio >= 0.5,
    )
    report.row(
        "archive a bulk stream", f"{archiving / 1e6:.1f} M events/s, {size / count / ROWS:.1f} bytes an event", "", None
    )


def objects(report: Report) -> None:
    """Read archived single events as typed objects, beside the same from the log."""
    count, streams = 50_000, 500
    with folder() as here:
        kept, gone = ms.open(str(here / "kept.db")), ms.open(str(here / "gone.db"))
        for log in (kept, gone):
            for n in range(0, count, streams):
                log.commit(
                    [
                        log.stage(f"account-{k}", ms.Plain("Deposited", {"amount": n, "note": "x"}))
                        for k in range(streams)
                    ]
                )
        begin = time.perf_counter()
        gone.archive("account-*", to=str(here / "old"))
        archiving = count / (time.perf_counter() - begin)

        def read(log: ms.Log) -> int:
            return sum(1 for e in log.read("account-*") if e.data)

        def some(log: ms.Log) -> int:
            return sum(1 for k in range(0, streams, 10) for e in log.read(f"account-{k}") if e.data)

        rates = race(
            {
                "log": lambda: read(kept), "archive": lambda: read(gone),
                "log some": lambda: some(kept), "archive some": lambda: some(gone),
            },
            rounds=3,
        )  # fmt: skip
        kept.close()
        gone.close()
    for name, text in (("", "all of them"), (" some", "stream by stream")):
        archive, log_rate = rates[f"archive{name}"], rates[f"log{name}"]
        report.row(
            f"read archived single events, {text}",
            f"{archive:,.0f} events/s; {archive / log_rate:.2f} × the same from the log ({log_rate:,.0f}/s)",
            "",
            None,
        )
    report.row("archive single events", f"{archiving:,.0f} events/s", "", None)


def steps(report: Report) -> None:
    """How long archiving, restoring and trimming keep a writer waiting."""
    with folder() as here:
        path = str(here / "log.db")
        with ms.open(path) as log:
            for _ in range(100):
                log.append("clicks", clicks(), type="Click")
            for n in range(100):
                log.commit([log.stage(f"account-{k}", ms.Plain("T", {"n": n})) for k in range(200)])
        waits: dict[str, list[float]] = {name: [] for name in ("nothing", "archive", "restore", "trim")}
        for name, waited in waits.items():
            _beside(path, here, name, waited)
    base = percentile(waits["nothing"], 0.99)
    for name in ("archive", "restore", "trim"):
        p50, p99 = percentile(waits[name], 0.5), percentile(waits[name], 0.99)
        report.row(
            f"an append beside {name}",
            f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms ({len(waits[name])} appends; beside nothing: "
            f"p50 {percentile(waits['nothing'], 0.5) * 1e3:.1f} ms, p99 {base * 1e3:.1f} ms)",
            "p50 ≤ 5 ms beyond",
            p50 - percentile(waits["nothing"], 0.5) <= 0.005,
        )


def _beside(path: str, here: Path, name: str, waited: list[float]) -> None:
    done = threading.Event()

    def work() -> None:
        with ms.open(path) as log:
            jobs: dict[str, Any] = {
                "nothing": lambda: time.sleep(2),
                "archive": lambda: (log.archive("clicks", to=str(here / "old")), log.archive("account-*")),
                "restore": lambda: log.archives.restore(),
                "trim": lambda: (log.trim("clicks", keep=ROWS), log.trim("account-*", keep=1)),
            }
            jobs[name]()
        done.set()

    thread = threading.Thread(target=work)
    with ms.open(path) as log:
        thread.start()
        while not done.is_set():
            begin = time.perf_counter()
            log.append("beside", ms.Plain("T", {}))
            waited.append(time.perf_counter() - begin)
            time.sleep(0.001)
    thread.join()


SECTIONS = {"scan": scan, "objects": objects, "steps": steps}


def main(names: list[str]) -> None:
    unknown = set(names) - set(SECTIONS)
    if unknown:
        sys.exit(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    report = Report("Archives and retention")
    for name, section in SECTIONS.items():
        if name in names or not names:
            section(report)
    print()
    print(report.markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
