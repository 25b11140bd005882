"""Cursors that users keep beyond what they were lent for hold nothing at the moment that they read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import millstream as ms


def _with_rows(path: Path) -> ms.Log:
    log = ms.open(path, lock_timeout=2)
    with log.transaction() as tx:
        tx.db.execute("create table kept (n integer)")
        tx.db.executemany("insert into kept values (?)", [(n,) for n in range(10)])
    return log


def _append_elsewhere(path: Path) -> None:
    code = f"import millstream as ms; ms.open({str(path)!r}).append('s', ms.Plain('KeptByOther', {{}}))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_cursor_that_is_kept_beyond_connect_leaves_the_log_in_the_present(tmp_path: Path) -> None:
    with _with_rows(tmp_path / "a.db") as log:
        with log.connect() as db:
            kept = db.execute("select n from kept")
            assert kept.fetchone() == (0,)
        for count in range(1, 4):
            log.append("s", ms.Plain("Kept", {}))
            assert (log.head, log.version("s"), len(list(log.read("s")))) == (count, count, count)


def test_a_cursor_that_is_kept_beyond_a_transaction_keeps_no_writer_out(tmp_path: Path) -> None:
    with _with_rows(tmp_path / "a.db") as log:
        with log.transaction() as tx:
            kept = tx.db.execute("select n from kept")
            assert kept.fetchone() == (0,)
        _append_elsewhere(tmp_path / "a.db")
        assert log.append("s", ms.Plain("Kept", {})).version == 2


def test_a_transaction_is_committed_although_a_cursor_has_rows_left_that_it_wrote(tmp_path: Path) -> None:
    with _with_rows(tmp_path / "a.db") as log:
        with log.transaction() as tx:
            kept = tx.db.execute("insert into kept values (10), (11), (12) returning n")
            assert kept.fetchone() == (10,)
        with log.connect() as db:
            assert db.one("select count(*) as n from kept") == {"n": 13}
