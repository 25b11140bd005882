"""Change data capture from MariaDB beside `mysql-replication`: `python benchmarks/cdc_mysql.py`.

300k inserts, then 300k updates, 10 rows a transaction, 8 columns. Both read the same binary log from the same place,
once for the inserts and once for the updates. Ours writes every change into a log in SQLite, durable; the peer's rows
are counted and dropped. Give numbers to change the sizes: ROWS, PEER_ROWS (the peer reads so many of each alone, since
it is slow).
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pymysql

import millstream as ms
from timing import Report, folder

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import MariaDBServer

ROWS, PEER_ROWS, PER_TRANSACTION, ROUNDS = 300_000, 100_000, 10, 3

TABLE = """
create table users (id bigint primary key, email varchar(100), name varchar(60), age int, balance decimal(12,2),
    active tinyint(1), score double, created datetime(6))
"""


def fill(server: MariaDBServer) -> tuple[tuple[str, int], tuple[str, int]]:
    """Make the changes; where the inserts and the updates begin in the binary log."""
    db = pymysql.connect(host="127.0.0.1", port=server.port, user="root", autocommit=False)
    with db.cursor() as c:
        c.execute("create database shop")
        c.execute("use shop")
        c.execute("set global sync_binlog = 0")
        c.execute(TABLE)
        begin = status(c)
        for first in range(0, ROWS, PER_TRANSACTION):
            rows = ",".join(
                f"({i},'user{i}@example.org','Name Number {i}',{i % 90},{i}.25,{i % 2},{i / 7!r},"
                f"'2024-01-15 10:30:00.{i:06}')"
                for i in range(first, first + PER_TRANSACTION)
            )
            c.execute(f"insert into users values {rows}")
            db.commit()
        middle = status(c)
        for first in range(0, ROWS, PER_TRANSACTION):
            c.execute(
                f"update users set balance = balance + 1, score = score * 2 where id >= {first}"
                f" and id < {first + PER_TRANSACTION}"
            )
            db.commit()
    db.close()
    return begin, middle


def status(cursor: Any) -> tuple[str, int]:
    cursor.execute("show master status")
    file, offset, *_ = cursor.fetchone()
    return file, offset


def ours(server: MariaDBServer, place: Path) -> tuple[float, float]:
    """Seconds for the inserts and the updates: a capture that begins behind both, as after a pause."""
    url = server.url()
    with ms.open(str(place / "log.db")) as log:
        db = pymysql.connect(host="127.0.0.1", port=server.port, user="root", database="shop", autocommit=True)
        made = ms.capture(url, tables=["users"])
        with db.cursor() as c:
            c.execute("rename table users to kept")
            c.execute(TABLE)
        made.catch_up(log)
        seconds = []
        for statement in ("insert", "update"):
            with db.cursor() as c:
                write(c, statement)
            before = log.head
            begin = time.perf_counter()
            made.catch_up(log)
            seconds.append(time.perf_counter() - begin)
            assert log.head - before == ROWS
        with db.cursor() as c:
            c.execute("drop table users")
            c.execute("rename table kept to users")
        db.close()
    return seconds[0], seconds[1]


def write(cursor: Any, statement: str) -> None:
    for first in range(0, ROWS, PER_TRANSACTION):
        if statement == "insert":
            cursor.execute(
                f"insert into users select * from kept where id >= {first} and id < {first + PER_TRANSACTION}"
            )
        else:
            cursor.execute(
                f"update users set balance = balance + 1, score = score * 2 where id >= {first}"
                f" and id < {first + PER_TRANSACTION}"
            )


def peer(server: MariaDBServer, start: tuple[str, int]) -> float:
    """Seconds for `PEER_ROWS` changes from a place on."""
    from pymysqlreplication import BinLogStreamReader
    from pymysqlreplication.row_event import UpdateRowsEvent, WriteRowsEvent

    stream = BinLogStreamReader(
        connection_settings={"host": "127.0.0.1", "port": server.port, "user": "root", "passwd": ""},
        server_id=4711, log_file=start[0], log_pos=start[1], resume_stream=True, blocking=False,
        only_events=[WriteRowsEvent, UpdateRowsEvent], is_mariadb=True, use_column_name_cache=True,
    )  # fmt: skip
    count, begin = 0, time.perf_counter()
    for event in stream:
        count += len(event.rows)
        if count >= PEER_ROWS:
            break
    seconds = time.perf_counter() - begin
    stream.close()
    assert count >= PEER_ROWS
    return seconds


def main() -> None:
    """Run it and print the figures."""
    report = Report("Change data capture from MariaDB")
    with folder() as place, MariaDBServer("max_binlog_size=1G", "binlog_row_metadata=FULL") as server:
        begin, middle = fill(server)
        mine: list[tuple[float, float]] = []
        theirs: list[tuple[float, float]] = []
        for round in range(ROUNDS):
            theirs.append((peer(server, begin), peer(server, middle)))
            (place / str(round)).mkdir()
            mine.append(ours(server, place / str(round)))
        for index, name in enumerate(("inserts", "updates", "both")):
            parts = slice(0, 2) if index == 2 else slice(index, index + 1)
            rows = 2 if index == 2 else 1
            own = statistics.median(rows * ROWS / sum(each[parts]) for each in mine)
            other = statistics.median(rows * PEER_ROWS / sum(each[parts]) for each in theirs)
            report.row(
                f"MariaDB, {name}",
                f"{own / 1000:.1f}k rows/s; mysql-replication {other / 1000:.1f}k: {own / other:.1f}×",
                "≥ 5 × mysql-replication", own >= 5 * other,
            )  # fmt: skip
    print(report.markdown())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ROWS = int(sys.argv[1])
    if len(sys.argv) > 2:
        PEER_ROWS = int(sys.argv[2])
    main()
