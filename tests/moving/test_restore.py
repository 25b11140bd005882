"""Backups come back: whole, or as they were at a moment."""

import shutil
from datetime import UTC, datetime

import pytest
from homes import fill, rows

import millstream as ms
from millstream.log.moving import Segments, copy, restore, restore_file
from millstream.log.positions import parse_place
from millstream.testing import FakeClock


@pytest.fixture
def year(tmp_path):
    """A log with three events on the first of each month of 2013, two of them in one commit."""
    clock = FakeClock()
    with ms.open(str(tmp_path / "year.db"), clock=clock) as log:
        for month in range(1, 13):
            clock.set(datetime(2013, month, 1, tzinfo=UTC))
            log.append("months", ms.Plain("Begun", {"month": month}))
            log.commit([log.stage(f"a-{k}", ms.Plain("T", {"month": month})) for k in range(2)])
            log.append("pair", [ms.Plain("T", {"n": n}) for n in range(2)])
        yield log


@pytest.fixture(params=["log", "segments"])
def backup(request, year, tmp_path):
    if request.param == "log":
        year.backup(str(tmp_path / "backup.db"))
        with ms.open(str(tmp_path / "backup.db"), readonly=True) as log:
            yield log
    else:
        copy(year, Segments(str(tmp_path / "depot")))
        yield Segments(str(tmp_path / "depot"))


def test_a_restore_is_the_log_that_was_backed_up(year, backup, target):
    restore(backup, target, verify=True)
    assert rows(target.path) == rows(year.path)
    target.append("a", ms.Plain("T", {}))


@pytest.mark.parametrize(
    ("moment", "months"),
    [("2012-06-01T00:00Z", 0), ("2013-06-01T00:00Z", 5), ("2013-06-01T00:00:00.000001Z", 6), ("2100-01-01T00:00Z", 12)],
)
def test_a_restore_to_a_moment_ends_just_before_it(year, backup, target, moment, months):
    done = restore(backup, target, until=parse_place(f"@{moment}"))
    assert (done.position, target.head) == (months * 5, months * 5)
    assert [e.data["month"] for e in target.read("months")] == list(range(1, months + 1))
    target.verify()
    assert target.append("months", ms.Plain("Begun", {})).position == months * 5 + 1


def test_a_position_inside_a_run_is_refused_with_the_nearest(backup, target):
    with pytest.raises(ms.InvalidPosition, match=r"Give 4 .* or 6 "):
        restore(backup, target, until=parse_place("5"))
    assert restore(backup, target, until=parse_place("4")).position == 3


def test_a_restore_that_was_cut_short_goes_on(year, backup, target):
    target.store.place_raw(year.store.raw_page(0, limit_runs=4))
    restore(backup, target, until=parse_place("@2013-02-01T00:00Z"))
    assert target.head == 5
    with pytest.raises(ms.StorageError, match="is a log already"):
        restore(backup, target)


def test_a_restore_that_holds_more_than_is_asked_for_is_refused(year, backup, target):
    target.store.place_raw(year.store.raw_page(0, limit_runs=8))
    with pytest.raises(ms.InvalidPosition, match="already"):
        restore(backup, target, until=parse_place("2"))


def test_a_file_is_restored_with_the_tables_that_others_keep_in_it(year, tmp_path):
    with year.transaction() as tx:
        tx.db.execute("create table orders (id integer)")
        tx.db.execute("insert into orders values (7)")
    year.backup(str(tmp_path / "backup.db"))
    with ms.open(str(tmp_path / "backup.db"), readonly=True) as backup:
        with restore_file(backup, str(tmp_path / "restored.db")) as restored, restored.connect() as db:
            assert db.query("select id from orders") == [{"id": 7}]


def test_a_backup_of_a_copy_is_restored_to_a_home(source, target, tmp_path):
    copy(source, target)
    target.backup(str(tmp_path / "backup.db"))
    with ms.open(str(tmp_path / "backup.db"), readonly=True) as backup:
        with restore_file(backup, str(tmp_path / "restored.db")) as restored:
            restored.append("a", ms.Plain("T", {}))


def test_a_restore_of_everything_is_made_of_everything(source, target, tmp_path):
    fill(source, 3)
    copy(source, Segments(str(tmp_path / "depot")))
    restore(Segments(str(tmp_path / "depot")), target, verify=True)
    assert rows(target.path) == rows(source.path)


@pytest.mark.parametrize("through", ["log", "segments"])
def test_a_restore_to_a_moment_before_an_archiving_and_a_trim_knows_of_both(source, target, tmp_path, through):
    end, seen = source.head, [e.data for e in source.read("account-1")]
    frames = source.scan("clicks").collect()
    source.archive("account-*", to=str(tmp_path / "old"))
    source.archive("clicks", to=str(tmp_path / "old"))
    source.append("many", ms.Plain("T", {}))
    source.trim("many", keep=1, by="ann")
    shutil.move(tmp_path / "old", tmp_path / "moved")
    source.archives.relocate(str(tmp_path / "old"), str(tmp_path / "moved"))
    backup = source
    if through == "segments":
        backup = Segments(str(tmp_path / "depot"))
        copy(source, backup)
    done = restore(backup, target, until=parse_place(str(end + 1)), verify=True)
    assert done.hash == target.verify().hash
    assert [e.data for e in target.read("account-1")] == seen
    assert target.scan("clicks").collect().equals(frames)
    assert list(target.read("many")) == []
    assert [trim.by for trim in target.verify().trimmed] == ["ann"]
    assert target.archives.verify().whole
    assert target.archives.locations() == (str(tmp_path / "moved"),)
    target.append("many", ms.Plain("T", {"new": 1}))
    assert [e.data for e in target.read("many", trimmed="skip")] == [{"new": 1}]
    assert target.archives.restore().events > 0


def test_a_backup_that_is_not_there_is_not_restored_as_an_empty_log(target, tmp_path):
    for moved in (restore, copy):
        with pytest.raises(ms.NotFound, match=r"no copy of a log at .*depto"):
            moved(Segments(str(tmp_path / "depto")), target)
        with pytest.raises(ms.UsageError, match="is no log"):
            moved(str(tmp_path / "year.db"), target)
    assert target.append("a", ms.Plain("T", {})).position == 1
