"""What MySQL's and MariaDB's changes are in the log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

import millstream as ms
from millstream.cdc.shape import shape_of

from .conftest import Shop, kept, only_mariadb, waiting


def test_rows_that_are_there_come_first_and_then_every_change_with_before_and_after(users: Shop) -> None:
    users.sql("insert into users values (1, 'a@x.org', 'Ann')")
    capture = users.capture("users")
    assert capture.catch_up(users.log) == 2
    users.sql(
        "insert into users values (2, 'b@x.org', null)",
        "update users set email = 'new@x.org' where id = 1",
        "delete from users where id = 2",
    )
    assert capture.catch_up(users.log) == 3
    first, completed, *_ = users.events()
    assert isinstance(first, ms.Change)
    assert (first.operation, first.after) == ("READ", {"id": 1, "email": "a@x.org", "name": "Ann"})
    assert isinstance(completed, ms.cdc.SnapshotCompleted)
    assert completed.rows == 1
    assert users.changes() == [
        ("INSERT", None, {"id": 2, "email": "b@x.org", "name": None}),
        ("UPDATE", {"id": 1, "email": "a@x.org", "name": "Ann"}, {"id": 1, "email": "new@x.org", "name": "Ann"}),
        ("DELETE", {"id": 2, "email": "b@x.org", "name": None}, None),
    ]
    assert capture.catch_up(users.log) == 0


def test_a_transaction_is_one_run_per_table_and_keeps_its_place_time_and_order(users: Shop) -> None:
    users.sql("create table orders (id int primary key, n int)")
    capture = users.capture("users", "orders")
    capture.catch_up(users.log)
    began = datetime.now(UTC)
    users.together(
        "insert into users values (1, 'a', 'A'), (2, 'b', 'B')",
        "insert into orders values (7, 1)",
        "update users set name = 'C' where id = 1",
    )
    users.sql("insert into orders values (8, 2)")
    capture.catch_up(users.log)
    [first] = [run for run in users.log.runs("users", types=["Change"]) if "sequence" in run.metadata]
    orders = list(users.log.runs("orders", types=["Change"]))
    assert first.metadata["sequence"] == [[0, 1], [3, 3]]
    assert [run.metadata["sequence"] for run in orders] == [[[2, 2]], [[0, 0]]]
    assert first.metadata["gtid"] == orders[0].metadata["gtid"] != orders[1].metadata["gtid"]
    assert first.metadata["position"] == orders[0].metadata["position"] < orders[1].metadata["position"]
    assert first.position < orders[0].position < orders[1].position
    assert list(first.metadata) == ["gtid", "position", "sequence", "source"]
    stamps = {e.data["timestamp"] for e in users.log.read("users", types=["Change"])}
    assert len(stamps) == 1
    assert first.effective is not None
    assert abs(first.effective / 1_000_000 - began.timestamp()) < 5
    shape = shape_of(first.schema)
    assert shape is not None
    assert shape.key == ("id",)
    assert [(c.name, c.kind, c.type) for c in shape.columns] == [
        ("id", "int", "bigint"), ("email", "text", "varchar(100)"), ("name", "text", "text"),
    ]  # fmt: skip


def test_transactions_come_in_the_order_of_their_commits_and_rolled_back_ones_not_at_all(users: Shop) -> None:
    capture = users.capture("users")
    capture.catch_up(users.log)
    other = users.connect()
    with other.cursor() as cursor:
        users.sql("begin", "insert into users values (1, 'began first', '')")
        cursor.execute("insert into users values (2, 'committed first', '')")
        users.sql("commit")
    other.close()
    users.sql("begin", "insert into users values (3, 'never', '')", "rollback")
    users.sql(
        "begin", "insert into users values (4, 'kept', '')", "savepoint s",
        "insert into users values (5, 'undone', '')", "rollback to s", "insert into users values (6, 'kept', '')",
        "commit",
    )  # fmt: skip
    capture.catch_up(users.log)
    assert [after["id"] for _, _, after in users.changes() if after] == [2, 1, 4, 6]


@only_mariadb
def test_a_savepoint_beside_a_table_without_transactions_is_undone_as_the_source_did(users: Shop) -> None:
    users.sql("create table notes (n int primary key) engine = MyISAM")
    capture = users.capture("users", "notes")
    capture.catch_up(users.log)
    users.sql(
        "begin", "insert into users values (1, 'a', '')", "savepoint s", "insert into users values (2, 'b', '')",
        "insert into notes values (1)", "rollback to s", "insert into users values (3, 'c', '')", "commit",
        "begin", "insert into users values (4, 'd', '')", "insert into notes values (2)", "rollback",
    )  # fmt: skip
    capture.catch_up(users.log)
    kept(users)
    kept(users, "notes", ("n",))


def test_a_key_that_changes_takes_the_row_with_it(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A'), (2, 'b', 'B')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.together("update users set id = id + 10", "insert into users values (1, 'new', '')")
    capture.catch_up(users.log)
    [first, second, third] = users.changes()
    assert (first[0], first[1]["id"], first[2]["id"]) == ("UPDATE", 1, 11)  # type: ignore[index]
    assert (second[1]["id"], second[2]["id"], third[0]) == (2, 12, "INSERT")  # type: ignore[index]
    kept(users)


def test_replace_and_upserts_and_cascades(shop: Shop) -> None:
    shop.sql(
        "create table users (id int primary key, email varchar(50) unique)",
        "create table orders (id int primary key, user int, foreign key (user) references users (id))",
        "insert into users values (1, 'a'), (2, 'b')",
    )
    capture = shop.capture("users", "orders")
    capture.catch_up(shop.log)
    shop.sql(
        "replace into users values (3, 'a')",
        "insert into users values (2, 'c') on duplicate key update email = 'd'",
        "insert ignore into users values (2, 'x')",
        "insert into orders values (1, 2)",
        "delete from orders",
        "update users set email = email",
    )
    capture.catch_up(shop.log)
    kept(shop)
    kept(shop, "orders")


def test_a_table_without_a_key_is_a_bag_of_rows(shop: Shop) -> None:
    shop.sql("create table bag (t varchar(10), n int)", "insert into bag values ('a', 1), ('a', 1), (null, null)")
    capture = shop.capture("bag")
    assert capture.catch_up(shop.log) == 4
    shop.sql("delete from bag where t = 'a' limit 1", "insert into bag values ('b', 2)", "update bag set n = 5")
    capture.catch_up(shop.log)
    kept(shop, "bag", ())
    run = next(iter(shop.log.runs("bag", types=["Change"])))
    shape = shape_of(run.schema)
    assert shape is not None
    assert shape.key == ()


def test_all_tables_of_the_database_and_no_others(users: Shop) -> None:
    users.sql("create table orders (id int primary key)", "create view seen as select * from users")
    other = f"{users.database}_other"
    users.sql(f"create database {other}", f"create table {other}.users (id int primary key)")
    try:
        capture = users.capture()
        capture.catch_up(users.log)
        users.sql(f"insert into {other}.users values (1)", "insert into users values (2, 'a', 'A')")
        users.sql("create table later (id int primary key, t text)", "insert into later values (1, 'x')")
        capture.catch_up(users.log)
        users.sql("insert into later values (2, 'y')")
        capture.catch_up(users.log)
    finally:
        users.sql(f"drop database {other}")
    assert [after["id"] for _, _, after in users.changes() if after] == [2]
    kept(users, "later")
    assert {s.name for s in users.log.streams()} == {"users", "orders", "later"}


def test_a_large_transaction_goes_ahead_unseen_and_is_published_at_once(
    users: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from millstream.cdc import spill
    from millstream.cdc.mysql import session, transaction

    monkeypatch.setattr(transaction, "SPILL_BYTES", 200_000)
    monkeypatch.setattr(spill, "CHUNK_BYTES", 100_000)
    monkeypatch.setattr(session, "STAGE_BYTES", 100_000)
    users.sql("create table other (id int primary key)")
    capture = users.capture("users", "other")
    capture.catch_up(users.log)
    before = users.log.head
    heads = []
    real = users.log.store.put_body

    def put(*args: Any) -> int:
        heads.append(users.log.head)
        return real(*args)

    monkeypatch.setattr(users.log.store, "put_body", put)
    values = ",".join(f"({n}, 'e{n}', repeat('y', 100))" for n in range(5000))
    users.together(
        f"insert into users values {values}",
        "insert into other values (1)",
        "update users set name = 'z' where id < 100",
        "insert into other values (2)",
    )
    users.sql("insert into users values (9000, 'after', '')")
    assert capture.catch_up(users.log) == 5103
    assert len(heads) > 5
    assert set(heads) == {before}, "nothing is seen before all of it is there"
    runs = [run for t in ("users", "other") for run in users.log.runs(t, types=["Change"])]
    runs = [run for run in runs if run.metadata["gtid"] == runs[0].metadata["gtid"]]
    numbers = [n for run in runs for low, high in run.metadata["sequence"] for n in range(low, high + 1)]
    assert sorted(numbers) == list(range(5102))
    assert len({run.recorded for run in runs}) == 1
    kept(users)
    users.log.verify()


def test_a_running_capture_sees_changes_as_they_are_committed(users: Shop) -> None:
    capture = users.capture("users")
    capture.start(users.log)
    for n in range(20):
        users.sql(f"insert into users values ({n}, 'a', 'A')")
    waiting(lambda: len(users.changes()) == 20)
    capture.stop()
    kept(users)


def test_the_table_as_it_was(users: Shop) -> None:
    users.sql("insert into users values (1, 'a', 'A')")
    capture = users.capture("users")
    capture.catch_up(users.log)
    head = users.log.head
    users.sql("insert into users values (2, 'b', 'B')", "delete from users where id = 1")
    capture.catch_up(users.log)
    assert ms.cdc.table(users.log, "users").rows() == [(2, "b", "B")]
    assert ms.cdc.table(users.log, "users", position=head).rows() == [(1, "a", "A")]


def test_rows_larger_than_a_packet_of_the_protocol(users: Shop) -> None:
    users.sql("set global max_allowed_packet = 67108864")
    users.db.close()
    users.db = users.connect()
    users.sql("alter table users modify name longtext")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("insert into users values (1, 'big', repeat('x', 17000000))", "insert into users values (2, 'b', 'B')")
    assert capture.catch_up(users.log) == 2
    first, second = [after for _, _, after in users.changes()]
    assert first is not None
    assert len(first["name"]) == 17_000_000
    assert second is not None
    assert second["name"] == "B"


@only_mariadb
def test_compressed_events_are_read_like_others(users: Shop) -> None:
    users.sql("set global log_bin_compress = on", "set global log_bin_compress_min_len = 10")
    users.db.close()
    users.db = users.connect()
    try:
        users.sql("insert into users values (1, repeat('a', 100), repeat('n', 2000))")
        capture = users.capture("users")
        capture.catch_up(users.log)
        users.sql(
            "insert into users values (2, repeat('b', 100), repeat('m', 2000))",
            "update users set name = repeat('o', 3000)",
            "alter table users add column a_column_with_a_long_name_for_a_long_statement int",
            "delete from users where id = 1",
        )
        assert capture.catch_up(users.log) == 5
        kept(users)
    finally:
        users.sql("set global log_bin_compress = off")


def test_checksums_may_be_on_or_off(users: Shop) -> None:
    capture = users.capture("users")
    capture.catch_up(users.log)
    try:
        users.sql("insert into users values (1, 'a', 'A')", "set global binlog_checksum = 'NONE'")
        users.sql("insert into users values (2, 'b', 'B')")
        assert capture.catch_up(users.log) == 2
        users.sql("insert into users values (3, 'c', 'C')", "set global binlog_checksum = 'CRC32'")
        users.sql("insert into users values (4, 'd', 'D')")
        assert capture.catch_up(users.log) == 2
        kept(users)
    finally:
        users.sql("set global binlog_checksum = 'CRC32'")


def test_the_log_rotates_under_a_capture(users: Shop) -> None:
    capture = users.capture("users")
    capture.catch_up(users.log)
    for n in range(5):
        users.sql(f"insert into users values ({n}, 'a', 'A')", "flush binary logs")
        assert capture.catch_up(users.log) == 1
    assert capture.catch_up(users.log) == 0
    kept(users)


def test_an_empty_transaction_and_other_tables_move_the_checkpoint_on(users: Shop) -> None:
    users.sql("create table other (id int primary key)")
    capture = users.capture("users")
    capture.catch_up(users.log)

    before = users.log_position()
    users.sql("insert into other values (1)")
    assert capture.catch_up(users.log) == 0
    assert users.log_position() > before
