"""What PostgreSQL's changes are in the log."""

from __future__ import annotations

from typing import Any

import pytest

import millstream as ms
from millstream.cdc import Unchanged
from millstream.cdc.shape import shape_of

from ..following import until
from .conftest import Database, moments, replay


def test_rows_that_are_there_come_first_and_then_every_change_with_before_and_after(users: Database) -> None:
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
        (
            "UPDATE",
            {"id": 1, "email": "a@x.org", "name": "Ann"},
            {"id": 1, "email": "new@x.org", "name": "Ann"},
        ),
        ("DELETE", {"id": 2, "email": "b@x.org", "name": None}, None),
    ]
    assert capture.catch_up(users.log) == 0


def test_a_transaction_is_one_run_per_table_and_keeps_its_place_time_and_order(users: Database) -> None:
    users.sql("create table orders (id int primary key, n int)")
    capture = users.capture("users", "orders")
    capture.catch_up(users.log)
    users.together(
        "insert into users values (1, 'a', 'A'), (2, 'b', 'B')",
        "insert into orders values (7, 1)",
        "update users set name = 'C' where id = 1",
    )
    users.sql("insert into orders values (8, 2)")
    capture.catch_up(users.log)
    [first] = users.log.runs("users", types=["Change"])
    orders = list(users.log.runs("orders", types=["Change"]))
    assert first.metadata["sequence"] == [[0, 1], [3, 3]]
    assert [run.metadata["sequence"] for run in orders] == [[[2, 2]], [[0, 0]]]
    assert first.metadata["xid"] == orders[0].metadata["xid"] != orders[1].metadata["xid"]
    assert first.metadata["lsn"] == orders[0].metadata["lsn"] < orders[1].metadata["lsn"]
    assert first.position < orders[0].position < orders[1].position
    assert len(set(moments(users.log, "users"))) == 1
    assert first.effective is not None
    shape = shape_of(first.schema)
    assert shape is not None
    assert shape.key == ("id",)
    assert [(c.name, c.kind, c.type) for c in shape.columns] == [
        ("id", "int", "bigint"),
        ("email", "text", "text"),
        ("name", "text", "text"),
    ]


def test_transactions_come_in_the_order_of_their_commits_and_rolled_back_ones_not_at_all(users: Database) -> None:
    capture = users.capture("users")
    capture.catch_up(users.log)
    with users.db.transaction(), psycopg_connect(users) as other:
        users.sql("insert into users values (1, 'began first', '')")
        other.execute("insert into users values (2, 'committed first', '')")
        other.commit()
    with pytest.raises(ZeroDivisionError), users.db.transaction():
        users.sql("insert into users values (3, 'never', '')")
        raise ZeroDivisionError
    users.sql("begin", "insert into users values (4, 'kept', '')", "savepoint s")
    users.sql("insert into users values (5, 'undone', '')", "rollback to s", "insert into users values (6, 'kept', '')")
    users.sql("commit")
    capture.catch_up(users.log)
    assert [after["id"] for _, _, after in users.changes() if after] == [2, 1, 4, 6]


def psycopg_connect(users: Database) -> Any:
    import psycopg

    return psycopg.connect(users.url)


@pytest.mark.parametrize(
    ("identity", "before_update", "before_delete"),
    [
        ("default", None, {"id": 2}),
        ("full", {"id": 1, "email": "a", "name": "A"}, {"id": 2, "email": "b", "name": "B"}),
        ("using index by_email", None, {"email": "b"}),
    ],
)
def test_the_replica_identity_says_how_much_of_the_row_before_is_told(
    shop: Database, identity: str, before_update: Any, before_delete: Any
) -> None:
    shop.sql(
        "create table users (id bigint primary key, email text not null, name text)",
        "create unique index by_email on users (email)",
        f"alter table users replica identity {identity}",
    )
    capture = shop.capture("users")
    capture.catch_up(shop.log)
    shop.sql("insert into users values (1, 'a', 'A'), (2, 'b', 'B')")
    shop.sql("update users set name = 'C' where id = 1", "delete from users where id = 2")
    capture.catch_up(shop.log)
    [_, _, update, delete] = shop.changes()
    assert update[1] == before_update
    assert update[2] == {"id": 1, "email": "a", "name": "C"}
    assert delete[1] == before_delete


