"""What can go wrong with a log in PostgreSQL: servers that restart, connections that drop, other people's tables."""

from __future__ import annotations

import multiprocessing
import os
import random
import secrets
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from urllib.parse import quote

import psycopg
import pytest

import millstream as ms
from millstream import errors
from millstream.storage.postgres import listener
from millstream.storage.postgres.place import parse_url
from millstream.storage.postgres.sql import bind, parse
from servers import CuttingProxy, Pooler, PostgresServer


class Noted(ms.Event, type="postgres.Noted"):
    n: int
    by: str = ""


@pytest.fixture
def server():
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def proxied(postgres_server, postgres):
    proxy = CuttingProxy(postgres_server.port)
    log = ms.open(postgres.replace(f":{postgres_server.port}/", f":{proxy.port}/"))
    yield log, proxy
    log.close()
    proxy.close()


# --- the server goes away -----------------------------------------------------------------------------


def test_appends_and_reads_go_on_when_the_server_has_restarted(server):
    with ms.open(server.url()) as log:
        log.append("a", Noted(n=1))
        assert len(list(log.read())) == 1
        server.stop()
        server.start()
        assert log.append("a", Noted(n=2)).position == 2
        assert [e.event.n for e in log.read()] == [1, 2]


def test_a_follower_goes_on_when_the_server_has_restarted(server):
    with ms.open(server.url()) as log:
        log.append("a", Noted(n=1))
        seen = []
        follower = threading.Thread(
            target=lambda: seen.extend(e.event.n for _, e in zip(range(3), log.follow(), strict=False))
        )
        follower.start()
        server.stop()
        server.start()
        log.append("a", [Noted(n=2), Noted(n=3)])
        follower.join(30)
        assert seen == [1, 2, 3]


def test_a_crash_of_the_server_loses_nothing_that_was_acknowledged_and_doubles_nothing(server):
    import signal as signals

    told: list[tuple[int, int]] = []
    with ms.open(server.url()) as log:
        stop = threading.Event()

        def work(k):
            n = 0
            while not stop.is_set():
                log.append(f"s-{k}", Noted(n=n))
                told.append((k, n))
                n += 1

        workers = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for worker in workers:
            worker.start()
        for _ in range(3):
            threading.Event().wait(0.3)
            server.stop(signals.SIGQUIT)
            server.start()
        threading.Event().wait(0.3)
        stop.set()
        for worker in workers:
            worker.join(60)
        found = [(int(e.stream[2:]), e.event.n) for e in log.read()]
        assert sorted(found) == sorted(told)
        log.verify()


def test_a_server_that_stays_away_is_an_error_in_time(server):
    with ms.open(server.url(), lock_timeout=1) as log:
        log.append("a", Noted(n=1))
        server.stop()
        with pytest.raises(errors.ConnectionFailed):
            log.append("a", Noted(n=2))
        with pytest.raises(errors.ConnectionFailed):
            list(log.read())


# --- the connection drops in the middle of a commit ---------------------------------------------------


_WAYS = ["one", "several", "streams", "large", "id", "work", "empty-work"]
# A transaction's own code cannot run again: when it is not committed it fails, which another test shows.
_DROPS = [(how, before) for how in _WAYS for before in (True, False)] + [("transaction", False)]


