"""Moving house between SQLite and PostgreSQL, in both directions, and from one database to another."""

import re
import threading

import psycopg
import pytest
from homes import fill, pages

import millstream as ms
from millstream import errors
from millstream.cli import main
from millstream.log.moving import Segments, copy, promote, restore, switch
from millstream.log.positions import parse_place


@pytest.fixture(params=["file to postgres", "postgres to file", "postgres to postgres"])
def homes(request, tmp_path, postgres):
    """Where a log comes from, and where it goes to."""
    places = {"file": [str(tmp_path / f"{name}.db") for name in "ab"]}
    places["postgres"] = [f"{postgres}?schema={name}" for name in "ab"]
    here, _, there = request.param.split()
    return places[here][0], places[there][1]


@pytest.fixture
def logs(homes):
    with ms.open(homes[0]) as source, ms.open(homes[1]) as target:
        fill(source)
        yield source, target


def content(log):
    """All that a log holds, as pages have it."""
    found = list(pages(log, known=False))
    bodies = {ref: (body.encoding, body.rows, body.data) for page in found for ref, body in page.bodies.items()}
    return (
        [run for page in found for run in page.runs],
        bodies,
        sorted((a.id, a.digest, a.first, a.last, a.result) for page in found for a in page.appends),
        sorted(name for page in found for name in page.closed),
    )


def level(source, target):
    assert content(target) == content(source)
    target.verify(head=source.verify().hash)


def test_a_copy_has_every_row_of_its_source(logs):
    source, target = logs
    done = copy(source, target, verify=True)
    assert (done.position, done.events, done.hash) == (source.head, source.head, source.verify().hash)
    level(source, target)
    assert [e.data for e in target.read("ünïcode-漢字")] == [e.data for e in source.read("ünïcode-漢字")]
    assert target.scan("clicks").collect().equals(source.scan("clicks").collect())
    assert target.id == source.id


@pytest.mark.parametrize(("runs", "bytes"), [(1, 1 << 30), (3, 1 << 30), (1 << 20, 1), (1 << 20, 5_000), (7, 30_000)])
def test_pages_of_any_size_make_the_same_copy(logs, runs, bytes):
    source, target = logs
    for page in pages(source, runs=runs, bytes=bytes):
        head = target.store.place_raw(page)
        assert target.store.place_raw(page) == head
    level(source, target)


def test_a_copy_goes_on_where_another_ended(logs):
    source, target = logs
    first = pages(source, runs=9)
    for _ in range(3):
        target.store.place_raw(next(first))
    assert 0 < copy(source, target).events < source.head
    fill(source, rounds=2)
    assert copy(source, target).events
    # What was copied before the source was compacted stays as it was then; all else is equal.
    assert content(target)[2:] == content(source)[2:]
    target.verify(head=source.verify().hash)


def test_a_copy_takes_no_appends_until_it_is_made_a_home(logs):
    source, target = logs
    copy(source, target)
    for append in (
        lambda: target.append("a", ms.Plain("T", {})),
        lambda: target.append("a", [ms.Plain("T", {}), ms.Plain("T", {})]),
        lambda: target.commit([], id="x"),
        lambda: target.commit(work=lambda db, receipt: None),
    ):
        with pytest.raises(ms.ReplicaLog):
            append()
    with pytest.raises(ms.ReplicaLog):
        with target.transaction() as tx:
            tx.db.execute("create table t (n integer)")
    promote(target)
    assert target.append("account-1", ms.Plain("T", {})).position == source.head + 1
    assert target.append("clicks-2", ms.Plain("Big", {"text": "y" * 20_000})).count == 1
    target.compact()
    target.verify()


def test_each_home_is_named_to_who_appends_to_the_other(logs):
    source, target = logs
    copy(source, target)
    with pytest.raises(errors.ReplicaLog, match=re.escape(source.location)):
        target.append("a", ms.Plain("A", {}))
    with pytest.raises(errors.NotAPrefix, match=re.escape(source.location)):
        copy(target, source)
    switch(source, target)
    with pytest.raises(errors.LogMoved, match=re.escape(target.location)):
        source.append("a", ms.Plain("A", {}))


def test_a_log_with_events_of_its_own_is_no_target(logs):
    source, target = logs
    target.append("mine", ms.Plain("T", {}))
    with pytest.raises(ms.NotAPrefix):
        copy(source, target)
    assert target.head == 1


def test_a_switch_beside_a_writer_loses_nothing(logs):
    source, target = logs
    written, moved = [], threading.Event()

    def write():
        log, n = source, 0
        while n < 400:
            try:
                written.append(log.append("live", ms.Plain("T", {"n": n})).position)
                n += 1
            except ms.LogMoved:
                moved.wait(30)
                log = target

    copy(source, target)
    writer = threading.Thread(target=write)
    writer.start()
    switch(source, target)
    moved.set()
    writer.join()
    assert [e.data["n"] for e in target.read("live")] == list(range(400))
    assert [e.position for e in target.read("live")] == written
    with pytest.raises(ms.LogMoved) as raised:
        source.append("a", ms.Plain("T", {}))
    assert f"has moved to {target.location} " in str(raised.value)
    with pytest.raises(ms.UsageError, match=re.escape(source.location)):
        switch(source, target)
    with pytest.raises(ms.NotAPrefix, match=re.escape(target.location)):
        copy(source, target)
    target.verify()


def test_a_switch_waits_for_no_reader(postgres):
    with ms.open(f"{postgres}?schema=a") as source, ms.open(f"{postgres}?schema=b", lock_timeout=2) as target:
        fill(source)
        copy(source, target)
        with psycopg.connect(postgres) as reader:  # a dump, or somebody's long report
            reader.execute("select count(*) from a.runs, b.runs, a.appends, b.appends")
            switch(source, target)
            with pytest.raises(errors.LogMoved):
                source.append("a", ms.Plain("A", {}))
            target.append("a", ms.Plain("A", {}))
            promoted = promote(source)
        assert promoted.position == source.head
        source.append("a", ms.Plain("A", {}))


def test_a_follower_of_a_copy_sees_what_comes(logs):
    source, target = logs
    copy(source, target)
    follower = target.follow(after=target.head, timeout=30)
    source.append("a", ms.Plain("T", {"n": 1}))
    threading.Timer(0.1, copy, (source, target)).start()
    assert next(follower).data == {"n": 1}


def test_a_restore_ends_at_its_moment(logs, tmp_path):
    source, target = logs
    copy(source, Segments(str(tmp_path / "depot")))
    middle = next(run.position for run in source.runs() if run.position > source.head // 2)
    restore(Segments(str(tmp_path / "depot")), target, until=parse_place(str(middle)))
    assert target.head == middle - 1
    assert target.append("a", ms.Plain("T", {})).position == middle
    target.verify()


def test_a_backup_is_one_file_whatever_the_home(logs, tmp_path):
    source, _ = logs
    source.backup(str(tmp_path / "backup.db"))
    with ms.open(str(tmp_path / "backup.db")) as backup:
        backup.verify(head=source.verify().hash)
        assert backup.append("a", ms.Plain("T", {})).position == source.head + 1


def test_the_command_copies_and_switches(homes, capsys):
    with ms.open(homes[0]) as source:
        fill(source, rounds=2)
        head = source.head
    with pytest.raises(SystemExit) as ended:
        main(["copy", *homes, "--verify", "--switch"])
    assert not ended.value.code
    with ms.open(homes[1]) as target:
        assert target.append("a", ms.Plain("T", {})).position == head + 1
