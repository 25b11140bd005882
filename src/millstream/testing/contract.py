"""The contract of a log, as tests: subclass `LogContract`, say how to open one, and run pytest.

Example:
    class TestMyStore(LogContract):
        def open(self, **options):
            return my_open(self.folder / "log", **options)
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import polars as pl
import pytest

from .. import aio, errors
from ..events import Draft, Event, Plain
from ..log import Log
from ..storage.base import Matching
from .clock import FakeClock


class Colour(Enum):
    RED = "red"


class Address(msgspec.Struct, frozen=True):
    street: str
    number: int


class Everything(Event, type="contract.Everything"):
    """An event with a field of every kind that is promised to come back as it went in."""

    amount: Decimal
    at: datetime
    day: date
    id: UUID
    raw: bytes
    colour: Colour
    address: Address | None
    many: list[int] = [1, 2]
    mapping: dict[str, float] = {}


class Maybe(Event, type="contract.Maybe"):
    x: float | None = None


class Counted(Event, type="contract.Counted"):
    n: int
    by: str = ""


def click_frame(rows: int, start: int = 0) -> pl.DataFrame:
    """A frame of clicks, one a second from 2024-01-01 on."""
    return pl.DataFrame({"user": range(start, start + rows)}).with_columns(
        ts=pl.datetime(2024, 1, 1, time_zone="UTC") + pl.duration(seconds=pl.col("user")),
        page=pl.format("/p/{}", pl.col("user") % 7),
    )


class LogContract:
    """What every store of a log promises. One hook: `open`."""

    folder: Path

    @pytest.fixture(autouse=True)
    def _in_folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    @pytest.fixture
    def log(self) -> Iterator[Log]:
        log = self.open()
        yield log
        log.close()

    def open(self, **options: Any) -> Log:
        """Hook: open the log of this test; the same one each time, where it outlives being closed."""
        raise NotImplementedError

    # --- append ---------------------------------------------------------------------------------------

    def test_the_first_event_has_position_and_version_one(self, log: Log) -> None:
        assert log.head == 0
        receipt = log.append("a", Plain("T", {"n": 1}))
        assert (receipt.first, receipt.position, receipt.count, receipt.version) == (1, 1, 1, 1)
        assert log.head == 1
        [event] = log.read()
        assert (event.position, event.version, event.stream, event.type, event.data) == (1, 1, "a", "T", {"n": 1})

    def test_positions_are_gapless_and_versions_count_within_the_stream(self, log: Log) -> None:
        for n in range(10):
            log.append(f"s-{n % 3}", [Counted(n=n), Plain("Other", {})])
        events = list(log.read())
        assert [e.position for e in events] == list(range(1, 21))
        for name in ("s-0", "s-1", "s-2"):
            assert [e.version for e in events if e.stream == name] == list(range(1, log.version(name) + 1))

    def test_typed_values_come_back_as_they_went_in(self, log: Log) -> None:
        event = Everything(
            amount=Decimal("1.10"),
            at=datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
            day=date(2024, 2, 29),
            id=UUID(int=7),
            raw=b"\x00\xff",
            colour=Colour.RED,
            address=Address("Ünter den Linden \U0001f333", 1),
            mapping={"x": 0.1},
        )
        log.append("e", [event, event.replace(address=None)])
        assert [e.event for e in log.read("e")] == [event, event.replace(address=None)]

    def test_order_within_an_append_is_never_changed(self, log: Log) -> None:
        events = [Counted(n=1), Plain("B", {"n": 2}), Counted(n=3), Counted(n=4), Plain("B", {"n": 5})]
        log.append("s", events)
        assert [e.data["n"] for e in log.read("s")] == [1, 2, 3, 4, 5]
        assert [run.count for run in log.runs("s")] == [1, 1, 2, 1]

    def test_an_unknown_type_is_read_as_plain_data(self, log: Log) -> None:
        log.append("s", Plain("NobodyKnows", {"deep": {"list": [1, None, "x"]}}))
        [event] = log.read("s")
        assert event.event == Plain("NobodyKnows", {"deep": {"list": [1, None, "x"]}})

    def test_appending_nothing_writes_nothing(self, log: Log) -> None:
        log.append("s", Plain("T", {}))
        receipt = log.append("s", [])
        assert (receipt.count, receipt.position, log.head, receipt.version) == (0, 1, 1, 1)
        log.append("s", pl.DataFrame({"a": pl.Series([], dtype=pl.Int64)}), type="T")
        assert log.head == 1

    def test_an_expected_version_that_is_wrong_conflicts_and_writes_nothing(self, log: Log) -> None:
        log.append("s", Plain("T", {}), expect=0)
        with pytest.raises(errors.VersionConflict) as raised:
            log.append("s", [Plain("T", {}), Plain("T", {})], expect=0)
        assert (raised.value.stream, raised.value.expected, raised.value.actual) == ("s", 0, 1)
        assert log.head == 1
        log.append("s", Plain("T", {}), expect=1)

    def test_an_append_id_takes_effect_once(self, log: Log) -> None:
        first = log.append("s", Plain("T", {"a": 1}), id="k", expect=0)
        assert log.append("s", Plain("T", {"a": 1}), id="k", expect=0) == first
        assert log.head == 1
        with pytest.raises(errors.IdReused):
            log.append("s", Plain("T", {"a": 2}), id="k", expect=0)

    def test_an_append_id_is_kept_when_nothing_is_written(self, log: Log) -> None:
        first = log.commit(id="nothing", digest=b"x")
        log.append("s", Plain("T", {}))
        assert log.commit(id="nothing", digest=b"x") == first
        with pytest.raises(errors.IdReused):
            log.commit(id="nothing", digest=b"y")

    def test_metadata_carries_correlation_and_causation(self, log: Log) -> None:
        log.append("s", Plain("T", {}), metadata={"user": "ann"}, correlation="c1", causation="e0")
        [event] = log.read("s")
        assert event.metadata == {"user": "ann", "correlation": "c1", "causation": "e0"}
        assert (event.correlation, event.causation) == ("c1", "e0")

    def test_tags_that_are_one_string_are_refused_rather_than_taken_apart(self, log: Log) -> None:
        for events, tags in ((Plain("T", {}), "course:1"), (Draft(Plain("T", {}), tags="course:1"), ())):
            with pytest.raises(errors.InvalidEvent):
                log.append("s", events, tags=tags)
        assert log.head == 0

    def test_an_effective_time_stands_beside_the_recorded_one(self, log: Log) -> None:
        log.append("s", [Draft(Plain("T", {}), effective="2020-01-01T00:00:00Z"), Plain("T", {})])
        assert [e.effective for e in log.read("s")] == [datetime(2020, 1, 1, tzinfo=UTC), None]

    def test_several_streams_commit_together_or_not_at_all(self, log: Log) -> None:
        with log.transaction() as tx:
            tx.append("a", Plain("T", {}), expect=0)
            tx.append("b", [Plain("T", {}), Plain("T", {})], expect=0)
            tx.append("a", Plain("T", {}), expect=1)
        assert (tx.receipt.count, log.version("a"), log.version("b")) == (4, 2, 2)
        with pytest.raises(errors.VersionConflict):
            with log.transaction() as tx:
                tx.append("a", Plain("T", {}), expect=2)
                tx.append("b", Plain("T", {}), expect=0)
        assert log.head == 4

    def test_rows_and_events_of_a_transaction_commit_together_or_not_at_all(self, log: Log) -> None:
        with log.transaction() as tx:
            tx.db.execute("create table t (n integer primary key)")
            tx.db.execute("insert into t values (1)")
            tx.append("a", Plain("T", {}))
        with pytest.raises(RuntimeError):
            with log.transaction() as tx:
                tx.append("a", Plain("T", {}))
                tx.db.execute("insert into t values (2)")
                raise RuntimeError
        with pytest.raises(errors.ConstraintViolated):
            with log.transaction() as tx:
                tx.append("a", Plain("T", {}))
                tx.db.execute("insert into t values (1)")
        with pytest.raises(errors.VersionConflict):
            with log.transaction() as tx:
                tx.db.execute("insert into t values (3)")
                tx.append("a", Plain("T", {}), expect=7)
        with log.connect() as db:
            assert db.query("select n from t") == [{"n": 1}]
        assert log.head == 1

    def test_what_a_thread_would_commit_beside_its_own_transaction_is_refused(self, log: Log) -> None:
        with log.transaction() as tx:
            tx.append("a", Plain("T", {}))
            for beside in (lambda: log.append("b", Plain("T", {})), lambda: log.commit(), log.transaction().__enter__):
                with pytest.raises(errors.UsageError, match="inside a transaction of the same log"):
                    beside()
            other = threading.Thread(target=log.append, args=("c", Plain("T", {})))
            other.start()
            other.join()
        assert [e.stream for e in log.read()] == ["c", "a"]
        log.append("b", Plain("T", {}))

    @pytest.mark.parametrize(
        "statement",
        ["commit", "end", "rollback", "begin", "savepoint a", "attach ':memory:' as other", "delete from {runs}",
         "update {runs} set body = null", "insert into {streams} (name) values ('x')", "drop table {bodies}",
         "drop table if exists {appends}", "drop view {events}", "alter table {runs} add column x integer",
         "create trigger t after insert on {runs} begin select 1; end", "; commit", "/* */ commit"],
    )  # fmt: skip
    def test_sql_inside_a_commit_cannot_touch_the_log_itself(self, log: Log, statement: str) -> None:
        log.append("s", Plain("T", {}), id="k")
        with log.connect() as db:
            tables = ("runs", "streams", "bodies", "appends", "events")
            statement = statement.format(**{table: db.own(table) for table in tables})
        with pytest.raises(errors.MillstreamError):
            with log.transaction() as tx:
                tx.append("s", Plain("T", {}))
                tx.db.execute(statement)

        def work(db: Any, receipt: Any) -> None:
            db.execute("create table mine (n integer)")
            db.execute(statement)

        with pytest.raises(errors.MillstreamError):
            log.commit([log.stage("s", Plain("T", {}))], work=work)

        def handler(db: Any, runs: Any) -> None:
            db.execute(statement)

        log.inline("bad", None, handler)
        with pytest.raises(errors.MillstreamError):
            log.append("s", Plain("T", {}))
        log.store.remove_inline("bad")
        assert log.append("s", Plain("T", {})).position == 2
        with log.connect() as db:
            assert db.find_table("mine") is None
        log.verify()

    def test_a_connection_to_read_with_writes_nothing(self, log: Log) -> None:
        with log.transaction() as tx:
            tx.db.execute("create table t (n integer)")
            tx.append("a", Plain("T", {}))
        with log.connect() as db:
            runs = db.own("runs")
        for statement in (f"delete from {runs}", "insert into t values (1)", "create table u (n integer)"):
            with pytest.raises(errors.MillstreamError):
                with log.connect() as db:
                    db.execute(statement)
        with pytest.raises(errors.MillstreamError):
            with log.connect() as db:
                db.executemany("insert into t values (?)", [(1,), (2,)])
        with log.connect() as db:
            assert db.query("select * from t") == []
            log.append("a", Plain("T", {}))
        assert log.verify().position == 2

    def test_a_transaction_with_an_id_takes_effect_once_with_its_rows(self, log: Log) -> None:
        receipts = []
        for _ in range(2):
            with log.transaction(id="once") as tx:
                tx.db.execute("create table if not exists t (n integer)")
                tx.db.execute("insert into t values (1)")
                tx.append("a", Plain("T", {}))
            receipts.append(tx.receipt)
        assert receipts[0] == receipts[1]
        with log.connect() as db:
            assert db.query("select count(*) as n from t") == [{"n": 1}]

    def test_an_append_inside_an_open_transaction_of_the_same_thread_is_refused(self, log: Log) -> None:
        with log.transaction() as tx:
            tx.db.execute("create table t (n integer)")
            with pytest.raises(errors.UsageError):
                log.append("a", Plain("T", {}))
            tx.append("a", Plain("T", {}))
        assert log.head == 1

    def test_a_guarded_append_fails_when_a_matching_event_is_there(self, log: Log) -> None:
        log.append("c", Plain("Enrolled", {}), tags=["course:1", "student:1"])
        log.append("c", Plain("Enrolled", {}), tags=["course:2", "student:1"])
        both = Matching(types=("Enrolled",), tags=("course:1", "student:1"))
        with pytest.raises(errors.ConditionFailed) as raised:
            log.append("c", Plain("Enrolled", {}), unless=both)
        assert raised.value.position == 1
        log.append("c", Plain("Enrolled", {}), unless=Matching(tags=("course:1", "student:2")))
        log.append("c", Plain("Enrolled", {}), unless=Matching(types=("Other",)))
        log.append("c", Plain("Enrolled", {}), unless=Matching(types=("Enrolled",), after=log.head))
        with pytest.raises(errors.ConditionFailed):
            log.append("c", Plain("Enrolled", {}), unless=Matching(types=("Other",)) | both)
        assert log.head == 5

    def test_a_guard_takes_classes_and_refuses_what_would_guard_nothing(self, log: Log) -> None:
        log.append("c", Counted(n=1))
        with pytest.raises(errors.ConditionFailed):
            log.append("c", Counted(n=2), unless=Matching(types=[Counted]))
        for bad in ({"types": "contract.Counted"}, {"tags": "a"}, {"after": "1"}, {"after": -1}):
            with pytest.raises(errors.UsageError):
                Matching(**bad)

    def test_a_guard_sees_a_run_that_reaches_past_its_position(self, log: Log) -> None:
        log.append("c", [Plain("A", {}), Plain("A", {}), Plain("A", {})], tags=["x"])
        with pytest.raises(errors.ConditionFailed):
            log.append("c", Plain("B", {}), unless=Matching(tags=("x",), after=2))
        log.append("c", Plain("B", {}), unless=Matching(tags=("x",), after=3))

    def test_reading_by_query_finds_what_it_matches_in_order_each_once(self, log: Log) -> None:
        log.append("c-1", [Plain("A", {}), Plain("A", {}), Plain("B", {})], tags=["x", "y"])
        log.append("c-2", Plain("A", {}), tags=["x"])
        log.append("d-1", Plain("B", {}), tags=["y"])

        def found(stream: str | None, query: Matching, **options: Any) -> list[int]:
            return [e.position for e in log.read(stream, matching=query, **options)]

        assert found(None, Matching()) == [1, 2, 3, 4, 5]
        assert found(None, Matching(tags=("x",))) == [1, 2, 3, 4]
        assert found(None, Matching(tags=("x", "y"))) == [1, 2, 3]
        assert found(None, Matching(types=("B",), tags=("y",))) == [3, 5]
        assert found(None, Matching(types=("B",)) | Matching(tags=("x",), after=1)) == [2, 3, 4, 5]
        assert found(None, Matching(tags=("x",)), backwards=True, limit=2) == [4, 3]
        assert found(None, Matching(tags=("x",)), after=1, until_position=4) == [2, 3]
        assert found("c-1", Matching(types=("A",))) == [1, 2]
        assert found("c-1", Matching(tags=("x",)), since_version=3) == [3]
        assert found("c-*", Matching(tags=("y",))) == [1, 2, 3]
        assert found(None, Matching(tags=("none",))) == []
        assert found("none", Matching()) == []
        with pytest.raises(errors.UsageError):
            log.read(matching=("x",))  # type: ignore[arg-type]

    def test_an_event_that_could_not_be_read_back_is_refused(self, log: Log) -> None:
        for bad in (Counted(n="one"), Counted(n=1.5), Counted(n=None)):  # type: ignore[arg-type]
            with pytest.raises(errors.InvalidEvent, match="fit"):
                log.append("s", [Counted(n=1), bad])
        assert log.head == 0

    def test_a_receipt_stands_for_its_position(self, log: Log) -> None:
        receipt = log.append("s", [Counted(n=1), Counted(n=2)])
        log.append("s", Counted(n=3))
        assert [e.data["n"] for e in log.read(after=receipt)] == [3]
        assert [e.data["n"] for e in log.follow(after=receipt, timeout=0.01)] == [3]

    def test_tags_come_back_sorted_and_once(self, log: Log) -> None:
        log.append("s", [Draft(Plain("T", {}), tags=["b", "a", "b"]), Plain("T", {})], tags=["z"])
        assert [e.tags for e in log.read("s")] == [("a", "b", "z"), ("z",)]

    def test_a_closed_stream_takes_no_more_and_stays_readable(self, log: Log) -> None:
        log.append("s", Plain("T", {}))
        log.close_stream("s", reason="moved")
        with pytest.raises(errors.StreamClosed):
            log.append("s", Plain("T", {}))
        assert [e.type for e in log.read("s")] == ["T", "StreamClosed"]
        assert log.stream("s").closed
        with pytest.raises(errors.StreamNotFound):
            log.close_stream("never")

    @pytest.mark.parametrize("name", ["", "a\nb", "a\x00b", "x" * 513, "é" * 257, "a*", "\ud800", 7, None, "\x85"])
    def test_a_bad_stream_name_is_refused(self, log: Log, name: Any) -> None:
        with pytest.raises(errors.InvalidStreamName):
            log.append(name, Plain("T", {}))
        assert log.head == 0

    @pytest.mark.parametrize("name", ["ä-ö", "x" * 512, "a b", "\U0001f333", "a'b\"c", "a%b_c", "-", "a-"])
    def test_an_odd_but_printable_stream_name_works(self, log: Log, name: str) -> None:
        log.append(name, Plain("T", {"a": 1}))
        assert [e.stream for e in log.read(name)] == [name]
        assert [s.name for s in log.streams()] == [name]

    @pytest.mark.parametrize(
        "bad",
        [
            object(),
            1,
            "text",
            b"bytes",
            {"a": 1},
            [Plain("T", {}), 3],
            Plain("T", {"x": object()}),
            Plain("", {}),
            Plain("T", [1]),  # type: ignore[arg-type]
            Plain("T", {"x": "\ud800"}),
            None,
        ],
    )
    def test_what_is_not_an_event_is_refused_and_the_log_stays_usable(self, log: Log, bad: Any) -> None:
        with pytest.raises(errors.InvalidEvent):
            log.append("s", bad)
        assert log.head == 0
        assert log.append("s", Plain("T", {})).position == 1

    def test_what_cannot_be_read_back_is_refused(self, log: Log) -> None:
        nan = float("nan")
        for bad in (
            Plain("T", {"x": nan}),
            Plain("T", {"x": [1, {"y": float("inf")}]}),
            Plain("T", {"_time": 1}),
            Plain("T", {"x": msgspec.Raw(b"{nonsense")}),
            Maybe(x=nan),
        ):
            with pytest.raises(errors.InvalidEvent):
                log.append("s", [Plain("T", {}), bad])
        for options in ({"metadata": {"x": nan}}, {"metadata": "abc"}, {"tags": 7}, {"unless": "x"}, {"tags": "abc"}):
            with pytest.raises(errors.UsageError):
                log.append("s", Plain("T", {}), **options)
        for draft in (Draft(Plain("T", {}), tags=7), Draft(Plain("T", {}), metadata="abc")):  # type: ignore[arg-type]
            with pytest.raises(errors.InvalidEvent):
                log.append("s", draft)
        assert log.head == 0
        log.append("s", [Plain("T", {"x": msgspec.Raw(b'{"a":\n 1}')}), Plain("T", {"x": None})])
        assert [e.data for e in log.read("s")] == [{"x": {"a": 1}}, {"x": None}]

    def test_a_handler_that_reads_and_fails_leaves_no_trace_in_later_reads(self, log: Log) -> None:
        def handler(db: Any, runs: Any) -> None:
            list(log.read())
            if runs[0].type == "G":
                raise RuntimeError

        log.inline("reads", None, handler)
        with pytest.raises(RuntimeError):
            log.append("g-1", [Plain("G", {"g": 1}), Plain("G", {"g": 2})])
        log.append("h-1", [Plain("H", {"h": 1}), Plain("H", {"h": 2})])
        assert [(e.stream, e.type, e.data) for e in log.read()] == [
            ("h-1", "H", {"h": 1}),
            ("h-1", "H", {"h": 2}),
        ]

    def test_a_retry_by_id_may_expect_what_its_first_try_has_made(self, log: Log) -> None:
        first = log.append("s", Plain("T", {}), id="k", expect=0)
        assert log.append("s", Plain("T", {}), id="k", expect=1) == first

    def test_a_transaction_is_used_once(self, log: Log) -> None:
        tx = log.transaction()
        with tx:
            tx.append("s", Plain("T", {}))
        with pytest.raises(errors.UsageError):
            with tx:
                pass
        assert log.head == 1

    def test_closing_beside_coroutines_answers_every_one_of_them(self, log: Log) -> None:
        async def main() -> list[Any]:
            asynchronous = aio.Log(log)
            tasks = [asyncio.ensure_future(asynchronous.append("s", Counted(n=n))) for n in range(200)]
            await asyncio.sleep(0.005)
            closing = asyncio.ensure_future(asynchronous.close())
            answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
            await closing
            return answers

        answers = asyncio.run(main())
        assert all(hasattr(answer, "position") or isinstance(answer, errors.LogClosed) for answer in answers)

    # --- frames ---------------------------------------------------------------------------------------

    def test_a_frame_comes_back_as_it_went_in(self, log: Log) -> None:
        frame = pl.DataFrame(
            {
                "i": [1, None, 3],
                "f": [1.5, float("nan"), None],
                "s": ["a", "ä\U0001f333", None],
                "b": [True, None, False],
                "raw": [b"\x00", b"", None],
                "d": [Decimal("1.10"), None, Decimal("-2")],
                "day": [date(2024, 1, 1), None, date(1900, 1, 1)],
                "list": [[1, 2], [], None],
                "deep": [{"a": 1, "b": "x"}, {"a": None, "b": "y"}, None],
                "nothing": [None, None, None],
            }
        )
        receipt = log.append("f", frame, type="Row")
        assert receipt.count == 3
        assert log.scan("f").collect().equals(frame)
        assert [e.data["s"] for e in log.read("f")] == ["a", "ä\U0001f333", None]
        log.verify()

    def test_a_long_frame_is_cut_into_runs_and_scanned_whole(self, log: Log) -> None:
        frame = click_frame(150_000)
        log.append("clicks", frame, type="Click")
        assert [run.count for run in log.runs("clicks")] == [65_536, 65_536, 18_928]
        assert log.scan("clicks").collect().equals(frame)
        assert log.scan("clicks").select(pl.len()).collect().item() == 150_000
        assert [e.data["user"] for e in log.read("clicks", since_version=65_536, limit=3)] == [65_535, 65_536, 65_537]

    def test_columns_may_come_and_go_between_frames(self, log: Log) -> None:
        log.append("f", pl.DataFrame({"a": [1], "b": ["x"]}), type="Row")
        log.append("f", pl.DataFrame({"a": [2], "c": [1.5]}), type="Row")
        assert log.scan("f").collect().rows() == [(1, "x", None), (2, None, 1.5)]

    def test_a_type_is_widened_where_nothing_is_lost_and_refused_otherwise(self, log: Log) -> None:
        log.append("f", pl.DataFrame({"a": pl.Series([1], dtype=pl.Int16)}), type="Row")
        log.append("f", pl.DataFrame({"a": [2**40]}), type="Row")
        assert log.scan("f").collect()["a"].to_list() == [1, 2**40]
        with pytest.raises(errors.SchemaConflict) as raised:
            log.append("f", pl.DataFrame({"a": ["text"]}), type="Row")
        assert (raised.value.stored, raised.value.given) == ("Int64", "String")
        assert log.head == 2

    def test_a_scan_of_columns_that_few_frames_have_keeps_every_row(self, log: Log) -> None:
        log.append("f", pl.DataFrame({"a": [1, 2, 3]}), type="Row")
        log.append("f", pl.DataFrame({"a": [4, 5], "c": [1, 2]}), type="Row")
        whole = log.scan("f", envelope=True).collect()
        assert whole["c"].to_list() == [None, None, None, 1, 2]
        for columns in (["c"], ["_position", "c"], ["_type"], ["c", "a"]):
            assert log.scan("f", envelope=True).select(columns).collect().equals(whole.select(columns))

    def test_what_a_stream_accepts_does_not_depend_on_the_order_of_others(self, log: Log) -> None:
        def frame(dtype: Any) -> pl.DataFrame:
            return pl.DataFrame({"a": pl.Series([1], dtype=dtype)})

        log.append("sensor-b", frame(pl.Int8), type="Row")
        for dtype in (pl.UInt32, pl.Float64, pl.Int8):
            log.append("sensor-a", frame(dtype), type="Row")
        assert log.scan("sensor-a").collect()["a"].to_list() == [1.0, 1.0, 1.0]
        with pytest.raises(errors.SchemaConflict, match="sensor-a"):
            log.append("sensor-a", frame(pl.Int64), type="Row")
        log.append("sensor-a", frame(pl.Int16), type="Other")

    def test_dictionaries_of_strings_are_text_at_any_depth(self, log: Log) -> None:
        frame = pl.DataFrame({"l": [["b", "a"]], "s": [{"x": "b"}]}).cast(
            {"l": pl.List(pl.Categorical), "s": pl.Struct({"x": pl.Categorical})}
        )
        log.append("f", frame, type="Row")
        log.append("f", pl.DataFrame({"l": [["c"]], "s": [{"x": "c"}]}), type="Row")
        assert log.scan("f").collect().rows() == [(["b", "a"], {"x": "b"}), (["c"], {"x": "c"})]
        log.verify()

    def test_a_frame_with_python_objects_is_refused(self, log: Log) -> None:
        with pytest.raises(errors.UnsupportedColumn):
            log.append("f", pl.DataFrame({"a": [object()]}), type="Row")
        with pytest.raises(errors.InvalidEvent):
            log.append("f", pl.DataFrame({"a": [1]}))
        assert log.head == 0

    def test_a_scan_by_event_time_takes_the_rows_in_the_half_open_range(self, log: Log) -> None:
        for start in range(0, 1000, 100):
            log.append("clicks", click_frame(100, start), type="Click")
        rows = log.scan("clicks", by="ts", since="2024-01-01T00:04:10Z", until="2024-01-01T00:05:00Z").collect()
        assert rows["user"].to_list() == list(range(250, 300))

    def test_a_scan_of_objects_is_the_union_of_their_fields(self, log: Log) -> None:
        log.append("s", [Plain("T", {"a": 1}), Plain("T", {"b": "x"})])
        assert log.scan("s", envelope=True).select("a", "b", "_position", "_version").collect().rows() == [
            (1, None, 1, 1),
            (None, "x", 2, 2),
        ]

    # --- read -----------------------------------------------------------------------------------------

    def test_reading_goes_forwards_and_backwards_between_bounds(self, log: Log) -> None:
        log.append("a", [Counted(n=n) for n in range(5)])
        log.append("b", [Counted(n=n) for n in range(5, 8)])
        log.append("a", [Counted(n=n) for n in range(8, 10)])

        def ns(**options: Any) -> list[int]:
            return [e.data["n"] for e in log.read(**options)]

        assert ns(after=2) == [2, 3, 4, 5, 6, 7, 8, 9]
        assert ns(since_position=3, until_position=7) == [2, 3, 4, 5]
        assert ns(backwards=True, limit=4) == [9, 8, 7, 6]
        assert ns(stream="a", since_version=4, until_version=7) == [3, 4, 8]
        assert ns(stream="a", backwards=True, until_version=7, limit=2) == [8, 4]
        assert ns(stream="a", since_version=8) == []
        assert ns(stream="a", until_version=1) == []
        assert ns(stream="a", after=6) == [8, 9]
        assert ns(stream="nowhere") == []
        assert ns(limit=0) == []

    def test_a_category_is_read_across_its_streams_in_order(self, log: Log) -> None:
        for n in range(30):
            log.append(f"account-{n % 7}", Counted(n=n))
            log.append("accounting", Plain("Other", {"n": -1}))
            log.append(f"order-{n}", Plain("Order", {"n": n}))
        assert [e.data["n"] for e in log.read("account-*")] == list(range(30))
        assert [e.data["n"] for e in log.read("account-*", backwards=True, limit=3)] == [29, 28, 27]
        assert len(list(log.read("account*"))) == 60
        assert [e.stream for e in log.read("order-2*")] == ["order-2"] + [f"order-{n}" for n in range(20, 30)]

    def test_reading_by_type_takes_those_types_only(self, log: Log) -> None:
        for n in range(20):
            log.append("s", [Counted(n=n), Plain(f"T{n % 3}", {"n": n})])
        assert [e.data["n"] for e in log.read(types=[Counted], after=30)] == list(range(15, 20))
        assert {e.type for e in log.read(types=["T0", "T2"])} == {"T0", "T2"}
        assert [e.data["n"] for e in log.read("s", types="T1")] == [1, 4, 7, 10, 13, 16, 19]
        assert list(log.read(types=[])) == []

    def test_reading_until_a_moment_excludes_that_moment(self) -> None:
        clock = FakeClock("2024-01-15T11:59:00Z")
        log = self.open(clock=clock)
        for _ in range(3):
            log.append("s", Plain("T", {}))
            clock.advance("1m")
        assert [e.position for e in log.read_until("2024-01-15T12:00:00Z")] == [1]
        assert [e.position for e in log.read(until="2024-01-15T12:00:00.000001Z")] == [1, 2]
        assert [e.position for e in log.read(since="2024-01-15T12:00:00Z")] == [2, 3]
        assert log.position_at("2024-01-15T12:00:00Z") == 1
        assert log.position_at("2020-01-01T00:00:00Z") == 0
        log.close()

    @pytest.mark.parametrize(
        "options",
        [{"after": -1}, {"limit": "3"}, {"until_version": 2}, {"since": "noon"}, {"until": datetime(2024, 1, 1)}],
    )
    def test_bounds_that_make_no_sense_are_refused(self, log: Log, options: dict[str, Any]) -> None:
        with pytest.raises(errors.UsageError):
            log.read(**options)

    def test_streams_are_listed_by_name_and_by_prefix(self, log: Log) -> None:
        for name in ("b-1", "a-2", "a-1", "ä"):
            log.append(name, [Plain("T", {}), Plain("T", {})])
        assert [s.name for s in log.streams()] == ["a-1", "a-2", "b-1", "ä"]
        assert [(s.name, s.version, s.last_position) for s in log.streams("a-*")] == [("a-1", 2, 6), ("a-2", 2, 4)]
        assert [s.name for s in log.streams("b-1")] == ["b-1"]

    def test_a_large_event_and_many_events_come_back_whole(self, log: Log) -> None:
        text = "ü" * 1_000_000
        log.append("big", Plain("T", {"text": text}))
        log.append("big", [Counted(n=n) for n in range(100_000)])
        events = log.read("big")
        assert next(events).data == {"text": text}
        assert sum(e.event.n for e in events) == sum(range(100_000))  # type: ignore[union-attr]
        log.verify()

    # --- time -----------------------------------------------------------------------------------------

    def test_recorded_times_never_go_backwards(self) -> None:
        clock = FakeClock("2024-01-01T12:00:00Z")
        log = self.open(clock=clock)
        for moment in ("2024-01-01T12:00:00Z", "2024-01-01T11:00:00Z", "2024-01-01T13:00:00Z"):
            clock.set(moment)
            log.append("s", Plain("T", {}))
        assert [e.time.hour for e in log.read()] == [12, 12, 13]
        log.close()

    # --- follow ---------------------------------------------------------------------------------------

    def test_a_follower_sees_history_then_what_comes_gapless_and_in_order(self, log: Log) -> None:
        log.append("s", [Counted(n=n) for n in range(10)])
        seen: list[int] = []

        def follow() -> None:
            for event in log.follow(after=4, timeout=20):
                seen.append(event.position)
                if event.position == 410:
                    return

        follower = threading.Thread(target=follow)
        follower.start()
        writers = [
            threading.Thread(target=lambda k=k: [log.append(f"w-{k}", Counted(n=n)) for n in range(100)])
            for k in range(4)
        ]
        for thread in writers:
            thread.start()
        for thread in [*writers, follower]:
            thread.join()
        assert seen == list(range(5, 411))

    def test_a_follower_of_a_category_sees_only_that(self, log: Log) -> None:
        for n in range(5):
            log.append(f"a-{n}", Counted(n=n))
            log.append("b", Counted(n=-n))
        assert [e.data["n"] for e in log.follow("a-*", timeout=0.01)] == list(range(5))
        assert [e.data["n"] for e in log.follow(types=[Counted], after=8, timeout=0.01)] == [4, -4]

    def test_closing_the_log_ends_its_followers(self, log: Log) -> None:
        ended = threading.Event()

        def follow() -> None:
            list(log.follow())
            ended.set()

        threading.Thread(target=follow, daemon=True).start()
        time.sleep(0.05)
        log.close()
        assert ended.wait(5)
        with pytest.raises(errors.LogClosed):
            log.append("s", Plain("T", {}))

    # --- many at once ---------------------------------------------------------------------------------

    def test_concurrent_threads_lose_and_double_nothing(self, log: Log) -> None:
        failures: list[BaseException] = []

        def run(k: int) -> None:
            try:
                for n in range(50):
                    log.append(f"own-{k}", Counted(n=n, by=str(k)), expect=n)
                    log.append("common", Counted(n=n, by=str(k)))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(k,)) for k in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        events = list(log.read())
        assert [e.position for e in events] == list(range(1, 1601))
        assert sorted(e.event.n for e in log.read("common")) == sorted(list(range(50)) * 16)  # type: ignore[union-attr]
        assert [e.version for e in log.read("common")] == list(range(1, 801))
        log.verify()

    def test_of_those_that_expect_the_same_version_one_wins(self, log: Log) -> None:
        won: list[int] = []
        barrier = threading.Barrier(8)

        def run(k: int) -> None:
            for n in range(20):
                barrier.wait()
                try:
                    log.append("s", Counted(n=n), expect=n)
                    won.append(n)
                except errors.VersionConflict:
                    pass

        threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == list(range(20))
        assert log.version("s") == 20

    def test_one_that_fails_leaves_the_others_of_its_commit_alone(self, log: Log) -> None:
        def fail(db: Any, receipt: Any) -> None:
            raise RuntimeError("mine alone")

        outcomes: list[str] = []

        def run(k: int) -> None:
            try:
                if k % 3 == 0:
                    log.commit([log.stage("bad", Counted(n=k))], work=fail)
                else:
                    log.append("good", Counted(n=k))
                outcomes.append("ok")
            except RuntimeError:
                outcomes.append("failed")

        threads = [threading.Thread(target=run, args=(k,)) for k in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (outcomes.count("ok"), outcomes.count("failed")) == (40, 20)
        assert (log.version("good"), log.version("bad"), log.head) == (40, 0, 40)
        log.verify()

    # --- keeping it whole -----------------------------------------------------------------------------

    def test_verify_agrees_and_knows_a_head_that_was_kept(self, log: Log) -> None:
        log.append("s", [Counted(n=n) for n in range(5)], tags=["t"], metadata={"a": 1})
        kept = log.verify().hash
        log.append("f", click_frame(10), type="Click")
        assert log.verify(head=kept).position == 15
        with pytest.raises(errors.DamagedLog):
            log.verify(head="00" * 31 + "01")
        with pytest.raises(errors.UsageError):
            log.verify(head="nothing")

    def test_compaction_changes_nothing_that_can_be_seen(self, log: Log) -> None:
        for n in range(30):
            log.append("clicks", click_frame(10, n * 10), type="Click")
            log.append("clicks", click_frame(3, n).with_columns(extra=pl.lit(1)), type="Click")
            log.append("audit", [Counted(n=n), Counted(n=-n)])
            log.append("single", Counted(n=n))

        def seen() -> Any:
            return (
                [(e.position, e.stream, e.version, e.type, e.recorded, e.data) for e in log.read()],
                log.scan("clicks").collect().rows(),
                log.verify(),
            )

        before = seen()
        reader = log.read("clicks")
        head = [next(reader).position for _ in range(5)]
        done = log.compact()
        assert done.runs > done.bodies > 0
        log.compact("single")
        assert seen() == before
        assert [*head, *(e.position for e in reader)] == [e.position for e in log.read("clicks")]
        log.append("clicks", click_frame(10), type="Click")
        log.compact()
        log.verify()

    # --- what becomes of old events -------------------------------------------------------------------

    def test_what_is_archived_reads_as_before_and_comes_back(self, log: Log) -> None:
        for n in range(20):
            log.append("clicks", click_frame(10, n * 10), type="Click")
            log.append(f"account-{n % 3}", Counted(n=n), tags=["t"])
            log.append("audit", [Counted(n=n), Counted(n=-n)])
        log.compact("audit")

        def seen() -> Any:
            events = [(e.position, e.stream, e.version, e.type, e.tags, e.data) for e in log.read()]
            return [e for e in events if e[1] != "$retention"], log.scan("clicks").collect().rows()

        before, head = seen(), log.verify().hash
        for stream in ("clicks", "account-*", "audit"):
            log.archive(stream, to=str(self.folder / "old"), keep=2)
        assert seen() == before
        assert log.verify(head=head).archived > 200
        assert log.archives.verify().faults == ()
        log.compact()
        log.archives.restore()
        assert seen() == before
        assert log.verify(head=head).archived == 0

    def test_what_is_trimmed_is_passed_over_and_told(self, log: Log) -> None:
        for n in range(20):
            log.append("clicks", click_frame(10, n * 10), type="Click")
            log.append("account-1", Counted(n=n))
        head = log.verify().hash
        log.retain("clicks", 55, by="ann")
        assert log.trim(dry_run=True).events == 140
        assert log.trim(by="ann").events == 140
        assert [e.data["user"] for e in log.read("clicks")] == list(range(140, 200))
        assert log.scan("clicks").collect()["user"].to_list() == list(range(140, 200))
        assert [e.event.n for e in log.read("account-1")] == list(range(20))  # type: ignore[union-attr]
        with pytest.raises(errors.Trimmed):
            next(log.read("clicks", trimmed="raise"))
        [told] = log.verify(head=head).trimmed
        assert (told.stream, told.events, told.by) == ("clicks", 140, "ann")
        assert log.append("clicks", click_frame(10), type="Click").version == 210


class SharedLogContract(LogContract):
    """The contract of a store that several processes use at once. One more hook: `shared`."""

    def shared(self) -> Callable[[], Log]:
        """Hook: a picklable function that opens the log of this test in another process."""
        raise NotImplementedError

    # --- processes ------------------------------------------------------------------------------------

    def test_processes_append_side_by_side_and_a_follower_misses_nothing(self, log: Log) -> None:
        opener = self.shared()
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_append_many, args=(opener, k, 100)) for k in range(4)]
        for worker in workers:
            worker.start()
        seen = [0]
        for event in log.follow(timeout=60):
            seen.append(event.position)
            if len(seen) == 401:
                break
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert seen == list(range(401))
        assert [e.version for e in log.read("common")] == list(range(1, 401))
        log.verify()

    def test_a_killed_writer_loses_nothing_that_it_was_told_is_there(self, log: Log) -> None:
        opener = self.shared()
        context = multiprocessing.get_context("spawn")
        for round in range(3):
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_append_and_tell, args=(opener, sender))
            worker.start()
            sender.close()
            told = [receiver.recv() for _ in range(20 + 15 * round)]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
            try:
                while receiver.poll(0):
                    told.append(receiver.recv())
            except EOFError:
                pass
            positions = {e.data["n"]: e.position for e in log.read(f"w-{worker.pid}")}
            assert all(positions[n] == position for n, position in told)
            # At most the one append that was under way is there untold.
            assert len(positions) - len(told) in (0, 1)
            assert log.append("after", Counted(n=round)).position == log.head
        assert [e.position for e in log.read()] == list(range(1, log.head + 1))
        log.verify()

    def test_a_retry_by_id_after_a_crash_takes_effect_once(self, log: Log) -> None:
        opener = self.shared()
        context = multiprocessing.get_context("spawn")
        for _ in range(2):
            worker = context.Process(target=_append_with_id_and_die, args=(opener,))
            worker.start()
            worker.join(60)
            assert worker.exitcode == -signal.SIGKILL
        assert log.version("s") == 1
        assert log.append("s", Counted(n=1), id="the-one").position == 1

    def test_a_forked_child_and_its_parent_both_go_on(self, log: Log) -> None:
        log.append("s", Counted(n=0))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                log.append("child", Counted(n=1))
                status = 0 if [e.data["n"] for e in log.read("s")] == [0] else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        log.append("s", Counted(n=1))
        assert [e.position for e in log.read()] == [1, 2, 3]
        log.verify()


def _append_many(opener: Any, k: int, count: int) -> None:
    log = opener()
    for n in range(count):
        log.append("common", Counted(n=n, by=str(k)))
    log.close()


def _append_and_tell(opener: Any, sender: Any) -> None:
    log = opener()
    for n in range(1_000_000):
        sender.send((n, log.append(f"w-{os.getpid()}", Counted(n=n)).position))


def _append_with_id_and_die(opener: Any) -> None:
    log = opener()
    log.append("s", Counted(n=1), id="the-one")
    os.kill(os.getpid(), signal.SIGKILL)
