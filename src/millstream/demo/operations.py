"""An ordinary program that keeps the flights of today in a SQLite database. It knows nothing of Millstream.

It runs as a process of its own: ``python operations.py PATH``. Each line of its input is a JSON list of statements'
parameters, which it carries out in one transaction.
"""

import json
import sqlite3
import sys

STATEMENTS = {
    "plan": "insert into flights values (?, ?, ?, ?, 'planned', null)",
    "depart": "update flights set status = 'departed', delay = ? where id = ?",
    "cancel": "delete from flights where id = ?",
}


def main(path: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")
    db.execute("""create table flights (
        id text primary key, origin text not null, dest text not null, scheduled text not null,
        status text not null, delay integer)""")
    print("ready", flush=True)
    for line in sys.stdin:
        db.execute("begin immediate")
        for what, *values in json.loads(line):
            db.execute(STATEMENTS[what], values)
        db.execute("commit")
    db.close()


if __name__ == "__main__":
    main(sys.argv[1])
