"""Captures that are killed, for real, at the worst moments: the log is the source's history, each change once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from millstream.cdc import Change

from .conftest import Shop, kept

WRITER = """
import random, sys, time
import pymysql
random.seed(5)
db = pymysql.connect(host="127.0.0.1", port=int(sys.argv[1]), user="root", database=sys.argv[2])
end = time.monotonic() + float(sys.argv[3])
n = 0
with db.cursor() as c:
    while time.monotonic() < end:
        for _ in range(random.choice([1, 2, 5, 30])):
            n += 1
            id = random.randrange(400)
            c.execute(random.choice([
                f"insert into users values ({id}, 'n{n}', '') on duplicate key update email = 'n{n}'",
                f"update users set name = 'u{n}' where id = {id}",
                f"update users set id = {id} + {n} * 10000, name = 'm{n}' where id = {id} and {id} % 7 = 0",
                f"delete from users where id = {id}",
                f"insert into bag values ({id % 9})",
                f"delete from bag where n = {id % 9} limit 1",
                "savepoint s",
            ]))
        if random.random() < 0.03:
            c.execute("insert into users values " + ",".join(f"({i}, '{'x' * 200}', 'big')" for i in range(5000, 6000))
                      + " on duplicate key update name = 'again'")
        (db.rollback if random.random() < 0.2 else db.commit)()
        time.sleep(0.002)
"""

CAPTURES = """
import os, random, signal, sys, time
import millstream as ms
from millstream.cdc import spill
from millstream.cdc.mysql import assemble, session, snapshot, transaction
transaction.SPILL_BYTES, spill.CHUNK_BYTES, session.STAGE_BYTES = 60_000, 30_000, 30_000
snapshot.PAGE_ROWS = 50
random.seed(3)
points = sys.argv[4].split(",")
url, log_path, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
for n in range(times):
    child = os.fork()
    if not child:
        with ms.open(log_path) as log:
            made = ms.capture(url, tables=["users", "history", "bag"], chunk_rows=100)
            point = points[n % len(points)]
            if point == "any":
                made.run(log)
            with ms.testing.crash_at(point, after=random.choice([1, 1, 2, 5])):
                made.run(log)
        os._exit(1)
    end = time.monotonic() + (random.uniform(0.15, 0.5) if points[n % len(points)] == "any" else 1)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    assert os.WIFSIGNALED(status), "the capture ended by itself"
"""

NOTED = "json_object('id', {0}.id, 'email', {0}.email, 'name', {0}.name)"


def prepare(shop: Shop) -> None:
    """Every change of a table is noted, by a trigger in the writer's transaction."""
    shop.sql(
        "create table users (id int primary key, email varchar(250), name text)",
        "create table bag (n int)",
        "create table history (n bigint primary key auto_increment, op varchar(6), old longtext, new longtext)",
        f"create trigger a after insert on users for each row insert into history values (0, 'INSERT', null,"
        f" {NOTED.format('new')})",
        # An update that changes nothing is no change; the trigger is called for it all the same.
        "create trigger b after update on users for each row insert into history select 0, 'UPDATE',"
        f" {NOTED.format('old')}, {NOTED.format('new')} from dual"
        " where not ((old.id, old.email, old.name) <=> (new.id, new.email, new.name))",
        f"create trigger c after delete on users for each row insert into history values (0, 'DELETE',"
        f" {NOTED.format('old')}, null)",
        "insert into users values " + ",".join(f"({n}, 'e', 'n')" for n in range(400)),
        "delete from history",
    )


def equal(shop: Shop, *, whole: bool) -> None:
    """The log's changes are those that the source noted, in its order, once."""
    rows = shop.rows("select op, old, new from history order by n")
    noted: list[Any] = [(op, old and json.loads(old), new and json.loads(new)) for op, old, new in rows]
    found: list[Any] = []
    numbers: Counter[tuple[Any, ...]] = Counter()
    for run in shop.log.runs("users", types=[Change]):
        if "sequence" not in run.metadata:
            continue
        ranges = run.metadata["sequence"]
        numbers.update((*run.metadata["position"], n) for low, high in ranges for n in range(low, high + 1))
        assert sum(high - low + 1 for low, high in ranges) == run.count
        found += [(c.operation, c.before, c.after) for c in run.events(Change)]
    assert max(numbers.values()) == 1
    assert len(found) > 100
    assert found == (noted if whole else noted[len(noted) - len(found) :])


@pytest.mark.parametrize(
    ("points", "times"),
    [
        ("before-commit,after-commit,after-acknowledge,put-ahead,any", 20),
        ("in-chunk,in-snapshot,before-commit,after-commit,any", 20),
    ],
    ids=["stream", "snapshot"],
)
def test_a_capture_that_is_killed_forty_times_neither_loses_nor_doubles_a_change(
    shop: Shop, points: str, times: int
) -> None:
    prepare(shop)
    if "put-ahead" in points:
        shop.capture("users", "history", "bag").catch_up(shop.log)
    shop.log.close()
    place = [str(shop.server.port), shop.database]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, *place, "6"])
    arguments = [shop.url, shop.log_path, str(times), points]
    killed = subprocess.run([sys.executable, "-c", CAPTURES, *arguments], capture_output=True, text=True)
    assert writer.wait(30) == 0
    assert killed.returncode == 0, killed.stderr + killed.stdout
    shop.reopen()
    shop.capture("users", "history", "bag").catch_up(shop.log)
    kept(shop)
    kept(shop, "bag", ())
    kept(shop, "history", ("n",))
    equal(shop, whole="put-ahead" in points)
    shop.log.verify()
    with shop.log.connect() as db:
        assert not db.query(f"select * from {db.own('millstream_ahead')}")
