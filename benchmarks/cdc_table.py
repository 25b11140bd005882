"""A captured table at a moment of its past: `python benchmarks/cdc_table.py [changes] [keys] [transaction's changes]`.

By default 10 million changes of 1 million rows, 10,000 a transaction; the mark is for 50 million of 5 million. The log
is written directly, as a capture of PostgreSQL would have written it; what is timed runs in processes of its own.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

import millstream as ms
from millstream.cdc.shape import Column, Shape
from millstream.storage.base import Encoding, StagedAppend, StagedRun
from timing import Report, folder

SHAPE = Shape(
    (
        Column("id", "int", "bigint"),
        Column("email", "text", "text"),
        Column("balance", "decimal", "numeric(12,2)"),
        Column("active", "bool", "boolean"),
        Column("updated", "timestamptz", "timestamp with time zone"),
    ),
    ("id",),
)
BEGIN = 1_700_000_000_000_000


def lines(operation: str, keys: np.ndarray, salt: np.ndarray, micros: int) -> bytes:
    """Changes of some rows, as they stand in a log."""
    stamp = pl.Series([micros]).cast(pl.Datetime("us")).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")[0]
    head = f'{{"operation":"{operation}","table":"users","before":null,"after":{{"id":'
    frame = pl.DataFrame({"key": keys, "salt": salt})
    line = pl.concat_str(
        pl.lit(head), "key", pl.lit(',"email":"user'), "key", pl.lit("."), "salt", pl.lit('@example.com","balance":"'),
        "salt", pl.lit('.25","active":'), (pl.col("salt") % 2 == 0).cast(pl.String), pl.lit(f',"updated":"{stamp}"'),
        pl.lit(f'}},"timestamp":"{stamp}"}}'),
    )  # fmt: skip
    return str(frame.select(line.alias("line"))["line"].str.join("\n")[0]).encode()


def build(path: Path, changes: int, keys: int, size: int) -> None:
    """Write a log: all rows read by a snapshot, then updates of random ones."""
    rng = np.random.default_rng(6)
    log = ms.open(str(path))
    waiting: list[StagedAppend] = []
    held = done = 0

    def flush() -> None:
        nonlocal held
        log.commit(waiting)
        waiting.clear()
        held = 0

    def add(type: str, body: bytes, count: int, about: bytes, micros: int) -> None:
        nonlocal held
        encoding = Encoding.JSON if count == 1 else Encoding.NDJSON
        digest = hashlib.sha256(body).digest()
        run = StagedRun(type, SHAPE.text, count, encoding, body, digest, (), about, micros)
        waiting.append(StagedAppend("users", [run]))
        waiting[-1].count = count
        held += len(body)
        if held > 32 << 20 or len(waiting) >= 2_000:
            flush()

    while done < changes:
        micros = BEGIN + done * 1_000
        if done < keys:
            count = min(10_000, keys - done)
            found = np.arange(done, done + count)
            add("Change", lines("READ", found, found, micros), count, b'{"snapshot":true}', micros)
            done += count
            if done == keys:
                said = {"table": "users", "columns": list(SHAPE.names), "rows": keys, "timestamp": ms_iso(micros)}
                add("SnapshotCompleted", json.dumps(said).encode(), 1, b'{"snapshot":true}', micros)
        else:
            # Many transactions are made at once, and cut apart.
            count = min(max(size, 10_000), changes - done)
            text = lines("UPDATE", rng.integers(0, keys, count), rng.integers(0, 1 << 30, count), micros)
            parts = [text] if size >= count else text.split(b"\n")
            for first in range(0, count, size):
                part = text if size >= count else b"\n".join(parts[first : first + size])
                add("Change", part, min(size, count - first), b'{"lsn":1}', micros + first)
            done += count
    flush()
    log.close()


def ms_iso(micros: int) -> str:
    """A time as an event holds it."""
    from millstream.time import iso

    return iso(micros)


CHILD = """
import json, resource, sys, time
import millstream as ms
path, what, at = sys.argv[1:4]
log = ms.open(path)
log.head
begin = time.perf_counter()
if what == "image":
    rows = ms.cdc.image(log, "users").rows
else:
    given = {"at": at} if at else {}
    rows = ms.cdc.table(log, "users", use_images=what == "with", **given).height
took = time.perf_counter() - begin
print(json.dumps([took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, rows]))
"""


def child(path: Path, what: str, at: str = "") -> tuple[float, float, int]:
    """Seconds, gigabytes at most, and rows, of a process of its own."""
    out = subprocess.run([sys.executable, "-c", CHILD, str(path), what, at], check=True, capture_output=True)
    took, gigabytes, rows = json.loads(out.stdout)
    return took, gigabytes, rows


def main(changes: int = 10_000_000, keys: int = 1_000_000, size: int = 10_000) -> None:
    report = Report("A captured table at a moment")
    big = changes >= 50_000_000
    with folder() as here:
        path = here / "log.db"
        begin = time.perf_counter()
        build(path, changes, keys, size)
        gigabytes = path.stat().st_size / 1e9
        print(f"{changes:,} changes of {keys:,} rows: {gigabytes:.1f} GB, {time.perf_counter() - begin:.0f} s to write")
        middle = ms_iso(BEGIN + (changes * 7 // 10) * 1_000)
        for name, what, at in (
            ("at 70 % of the past, no image", "without", middle),
            ("images made", "image", ""),
            ("at 70 % of the past, with images", "with", middle),
            ("at the present, with images", "with", ""),
        ):
            took, peak, rows = child(path, what, at)
            mark = "< 15 s, < 4 GB" if big and what == "with" else ""
            met = took < 15 and peak < 4 if mark else None
            report.row(name, f"{took:.1f} s, {peak:.2f} GB, {rows:,} rows", mark, met)
        print(f"with images: {path.stat().st_size / 1e9 - gigabytes:.1f} GB more")


if __name__ == "__main__":
    main(*(int(argument.replace("_", "")) for argument in sys.argv[1:]))
