"""What goes wrong around a capture: settings, rights, servers and networks. Nothing is lost in silence."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pymysql
import pytest

import millstream as ms
from millstream.cdc import capture, verify
from millstream.cdc.mysql.gtid import Domains, Intervals
from millstream.cdc.mysql.place import parse_url
from servers import MariaDBServer

from .conftest import MYSQLD, Shop, kept, only_mariadb, replay, waiting


@contextmanager
def setting(shop: Shop, name: str, value: str) -> Iterator[None]:
    [(before,)] = shop.rows(f"select @@global.{name}")
    shop.sql(f"set global {name} = {value}")
    try:
        yield
    finally:
        shop.sql(f"set global {name} = '{before}'")


@pytest.mark.parametrize(("name", "value"), [("binlog_format", "'MIXED'"), ("binlog_row_image", "'MINIMAL'")])
def test_a_wrong_setting_is_named_with_the_statement_that_mends_it(users: Shop, name: str, value: str) -> None:
    with setting(users, name, value):
        with pytest.raises(ms.CaptureError, match=f"{name} is") as caught:
            users.capture("users").catch_up(users.log)
        statement = re.match(r"SET GLOBAL [^;]*", caught.value.hint)
        assert statement is not None
        assert [f.level for f in users.capture("users").source.check() if name in f.about] == ["error"]
        users.sql(statement[0])
        users.capture("users").catch_up(users.log)


def test_a_server_without_a_binary_log(own_server: Callable[..., MariaDBServer], tmp_path: Path) -> None:
    server = own_server("skip_log_bin")
    shop = Shop(server, tmp_path / "log.db")
    shop.sql("create table users (id int primary key)")
    with pytest.raises(ms.CaptureError, match="keeps no binary log") as caught:
        shop.capture("users").catch_up(shop.log)
    assert "log_bin" in caught.value.hint
    shop.log.close()


def test_tables_that_cannot_be_captured(users: Shop) -> None:
    with pytest.raises(ms.CaptureError, match="has no table 'nothing'"):
        users.capture("nothing").catch_up(users.log)
    if not MYSQLD:
        users.sql("create table versions (id int primary key) with system versioning")
        with pytest.raises(ms.CaptureError, match="is versioned by the server") as caught:
            users.capture("versions").catch_up(users.log)
        assert "DROP SYSTEM VERSIONING" in caught.value.hint
    users.sql("create table odd (t varchar(10) character set dec8)")
    with pytest.raises(ms.CaptureError, match="character set dec8") as caught:
        users.capture("odd").catch_up(users.log)
    assert "CONVERT TO CHARACTER SET utf8mb4" in caught.value.hint


def test_rights_are_missed_one_by_one_and_credentials_are_never_shown(users: Shop) -> None:
    name, password = f"u_{users.database}", "s3cr@t/pass:word"
    users.sql(f"create user {name}@'%' identified by '{password}'", "insert into users values (1, 'a', 'A')")
    host = f"127.0.0.1:{users.server.port}/{users.database}"
    url = f"mysql://{name}:s3cr%40t%2Fpass%3Aword@{host}"
    said: list[str] = []
    try:
        for grant in (
            f"grant select on {users.database}.* to {name}@'%'",
            f"grant {'binlog monitor' if not MYSQLD else 'replication client'} on *.* to {name}@'%'",
            f"grant replication slave on *.* to {name}@'%'",
            f"grant lock tables on {users.database}.* to {name}@'%'" if MYSQLD else "select 1",
        ):
            with pytest.raises(ms.CaptureError) as caught:
                capture(url, tables=["users"]).catch_up(users.log)
            said += [str(caught.value), repr(caught.value)]
            users.sql(grant)
            if "select 1" in grant:
                break
            if "replication slave" in grant and not MYSQLD:
                break
        made = capture(url, tables=["users"])
        made.catch_up(users.log)
        kept(users)
        with pytest.raises(ms.CaptureError, match="Access denied") as caught:
            capture(url.replace("word", "wrong"), tables=["users"]).catch_up(users.log)
        said += [str(caught.value), repr(caught.value), made.source.url, made.name, made.source.identity()]
        said += [str(run.metadata) for run in users.log.runs("users")]
        with users.log.connect() as db:
            said += [str(row) for row in db.query(f"select * from {db.own('millstream_captures')}")]
        for text in said:
            assert "s3cr" not in text
            assert password not in text
    finally:
        users.sql(f"drop user {name}@'%'")


@pytest.mark.parametrize(
    "url",
    ["mysql://u:p@ss@h/db", "mysql://u:p@h", "mysql://u:p@h:x/db", "mysql://u:p@h/db?nonsense=1", "mysql://h/a/b"],
)
def test_urls_that_are_not_understood_do_not_show_the_password(url: str) -> None:
    with pytest.raises(ms.UsageError) as caught:
        capture(url)
    assert "p@" not in str(caught.value)


def test_the_parts_of_a_url() -> None:
    place = parse_url("mariadb://a%40b:p%2Fq@db.example:3307/my%20shop?connect_timeout=3")
    assert place.arguments["user"] == "a@b"
    assert place.arguments["password"] == "p/q"
    assert (place.arguments["port"], place.arguments["connect_timeout"]) == (3307, 3)
    assert place.database == "my shop"
    assert place.location == "mysql://db.example:3307/my%20shop"
    assert parse_url("mysql://h/db?ssl=true").arguments["ssl"].check_hostname
    assert not parse_url("mysql://h/db?ssl=true&ssl_verify=false").arguments["ssl"].check_hostname


def resynced(shop: Shop, match: str) -> None:
    """The error says what it is about, and a resync finds what was inserted and deleted meanwhile."""
    with pytest.raises(ms.CaptureError, match=match) as caught:
        shop.capture("users").catch_up(shop.log)
    assert "resync=True" in caught.value.hint
    shop.capture("users").catch_up(shop.log, resync=True)
    kept(shop)
    shop.sql("insert into users values (7, 'after', 'n')")
    shop.capture("users").catch_up(shop.log)
    kept(shop)


@pytest.fixture
def captured(own_server: Callable[..., MariaDBServer], tmp_path: Path) -> Iterator[Shop]:
    """A captured table of a server of its own, with changes that are not in the log yet."""
    shop = Shop(own_server(), tmp_path / "log.db")
    shop.sql("create table users (id bigint primary key, email varchar(100), name text)")
    shop.sql("insert into users values (1, 'a', 'A'), (2, 'b', 'B')")
    shop.capture("users").catch_up(shop.log)
    shop.sql("delete from users where id = 1", "insert into users values (3, 'c', 'C')")
    yield shop
    shop.log.close()


def test_a_log_that_was_purged(captured: Shop) -> None:
    captured.sql("flush binary logs", "flush binary logs")
    [*_, last] = captured.rows("show binary logs")
    # Not while the server sends one of them, as it believes for a moment after the capture has gone.
    waiting(lambda: captured.sql(f"purge binary logs to '{last[0]}'") or len(captured.rows("show binary logs")) == 1)
    resynced(captured, "has removed binlog")


def test_a_log_that_was_begun_anew(captured: Shop) -> None:
    captured.sql("reset master", "delete from users where id = 2")
    resynced(captured, "was begun anew")


def test_a_log_that_was_begun_anew_and_has_grown_past_the_place(captured: Shop) -> None:
    time.sleep(1.0)  # files are told apart by the second in which they were begun
    captured.sql("reset master", *(f"insert into users values ({n}, 'x', 'y')" for n in range(100, 200)))
    resynced(captured, "begun anew")


@only_mariadb
def test_another_server_of_the_same_history_goes_on_and_one_of_another_does_not(
    own_server: Callable[..., MariaDBServer], tmp_path: Path
) -> None:
    first, second = own_server(), own_server("server_id=2", "log_slave_updates=ON")
    shop = Shop(first, tmp_path / "log.db")
    shop.sql("create table users (id bigint primary key, email varchar(100), name text)")
    shop.sql("insert into users values (1, 'a', 'A')", "create user r@'%' identified by 'r'")
    shop.sql("grant replication slave on *.* to r@'%'")
    shop.capture("users", name="shop").catch_up(shop.log)
    replica = pymysql.connect(host="127.0.0.1", port=second.port, user="root", autocommit=True)
    with replica.cursor() as cursor:
        cursor.execute(
            f"change master to master_host='127.0.0.1', master_port={first.port}, master_user='r', master_password='r',"
            " master_use_gtid=slave_pos"
        )
        cursor.execute("start slave")
        shop.sql("insert into users values (2, 'b', 'B')", "delete from users where id = 1")
        [(gtid,)] = shop.rows("select @@gtid_binlog_pos")
        cursor.execute(f"select master_gtid_wait('{gtid}', 20)")
        assert cursor.fetchone() == (0,)
        cursor.execute("stop slave")
        first.stop()
        cursor.execute("insert into shop.users values (3, 'c', 'C')")
    other = capture(second.url(), tables=["users"], name="shop")
    assert other.catch_up(shop.log) == 3
    shop.server = second
    shop.db = shop.connect()
    kept(shop)
    shop.sql("insert into users values (4, 'd', 'D')")
    assert other.catch_up(shop.log) == 1
    stranger = own_server("server_id=3")
    foreign = pymysql.connect(host="127.0.0.1", port=stranger.port, user="root", autocommit=True)
    with foreign.cursor() as cursor:
        cursor.execute("create database shop")
        cursor.execute("create table shop.users (id bigint primary key, email varchar(100), name text)")
    with pytest.raises(ms.CaptureError) as caught:
        capture(stranger.url(), tables=["users"], name="shop").catch_up(shop.log)
    assert "resync=True" in caught.value.hint
    shop.log.close()


def test_a_server_that_restarts_and_a_network_that_drops_lose_nothing(captured: Shop) -> None:
    proxy = DroppingProxy(captured.server.port)
    made = capture(captured.server.url(port=proxy.port), tables=["users"], name="through")
    captured.log.close()
    captured.log_path += "2"
    captured.log = ms.open(captured.log_path)
    try:
        made.start(captured.log)
        for n, first in enumerate(range(1000, 21_000, 5_000), 1):
            proxy.drop_after(100_000)
            rows = ",".join(f"({id}, 'somebody@example.org', 'b')" for id in range(first, first + 5_000))
            captured.sql(f"insert into users values {rows}")
            waiting(lambda n=n: proxy.drops == n)
        waiting(lambda: captured.log.version("users") >= 20_000)
        captured.server.stop()
        captured.server.start()
        captured.db = captured.connect()
        captured.sql("insert into users values (70000, 'after', '')", "delete from users where id < 1100")
        waiting(lambda: captured.changes()[-1][0] == "DELETE" and len(replay(captured.log, "users", ("id",))) == 19_901)
        made.stop()
        assert made.trouble is None
        kept(captured)
        runs = [run for run in captured.log.runs("users", types=["Change"]) if "sequence" in run.metadata]
        found = [(*run.metadata["position"], low) for run in runs for low, _ in run.metadata["sequence"]]
        assert found == sorted(set(found))
    finally:
        proxy.close()


def test_a_server_that_is_not_there_is_said_so_and_waited_for(captured: Shop) -> None:
    captured.server.stop()
    made = captured.capture("users", lock_timeout=0.2)
    with pytest.raises(ms.SourceUnavailable, match="cannot be reached"):
        made.catch_up(captured.log)
    captured.server.start()
    captured.db = captured.connect()
    made.catch_up(captured.log)
    kept(captured)


def test_two_captures_of_one_source_never_double_a_change(users: Shop) -> None:
    first, second = users.capture("users"), users.capture("users")
    first.start(users.log)
    users.sql("insert into users values (1, 'a', 'A')")
    second.start(users.log)
    users.sql("insert into users values (2, 'b', 'B')")
    waiting(lambda: first.error is not None)
    with pytest.raises(ms.ConsumerFenced):
        first.stop()
    users.sql("insert into users values (3, 'c', 'C')")
    second.stop()
    users.capture("users").catch_up(users.log)
    assert [after and after["id"] for _, _, after in users.changes()] == [1, 2, 3]


def test_two_captures_under_two_names_stand_side_by_side(users: Shop) -> None:
    users.sql("create table orders (id int primary key)")
    one, two = users.capture("users", name="one", server_id=77), users.capture("orders", name="two")
    one.start(users.log)
    two.start(users.log)
    users.sql("insert into users values (1, 'a', 'A')", "insert into orders values (1)")
    waiting(lambda: users.changes() and users.changes("orders"))
    assert "77" in str(users.rows("show slave hosts"))
    one.stop()
    two.stop()


def test_an_xa_transaction_stops_the_capture(users: Shop) -> None:
    users.capture("users").catch_up(users.log)
    users.sql("xa start 'x'", "insert into users values (1, 'a', 'A')", "xa end 'x'", "xa prepare 'x'", "xa commit 'x'")
    with pytest.raises(ms.CaptureError, match="two phases") as caught:
        users.capture("users").catch_up(users.log)
    assert "resync=True" in caught.value.hint
    users.capture("users").catch_up(users.log, resync=True)
    kept(users)
    users.sql("xa start 'y'", "insert into users values (2, 'b', 'B')", "xa end 'y'", "xa commit 'y' one phase")
    assert users.capture("users").catch_up(users.log) == 1
    kept(users)


def test_the_state_of_a_source_and_how_far_a_capture_is_behind(users: Shop) -> None:
    users.sql("create table bag (n int)")
    made = users.capture("users", "bag")
    made.catch_up(users.log)
    findings = made.source.check()
    assert [f for f in findings if f.level == "error"] == []
    assert any("bag has no key" in f.about for f in findings)
    position = users.log_position()
    before = made.source.backlog(None, position, 0, None)
    assert before is not None
    users.sql("insert into users values (1, repeat('a', 90), repeat('b', 5000))")
    after = made.source.backlog(None, position, 0, None)
    assert after is not None
    assert after.behind - before.behind > 5000
    assert after.kept >= after.behind
    missing = users.capture("nothing").source.check()
    assert any(f.level == "error" and "nothing" in f.about for f in missing)


def test_the_log_is_verified_against_the_source(users: Shop) -> None:
    users.sql("create table bag (n int, t enum('a','b'))", "insert into bag values (1, 'a'), (1, 'a'), (null, null)")
    users.sql("insert into users values " + ",".join(f"({n}, 'e{n}', 'n')" for n in range(500)))
    made = users.capture("users", "bag")
    made.catch_up(users.log)
    users.sql("update users set name = 'm' where id < 50", "delete from bag where n = 1 limit 1")
    made.catch_up(users.log)
    found = verify(made, users.log, chunk=64)
    assert found.ok, str(found)
    assert found.rows == 502
    users.sql("set sql_log_bin = 0", "update users set name = 'unseen' where id = 3", "set sql_log_bin = 1")
    found = verify(made, users.log)
    assert [difference.key for difference in found.differences] == [{"id": 3}]


def test_transaction_ids() -> None:
    domains = Domains.parse("0-1-100, 1-2-7")
    domains.add("0-3-101")
    assert str(domains) == "0-3-101,1-2-7"
    assert not str(Domains.parse(""))
    server = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
    found = Intervals.parse(f"{server}:1-5:7,\n{server.replace('3e', '4e')}:1")
    found.add(f"{server}:6")
    found.add(f"{server}:9")
    assert str(found) == f"{server}:1-7:9,{server.replace('3e', '4e')}:1"
    assert len(found.encoded()) == 8 + 2 * (16 + 8) + 3 * 16


class DroppingProxy:
    """Stands before a server, and drops a connection in the middle of what the server sends."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._left: int | None = None
        self.drops = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def drop_after(self, size: int) -> None:
        """Drop the connection that brings the server's total beyond so many bytes from now on."""
        self._left = size

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if counted and self._left is not None:
                    self._left -= len(data)
                    if self._left < 0:
                        self._left = None
                        self.drops += 1
                        target.sendall(data[: len(data) // 2])
                        break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
