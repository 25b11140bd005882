"""Story 2, change data capture: the users table."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import millstream as ms
from millstream.cdc import Callback, Change, capture, sync, table

PROGRAM = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("UPDATE users SET email = 'new@example.com' WHERE id = 123")
db.commit()
"""


def test_an_update_by_an_ordinary_program_arrives_and_four_consumers_act_on_it(
    tmp_path: Path, shared_home: str
) -> None:
    shop = tmp_path / "shop.sqlite"
    sqlite(shop, "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT)")
    sqlite(shop, "INSERT INTO users VALUES (123, 'old@example.com')")

    with ms.open(shared_home) as log:
        users = capture(f"sqlite:///{shop}", tables=["users"])
        users.start(log)
        began = datetime.now(UTC)
        subprocess.run([sys.executable, "-c", PROGRAM, str(shop)], check=True)
        ended = datetime.now(UTC)
        wait_for(lambda: any(e.data["operation"] == "UPDATE" for e in log.read("users", types=["Change"])))
        users.stop()

        [recorded] = [e for e in log.read("users", types=["Change"]) if e.data["operation"] == "UPDATE"]
        timestamp = recorded.data["timestamp"]
        assert recorded.data == {
            "operation": "UPDATE",
            "table": "users",
            "before": {"id": 123, "email": "old@example.com"},
            "after": {"id": 123, "email": "new@example.com"},
            "timestamp": timestamp,
        }
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", timestamp)
        assert began.timestamp() - 0.002 <= datetime.fromisoformat(timestamp).timestamp() <= ended.timestamp() + 0.002

        index = {"old@example.com": 123}
        cache = {"user:123": "old@example.com"}
        warehouse: list[tuple[int, str]] = []
        mails: list[str] = []

        def search(change: Change) -> None:
            index.pop((change.before or {}).get("email"), None)
            if change.after:
                index[change.after["email"]] = change.after["id"]

        def invalidate(change: Change) -> None:
            if change.before:
                cache.pop(f"user:{change.before['id']}", None)

        def load(change: Change) -> None:
            if change.after:
                warehouse.append((change.after["id"], change.after["email"]))

        def notify(change: Change) -> None:
            if change.operation == "UPDATE" and change.before and change.after:
                mails.append(f"{change.before['email']} is now {change.after['email']}")

        sync(log, "users", search, invalidate, load, Callback(notify, name="mail"), start=False).catch_up()
        assert index == {"new@example.com": 123}
        assert cache == {}
        assert warehouse == [(123, "old@example.com"), (123, "new@example.com")]
        assert mails == ["old@example.com is now new@example.com"]
        assert table(log, "users").rows() == [(123, "new@example.com")]
        assert table(log, "users", at=began).rows() == [(123, "old@example.com")]


def sqlite(path: Path, statement: str) -> None:
    """The statement, by a process of its own."""
    code = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute(sys.argv[2]); db.commit()"
    subprocess.run([sys.executable, "-c", code, str(path), statement], check=True)


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)
