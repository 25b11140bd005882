"""Writes format-N.db, a log with one of everything in the present format. Run it once per format, then keep the file.

    python tests/golden/make.py

The files are read by tests/log/test_format.py for ever after: a later version must read each of them as it is.
"""

import sqlite3
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl

import millstream as ms
from millstream.storage.sqlite.form import FORMAT
from millstream.testing import FakeClock


def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "i": [1, None, -3],
            "u": pl.Series([1, 2, 3], dtype=pl.UInt8),
            "f": [1.5, None, -0.0],
            "s": ["a", "ä\U0001f333", None],
            "b": [True, None, False],
            "raw": [b"\x00\xff", b"", None],
            "d": [Decimal("1.10"), None, Decimal("-2.00")],
            "day": [date(2024, 2, 29), None, date(1900, 1, 1)],
            "at": [datetime(2024, 1, 1, tzinfo=UTC), None, datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)],
            "list": [[1, 2], [], None],
            "deep": [{"a": 1, "b": "x"}, {"a": None, "b": "y"}, None],
            "nothing": pl.Series([None, None, None], dtype=pl.Null),
        }
    )


def write(path: Path) -> None:
    clock = FakeClock("2024-01-15T10:00:00Z")
    log = ms.open(str(path), clock=clock)
    log.append("account-1", ms.Plain("AccountCreated", {"owner": "Änne"}), expect=0, id="first")
    clock.advance("1m")
    log.append(
        "account-1",
        [
            ms.Draft(ms.Plain("MoneyDeposited", {"amount": "1000.00"}), tags=["big", "cash"]),
            ms.Draft(ms.Plain("MoneyDeposited", {"amount": "1"}), effective="2023-12-31T23:59:59Z"),
            ms.Plain("MoneyWithdrawn", {"amount": "200"}),
            ms.Plain("MoneyWithdrawn", {"amount": "5"}),
        ],
        metadata={"user": "ann"},
        correlation="c-1",
    )
    clock.advance("1m")
    log.append("rows", frame(), type="Row")
    log.append("rows", pl.DataFrame({"i": [7], "new": ["x"]}), type="Row")
    for n in range(3):
        log.append("many", pl.DataFrame({"n": [n, n + 10]}), type="Row")
        log.append("audit", [ms.Plain("Seen", {"n": n}), ms.Plain("Seen", {"n": -n})])
    log.compact()
    log.append("large", ms.Plain("Text", {"text": "x" * 9_000}))
    log.close_stream("account-1", reason="golden")
    log.store.writer.connection.execute("update meta set value = 'golden' where key = 'log_id'")
    log.close()
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = delete")
    connection.execute("vacuum")
    connection.close()


if __name__ == "__main__":
    target = Path(__file__).parent / f"format-{FORMAT}.db"
    if target.exists():
        raise SystemExit(f"{target} is there already: released formats stay as they are")
    write(target)
    for left in target.parent.glob("*.db-*"):
        left.unlink()
    print(target, target.stat().st_size, ms.open(str(target), readonly=True).verify())