def test_a_table_that_tells_nothing_of_updates_is_captured_for_its_inserts_and_stays_writable(shop: Database) -> None:
    shop.sql(
        "create table facts (n int)",
        "alter table facts replica identity nothing",
        "create table t (id int primary key)",
    )
    capture = shop.capture("facts", "t")
    capture.catch_up(shop.log)
    shop.sql("insert into facts values (1)", "update facts set n = 2", "delete from facts", "insert into t values (1)")
    capture.catch_up(shop.log)
    assert shop.changes("facts") == [("INSERT", None, {"n": 1})]
    assert shop.changes("t") == [("INSERT", None, {"id": 1})]


def test_a_table_without_a_key_is_refused_with_the_statement_that_mends_it(shop: Database) -> None:
    shop.sql("create table notes (t text)")
    with pytest.raises(ms.CaptureError, match="no primary key") as caught:
        shop.capture("notes").catch_up(shop.log)
    assert 'ALTER TABLE "public"."notes" REPLICA IDENTITY FULL' in caught.value.hint
    shop.sql("insert into notes values ('a')", "update notes set t = 'b'")  # its writers were not hurt
    shop.sql("alter table notes replica identity full", "insert into notes values ('b'), ('b')")
    capture = shop.capture("notes")
    capture.catch_up(shop.log)
    shop.sql(
        "insert into notes values ('b'), ('c')",
        "delete from notes where t = 'c'",
        "update notes set t = 'z' where ctid = (select min(ctid) from notes)",
    )
    capture.catch_up(shop.log)
    assert sorted(row["t"] for row in replay(shop.log, "notes", ())) == sorted(
        t for (t,) in shop.rows("select t from notes")
    )


def test_a_primary_key_that_changes_names_the_old_row_and_the_new(shop: Database) -> None:
    shop.sql("create table pairs (b int, a int, v text, primary key (a, b))", "insert into pairs values (1, 2, 'x')")
    capture = shop.capture("pairs")
    capture.catch_up(shop.log)
    shop.sql("update pairs set a = 3 where a = 2", "update pairs set v = 'y'")
    capture.catch_up(shop.log)
    assert shop.changes("pairs") == [
        ("UPDATE", {"b": 1, "a": 2}, {"b": 1, "a": 3, "v": "x"}),
        ("UPDATE", None, {"b": 1, "a": 3, "v": "y"}),
    ]
    assert replay(shop.log, "pairs", ("a", "b")) == [{"b": 1, "a": 3, "v": "y"}]


def test_truncate_empties_a_table_and_with_cascade_those_that_refer_to_it(users: Database) -> None:
    users.sql("create table orders (id int primary key, by_user bigint references users)")
    capture = users.capture("users", "orders")
    capture.catch_up(users.log)
    users.sql("insert into users values (1, 'a', 'A')", "insert into orders values (1, 1)", "truncate users cascade")
    users.sql("insert into users values (2, 'b', 'B')")
    capture.catch_up(users.log)
    assert [op for op, _, _ in users.changes()] == ["INSERT", "TRUNCATE", "INSERT"]
    assert [op for op, _, _ in users.changes("orders")] == ["INSERT", "TRUNCATE"]


@pytest.mark.parametrize("identity", ["default", "full"])
def test_a_value_that_is_stored_apart_and_was_not_changed_is_never_taken_for_another(
    shop: Database, identity: str
) -> None:
    shop.sql(
        "create table docs (id int primary key, n int, body text, more text)",
        "alter table docs alter body set storage external",
        f"alter table docs replica identity {identity}",
    )
    capture = shop.capture("docs")
    capture.catch_up(shop.log)
    shop.sql("insert into docs values (1, 1, repeat('x\"', 5000), null)", "update docs set n = 2")
    capture.catch_up(shop.log)
    [_, (_, before, after)] = shop.changes("docs")
    assert after is not None
    if identity == "full":
        assert after["body"] == 'x"' * 5000
        assert before == {**after, "n": 1}
    else:
        assert after == {"id": 1, "n": 2, "body": Unchanged, "more": None}


def test_partitions_are_their_tables_rows(shop: Database) -> None:
    shop.sql(
        "create table readings (id int, day date, v int, primary key (id, day)) partition by range (day)",
        "create table readings_1 partition of readings for values from ('2024-01-01') to ('2024-02-01')",
        "create table readings_2 partition of readings for values from ('2024-02-01') to ('2024-03-01')",
        "insert into readings values (1, '2024-01-05', 10)",
    )
    capture = shop.capture()
    capture.catch_up(shop.log)
    shop.sql("insert into readings values (2, '2024-02-05', 20)", "update readings set day = '2024-02-07' where id = 1")
    capture.catch_up(shop.log)
    assert shop.log.version("readings_1") == 0
    found = replay(shop.log, "readings", ("id", "day"))
    assert sorted(row["v"] for row in found) == [10, 20]
    assert {str(row["day"]) for row in found} == {"2024-02-05", "2024-02-07"}


