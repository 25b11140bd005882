"""Real processes, killed for real: what is in the log afterwards is what happened, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import millstream as ms
from millstream.cdc import Change, table

from .conftest import Shop
from .shadow import Shadow

WRITER = """
import random, sqlite3, sys, time
random.seed(7)
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
end = time.monotonic() + float(sys.argv[2])
n = 0
while time.monotonic() < end:
    db.execute("BEGIN IMMEDIATE")
    for _ in range(random.choice([1, 1, 3, 40])):
        n += 1
        id = random.randrange(300)
        db.execute(random.choice([
            f"INSERT OR REPLACE INTO users VALUES ({id}, 'n{n % 50}')",
            f"INSERT INTO users (email) VALUES ('n{n}') ON CONFLICT DO NOTHING",
            f"UPDATE OR IGNORE users SET email = 'u{n % 50}' WHERE id = {id}",
            f"DELETE FROM users WHERE id = {id}",
            f"INSERT INTO notes VALUES ('{n % 9}')",
            f"DELETE FROM notes WHERE rowid = {id}",
        ]))
    db.execute(random.choice(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"]))
    time.sleep(0.001)
"""

CAPTURES = """
import os, random, signal, sys, time
import millstream as ms
from millstream.cdc import capture
from millstream.cdc.sqlite import source
source.PAGE_ROWS, source.PRUNE_EVERY = 50, 0.01
random.seed(11)
url, log_path, end = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3])
kills = 0
while time.monotonic() < end:
    child = os.fork()
    if not child:
        with ms.open(log_path) as log:
            capture(url, tables=["users", "notes"]).run(log)
        os._exit(1)
    time.sleep(random.uniform(0.005, 0.12))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the capture ended by itself"
    kills += 1
print(kills)
"""


def numbers(log: ms.Log, name: str) -> list[int]:
    """The source's number of each change, in the log's order."""
    return [
        n
        for run in log.runs(name, types=["Change"])
        for first, last in run.metadata.get("changes", [])
        for n in range(first, last + 1)
    ]


def test_kill_9_at_random_moments_neither_loses_nor_doubles_a_change(shop: Shop) -> None:
    shop.sql("DROP TABLE users", "CREATE TABLE users (id INTEGER PRIMARY KEY, email UNIQUE)", "CREATE TABLE notes (t)")
    shop.db.executemany("INSERT INTO users VALUES (?, ?)", [(i, f"e{i}") for i in range(0, 300, 2)])
    shop.db.executemany("INSERT INTO notes VALUES (?)", [(i % 5,) for i in range(200)])
    shop.log.close()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(shop.path), "4"])
    killed = subprocess.run(
        [sys.executable, "-c", CAPTURES, shop.url, shop.log_path, "4"], capture_output=True, text=True
    )
    assert writer.wait(30) == 0
    assert killed.returncode == 0, killed.stderr
    assert int(killed.stdout) > 10
    with ms.open(shop.log_path) as log:
        shop.capture("users", "notes").catch_up(log)
        for name in ("users", "notes"):
            seen = numbers(log, name)
            assert seen == sorted(set(seen))
        notes = Shadow()
        notes.apply(e.event for e in log.read("notes", types=[Change]))
        notes.assert_equals(shop.db, "notes")
        users = table(log, "users").sort("id")
        assert users.rows() == shop.db.execute("SELECT * FROM users ORDER BY id").fetchall()
        assert shop.pending() == 1
        log.verify()


def test_after_the_snapshot_every_change_of_a_killed_capture_has_its_number(shop: Shop) -> None:
    shop.sql("DROP TABLE users", "CREATE TABLE users (id INTEGER PRIMARY KEY, email UNIQUE)", "CREATE TABLE notes (t)")
    shop.capture("users", "notes").catch_up(shop.log)
    (first,) = shop.db.execute("SELECT max(id) FROM _millstream_changes").fetchone()
    shop.log.close()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(shop.path), "2"])
    killed = subprocess.run(
        [sys.executable, "-c", CAPTURES, shop.url, shop.log_path, "2"], capture_output=True, text=True
    )
    assert writer.wait(30) == 0
    assert killed.returncode == 0, killed.stderr
    with ms.open(shop.log_path) as log:
        shop.capture("users", "notes").catch_up(log)
        (last,) = shop.db.execute("SELECT max(id) FROM _millstream_changes").fetchone()
        assert sorted(numbers(log, "users") + numbers(log, "notes")) == list(range(first + 1, last + 1))
        for name in ("users", "notes"):
            shadow = Shadow()
            shadow.apply(e.event for e in log.read(name, types=[Change]))
            shadow.assert_equals(shop.db, name)


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_writer_that_is_killed_leaves_only_what_it_committed(shop: Shop, signal: str, tmp_path: Path) -> None:
    users = shop.capture("users")
    users.catch_up(shop.log)
    code = (
        "import os, signal, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('INSERT INTO users VALUES (1, 1)')\n"
        "db.execute('BEGIN')\n"
        "db.execute('INSERT INTO users VALUES (2, 2)')\n"
        f"os.kill(os.getpid(), signal.{signal})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(shop.path)])
    users.catch_up(shop.log)
    assert shop.changes() == [("INSERT", None, (1, "1"))]