@pytest.mark.parametrize(("how", "before"), _DROPS)
def test_an_append_whose_connection_drops_happens_exactly_once(proxied, how, before):
    log, proxy = proxied
    log.append("a", Noted(n=0))
    with log.transaction() as tx:
        tx.db.execute("create table t (n integer)")
    first = log.head + 1
    marker = b"append_one" if how == "one" else b".append("
    if how in ("large", "work", "transaction", "empty-work"):
        marker = b"commit\0"
    proxy.cut(marker, before=before)
    many = [Noted(n=1), Noted(n=2)]
    if how == "one":
        receipt = log.append("a", Noted(n=1), expect=1)
    elif how == "several":
        receipt = log.append("a", many)
    elif how == "streams":
        receipt = log.commit([log.stage("a", Noted(n=1)), log.stage("b", Noted(n=2))])
    elif how == "large":
        receipt = log.append("a", [Noted(n=1, by="x" * 2_000_000), Noted(n=2, by="y")])
    elif how == "id":
        receipt = log.append("a", many, id="once")
        assert log.append("a", many, id="once") == receipt
    elif how in ("work", "empty-work"):
        appends = [log.stage("a", Noted(n=1))] if how == "work" else []
        receipt = log.commit(appends, work=lambda db, receipt: db.execute("insert into t values (1)"))
    else:
        with log.transaction() as tx:
            tx.db.execute("insert into t values (1)")
            tx.append("a", Noted(n=1))
        receipt = tx.receipt
    assert proxy.cuts == 1
    found = list(log.read(after=first - 1))
    assert [e.position for e in found] == list(range(first, first + len(found)))
    assert len(found) == receipt.count
    if receipt.count:
        assert (receipt.first, receipt.position) == (first, log.head)
        assert receipt.version == found[-1].version
    with log.connect() as db:
        [rows] = db.query("select count(*) as n from t")
    assert rows["n"] == (1 if how in ("work", "transaction", "empty-work") else 0)
    log.verify()


@pytest.mark.parametrize("name", ["магазин", "x" * 100, ""])
def test_a_session_is_told_from_others_whatever_the_application_is_called(postgres, name):
    with ms.open(f"{postgres}?application_name={quote(name)}") as log:
        log.append("a", Noted(n=0))
        session = log.store._writer.session
        lost = session.connection
        session._connection = None  # gone, and the server does not know
        session.end_former()
        with pytest.raises(psycopg.OperationalError, match="terminating connection"):
            lost.execute("select 1")
        lost.close()


def test_a_lost_append_is_not_mistaken_for_one_of_a_process_with_the_same_seed(proxied, postgres):
    log, proxy = proxied
    log.append("a", Noted(n=0))
    with ms.open(postgres) as other:
        random.seed(1)
        other.append("theirs", Noted(n=1))
        random.seed(1)
        proxy.cut(b"append_one", before=True)
        assert log.append("mine", Noted(n=2)).stream == "mine"
    assert [e.stream for e in log.read()] == ["a", "theirs", "mine"]


def test_a_transaction_that_is_cut_before_its_commit_fails_whole(proxied):
    log, proxy = proxied
    log.append("a", Noted(n=0))
    with log.transaction() as tx:
        tx.db.execute("create table t (n integer)")
    proxy.cut(b"commit\0", before=True)
    with pytest.raises(errors.ConnectionFailed):
        with log.transaction() as tx:
            tx.db.execute("insert into t values (1)")
            tx.append("a", Noted(n=1))
    assert log.head == 1
    assert log.append("a", Noted(n=1)).position == 2


def test_a_connection_is_handed_out_that_answers_after_the_server_has_restarted(server):
    with ms.open(server.url()) as log:
        log.append("a", Noted(n=1))
        with log.connect() as db, log.connect() as another:
            assert db.query("select 1 as n") == another.query("select 1 as n")
        server.stop()
        server.start()
        with log.connect() as db:
            assert db.query("select 1 as n") == [{"n": 1}]


def test_compaction_goes_on_when_the_server_has_restarted(server):
    with ms.open(server.url()) as log:
        for n in range(50):
            log.append("a", Noted(n=n))
        server.stop()
        server.start()
        assert log.compact("a").runs == 50
        assert [e.event.n for e in log.read()] == list(range(50))
        log.verify()


def test_nothing_of_a_transaction_is_kept_that_goes_on_after_its_connection_was_lost(postgres):
    with ms.open(postgres) as log:
        with log.transaction() as tx:
            tx.db.execute("create table t (n integer)")
        with pytest.raises(errors.ConnectionFailed, match="inside a transaction"):
            with log.transaction() as tx:
                [row] = tx.db.query("select pg_backend_pid() as pid")
                with psycopg.connect(postgres, autocommit=True) as other:
                    other.execute("select pg_terminate_backend(%s, 5000)", (row["pid"],))
                with pytest.raises(errors.ConnectionFailed):
                    tx.db.execute("insert into t values (1)")
                tx.db.execute("insert into t values (2)")
        with log.connect() as db:
            assert db.query("select n from t") == []
        assert log.append("a", Noted(n=1)).position == 1


