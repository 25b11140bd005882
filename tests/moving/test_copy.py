"""A copy has all that its source has, goes on where it was, and takes nothing else."""

import sqlite3
import threading
import time

import pytest
from homes import fill, frame, pages, rows

import millstream as ms
from millstream import errors
from millstream.log.moving import copy, promote, switch
from millstream.log.positions import parse_place
from millstream.storage.raw import Role
from millstream.testing import FakeClock


def level(source, target):
    """Both logs, compared to the last column, and the target walked up to the source's hash."""
    assert rows(target.path) == rows(source.path)
    target.verify(head=source.verify().hash)


def test_a_copy_has_every_row_of_its_source(source, target):
    done = copy(source, target, verify=True)
    assert (done.position, done.events, done.hash) == (source.head, source.head, source.verify().hash)
    level(source, target)
    assert [e.data for e in target.read("ünïcode-漢字")] == [e.data for e in source.read("ünïcode-漢字")]
    assert target.scan("clicks").collect().equals(source.scan("clicks").collect())


@pytest.mark.parametrize(("runs", "bytes"), [(1, 1 << 30), (3, 1 << 30), (1 << 30, 1), (1 << 30, 5_000), (7, 30_000)])
def test_pages_of_any_size_make_the_same_copy(source, target, runs, bytes):
    for page in pages(source, runs=runs, bytes=bytes):
        target.store.place_raw(page)
    level(source, target)


def test_a_page_holds_each_shared_body_once_and_keeps_to_its_bytes(tmp_path):
    with ms.open(str(tmp_path / "log.db")) as log:
        for n in range(40):
            for k in range(20):
                log.append(f"clicks-{k}", frame(500, n), type="Click")
        log.compact()
        found = list(pages(log, bytes=60_000))
        assert len(found) > 5
        assert all(page.size < 200_000 for page in found)
        shared = [ref for page in found for ref in page.bodies]
        assert len(shared) == len(set(shared))


def test_a_page_ends_where_a_commit_ends_if_one_does(tmp_path):
    with ms.open(str(tmp_path / "log.db"), clock=FakeClock()) as log:
        clock = log.store._clock
        for n in range(10):
            clock.advance("1s")
            log.commit([log.stage(f"s-{k}", ms.Plain("T", {"n": n})) for k in range(4)])
        found = list(pages(log, runs=10))
        assert [len(page.runs) for page in found] == [8, 8, 8, 8, 8]
        assert all(page.whole for page in found)
        assert [page.whole for page in pages(log, runs=3)].count(False) == 10


def test_a_copy_goes_on_where_another_ended(source, target):
    first = pages(source, runs=9)
    for _ in range(3):
        target.store.place_raw(next(first))
    done = copy(source, target)
    assert 0 < done.events < source.head
    fill(source, rounds=2)
    source.compact()
    assert copy(source, target).events == source.head - done.position
    # What was copied before the source was compacted stays as it was then; all else is equal.
    here, there = rows(target.path), rows(source.path)
    assert [row[:13] for row in here["runs"]] == [row[:13] for row in there["runs"]]
    assert here["appends"] == there["appends"]
    target.verify(head=source.verify().hash)


def test_a_page_that_is_there_already_changes_nothing(source, target):
    page = source.store.raw_page(0, limit_runs=10)
    head = target.store.place_raw(page)
    before = rows(target.path)
    assert target.store.place_raw(page) == head
    assert rows(target.path) == before


def test_an_append_without_events_is_copied_even_when_it_comes_after_its_head(source, target):
    copy(source, target)
    source.commit([], id="later")
    copy(source, target)
    level(source, target)


def test_an_empty_log_is_copied_and_its_copy_is_a_replica(tmp_path, target):
    with ms.open(str(tmp_path / "empty.db")) as empty:
        assert copy(empty, target).position == 0
        with pytest.raises(ms.ReplicaLog):
            target.append("a", ms.Plain("T", {}))
        empty.append("a", ms.Plain("T", {}))
        assert copy(empty, target).events == 1


def test_a_closed_stream_is_closed_in_the_copy_and_in_none_that_ends_before_its_end(source, target, tmp_path):
    copy(source, target)
    promote(target)
    with pytest.raises(ms.StreamClosed):
        target.append("closed-0", ms.Plain("T", {}))
    at = source.stream("closed-0").last_position
    with ms.open(str(tmp_path / "before.db")) as before:
        copy(source, before, until=parse_place(str(at)))
        promote(before)
        before.append("closed-0", ms.Plain("T", {}))


def test_a_copy_has_every_index_when_it_is_level(source, target):
    for page in pages(source, runs=10):
        target.store.place_raw(page)
    with source.connect() as here, target.connect() as there:
        query = "select name from sqlite_master where type = 'index' order by name"
        assert there.query(query) == here.query(query)


def test_a_copy_in_memory_is_a_copy_too(source):
    with ms.open() as target:
        copy(source, target, verify=True)
        with ms.open() as second:
            copy(target, second, verify=True)


# --- what may not be a target -----------------------------------------------------------------------


