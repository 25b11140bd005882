"""A log with one of everything, and the ways to compare two logs."""

from __future__ import annotations

import sqlite3

import polars as pl

import millstream as ms
from millstream.storage.raw import PAGE_BYTES, PAGE_RUNS

TABLES = {
    "runs": "select r.position, r.count, s.name, r.version, k.category, k.type, k.schema, r.recorded, r.effective,"
    " r.format, hex(r.body_hash), hex(r.hash), r.metadata, r.body, r.body_ref, r.body_offset from runs r"
    " join streams s on s.id = r.stream join kinds k on k.id = r.kind order by 1",
    "bodies": "select id, encoding, rows, hex(bytes) from bodies order by 1",
    "streams": "select name, closed from streams order by 1",
    "tags": "select tag, position from tags order by 1, 2",
    "appends": "select id, hex(digest), first, last, result from appends order by 1",
    "ranges": "select * from ranges order by 1, 2",
    "catalogue": "select s.name, k.category, k.type, k.schema from catalogue c join streams s on s.id = c.stream"
    " join kinds k on k.id = c.kind order by 1, 2, 3, 4",
}


def rows(path: str) -> dict[str, list]:
    """All of a log's rows, with names instead of numbers."""
    connection = sqlite3.connect(path)
    try:
        return {table: connection.execute(query).fetchall() for table, query in TABLES.items()}
    finally:
        connection.close()


def frame(rows: int, start: int = 0) -> pl.DataFrame:
    numbers = pl.Series(range(start, start + rows))
    return pl.DataFrame({"n": numbers, "ts": (numbers * 1_000_000).cast(pl.Datetime("us", "UTC"))})


def fill(log: ms.Log, rounds: int = 6) -> None:
    """One of everything, several times over; half of it compacted."""
    base = log.head
    for n in range(base, base + rounds):
        log.append("account-1", ms.Plain("Opened", {"n": n}), id=f"open-{n}", tags=["vip", "ä"])
        log.append(
            "ünïcode-漢字", [ms.Plain("Größe", {"x": "\U0001f333"}), ms.Plain("T", {"n": n})], metadata={"by": "ann"}
        )
        log.append("many", [ms.Plain("T", {"n": n}) for n in range(50)], effective="2012-01-01T00:00:00Z")
        log.append("big", ms.Plain("Blob", {"text": "x" * 20_000}))
        log.append("clicks", frame(40, n * 40), type="Click")
        log.append(f"closed-{n}", ms.Plain("T", {}))
        log.close_stream(f"closed-{n}", reason="done")
        log.commit([], id=f"nothing-{n}")
        if n == base + rounds // 2:
            log.compact()
            log.compact("account-*")


def pages(source: ms.Log, *, runs: int = PAGE_RUNS, bytes: int = PAGE_BYTES, known: bool = True):
    """All pages of a log, in pages of a size of one's own."""
    after, have = 0, set()
    while True:
        page = source.store.raw_page(after, known=have if known else (), limit_runs=runs, limit_bytes=bytes)
        yield page
        have.update(ref for ref in page.bodies if ref < 0)
        after = page.head.position
        if page.level:
            return