# --- a full disk, a held lock -------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_a_full_disk_loses_nothing(postgres_server):
    disk = postgres_server.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        place = disk / "place"
        place.mkdir()
        shutil.chown(place, "nobody")
        with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
            connection.execute(f"create tablespace small location '{place}'")
            connection.execute("create database full_disk template template0 tablespace small")
        with ms.open(postgres_server.url("full_disk")) as log:
            written = 0
            with pytest.raises(errors.DiskFull):
                for n in range(1_000):
                    log.append("s", Noted(n=n, by=secrets.token_hex(30_000)))
                    written += 1
            assert log.head == written
            assert [e.event.n for e in log.read()] == list(range(written))
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            assert log.append("s", Noted(n=-1, by="x" * 60_000)).position == written + 1
            log.verify()
    finally:
        with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
            connection.execute("drop database if exists full_disk")
            connection.execute("drop tablespace if exists small")
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_lock_that_is_held_too_long_is_waited_for_no_longer(postgres):
    with ms.open(postgres) as holder, ms.open(postgres, lock_timeout=1) as log:
        with holder.transaction() as tx:
            tx.db.execute("create table held (n integer)")
            with pytest.raises(errors.LogLocked):
                log.append("s", Noted(n=1))
        assert log.append("s", Noted(n=1)).position == 1


def test_a_fault_of_a_handlers_own_connection_rejects_its_append_alone_and_at_once(postgres):
    calls = []

    def work(db, receipt):
        calls.append(1)
        psycopg.connect("postgresql://postgres@127.0.0.1:1/elsewhere")

    with ms.open(postgres) as log:
        with pytest.raises(psycopg.OperationalError):
            log.commit([log.stage("a", Noted(n=1))], work=work)
        assert calls == [1]
        assert log.head == 0
        assert log.append("a", Noted(n=1)).position == 1


def test_new_kinds_of_other_processes_are_met(postgres):
    with ms.open(postgres) as log, ms.open(postgres) as other:
        for n in range(3):
            log.append(f"shelf{n}-1", ms.Plain(f"T{n}", {}))
            assert len(list(other.read("shelf*"))) == n + 1
            assert [e.type for e in other.read(types=["T0", f"T{n}"])][-1] == f"T{n}"


# --- many processes -----------------------------------------------------------------------------------


def _write(url, number, count):
    with ms.open(url) as log:
        for n in range(count):
            log.append(f"own-{number}", Noted(n=n), expect=n)
            while True:
                try:
                    log.append("common", Noted(n=n, by=str(number)), expect=log.version("common"))
                    break
                except errors.VersionConflict:
                    pass


def test_an_interrupt_ends_the_wait_for_the_lock(postgres):
    with ms.open(postgres) as log, ms.open(postgres) as other:
        log.append("a", Noted(n=1))
        with other.transaction() as tx:
            tx.db.execute("select 1")
            timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            begun = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                log.append("a", Noted(n=2))
            assert time.monotonic() - begun < 5
            timer.join()
        assert log.append("a", Noted(n=3)).position == 2


@pytest.mark.parametrize("limit", [float("inf"), "60d", 0])
def test_any_time_limit_will_do(postgres, limit):
    with ms.open(postgres, lock_timeout=limit) as log:
        assert log.append("a", Noted(n=1)).position == 1
        with log.transaction() as tx:
            tx.db.execute("select 1")
        assert [e.event.n for e in log.read()] == [1]


def test_32_processes_write_one_database_and_a_follower_misses_nothing(postgres):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["millstream.log", "millstream.storage.postgres"])
    with ms.open(postgres) as log:
        workers = [context.Process(target=_write, args=(postgres, k, 5)) for k in range(32)]
        for worker in workers:
            worker.start()
        seen, last = [], 0
        for event in log.follow(timeout=60):
            assert event.recorded >= last
            last = event.recorded
            seen.append(event.position)
            if len(seen) == 320:
                break
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * 32
        assert seen == list(range(1, 321))
        assert [e.version for e in log.read("common")] == list(range(1, 161))
        log.verify()


