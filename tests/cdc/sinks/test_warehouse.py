"""A warehouse holds the present rows and the whole history, each change once, in a DuckDB file and in folders."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import polars as pl
import pytest

import millstream as ms
from millstream.cdc import Json, SchemaChanged, Unchanged, sync

from ..following import NOON, Source, change, put, shape, until

USERS = shape(("id", "int"), ("email", "text"), ("bio", "text"))


def row(id: int, email: str, bio: Any = "") -> dict[str, Any]:
    return {"id": id, "email": email, "bio": bio}


class House:
    """A place for a warehouse, and one there."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.place = str(folder / ("house.duckdb" if kind == "duckdb" else "lake"))
        self.options: dict[str, Any] = {"format": "delta"} if kind == "delta" else {}
        self.warehouse = self.make()

    def make(self, **options: Any) -> ms.Warehouse:
        return ms.Warehouse(self.place, **self.options, **options)

    def follow(self, log: ms.Log, **options: Any) -> int:
        if options:
            self.warehouse = self.make(**options)
        followers = sync(log, "users", self.warehouse, start=False)
        count = followers.catch_up()
        assert followers.parked() == []
        return count

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        found = self.warehouse.current()
        return sorted(found.select(columns).rows() if columns else found.rows(), key=repr)


@pytest.fixture(params=["duckdb", "parquet", "delta"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    return House(tmp_path, request.param)


def test_present_rows_and_history_are_those_of_the_table(tmp_path: Path, house: House) -> None:
    source = Source(tmp_path)
    source.sql("INSERT INTO users VALUES (1, 'ann'), (2, 'bob'), (3, NULL)")
    assert house.follow(source.log) == 3
    assert house.rows() == source.rows()
    source.sql("UPDATE users SET email = 'new' WHERE id = 1", "DELETE FROM users WHERE id = 2")
    source.sql("UPDATE users SET id = 77 WHERE id = 3", "INSERT INTO users VALUES (4, 'd')")
    house.follow(source.log)
    assert house.rows() == sorted(source.rows(), key=repr)
    history = house.warehouse.history()
    assert history["position"].to_list() == [e.position for e in source.log.read("users", types=[ms.Change])]
    assert history["operation"].to_list() == [*["INSERT"] * 3, "UPDATE", "DELETE", "UPDATE", "INSERT"]
    assert history["before_email"].to_list() == [None, None, None, "ann", "bob", None, None]
    assert history["after_id"].to_list() == [1, 2, 3, 1, None, 77, 4]
    times = [e.event.timestamp for e in source.log.read("users", types=[ms.Change])]  # type: ignore[union-attr]
    assert [t.astimezone(UTC) for t in history["time"].to_list()] == times
    assert house.follow(source.log) == 0
    source.close()


def test_truncate_and_values_that_are_not_told(log: ms.Log, house: House) -> None:
    put(log, USERS, *(change("READ", None, row(i, "a", f"bio{i}"), USERS) for i in (1, 2, 3)))
    house.follow(log)
    put(log, USERS, change("UPDATE", None, row(1, "b", Unchanged), USERS))
    put(log, USERS, change("UPDATE", {"id": 2}, row(20, "c", Unchanged), USERS))
    put(log, USERS, change("INSERT", None, row(4, "d", "new"), USERS))
    put(log, USERS, change("UPDATE", None, row(4, "e", Unchanged), USERS))
    house.follow(log)
    assert house.rows() == sorted([(1, "b", "bio1"), (20, "c", "bio2"), (3, "a", "bio3"), (4, "e", "new")], key=repr)
    assert house.warehouse.history()["unchanged"].to_list()[3:] == [["bio"], ["bio"], [], ["bio"]]
    put(log, USERS, change("TRUNCATE", None, None, USERS))
    house.follow(log)
    assert house.rows() == []
    put(log, USERS, change("INSERT", None, row(9, "z"), USERS))
    house.follow(log)
    assert house.rows() == [(9, "z", "")]
    assert house.warehouse.history()["operation"].to_list()[-2:] == ["TRUNCATE", "INSERT"]


@pytest.mark.parametrize("kind", ["duckdb", "parquet"])
def test_a_folder_whose_name_looks_like_a_pattern_is_no_other(log: ms.Log, tmp_path: Path, kind: str) -> None:
    beside = tmp_path / "lakes1" / "lake"
    beside.mkdir(parents=True)
    (beside / "others.part").touch()
    (tmp_path / "lakes[1]").mkdir()
    house = House(tmp_path / "lakes[1]", kind)
    put(log, USERS, *(change("READ", None, row(i, "a"), USERS) for i in (1, 2)))
    assert house.follow(log) == 2
    house = House(tmp_path / "lakes[1]", kind)
    put(log, USERS, change("UPDATE", row(1, "a"), row(1, "b"), USERS))
    assert house.follow(log) == 1
    assert house.rows() == [(1, "b", ""), (2, "a", "")]
    assert house.warehouse.history().height == 3
    assert [path.name for path in beside.iterdir()] == ["others.part"]


def test_columns_that_come_go_and_are_renamed(log: ms.Log, house: House) -> None:
    put(log, USERS, *(change("READ", None, row(i, f"u{i}", "x"), USERS) for i in (1, 2)))
    new = shape(("id", "int"), ("mail", "text"), ("age", "int"))
    changed = SchemaChanged(
        table="users", columns=["id", "mail", "age"], added={"age": 18}, dropped=["bio"], renamed={"email": "mail"},
        timestamp=NOON,
    )  # fmt: skip
    put(log, new, changed, change("UPDATE", None, {"id": 2, "mail": "b", "age": 20}, new))
    house.follow(log)
    assert house.rows("id", "mail", "age") == [(1, "u1", 18), (2, "b", 20)]
    assert set(house.warehouse.current().columns) == {"id", "mail", "age"}
    history = house.warehouse.history()
    assert history["after_email"].to_list() == ["u1", "u2", None]
    assert history["after_mail"].to_list() == [None, None, "b"]


KINDS = [
    ("b", "bool", "", True),
    ("i", "int", "", -(2**63)),
    ("u", "uint", "", 2**64 - 1),
    ("f", "float", "", 0.1),
    ("d", "decimal", "numeric(10,2)", Decimal("12345678.90")),
    ("t", "text", "", "naïve 漢字 \U0001f333"),
    ("y", "bytes", "", bytes(range(256))),
    ("da", "date", "", date(1, 1, 1)),
    ("ts", "timestamp", "", datetime(2024, 1, 15, 10, 30, 0, 1)),
    ("tz", "timestamptz", "", datetime(2024, 1, 15, 10, 30, tzinfo=UTC)),
    ("l", "text[]", "", ["a", None, "ä"]),
]
TEXTS = [
    ("dd", "decimal", "numeric", Decimal("123456789012345678901234567890.0123456789"), None),
    ("id_", "uuid", "", UUID(int=7), str(UUID(int=7))),
    ("j", "json", "", Json('{"a": 1.00}'), '{"a": 1.00}'),
]


def test_every_kind_of_value_has_a_type(log: ms.Log, house: House) -> None:
    all = shape(("id", "int"), *(each[:3] for each in KINDS), *(each[:3] for each in TEXTS))
    values = {each[0]: each[3] for each in [*KINDS, *TEXTS]}
    put(log, all, change("INSERT", None, {"id": 1, **values}, all))
    put(log, all, change("INSERT", None, {"id": 2, **dict.fromkeys(values)}, all))
    house.follow(log)
    expected = {**values, **{name: text if text is not None else str(value) for name, _, _, value, text in TEXTS}}
    for frame, prefix in ((house.warehouse.current(), ""), (house.warehouse.history(), "after_")):
        first, second = frame.sort(prefix + "id").to_dicts()
        for name, value in expected.items():
            assert first[prefix + name] == value, name
            assert second[prefix + name] is None


def test_times_and_durations(log: ms.Log, tmp_path: Path) -> None:
    times = shape(("id", "int"), ("ti", "time"), ("du", "duration"))
    value = {"id": 1, "ti": clock(23, 59, 59, 999999), "du": timedelta(hours=30, microseconds=5)}
    put(log, times, change("INSERT", None, value, times))
    for kind in ("duckdb", "parquet"):
        house = House(tmp_path, kind)
        house.follow(log)
        found = house.warehouse.current().to_dicts()[0]
        assert found["ti"] == value["ti"]
        assert found["du"] == value["du"]


def test_what_a_type_cannot_hold_is_parked_until_the_column_is_made_text(log: ms.Log, house: House) -> None:
    odd = shape(("id", "int"), ("n", "decimal", "numeric(5,2)"), ("d", "date"))
    put(log, odd, change("INSERT", None, {"id": 1, "n": Decimal("1.50"), "d": date(2024, 1, 1)}, odd))
    put(log, odd, change("INSERT", None, {"id": 2, "n": Decimal("NaN"), "d": None}, odd))
    put(log, odd, change("INSERT", None, {"id": 3, "n": None, "d": "infinity"}, odd))
    put(log, odd, change("INSERT", None, {"id": 4, "n": Decimal("999.99"), "d": None}, odd))
    followers = sync(log, "users", house.warehouse, start=False)
    assert followers.catch_up() == 2
    assert ["kinds=" in p.error for p in followers.parked()] == [True, True]
    assert house.rows("id") == [(1,), (4,)]
    if house.kind == "delta":
        return  # a Delta table's columns keep their types
    text = sync(log, "users", house.make(kinds={"n": "text", "d": "text"}), start=False)
    text.retry()
    assert text.catch_up() == 2
    expected = [("1.50", "2024-01-01"), ("NaN", None), (None, "infinity"), ("999.99", None)]
    assert house.rows("n", "d") == sorted(expected, key=repr)


def test_a_parked_change_that_is_retried_late_is_in_rows_and_history_once(log: ms.Log, house: House) -> None:
    moods = ["refuse"]

    class Moody(ms.Warehouse):
        def apply(self, changes: Any, db: Any) -> None:
            if any((c.after or {}).get("id") == 2 for c, _ in changes) and moods == ["refuse"]:
                raise ms.Rejected("not now")
            super().apply(changes, db)
            if moods == ["die after"]:
                # As a process does that is killed before the log is told.
                moods.clear()
                raise ms.SinkUnavailable("killed")

    for i in (1, 2, 3):
        put(log, USERS, change("INSERT", None, row(i, "a"), USERS))
    put(log, USERS, change("UPDATE", row(2, "a"), row(2, "b"), USERS))
    house.warehouse = Moody(house.place, **house.options)
    followers = sync(log, "users", house.warehouse, start=False)
    followers.catch_up()
    assert house.rows("id") == [(1,), (3,)]
    assert [p.position for p in followers.parked()] == [2, 4]
    followers.retry()
    moods[:] = ["die after"]
    with pytest.raises(ms.SinkUnavailable):
        followers.catch_up()
    assert followers.catch_up() == 2
    assert followers.parked() == []
    assert house.rows("id", "email") == [(1, "a"), (2, "b"), (3, "a")]
    assert house.warehouse.history()["position"].to_list() == [1, 2, 3, 4]


def test_tables_without_a_key_keep_equal_rows(tmp_path: Path, house: House) -> None:
    source = Source(tmp_path, "CREATE TABLE users (a, b)")
    source.sql("INSERT INTO users VALUES (1, 'x'), (1, 'x'), (1, NULL), (2, 'y')")
    source.sql("DELETE FROM users WHERE rowid = 1", "UPDATE users SET b = 'z' WHERE b IS NULL")
    house.follow(source.log)
    assert house.rows("a", "b") == sorted(source.rows("select a, b from users"), key=repr)
    source.sql("DELETE FROM users WHERE a = 2")
    house.follow(source.log)
    assert house.rows("a", "b") == sorted(source.rows("select a, b from users"), key=repr)
    source.close()


def test_columns_of_sqlite_have_the_type_that_holds_all_their_values(tmp_path: Path, house: House) -> None:
    source = Source(tmp_path, "CREATE TABLE users (id INTEGER PRIMARY KEY, a, b, c)")
    source.sql("INSERT INTO users VALUES (1, 1, 1, NULL), (2, NULL, 2, NULL)")
    house.follow(source.log)
    if house.kind == "delta":
        return  # a Delta table's columns keep their types
    source.sql("INSERT INTO users VALUES (3, 2.5, 'x', 7)")
    house.follow(source.log)
    assert house.warehouse.current().sort("id").to_dicts() == [
        {"id": 1, "a": 1.0, "b": "1", "c": None},
        {"id": 2, "a": None, "b": "2", "c": None},
        {"id": 3, "a": 2.5, "b": "x", "c": 7},
    ]
    source.close()


def test_a_duckdb_file_can_be_read_by_others_when_all_is_in_it(tmp_path: Path) -> None:
    source = Source(tmp_path)
    place = str(tmp_path / "house.duckdb")
    with sync(source.log, "users", ms.Warehouse(place, table="people")) as followers:
        source.sql("INSERT INTO users VALUES (1, 'a')")
        until(lambda: list(followers.positions.values()) == [source.log.head])
        code = f"import duckdb; print(duckdb.connect({place!r}, read_only=True).sql('from people').fetchall())"
        until(lambda: b"[(1, 'a')]" in subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
    source.close()


def test_a_duckdb_file_that_another_program_holds_is_waited_for(log: ms.Log, tmp_path: Path) -> None:
    place = str(tmp_path / "house.duckdb")
    code = f"import duckdb, sys; c = duckdb.connect({place!r}); print('open', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == b"open\n"
    put(log, USERS, change("INSERT", None, row(1, "a"), USERS))
    followers = sync(log, "users", ms.Warehouse(place), start=False)
    with pytest.raises(ms.SinkUnavailable, match="cannot be opened"):
        followers.catch_up()
    other.stdin.close()
    other.wait(10)
    other.stdout.close()
    assert followers.catch_up() == 1


def test_parquet_files_are_laid_out_by_day_and_read_by_duckdb(log: ms.Log, tmp_path: Path) -> None:
    house = House(tmp_path, "parquet")
    put(log, USERS, change("INSERT", None, row(1, "a"), USERS))
    house.follow(log)
    files = sorted(str(p.relative_to(tmp_path / "lake")) for p in (tmp_path / "lake").rglob("*.parquet"))
    assert files == [
        "users/current.parquet",
        f"users/history/day=2024-01-15/{1:019d}-{1:019d}.parquet",
    ]
    query = f"select day::varchar, position, operation, after_email from '{tmp_path}/lake/users/history/*/*.parquet'"
    assert duckdb.connect().execute(query).fetchall() == [("2024-01-15", 1, "INSERT", "a")]


def test_a_lake_gathers_changes_and_writes_them_when_it_is_time(tmp_path: Path) -> None:
    source = Source(tmp_path)
    with sync(source.log, "users", ms.Warehouse(str(tmp_path / "lake"), refresh=3600)) as followers:
        for i in range(20):
            source.sql(f"INSERT INTO users VALUES ({i}, 'a')")
        until(lambda: list(followers.positions.values()) == [source.log.head])
        assert list((tmp_path / "lake").rglob("*.parquet")) == []
    assert len(list((tmp_path / "lake").rglob("*.parquet"))) == 2
    assert pl.read_parquet(tmp_path / "lake" / "users" / "current.parquet").height == 20
    source.close()


def test_files_that_a_killed_process_has_left_do_not_count(log: ms.Log, tmp_path: Path) -> None:
    house = House(tmp_path, "parquet")
    put(log, USERS, change("INSERT", None, row(1, "a"), USERS))
    house.follow(log)
    day = tmp_path / "lake/users/history/day=2024-01-15"
    orphan = day / f"{2:019d}-{3:019d}.parquet"
    orphan.write_bytes((day / f"{1:019d}-{1:019d}.parquet").read_bytes())
    (day / "x.parquet.123.part").write_bytes(b"half")
    put(log, USERS, change("INSERT", None, row(2, "b"), USERS))
    house.follow(log)
    assert not orphan.exists()
    assert not list(day.glob("*.part"))
    assert house.warehouse.history()["position"].to_list() == [1, 2]


def test_a_warehouse_of_another_log_or_of_someone_else_is_refused(log: ms.Log, tmp_path: Path, house: House) -> None:
    put(log, USERS, change("INSERT", None, row(1, "a"), USERS))
    house.follow(log)
    with ms.open(str(tmp_path / "other.db")) as other:
        put(other, USERS, change("INSERT", None, row(1, "b"), USERS))
        with pytest.raises(ms.UsageError, match="another log"):
            house.follow(other)
    if house.kind == "duckdb":
        duckdb.connect(house.place).execute("create table mine (id int)").close()
        put(log, USERS, change("INSERT", None, row(1, "b"), USERS, "people"), table="people")
        with pytest.raises(ms.UsageError, match="is there already"):
            sync(log, "people", house.make(table="mine"), start=False).catch_up()


@pytest.mark.parametrize("name", ["größe", "a/b [1]", "100%", "~", ".."])
def test_a_table_may_have_any_name(log: ms.Log, house: House, name: str) -> None:
    put(log, USERS, change("INSERT", None, row(1, "a"), USERS))
    house.follow(log, table=name)
    put(log, USERS, change("INSERT", None, row(2, "b"), USERS))
    house.follow(log, table=name)
    assert house.rows("id") == [(1,), (2,)]
    assert house.warehouse.history()["position"].to_list() == [1, 2]


def test_unusable_places_are_refused() -> None:
    for place, options in (
        ("", {}),
        ("s3://bucket/lake", {}),
        ("x.duckdb", {"format": "delta"}),
        ("lake", {"format": "csv"}),
        ("lake[1]", {"format": "delta"}),
        ("100%/lake", {"format": "delta"}),
    ):
        with pytest.raises(ms.UsageError):
            ms.Warehouse(place, **options)  # type: ignore[arg-type]


FOLLOWS = """
import sys
import millstream as ms
log = ms.open(sys.argv[1])
ms.sync(log, "users", ms.Warehouse(sys.argv[2], format=sys.argv[3], size=7, refresh=0.05)).run()
"""


def test_kill_9_in_mid_batch_neither_loses_nor_doubles_a_change(tmp_path: Path, house: House) -> None:
    source = Source(tmp_path, "CREATE TABLE users (n INTEGER, email TEXT)")
    command = [sys.executable, "-c", FOLLOWS, source.log_path, house.place, house.options.get("format", "parquet")]
    deadline = time.monotonic() + 5
    kills, n = 0, 0
    child = subprocess.Popen(command)
    dies = time.monotonic() + 1.3
    while time.monotonic() < deadline:
        for _ in range(10):
            n += 1
            source.db.execute("INSERT INTO users VALUES (?, 'x')", (n % 50,))
            if n % 3 == 0:
                source.db.execute("DELETE FROM users WHERE rowid = (SELECT min(rowid) FROM users)")
        source.capture.catch_up(source.log)
        if time.monotonic() > dies:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            child = subprocess.Popen(command)
            dies = time.monotonic() + random.uniform(0.9, 1.6)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    house.follow(source.log)
    assert kills >= 2
    positions = [e.position for e in source.log.read("users", types=[ms.Change])]
    assert house.warehouse.history()["position"].to_list() == positions
    query = "select n, count(*) from users group by n order by n"
    counted = house.warehouse.current().group_by("n").len().sort("n").rows()
    assert counted == source.rows(query)
    source.close()