def test_generated_columns_are_the_same_in_snapshot_and_stream(shop: Database) -> None:
    shop.sql(
        "create table boxes (id int primary key, w int, area int generated always as (w * w) stored)",
        "insert into boxes values (1, 2)",
    )
    capture = shop.capture("boxes")
    capture.catch_up(shop.log)
    shop.sql("insert into boxes values (2, 3)")
    capture.catch_up(shop.log)
    rows = replay(shop.log, "boxes", ("id",))
    assert rows == [{"id": 1, "w": 2, "area": 4}, {"id": 2, "w": 3, "area": 9}]


def test_tables_outside_of_public_have_their_schemas_name(shop: Database) -> None:
    shop.sql("create schema sales", 'create table sales."Order Lines" (id int primary key, "the %s" text)')
    capture = shop.capture("sales.Order Lines", prefix="shop/")
    capture.catch_up(shop.log)
    shop.sql("""insert into sales."Order Lines" values (1, '%s "quoted" \\ é')""")
    capture.catch_up(shop.log)
    assert shop.changes("shop/sales.Order Lines") == [("INSERT", None, {"id": 1, "the %s": '%s "quoted" \\ é'})]


def test_messages_and_rows_of_an_outbox_go_to_the_streams_that_they_name(users: Database) -> None:
    users.sql(
        "create table outbox (id bigint generated always as identity primary key, stream text, type text, data jsonb)"
    )
    capture = users.capture("users", "outbox", outbox="outbox")
    capture.catch_up(users.log)
    users.together(
        "insert into users values (1, 'a', 'A')",
        """insert into outbox (stream, type, data) values ('order-1', 'OrderPlaced', '{"total": 30}')""",
        """select pg_logical_emit_message(true, 'millstream',
           '{"stream": "order-1", "type": "OrderPaid", "data": {"by": "card"}}')""",
        "delete from outbox",
    )
    users.sql(
        """select pg_logical_emit_message(false, 'millstream',
           '{"stream": "order-1", "type": "OrderSeen", "data": {}}')""",
        "select pg_logical_emit_message(true, 'other', 'not for us')",
        "select pg_logical_emit_message(true, 'millstream', 'no JSON')",
    )
    capture.catch_up(users.log)
    found = [(e.type, e.data, e.metadata.get("xid")) for e in users.log.read("order-1")]
    xid = next(iter(users.log.runs("users", types=["Change"]))).metadata["xid"]
    assert found == [
        ("OrderPlaced", {"total": 30}, xid),
        ("OrderPaid", {"by": "card"}, xid),
        ("OrderSeen", {}, 0),
    ]
    assert users.log.version("outbox") == 0
    [lost] = users.log.read("messages")
    assert lost.type == "UndeliveredMessage"
    assert lost.data["content"] == "no JSON"
    assert capture.catch_up(users.log) == 0


def test_an_idle_table_does_not_hold_the_servers_log_back(users: Database) -> None:
    users.sql("create table busy (id int primary key, t text)")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("insert into busy select g, repeat('x', 100) from generate_series(1, 2000) g")
    [(written,)] = users.rows("select pg_current_wal_lsn()")
    told = "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where database = current_database()"
    assert users.db.execute(told, (written,)).fetchone() == (False,)
    assert capture.catch_up(users.log) == 0
    until(
        lambda: users.db.execute(told, (written,)).fetchone() == (True,)
    )  # the server looks at it when it comes to it
    assert users.log.head == users.log.version("users")


def test_without_a_list_all_tables_are_captured_but_a_log_in_the_same_database(shop: Database) -> None:
    shop.sql("create table a (id int primary key)", "create schema other", "create table other.b (id int primary key)")
    shop.sql("create unlogged table c (id int primary key)", "create table d (n int)")
    with ms.open(shop.url) as log:
        capture = shop.capture()
        capture.catch_up(log)
        shop.sql("insert into a values (1)", "insert into other.b values (2)", "insert into d values (3)")
        capture.catch_up(log)
        assert sorted(s.name for s in log.streams()) == ["a", "other.b"]
        assert capture.catch_up(log) == 0