# --- other databases, other versions ------------------------------------------------------------------


def test_several_logs_share_a_database_by_schema(postgres):
    with ms.open(postgres + "?schema=shop") as shop, ms.open(postgres + "?schema=audit-2") as audit:
        shop.append("a", Noted(n=1))
        assert (shop.head, audit.head) == (1, 0)
        assert shop.id != audit.id
        assert shop.location.endswith("?schema=shop")


@pytest.mark.parametrize(
    "sql", ["create table millstream.runs (n integer)", "create table millstream.meta (n integer)",
            "create table millstream.meta (key text, value text)"],
)  # fmt: skip
def test_a_schema_with_another_applications_tables_is_refused_and_left_alone(postgres, sql):
    with psycopg.connect(postgres) as connection:
        connection.execute("create schema millstream")
        connection.execute(sql)
    for readonly in (False, True):
        with pytest.raises(errors.NotALog):
            ms.open(postgres, readonly=readonly)
    with psycopg.connect(postgres) as connection:
        query = "select count(*) from pg_class where relnamespace = 'millstream'::regnamespace and relkind = 'r'"
        assert connection.execute(query).fetchone() == (1,)


def test_a_newer_schema_is_refused(postgres):
    ms.open(postgres).close()
    with psycopg.connect(postgres) as connection:
        connection.execute("update millstream.meta set value = '999' where key = 'millstream'")
    with pytest.raises(errors.NewerFormat):
        ms.open(postgres)


def test_opening_read_only_makes_nothing(postgres):
    with pytest.raises(errors.NotFound):
        ms.open(postgres, readonly=True)
    with psycopg.connect(postgres) as connection:
        assert connection.execute("select to_regnamespace('millstream')").fetchone() == (None,)


