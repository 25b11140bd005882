"""From the source into the log: what arrives, once, in which order, and what happens when it cannot."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import millstream as ms
from millstream.cdc import capture, table
from millstream.cdc.capture import stream_of
from millstream.cdc.shape import shape_of
from millstream.cdc.sqlite import source as sqlite_source

from .conftest import Shop
from .shadow import Shadow


def wait_until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_a_snapshot_comes_first_and_changes_follow_it(shop: Shop) -> None:
    shop.sql("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    users = shop.capture("users")
    users.catch_up(shop.log)
    shop.sql("UPDATE users SET email = 'c' WHERE id = 1", "DELETE FROM users WHERE id = 2")
    assert users.catch_up(shop.log) == 2
    assert users.catch_up(shop.log) == 0
    assert shop.changes() == [
        ("READ", None, (1, "a")),
        ("READ", None, (2, "b")),
        ("UPDATE", (1, "a"), (1, "c")),
        ("DELETE", (2, "b"), None),
    ]


def test_each_run_carries_its_place_in_the_source_and_the_key(shop: Shop) -> None:
    shop.sql("CREATE TABLE orders (a, b, PRIMARY KEY (b, a))")
    both = shop.capture("users", "orders")
    both.catch_up(shop.log)
    with_order = ["INSERT INTO users VALUES (1, 'a')", "INSERT INTO orders VALUES (1, 2)", "DELETE FROM users"]
    shop.sql("BEGIN", *with_order, "COMMIT")
    both.catch_up(shop.log)
    [users] = shop.log.runs("users", types=["Change"])
    [orders] = shop.log.runs("orders", types=["Change"])
    first = users.metadata["changes"][0][0]
    assert users.metadata["changes"] == [[first, first], [first + 2, first + 2]]
    assert orders.metadata["changes"] == [[first + 1, first + 1]]
    shapes = [shape_of(run.schema) for run in (users, orders)]
    assert [shape and (shape.names, shape.key) for shape in shapes] == [
        (("id", "email"), ("id",)),
        (("a", "b"), ("b", "a")),
    ]
    assert users.recorded == orders.recorded


def test_the_timestamp_is_the_statements(shop: Shop) -> None:
    users = shop.capture("users")
    users.catch_up(shop.log)
    before = time.time()
    shop.sql("INSERT INTO users VALUES (1, 'a')")
    after = time.time()
    time.sleep(0.05)
    users.catch_up(shop.log)
    [change] = [e.event for e in shop.log.read("users", types=["Change"])]
    assert before - 0.002 <= change.timestamp.timestamp() <= after + 0.002


def test_a_table_is_added_to_a_running_capture_and_no_other_is_read_again(shop: Shop) -> None:
    shop.sql("INSERT INTO users VALUES (1, 'a')", "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    shop.sql("INSERT INTO orders VALUES (7)")
    users = shop.capture("users")
    users.start(shop.log)
    try:
        wait_until(lambda: shop.log.head == 2)
        with pytest.raises(ms.CaptureError, match="no table nowhere"):
            users.add("orders", "nowhere")
        users.add("orders")
        wait_until(lambda: [e.type for e in shop.log.read("orders")] == ["Change", "SnapshotCompleted"])
        shop.sql("INSERT INTO orders VALUES (8)", "INSERT INTO users VALUES (2, 'b')")
        wait_until(lambda: shop.log.head == 6)
    finally:
        users.stop()
    assert shop.changes() == [("READ", None, (1, "a")), ("INSERT", None, (2, "b"))]
    with pytest.raises(ms.UsageError, match="takes all tables"):
        ms.capture(f"sqlite:///{shop.path}").add("orders")


def test_changes_of_another_process_arrive_within_50_ms(shop: Shop) -> None:
    users = shop.capture("users")
    users.start(shop.log)
    try:
        seen = shop.log.head
        delays = []
        for i in range(10):
            subprocess.run(
                ["sqlite3", "-cmd", ".timeout 2000", str(shop.path), f"INSERT INTO users VALUES ({i}, 'x')"],
                check=True,
            )
            done = time.monotonic()
            assert shop.log.wait(seen, 5)
            delays.append(time.monotonic() - done)
            seen = shop.log.head
        assert sorted(delays)[5] < 0.05
    finally:
        users.stop()
    assert len(shop.changes()) == 10


def test_all_tables_are_captured_when_none_is_named_also_one_made_later(shop: Shop) -> None:
    shop.sql("CREATE TABLE orders (id)")
    everything = shop.capture()
    everything.catch_up(shop.log)
    everything.start(shop.log)
    shop.sql("INSERT INTO orders VALUES (1)", "CREATE TABLE later (id)", "INSERT INTO later VALUES (7)")
    wait_until(lambda: shop.changes("later"))
    everything.stop()
    assert shop.changes("orders") == [("INSERT", None, (1,))]
    assert shop.changes("later") == [("READ", None, (7,))]


def test_a_table_added_to_a_capture_is_read_and_the_others_are_not_again(shop: Shop) -> None:
    shop.sql("CREATE TABLE orders (id)", "INSERT INTO users VALUES (1, 'a')", "INSERT INTO orders VALUES (1)")
    shop.capture("users").catch_up(shop.log)
    shop.capture("users", "orders").catch_up(shop.log)
    assert shop.changes() == [("READ", None, (1, "a"))]
    assert shop.changes("orders") == [("READ", None, (1,))]


def test_a_table_that_was_left_out_for_a_while_is_read_again(shop: Shop) -> None:
    shop.sql("CREATE TABLE orders (id)", "INSERT INTO users VALUES (1, 'a')")
    shop.capture("users", "orders").catch_up(shop.log)
    shop.capture("orders").catch_up(shop.log)
    shop.sql("UPDATE users SET id = 2")
    shop.capture("users", "orders").catch_up(shop.log)
    assert shop.changes()[1:] == [("TRUNCATE", None, None), ("READ", None, (2, "a"))]


@pytest.mark.parametrize("ddl", ["", "WITHOUT ROWID"])
def test_a_big_table_is_read_in_pages_while_it_changes(shop: Shop, ddl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_source, "PAGE_ROWS", 10)
    shop.sql(f"CREATE TABLE big (a, b, v, PRIMARY KEY (b, a)) {ddl}")
    fill = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 95)"
    shop.sql(f"{fill} INSERT INTO big SELECT i, CASE i % 3 WHEN 0 THEN 'x' || i WHEN 1 THEN i ELSE x'00' END, 0 FROM n")
    big = shop.capture("big")
    follow = shop.log
    big.start(follow)
    for i in range(1, 96, 7):
        shop.sql(f"UPDATE big SET v = v + 1, a = a + 1000 WHERE a = {i}", f"DELETE FROM big WHERE a = {i + 1}")
    big.stop()
    big.catch_up(follow)
    assert len(list(follow.runs("big", types=["Change"]))) >= 9
    seen = table(follow, "big").sort("a")
    assert seen["a"].to_list() == [a for (a,) in shop.db.execute("SELECT a FROM big ORDER BY a")]


def test_rows_of_a_table_without_a_key_come_once_however_the_snapshot_meets_the_changes(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_source, "PAGE_ROWS", 7)
    shop.sql("CREATE TABLE notes (text)")
    shop.sql("WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) INSERT INTO notes SELECT i % 3 FROM n")
    notes = shop.capture("notes")
    notes.start(shop.log)
    for i in range(1, 60, 3):
        shop.sql(
            f"UPDATE notes SET text = 'u' WHERE rowid = {i}",
            f"DELETE FROM notes WHERE rowid = {60 - i}",
            f"UPDATE notes SET rowid = rowid + 500 WHERE rowid = {i + 2}",
            "INSERT INTO notes VALUES ('u')",
        )
    notes.stop()
    notes.catch_up(shop.log)
    shadow = Shadow()
    shadow.apply(e.event for e in shop.log.read("notes", types=["Change"]))
    shadow.assert_equals(shop.db, "notes")


def test_what_the_log_holds_is_pruned_from_the_source(shop: Shop) -> None:
    users = shop.capture("users")
    users.catch_up(shop.log)
    shop.db.executemany("INSERT INTO users VALUES (?, 'x')", [(i,) for i in range(3500)])
    assert shop.pending() > 3500
    users.catch_up(shop.log)
    assert shop.pending() == 1


def test_one_capture_does_not_prune_what_another_still_needs(shop: Shop, tmp_path: Path) -> None:
    users = shop.capture("users")
    with ms.open(str(tmp_path / "other.db")) as other:
        users.catch_up(shop.log)
        users.catch_up(other)
        shop.sql("INSERT INTO users VALUES (1, 'a')")
        users.catch_up(shop.log)
        users.catch_up(other)
        assert [e.data["after"] for e in other.read("users", types=["Change"])] == [{"id": 1, "email": "a"}]
    assert shop.changes() == [("INSERT", None, (1, "a"))]


def test_two_captures_of_one_source_cannot_double_a_change(shop: Shop) -> None:
    first, second = shop.capture("users"), shop.capture("users")
    first.start(shop.log)
    second.start(shop.log)
    shop.sql("INSERT INTO users VALUES (1, 'a')")
    wait_until(lambda: shop.changes() and first.error is not None)
    with pytest.raises(ms.ConsumerFenced):
        first.stop()
    second.stop()
    assert shop.changes() == [("INSERT", None, (1, "a"))]


def test_captures_with_names_of_their_own_live_side_by_side(shop: Shop) -> None:
    shop.sql("INSERT INTO users VALUES (1, 'a')")
    shop.capture("users", name="one").catch_up(shop.log)
    shop.capture("users", name="two", prefix="copy.").catch_up(shop.log)
    assert shop.changes() == shop.changes("copy.users") == [("READ", None, (1, "a"))]


def test_uninstall_removes_everything_and_a_resync_starts_again(shop: Shop) -> None:
    shop.sql("INSERT INTO users VALUES (1, 'a')")
    users = shop.capture("users")
    users.catch_up(shop.log)
    users.uninstall()
    assert shop.db.execute("SELECT name FROM sqlite_master").fetchall() == [("users",)]
    shop.sql("UPDATE users SET id = 2")
    with pytest.raises(ms.CaptureError, match="resync=True"):
        users.catch_up(shop.log)
    named = shop.capture("users", name="kept")
    named.catch_up(shop.log, resync=True)
    assert table(shop.log, "users").rows() == [(2, "a")]
    named.uninstall()
    with pytest.raises(ms.CaptureError, match="resync"):
        named.catch_up(shop.log)
    named.catch_up(shop.log, resync=True)
    assert shop.changes()[-2:] == [("TRUNCATE", None, None), ("READ", None, (2, "a"))]


def test_a_source_restored_from_a_copy_is_noticed(shop: Shop, tmp_path: Path) -> None:
    users = shop.capture("users")
    users.catch_up(shop.log)
    copy = sqlite3.connect(":memory:")
    shop.db.backup(copy)
    shop.sql("INSERT INTO users VALUES (1, 'a')", "INSERT INTO users VALUES (2, 'b')")
    users.catch_up(shop.log)
    copy.backup(shop.db)
    copy.close()
    with pytest.raises(ms.CaptureError, match="restored"):
        users.catch_up(shop.log)
    users.catch_up(shop.log, resync=True)
    assert table(shop.log, "users").height == 0


def test_changes_pruned_by_hand_are_noticed(shop: Shop) -> None:
    users = shop.capture("users")
    users.catch_up(shop.log)
    shop.sql("INSERT INTO users VALUES (1, 'a')", "INSERT INTO users VALUES (2, 'b')")
    shop.sql("DELETE FROM _millstream_changes WHERE id <= (SELECT max(id) - 1 FROM _millstream_changes)")
    with pytest.raises(ms.CaptureError, match="are gone"):
        users.catch_up(shop.log)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "cannot be opened"),
        (lambda p: p.write_bytes(b"this is no database, only some text that is long enough" * 20), "not a SQLite"),
        (lambda p: p.mkdir(), "cannot be opened"),
    ],
    ids=["absent", "no database", "a folder"],
)
def test_a_source_that_cannot_be_used_is_an_error_with_a_hint(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "shop.sqlite")  # type: ignore[operator]
    with ms.open() as log, pytest.raises(ms.CaptureError, match=message) as caught:
        capture(f"sqlite:///{tmp_path}/shop.sqlite", tables=["users"]).catch_up(log)
    assert caught.value.hint
    assert isinstance(caught.value.__cause__, sqlite3.Error)


def test_an_absent_table_is_an_error_that_names_those_there(shop: Shop) -> None:
    with pytest.raises(ms.CaptureError, match=r"no table 'usres'.*users"):
        shop.capture("usres").start(shop.log)
    shop.sql("CREATE VIEW v AS SELECT 1")
    with pytest.raises(ms.CaptureError, match="a view"):
        shop.capture("v").catch_up(shop.log)
    with pytest.raises(ms.UsageError):
        capture(shop.url, tables="users")
    with pytest.raises(ms.UsageError):
        capture("oracle://shop")


def test_a_log_cannot_capture_its_own_file(tmp_path: Path) -> None:
    with ms.open(str(tmp_path / "log.db")) as log, pytest.raises(ms.UsageError, match="own file"):
        capture(f"sqlite:///{log.path}").catch_up(log)


def test_a_failed_start_leaves_nothing_in_the_source_and_works_later(shop: Shop) -> None:
    with pytest.raises(ms.CaptureError):
        shop.capture("users", "missing").catch_up(shop.log)
    assert shop.db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall() == []
    shop.sql("CREATE TABLE missing (id)")
    shop.capture("users", "missing").catch_up(shop.log)


def test_a_locked_source_is_an_error_after_the_time_to_wait(shop: Shop) -> None:
    shop.sql("BEGIN EXCLUSIVE")
    with pytest.raises(ms.CaptureError, match="locked"):
        capture(shop.url, tables=["users"], lock_timeout=0.05).catch_up(shop.log)
    shop.sql("ROLLBACK")
    capture(shop.url, tables=["users"], lock_timeout=0.05).catch_up(shop.log)


def test_a_read_only_source_is_an_error(shop: Shop, tmp_path: Path) -> None:
    shop.db.execute("PRAGMA journal_mode = delete")
    os.chmod(shop.path, 0o444)
    code = (
        "import os, sys, importlib.readers, millstream as ms\n"
        "from millstream.cdc import capture\n"
        "log = ms.open()\n"
        "log.append('warm', ms.Plain('Up', {}))\n"
        "os.getuid() or os.setuid(65534)\n"  # root may write what nobody may
        "try: capture(sys.argv[1], tables=['users']).catch_up(log)\n"
        "except ms.CaptureError as e: print(e)\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, shop.url], capture_output=True, text=True)
    assert "read-only" in done.stdout, done


def test_a_source_removed_on_the_way_ends_the_capture(shop: Shop) -> None:
    users = shop.capture("users")
    users.start(shop.log)
    os.unlink(shop.path)
    wait_until(lambda: users.error is not None)
    with pytest.raises(ms.CaptureError, match="removed"):
        users.stop()


def test_a_name_that_no_stream_may_have_is_escaped() -> None:
    assert stream_of("order items") == "order items"
    assert stream_of("a*b\n%") == "a%2Ab%0A%25"


def test_a_quoted_table_with_an_odd_name_is_captured(shop: Shop) -> None:
    shop.sql('CREATE TABLE "it\'s ""odd""; *" ("select" PRIMARY KEY)', 'INSERT INTO "it\'s ""odd""; *" VALUES (1)')
    odd = shop.capture('it\'s "odd"; *')
    odd.catch_up(shop.log)
    shop.sql('UPDATE "it\'s ""odd""; *" SET "select" = 2')
    odd.catch_up(shop.log)
    changes = shop.changes(odd.stream('it\'s "odd"; *'))
    assert changes == [("READ", None, (1,)), ("UPDATE", (1,), (2,))]


def test_two_databases_with_a_table_of_one_name_do_not_mix_in_one_stream(shop: Shop, tmp_path: Path) -> None:
    shop.sql("INSERT INTO users VALUES (1, 'a')")
    shop.capture().catch_up(shop.log)
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT)")
        db.execute("INSERT INTO users VALUES (2, 'b')")
        db.commit()
    head = shop.log.head
    with pytest.raises(ms.CaptureError, match=r"'users' holds the changes of another.*prefix="):
        capture(f"sqlite:///{other}").catch_up(shop.log)
    with pytest.raises(ms.CaptureError, match="prefix="):
        shop.capture(name="again").catch_up(shop.log)
    assert shop.log.head == head
    capture(f"sqlite:///{other}", prefix="other/").catch_up(shop.log)
    shop.capture().catch_up(shop.log)
    assert table(shop.log, "users").rows() == [(1, "a")]
    assert table(shop.log, "users", prefix="other/").rows() == [(2, "b")]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("shop.sqlite", "'shop.sqlite' is no URL"),
        ("sqlite:shop.sqlite", "'sqlite:shop.sqlite' is no URL"),
        ("oracle://ann:secret@host/shop", "kind 'oracle'"),
        ("oracle:/ann:secret@host/shop", "kind 'oracle'"),
    ],
)
def test_what_is_no_database_that_can_be_captured_is_told_without_its_password(url, said):
    with pytest.raises(ms.UsageError, match=said) as raised:
        ms.capture(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (5, {}),
        (None, {}),
        ("sqlite:///shop.sqlite", {"tables": 5}),
        ("sqlite:///shop.sqlite", {"tables": ["users", 5]}),
        ("sqlite:///shop.sqlite", {"name": 5}),
        ("sqlite:///shop.sqlite", {"prefix": "shop*/"}),
        ("sqlite:///shop.sqlite", {"prefix": "x" * 600}),
        ("sqlite:///shop.sqlite", {"prefix": None}),
    ],
)
def test_what_no_capture_can_be_made_of_is_refused(url, options):
    with pytest.raises(ms.UsageError):
        ms.capture(url, **options)


def test_an_event_that_is_no_change_is_told_when_it_is_to_be_decoded():
    with ms.open() as log:
        log.append("s", ms.Plain("NoChange", {}))
        with pytest.raises(ms.UsageError, match="position 1 is a NoChange, no change"):
            ms.cdc.decoded(next(log.read()))
