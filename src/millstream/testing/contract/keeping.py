"""What a log promises when many append at once, and while it is compacted, archived and trimmed."""

from __future__ import annotations

import threading
from typing import Any

import polars as pl
import pytest

from ... import errors
from ...log import Log
from .opening import Counted, Opening, click_frame


class Keeping(Opening):
    """Many at once; verification; what becomes of old events."""

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