def test_processes_that_open_a_new_log_at_once_make_it_once(postgres):
    logs = []
    threads = [threading.Thread(target=lambda: logs.append(ms.open(postgres))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({log.id for log in logs}) == 1
    assert len(logs) == 8
    for log in logs:
        log.close()


def test_wrong_places_are_typed_errors_that_say_what_to_do_and_no_password(postgres, postgres_server):
    port = postgres_server.port
    cases = {
        "postgresql://postgres@127.0.0.1:1/x": "server runs",
        f"postgresql://postgres@127.0.0.1:{port}/nowhere": "Create the database",
        f"postgresql://nobody:geheim@127.0.0.1:{port}/postgres": "Check the user",
    }
    for url, hint in cases.items():
        with pytest.raises(errors.ConnectionFailed) as caught:
            ms.open(url)
        assert hint in str(caught.value)
        assert "geheim" not in str(caught.value)
    for url in ("postgresql://h:99999x/d", postgres + "?schema=pg_x", postgres + "?schema=", postgres + "?nonsense=1"):
        with pytest.raises(errors.UsageError):
            ms.open(url)


def test_a_password_never_stands_in_a_location(postgres, postgres_server):
    with ms.open(f"postgresql://postgres:geheim@127.0.0.1:{postgres_server.port}/{postgres.rsplit('/', 1)[1]}") as log:
        assert "geheim" not in log.location
        assert "geheim" not in repr(log)


# --- durability and order -----------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["12/s3cret", "s3@cret", "12#s3cret", "12?s3cret", "a/s3cret"])
def test_a_password_that_is_not_escaped_is_refused_and_not_shown(password):
    with pytest.raises(errors.UsageError) as caught:
        parse_url(f"postgresql://ann:{password}@localhost/shop")
    assert "cret" not in str(caught.value)


def test_an_append_is_on_disk_even_where_the_database_says_otherwise(postgres):
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"alter database {postgres.rsplit('/', 1)[1]} set synchronous_commit = off")
    with ms.open(postgres) as log:
        with log.transaction() as tx:
            assert tx.db.one("show synchronous_commit") == {"synchronous_commit": "on"}
        assert log.append("a", Noted(n=1)).position == 1


@pytest.mark.parametrize("how", ["environment", "url"])
def test_text_is_utf_8_whatever_encoding_the_client_is_set_to(postgres, how, monkeypatch):
    if how == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with ms.open(postgres + ("?client_encoding=latin1" if how == "url" else "")) as log:
        log.append("ä", Noted(n=1, by="Müller 東京"))
        log.append("ä", [Noted(n=2), Noted(n=3)], metadata={"von": "Zoë"})
        assert [(e.stream, e.event.by) for e in log.read(limit=1)] == [("ä", "Müller 東京")]
        log.verify()


def test_a_role_with_another_isolation_level_cannot_break_the_order(postgres):
    with psycopg.connect(postgres, autocommit=True) as connection:
        name = postgres.rsplit("/", 1)[1]
        connection.execute(f"alter database {name} set default_transaction_isolation = 'repeatable read'")
    with ms.open(postgres) as log:
        with pytest.raises(errors.StorageError, match="READ COMMITTED"):
            log.append("a", Noted(n=1))


def test_nobody_changes_what_is_written(postgres):
    with ms.open(postgres) as log:
        log.append("a", Noted(n=1), tags=["x"], id="k")
    for sql in (
        "update millstream.runs set recorded = 0", "delete from millstream.runs", "truncate millstream.runs",
        "delete from millstream.tags", "delete from millstream.appends", "update millstream.streams set name = 'b'",
        "update millstream.kinds set type = 'b'",
    ):  # fmt: skip
        with psycopg.connect(postgres) as connection, pytest.raises(psycopg.DatabaseError, match="append-only"):
            connection.execute(sql)


def test_a_clock_far_behind_the_last_event_is_refused_until_confirmed(postgres):
    with ms.open(postgres, clock=lambda: datetime(2100, 1, 1, tzinfo=UTC)) as log:
        log.append("a", Noted(n=1))
    with ms.open(postgres) as log:
        with pytest.raises(errors.ClockJumped):
            log.append("a", Noted(n=2))
        log.confirm_clock()
        assert log.append("a", Noted(n=2)).time == datetime(2100, 1, 1, tzinfo=UTC)


def test_a_server_whose_clock_runs_ahead_is_refused_until_confirmed(postgres):
    with ms.open(postgres) as log:
        log.append("a", Noted(n=1))
        now, steady = log.store._writer._mark
        log.store._writer._mark = (now - 2 * 3_600_000_000, steady)
        with pytest.raises(errors.ClockJumped):
            log.append("a", Noted(n=2))
        log.confirm_clock()
        assert log.append("a", Noted(n=2)).position == 2


# --- a standby ----------------------------------------------------------------------------------------


def test_a_standby_is_read_and_followed_but_not_written(server):
    with ms.open(server.url()) as log:
        log.append("a", Noted(n=1))
        standby = PostgresServer(standby_of=server)
        try:
            with ms.open(standby.url()) as copy:
                with pytest.raises(errors.ReadOnlyLog):
                    copy.append("a", Noted(n=2))
                following = copy.follow(timeout=30)
                assert next(following).event.n == 1
                log.append("a", Noted(n=2))
                assert next(following).event.n == 2
                copy.verify()
        finally:
            standby.close()


# --- a pooler -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hears", [True, False])
def test_a_listener_looks_itself_when_it_never_hears_anything(postgres, hears):
    with ms.open(postgres) as log:
        probe = listener.Listener(log.store.place, log.store._reader)
        probe.close()
        heard: list[SimpleNamespace] = []
        probe._connection = SimpleNamespace(notifies=lambda timeout, stop_after: [heard.pop()] if heard else [])
        probe._reader = SimpleNamespace(head=lambda connection: SimpleNamespace(position=head))
        head = 0
        probe.look()
        for head in range(1, 6):
            assert probe.look()[0] == head  # by looking: it came between the end of the wait and the look
            if hears:
                heard.append(SimpleNamespace(payload=str(head)))
                assert probe.look()[0] == head
        assert probe._listens == hears


@pytest.mark.skipif(Pooler.program is None, reason="PgBouncer is not installed (Debian's package pgbouncer)")
def test_a_log_works_through_a_transaction_pooler(postgres_server, postgres):
    pooler = Pooler(postgres_server)
    try:
        url = postgres.replace(f":{postgres_server.port}/", f":{pooler.port}/")
        with ms.open(url) as log, ms.open(url) as other:
            seen = []
            follower = threading.Thread(
                target=lambda: seen.extend(e.event.n for _, e in zip(range(41), other.follow(), strict=False))
            )
            follower.start()

            def work(k):
                for n in range(10):
                    log.append(f"s-{k}", Noted(n=n), expect=n)

            workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            with log.transaction() as tx:
                tx.db.execute("create table t (n integer)")
                tx.append("a", Noted(n=41))
            follower.join(30)
            assert len(seen) == 41
            assert log.scan("a").collect()["n"].to_list() == [41]
            log.verify()
    finally:
        pooler.close()


# --- statements ---------------------------------------------------------------------------------------


def test_parameters_are_marked_alike_in_all_databases():
    statement = parse("select '?', \"a?\", $$ ? $$, x -- ?\n from t where a = ? and b ?? c and d::text = ? /* ? */")
    assert statement.text.count("$1") == statement.text.count("$2") == 1
    assert "b ? c" in statement.text
    assert bind(statement, (1, 2)) == (1, 2)
    named = parse("select :a, :b, :a, x::int, ':c'")
    assert named.text == "select $1, $2, $1, x::int, ':c'"
    assert bind(named, {"b": 2, "a": 1}) == [1, 2]
    for params in ((1,), (1, 2, 3), {"a": 1}):
        with pytest.raises(errors.UsageError):
            bind(statement, params)
    with pytest.raises(errors.UsageError):
        bind(named, {"a": 1})


def test_the_url_may_name_a_schema():
    assert parse_url("postgresql://ann:pw@h:5/d?schema=shop&sslmode=disable").location == (
        "postgresql://ann@h:5/d?sslmode=disable&schema=shop"
    )
    assert parse_url("postgres://h/d").schema == "millstream"


def test_a_forked_child_appends_and_its_parent_goes_on(postgres):
    with ms.open(postgres) as log:
        log.append("a", Noted(n=1))
        list(log.read())
        child = multiprocessing.get_context("fork").Process(target=partial(log.append, "a", Noted(n=2)))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert log.append("a", Noted(n=3)).position == 3
        assert [e.event.n for e in log.read()] == [1, 2, 3]


def test_a_deadlock_is_told_apart_from_a_wrong_statement_and_undoes_its_own_request_alone(postgres):
    with ms.open(postgres) as log, psycopg.connect(postgres) as other:
        log.commit(
            work=lambda db, receipt: db.executescript("create table stock (id int); insert into stock values (1), (2)")
        )
        change = "update stock set id = id where id = %s"
        other.execute("set deadlock_timeout = '1min'")  # it is the log's to find
        other.execute(change, (2,))
        first = threading.Event()

        def work(db: ms.Database, receipt: ms.Receipt) -> None:
            db.execute("update stock set id = id where id = 1")
            first.set()
            db.execute("update stock set id = id where id = 2")

        failures: list[BaseException] = []

        def commit() -> None:
            try:
                log.commit([log.stage("a", Noted(n=1))], work=work)
            except ms.MillstreamError as error:
                failures.append(error)

        thread = threading.Thread(target=commit)
        thread.start()
        first.wait(30)
        other.execute(change, (1,))
        thread.join(30)
        assert [type(error) for error in failures] == [ms.Deadlocked]
        assert log.head == 0


def test_what_is_lent_out_is_there_at_once_when_all_idle_connections_were_cut(postgres):
    with ms.open(postgres, lock_timeout=5) as log, psycopg.connect(postgres, autocommit=True) as other:
        with ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(log.connect()).query("select 1 as one")
        other.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where pid <> pg_backend_pid() and datname = current_database()"
        )
        with log.connect() as db:
            assert db.query("select 1 as one") == [{"one": 1}]