def test_a_log_of_its_own_is_no_target_and_stays_as_it_was(source, target):
    target.append("mine", ms.Plain("T", {}))
    before = rows(target.path)
    with pytest.raises(ms.NotAPrefix, match="home of its events"):
        copy(source, target)
    assert rows(target.path) == before


def test_a_copy_of_another_log_is_no_target(source, target, tmp_path):
    with ms.open(str(tmp_path / "other.db")) as other:
        fill(other, 1)
        copy(other, target)
    with pytest.raises(ms.NotAPrefix, match="another log"):
        copy(source, target)


def test_a_target_that_is_ahead_is_refused(source, target, tmp_path):
    source.backup(str(tmp_path / "old.db"))
    source.append("a", ms.Plain("T", {}))
    copy(source, target)
    with ms.open(str(tmp_path / "old.db")) as old, pytest.raises(ms.NotAPrefix, match="ahead"):
        copy(old, target)


def test_a_target_whose_past_differs_is_refused(source, target, tmp_path):
    source.backup(str(tmp_path / "twin.db"))
    source.append("a", ms.Plain("T", {"n": 1}))
    copy(source, target)
    with ms.open(str(tmp_path / "twin.db")) as twin:
        twin.append("a", ms.Plain("T", {"n": 2}))
        twin.append("a", ms.Plain("T", {"n": 3}))
        with pytest.raises(ms.NotAPrefix, match="past differs"):
            copy(twin, target)


def test_a_replica_takes_no_appends_transactions_or_compaction(source, target):
    copy(source, target)
    for act in (
        lambda: target.append("a", ms.Plain("T", {})),
        lambda: target.commit(work=lambda db, receipt: db.execute("create table t (x)")),
        lambda: target.transaction().__enter__().db.execute("create table t (x)"),
        lambda: target.compact(),
    ):
        with pytest.raises(ms.ReplicaLog) as raised:
            act()
        assert raised.value.source == source.path
    level(source, target)


def test_a_process_that_has_the_target_open_learns_that_it_is_a_replica(source, target, tmp_path):
    with ms.open(target.path) as other:
        other.append("a", ms.Plain("T", {}))
    with ms.open(str(tmp_path / "new.db")) as fresh, ms.open(str(tmp_path / "new.db")) as beside:
        copy(source, beside)
        with pytest.raises(ms.ReplicaLog):
            fresh.append("a", ms.Plain("T", {}))


# --- a source that is damaged -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "harm",
    [
        "update runs set recorded = recorded + 1 where position = 60",
        "update runs set body = '{\"n\":7}' where body is not null and position > 300",
        "delete from runs where position = 60",
        "update streams set name = 'changed' where name = 'many'",
        "delete from bodies where id = 60",
        "update bodies set bytes = cast('{\"n\":1}' as blob) where id = 60",
        "insert into tags values ('new', 60)",
        "delete from streams where name = 'many'",
    ],
)
def test_a_damaged_source_is_not_copied_on(tmp_path, target, harm):
    path = str(tmp_path / "damaged.db")
    with ms.open(path) as log:
        fill(log, 8)
        log.append("x", ms.Plain("T", {}))
    connection = sqlite3.connect(path)
    own = connection.execute("select position from runs where body_ref = position and format = 1").fetchall()
    position = own[-1][0]
    harm = harm.replace("60", str(position))
    connection.execute(harm)
    connection.commit()
    connection.close()
    with ms.open(path, readonly=True) as source:
        with pytest.raises(ms.DamagedLog):
            for page in pages(source, runs=5):
                target.store.place_raw(page)
    target.verify()


# --- others at the same time ------------------------------------------------------------------------


def test_a_source_that_is_written_meanwhile_is_followed_until_it_is_told_to_stop(source, target):
    stop, seen = threading.Event(), []

    def write():
        for n in range(300):
            source.append(f"live-{n % 7}", ms.Plain("T", {"n": n}), id=f"live-{n}")

    writer = threading.Thread(target=write)
    follower = threading.Thread(target=copy, args=(source, target), kwargs={
        "follow": True, "every": 0.005, "progress": seen.append, "stop": stop})  # fmt: skip
    follower.start()
    writer.start()
    writer.join()
    assert target.wait(source.head - 1, 20)
    stop.set()
    follower.join(20)
    level(source, target)
    assert seen[-1].level
    assert seen[-1].behind == 0


