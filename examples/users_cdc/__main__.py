"""The story of the users table: ``python -m users_cdc [postgresql://…]``.

Without a URL it starts a PostgreSQL of its own, for as long as it runs.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg

import millstream as ms

from .followers import Followers


def ordinary_program(shop: psycopg.Connection[Any]) -> None:
    """It knows nothing of what follows it."""
    shop.execute("insert into users values (124, 'eve@example.com', 'Eve', 0)")
    shop.execute("update users set email = 'new@example.com' where id = 123")
    with shop.transaction():
        shop.execute("update users set balance = balance - 10 where id = 123")
        shop.execute("update users set balance = balance + 10 where id = 124")
    shop.execute("delete from users where id = 125")


def tell(url: str, folder: Path) -> None:
    """Capture the table, let the program run, and show what each follower has made of it."""
    with psycopg.connect(url, autocommit=True) as shop, ms.open(str(folder / "log.db")) as log:
        shop.execute("create table users (id bigint primary key, email text, name text, balance numeric(10,2))")
        shop.execute("alter table users replica identity full")
        shop.execute(
            "insert into users values (123, 'old@example.com', 'Ann', 100), (125, 'bob@example.com', 'Bob', 5)"
        )
        capture = ms.capture(url, tables=["users"])
        capture.catch_up(log)
        before = log.head

        followers = Followers(folder, lambda text: print(f"notified   {text}"))
        sync = followers.follow(log)
        sync.catch_up()
        followers.cache["user:123"] = "Ann, as she was"

        ordinary_program(shop)
        capture.catch_up(log)
        sync.catch_up()

        for recorded in log.read("users", types=[ms.Change]):
            change = ms.cdc.decoded(recorded)
            print(f"{change.operation:10} {said(change.before)} -> {said(change.after)}")
        print(f"index      {[hit.row['name'] for hit in followers.index.search('new@example.com')]}")
        print(f"cache      {followers.cache}")
        print(f"warehouse  {followers.warehouse.current().sort('id').select('id', 'email', 'balance').rows()}")
        print(f"history    {followers.warehouse.history().height} changes")
        print(f"the past   {log.table('users', position=before).sort('id')['email'].to_list()}")
        print(f"converged  {converged(url, log)}")
        capture.uninstall()


def said(row: dict[str, Any] | None) -> str:
    """A row in a few words."""
    return "nothing" if row is None else f"{row['id']} {row['email']} {row['balance']}"


def converged(url: str, log: ms.Log) -> bool:
    """Whether the log says of the table what the database has."""
    ms.testing.assert_converged(url, log, "users")
    return True


def main(arguments: list[str]) -> None:
    """Tell the story, in the database that is given or in one of its own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = arguments[0] if arguments else stack.enter_context(ms.testing.PostgresServer()).url()
        tell(url, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
