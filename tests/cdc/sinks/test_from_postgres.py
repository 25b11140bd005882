"""From a real PostgreSQL to every kind of copy: what its capture tells is what the sinks understand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

import millstream as ms
from millstream.cdc import debezium, sync


def test_all_copies_follow_a_table_with_toasted_values_and_changing_columns(
    log: ms.Log, postgres: str, tmp_path: Path
) -> None:
    capture = ms.capture(postgres, tables=["users"])
    copy = f"{postgres}?schema=copies"
    duck, lake = ms.Warehouse(str(tmp_path / "house.duckdb")), ms.Warehouse(str(tmp_path / "lake"))
    index = ms.SearchIndex(str(tmp_path / "search.db"), fields=["email", "mail", "bio"])
    cached: dict[str, int] = {}
    sinks: list[Any] = [
        ms.Replica(copy), ms.Replica(f"sqlite:///{tmp_path}/copy.db"), duck, lake, index,
        ms.CacheInvalidation(cached, keys=["user:{id}"]),
    ]  # fmt: skip
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute("create schema copies")
        db.execute(
            "create table users (id int primary key, email text, bio text, price numeric(10,2),"
            " seen timestamptz, tags text[], data jsonb)"
        )
        db.execute("alter table users alter column bio set storage external")
        bio = "bees and honey " * 900
        for id in (1, 2, 3):
            row = (id, f"u{id}@x", bio, "12.50", "2024-01-15 10:30+00", ["a", None, 'b"c'], '{"a": 1}')
            db.execute("insert into users values (%s, %s, %s, %s, %s, %s, %s)", row)

        def level() -> None:
            capture.catch_up(log)
            followers = sync(log, "users", *sinks, start=False)
            followers.catch_up()
            assert followers.parked() == []
            told = db.execute("select * from users order by id").fetchall()
            assert db.execute("select * from copies.users order by id").fetchall() == told
            columns = [column.name for column in db.execute("select * from users limit 0").description or ()]
            for house in (duck, lake):
                found = house.current().sort("id")
                assert found["id"].to_list() == [row[0] for row in told]
                for name in {"bio", "price", "seen", "tags", "email", "mail", "age"}.intersection(columns):
                    assert found[name].to_list() == [row[columns.index(name)] for row in told], name

        level()
        # Neither tells the toasted column: an update of another one, and a change of the key.
        db.execute("update users set price = price + 1 where id = 1")
        db.execute("update users set id = 20 where id = 2")
        db.execute("delete from users where id = 3")
        level()
        assert sorted(hit.row["id"] for hit in index.search("bees honey")) == [1, 20]
        db.execute("alter table users add column age int default 7")
        db.execute("update users set age = 9 where id = 20")
        db.execute("alter table users rename column email to mail")
        cached["user:1"] = 1
        db.execute("update users set age = 8 where id = 1")
        level()
        assert cached == {}
        envelope = debezium(next(log.read("users", types=[ms.Change], backwards=True)))
        assert envelope["source"]["connector"] == "postgresql"
        assert (envelope["op"], envelope["after"]["price"], envelope["after"]["age"]) == ("u", "13.50", 8)
        assert envelope["after"]["bio"] == "__debezium_unavailable_value"
        assert envelope["after"]["seen"] == "2024-01-15T10:30:00.000000Z"
        assert envelope["source"]["lsn"] > 0
        db.execute("truncate users")
        db.execute("insert into users (id, mail) values (9, 'last')")
        level()
    assert index.search("bees") == []
