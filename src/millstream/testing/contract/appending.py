"""What a log promises of appending: positions and versions, values, conditions, transactions, refusals."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import polars as pl
import pytest

from ... import aio, errors
from ...events import Draft, Plain
from ...log import Log
from ...storage.base import Matching
from .opening import Address, Colour, Counted, Everything, Maybe, Opening


class Appending(Opening):
    """Appending, one at a time."""

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