def test_two_copies_into_one_target_make_one_copy(tmp_path, source):
    for n in range(500):
        source.append(f"s-{n % 9}", ms.Plain("T", {"n": n}))
    path, outcomes = str(tmp_path / "shared.db"), []

    def work():
        with ms.open(path) as target:
            try:
                for page in pages(source, runs=20):
                    if page.head.position > target.head:
                        target.store.place_raw(page.since(target.head))
                outcomes.append("done")
            except ms.NotAPrefix:
                outcomes.append("refused")

    workers = [threading.Thread(target=work) for _ in range(3)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    with ms.open(path) as target:
        copy(source, target)
        level(source, target)
    assert len(outcomes) == 3


def test_a_full_disk_leaves_a_copy_that_goes_on_later(source, target):
    for n in range(50):
        source.append("big", ms.Plain("Blob", {"text": f"{n}" * 20_000}))
    connection = target.store.writer.connection
    connection.execute("pragma max_page_count = 300")
    with pytest.raises(errors.DiskFull):
        for page in pages(source, runs=20):
            target.store.place_raw(page)
    target.verify()
    connection.execute("pragma max_page_count = 1000000")
    copy(source, target)
    level(source, target)


# --- the switch -------------------------------------------------------------------------------------


def test_a_switch_ends_appends_to_the_source_and_begins_them_in_the_target(source, target):
    done = switch(source, target, verify=True)
    assert done.position == source.head == target.head
    with pytest.raises(ms.LogMoved, match=r"target\.db"):
        source.append("a", ms.Plain("T", {}))
    assert target.append("account-1", ms.Plain("T", {}), id="open-0x").position == done.position + 1
    assert list(source.read("account-1", limit=1))


def test_a_repeated_append_gets_its_first_receipt_from_the_new_home(source, target):
    event, before = ms.Plain("Paid", {"n": 1}), source.head
    first = source.append("payments", event, id="pay-1")
    switch(source, target)
    assert target.append("payments", event, id="pay-1") == first
    assert target.head == before + 1
    with pytest.raises(ms.IdReused):
        target.append("payments", ms.Plain("Paid", {"n": 2}), id="pay-1")


def test_writers_of_the_source_lose_nothing_at_the_switch(source, target):
    copy(source, target)
    acknowledged = []

    def write(k):
        n = 0
        while True:
            try:
                receipt = source.append(f"w-{k}", ms.Plain("T", {"n": n}))
            except ms.LogMoved:
                return
            acknowledged.append((f"w-{k}", receipt.position, n))
            n += 1

    writers = [threading.Thread(target=write, args=(k,)) for k in range(3)]
    for each in writers:
        each.start()
    while len(acknowledged) < 50:
        time.sleep(0.001)
    switch(source, target)
    for each in writers:
        each.join()
    found = {(e.stream, e.position, e.data["n"]) for e in target.read("w-*")}
    assert found == set(acknowledged)


def test_a_home_that_was_switched_to_compacts_without_using_a_number_twice(source, target):
    switch(source, target)
    for n in range(20):
        target.append("clicks", frame(10, n), type="Click")
    assert target.compact().bodies > 0
    target.verify()


def test_a_log_that_has_moved_does_not_move_to_a_second_home(source, target, tmp_path):
    with ms.open(str(tmp_path / "third.db")) as third, ms.open(str(tmp_path / "copy.db")) as copied:
        copy(source, copied)
        switch(source, target)
        target.append("a", ms.Plain("T", {}))
        for other in (third, copied):
            with pytest.raises(ms.UsageError, match=r"has moved to .*Switch from its new home"):
                switch(source, other)
        assert third.append("a", ms.Plain("T", {})).position == 1
        with pytest.raises(ms.ReplicaLog):
            copied.append("a", ms.Plain("T", {}))
    with pytest.raises(ms.LogMoved, match=target.path):
        source.append("a", ms.Plain("T", {}))


def test_a_switch_that_was_cut_short_is_done_again(source, target):
    copy(source, target)
    source.append("a", ms.Plain("T", {}))
    source.store.set_role(Role("moved", target.path))
    done = switch(source, target)
    assert done.position == source.head
    target.append("a", ms.Plain("T", {}))
    with pytest.raises(ms.MillstreamError):
        switch(source, target)


def test_a_promotion_needs_no_source_and_says_when_a_commit_was_cut(tmp_path, target):
    with ms.open(str(tmp_path / "log.db")) as log:
        log.commit([log.stage(f"s-{k}", ms.Plain("T", {})) for k in range(10)])
        target.store.place_raw(log.store.raw_page(0, limit_runs=4))
    with pytest.raises(ms.UsageError, match="inside a commit"):
        promote(target)
    assert promote(target, force=True).position == 4
    target.append("a", ms.Plain("T", {}))
    with pytest.raises(ms.UsageError, match="no copy"):
        promote(target)


def test_a_home_that_has_moved_can_be_taken_back(source, target):
    switch(source, target)
    promote(source)
    source.append("a", ms.Plain("T", {}))


def test_a_copy_that_follows_ends_when_its_source_is_closed(source, target, tmp_path):
    with ms.open(source.path) as log:
        worker = threading.Thread(target=log.copy_to, args=(target,), kwargs={"follow": True})
        worker.start()
        assert target.wait(source.head - 1, 20)
        time.sleep(0.1)
    worker.join(20)
    assert not worker.is_alive()


def test_a_log_is_copied_by_the_name_of_its_target(source, tmp_path):
    assert source.copy_to(str(tmp_path / "named.db"), verify=True).position == source.head
    assert source.copy_to(str(tmp_path / "depot") + "/").position == source.head
    assert (tmp_path / "depot" / "head.json").exists()
