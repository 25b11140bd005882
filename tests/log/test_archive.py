"""Archives in a folder: what is put there is read as before, is verified, comes back, and is missed when it is gone."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

import millstream as ms
from millstream.log.retention.archives import ArchivesVerified
from millstream.log.transfer import export_file, import_file
from millstream.testing import FakeClock


class Deposited(ms.Event, type="ArchiveDeposited"):
    amount: int


class Account(ms.Aggregate):
    balance: int = 0

    def deposit(self, amount: int) -> None:
        self.record(Deposited(amount=amount))

    @ms.on
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "log.db")


@pytest.fixture
def old(tmp_path):
    return str(tmp_path / "old")


@pytest.fixture(params=["memory", "file", "postgres"])
def place(request, path):
    if request.param == "postgres":
        return request.getfixturevalue("postgres")
    return None if request.param == "memory" else path


def clicks(first, count=100):
    return pl.DataFrame({"n": range(first, first + count), "page": [f"/{n % 7}" for n in range(count)]})


def filled(log, days=10):
    for day in range(days):
        log.append("clicks", clicks(day * 100), type="Click")
        log.append("account-1", Deposited(amount=day))
        log.append("account-2", [Deposited(amount=day), Deposited(amount=1)])
        log.append("notes", [ms.Plain("Note", {"n": n, "ä": "漢字\n"}) for n in range(20)], tags=["t"])


def seen(log, stream=None):
    return [(e.position, e.version, e.type, e.tags, e.data) for e in log.read(stream) if e.stream[0] != "$"]


def parquet_files(folder):
    return sorted(Path(folder).rglob("*.parquet"))


# --- reading reaches through ------------------------------------------------------------------------


def test_what_is_archived_is_read_as_before(place, old):
    with ms.open(place) as log:
        filled(log)
        before, frame, head = seen(log), log.scan("clicks", envelope=True).collect(), log.verify().hash
        done = log.archive("clicks", to=old, by="ann")
        assert (done.streams, done.runs, done.events) == (1, 10, 1000)
        assert log.archive("account-*").events == 30
        assert log.archive("notes").events == 200
        assert seen(log) == before
        assert [e.event for e in log.read("account-1")] == [Deposited(amount=n) for n in range(10)]
        assert [e.position for e in log.follow(after=500, timeout=0)] == list(range(501, log.head + 1))
        assert log.scan("clicks", envelope=True).collect().equals(frame)
        assert log.scan("clicks").select("page").head(150).collect().equals(frame[["page"]][:150])
        assert log.scan("account-*").collect().height == 30
        assert [e.data["n"] for e in log.read("clicks", backwards=True, limit=3)] == [999, 998, 997]
        found = log.verify(head=head)
        assert (found.archived, found.trimmed) == (1230, ())
        assert log.archive("clicks").events == 0


def test_the_past_of_an_aggregate_reaches_into_the_archive(place, old):
    with ms.open(place) as log:
        accounts = ms.Repository(log, Account)
        for n in range(1, 11):
            accounts.update("account-1", lambda account, n=n: account.deposit(n))
        log.archive("account-1", to=old, keep=3)
        assert accounts.get("account-1").balance == 55
        assert accounts.get("account-1", at=4).balance == 10
        accounts.update("account-1", lambda account: account.deposit(100))
        assert [step.state.balance for step in accounts.history("account-1")][-1] == 155


def test_the_log_knows_where_its_archives_are(path, old):
    with ms.open(path) as log:
        filled(log)
        before = seen(log)
        log.archive("clicks", to=old)
        log.archive("notes", to=Path(old) / "notes")
    with ms.open(path, readonly=True) as log:
        assert log.archives.locations() == (old, f"{old}/notes")
        assert seen(log) == before


def test_only_what_is_beyond_goes(place, old):
    clock = FakeClock(datetime(2024, 1, 1, tzinfo=UTC))
    with ms.open(place, clock=clock) as log:
        for n in range(10):
            log.append("s", ms.Plain("T", {"n": n}))
            clock.advance(timedelta(days=1))
        assert log.archive("s", to=old, keep="4d").events == 6
        assert log.archive("s", to=old, keep=2).events == 2
        assert [e.data["n"] for e in log.read("s")] == list(range(10))


def test_a_rule_with_an_archive_trims_into_it(place, old):
    with ms.open(place) as log:
        filled(log)
        before = seen(log)
        log.retain("clicks", 300, archive=old)
        plan = log.trim(dry_run=True)
        assert [(s.archive, s.events) for s in plan.streams] == [(old, 700)]
        assert not os.path.exists(old)
        assert log.trim().streams == plan.streams
        assert seen(log) == before
        assert log.archive().events == 0
        assert log.trim("clicks", keep=500).events == 500
        assert len(seen(log, "clicks")) == 500
        found = log.verify()
        assert (found.archived, found.trimmed[0].events) == (200, 500)


def test_a_pattern_that_does_not_name_a_category_archives_frames_only(place, old):
    with ms.open(place) as log:
        filled(log)
        assert log.archive("c*", to=old).events == 1000
        assert log.archive("acc*").events == 0


ODD = {
    "i8": pl.Series([1, None, -128], dtype=pl.Int8),
    "u64": pl.Series([0, None, 2**64 - 1], dtype=pl.UInt64),
    "f32": pl.Series([0.5, None, float("nan")], dtype=pl.Float32),
    "f64": pl.Series([-0.0, None, float("inf")]),
    "bool": pl.Series([True, None, False]),
    "bin": pl.Series([b"\x00\xff", None, b""]),
    "str": pl.Series(["", None, "漢\0字"]),
    "cat": pl.Series(["a", None, "b"], dtype=pl.Categorical),
    "date": pl.Series([date(2024, 1, 1), None, date(1, 1, 1)]),
    "time": pl.Series([time(1, 2, 3, 4), None, time(0)]),
    "ms": pl.Series([0, None, 5], dtype=pl.Datetime("ms")),
    "ns": pl.Series([0, None, 5], dtype=pl.Datetime("ns", "Europe/Berlin")),
    "duration": pl.Series([0, None, 5], dtype=pl.Duration("ms")),
    "decimal": pl.Series([Decimal("1.5"), None, Decimal("-2.25")], dtype=pl.Decimal(20, 2)),
    "list": pl.Series([[1, None], None, []], dtype=pl.List(pl.Int16)),
    "array": pl.Series([[1, 2], None, [3, None]], dtype=pl.Array(pl.Int64, 2)),
    "struct": pl.Series([{"a": 1, "b": "x"}, {"a": None, "b": None}, {"a": 3, "b": None}]),
    "deep": pl.Series([[{"a": [1]}], None, [{"a": None}]]),
    "null": pl.Series([None, None, None]),
    "a.b *?[x]": pl.Series([1, 2, 3]),
}


@pytest.mark.parametrize("name", ODD)
def test_a_column_of_any_type_comes_back_as_it_was(name, old):
    frame = pl.DataFrame([ODD[name].alias(name)])
    with ms.open() as log:
        for _ in range(3):
            log.append("odd", frame, type="Row")
        before = log.scan("odd").collect()
        log.archive("odd", to=old)
        assert log.scan("odd").collect().equals(before)
        assert log.verify().archived == 9
        assert log.archives.restore().events == 9
        assert log.scan("odd").collect().equals(before)


def test_what_parquet_does_not_keep_goes_there_as_bytes(old, monkeypatch):
    from millstream.log.retention import parquet

    monkeypatch.setattr(parquet, "_reads_back", lambda found, path, layout: layout == "bodies")
    with ms.open() as log:
        filled(log)
        before = log.scan("clicks").collect()
        log.archive("clicks", to=old)
        assert log.scan("clicks").collect().equals(before)
        assert log.scan("clicks").select("page").collect().equals(before[["page"]])
        assert log.verify().archived == 1000


def test_large_runs_and_files_with_many_rows_are_cut_where_they_should_be(place, old):
    with ms.open(place) as log:
        for n in range(9):
            log.append("clicks", clicks(n * 40_000, 40_000), type="Click")
        before = log.scan("clicks").collect()
        log.archive("clicks", to=old)
        assert [f.rows for f in log.archives.files()] == [240_000, 120_000]
        assert log.scan("clicks").collect().equals(before)
        assert log.scan("clicks").tail(10).collect().equals(before.tail(10))
        log.verify()


def test_other_programs_can_read_the_files(place, old):
    with ms.open(place) as log:
        filled(log)
        log.archive("clicks", to=old)
        log.archive("account-*")
    columns = {f: pl.read_parquet(f).columns for f in parquet_files(old)}
    envelope = ["_position", "_stream", "_version", "_type", "_time"]
    assert sorted(columns.values()) == [["_data", *envelope], ["n", "page", *envelope]]
    lines = [json.loads(line) for line in next(Path(old).rglob("manifest.jsonl")).read_text().splitlines()]
    assert {line["stream"] for line in lines} == {"clicks", "account-*"}
    assert {line["rows"] for line in lines} == {1000, 30}


def test_streams_with_names_that_are_no_file_names_are_archived_all_the_same(place, old):
    with ms.open(place) as log:
        for stream in ("..", "../up", "/etc", "a" * 500, "x\\y:z|é"):
            for n in range(3):
                log.append(stream, ms.Plain("../T/.", {"n": n}))
            log.archive(stream, to=old)
            assert [e.data["n"] for e in log.read(stream)] == [0, 1, 2]
        assert len(parquet_files(old)) == 5
        assert parquet_files(Path(old).parent) == parquet_files(old)
        assert log.archives.verify().files == 5


def test_a_folder_needs_no_extra(path, old):
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "import millstream as ms\n"
        "with ms.open(sys.argv[1]) as log:\n"
        "    log.append('s', ms.Plain('T', {'n': 1}))\n"
        "    log.archive('s', to=sys.argv[2])\n"
        "    print([e.data['n'] for e in log.read('s')])\n"
        "    try: log.archive('s', to='s3://bucket/x')\n"
        "    except ms.MissingExtra as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path, old], capture_output=True, text=True, check=True)
    assert done.stdout == "[1]\nthis needs obstore. Install it with: pip install 'millstream[objects]'\n"


# --- coming back ------------------------------------------------------------------------------------


def test_what_is_restored_is_in_the_log_again(place, old):
    with ms.open(place) as log:
        filled(log)
        before = seen(log)
        log.archive("clicks", to=old)
        log.archive("account-*")
        assert log.archives.restore("clicks").events == 1000
        assert log.verify().archived == 30
        assert [(f.stream, f.used) for f in log.archives.files()] == [("clicks", 0), ("account-*", 30)]
        assert log.archives.restore().events == 30
        shutil.rmtree(old)
        assert seen(log) == before
        assert log.verify().archived == 0
        assert {e.type for e in log.read("$retention")} == {"$ArchiveAdded", "$RunsArchived", "$RunsRestored"}


def test_an_archive_that_has_moved_is_found_when_the_log_is_told(path, old, tmp_path):
    with ms.open(path) as log, ms.open(path) as other:
        filled(log)
        before = seen(log)
        log.archive("clicks", to=old)
        assert seen(other) == before
        shutil.move(old, tmp_path / "new")
        with pytest.raises(ms.DepotFileMissing, match="relocate"):
            log.scan("clicks").select("page").collect()
        with pytest.raises(ms.DepotFileMissing):
            log.archives.relocate(old, str(tmp_path / "elsewhere"))
        with pytest.raises(ms.NotFound):
            log.archives.relocate(str(tmp_path / "never"), old)
        log.archives.relocate(old, str(tmp_path / "new"))
        assert seen(log) == before
        assert other.scan("clicks").select("page").collect().height == 1000
        assert log.archives.locations() == (str(tmp_path / "new"),)


# --- what can be wrong ------------------------------------------------------------------------------


def test_a_file_that_is_missing_or_changed_is_named_wherever_it_is_read(path, old):
    with ms.open(path) as log:
        filled(log)
        log.archive("clicks", to=old)
        log.archive("notes")
        log.archive("account-*")
    account, click, note = (next(f for f in parquet_files(old) if f.name.startswith(n)) for n in ("Arch", "Cl", "No"))
    click.unlink()
    data = bytearray(note.read_bytes())
    data[100] ^= 1
    note.write_bytes(data)
    with ms.open(path) as log:
        with pytest.raises(ms.DepotFileMissing) as missing:
            log.scan("clicks").collect()
        assert missing.value.file.endswith(click.name)
        with pytest.raises(ms.DepotFileChanged) as changed:
            [e.data for e in log.read("notes")]
        assert changed.value.file.endswith(note.name)
        with pytest.raises(ms.DepotError):
            log.verify()
        assert log.verify(archives=False).archived == 1230
        assert len([e.data for e in log.read("account-1")]) == 10
        found = log.archives.verify()
        assert found.files == 1
        assert not found.whole
        assert {(f.code, f.name.rpartition("/")[2]) for f in found.faults} == {
            ("depot-file-missing", click.name),
            ("depot-file-changed", note.name),
        }
    account.write_bytes(b"PAR1")
    with ms.open(path) as log:
        with pytest.raises(ms.DepotFileChanged):
            log.archives.restore("account-*")
        with pytest.raises(ms.DepotFileMissing):
            log.archives.restore("clicks")


def test_a_file_that_no_event_is_read_from_is_named_and_cleaned_once_it_is_old(path, old):
    with ms.open(path) as log:
        filled(log)
        log.archive("clicks", to=old)
        log.archive("notes")
        folder = parquet_files(old)[0].parent
        (folder / "left.parquet").write_bytes(b"by a process that was killed")
        log.archives.restore("notes")
        orphans = [f.name.rpartition("/")[2] for f in log.archives.verify().faults if f.code == "orphan"]
        assert len(orphans) == 2
        assert "left.parquet" in orphans
        assert log.archives.verify().whole
        assert len(log.archives.verify(clean=True).faults) == 2
        for file in parquet_files(old):
            os.utime(file, (0, 0))
        found = log.archives.verify(clean=True)
        assert (found.faults, found.files) == ((), 1)
        assert found.cleaned >= 2
        assert log.archives.verify() == ArchivesVerified(1, ())
        assert len(seen(log, "clicks")) == 1000
        assert [f.stream for f in log.archives.files()] == ["clicks"]


def test_a_log_that_was_restored_leaves_what_the_other_has_archived_since(path, old, tmp_path):
    with ms.open(path) as log:
        filled(log)
        log.archive("notes", to=old)
        log.backup(str(tmp_path / "backup.db"))
        log.archive("clicks")
        with ms.open(str(tmp_path / "backup.db")) as other:
            assert other.archives.verify().faults == ()
            other.archive("account-*")
            for file in parquet_files(old):
                os.utime(file, (0, 0))
            for each in (other, log):
                assert each.archives.verify(clean=True) == ArchivesVerified(2, ())
        for file in parquet_files(old):
            assert file.name.encode() in (file.parents[1] / "manifest.jsonl").read_bytes()
        assert len(seen(log, "clicks")) == 1000


def test_a_place_that_cannot_be_used_does_not_become_an_archive(path, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with ms.open(path) as log:
        filled(log)
        with pytest.raises(ms.DepotError, match="Not a directory"):
            log.archive("clicks", to=str(tmp_path / "file"))
        assert log.archives.locations() == ()
        assert log.archives.verify().whole


def test_only_the_log_itself_writes_what_is_read_as_its_own(path, old, tmp_path):
    with ms.open(path) as log:
        filled(log)
        log.archive("clicks", to=old)
        for write in (log.append, log.stage, log.request):
            with pytest.raises(ms.InvalidStreamName, match="the log itself"):
                write("$retention", ms.Plain("$RetentionSet", {"pattern": 5}))
        with pytest.raises(ms.InvalidStreamName):
            log.close_stream("$retention")
        log.retain("clicks", keep=5)
        with ms.open(str(tmp_path / "other.db")) as other:
            export_file(log, str(tmp_path / "all.ndjson"), None)
            import_file(other, str(tmp_path / "all.ndjson"), None)
            assert (other.rules(), other.archives.locations()) == ((), ())
            assert len(list(other.read("clicks"))) == 1000


def test_a_body_that_does_not_match_its_header_is_not_passed_off_as_sound(path, old):
    with ms.open(path) as log:
        filled(log)
    connection = sqlite3.connect(path)
    connection.execute("update runs set body = '{\"amount\":7000}' where version = 5 and body is not null")
    connection.commit()
    connection.close()
    with ms.open(path) as log:
        with pytest.raises(ms.DamagedLog):
            log.archive("account-1", to=old)
        assert parquet_files(old) == []


@pytest.mark.parametrize(
    "location",
    ["", "s3://", "http://host/x", "s3://key:secret@bucket/x", "s3://bucket/x?secret=1", "postgres://x", 7, "a\nb"],
)
def test_a_place_that_is_none_is_refused_and_no_secret_is_repeated(location):
    with ms.open() as log:
        log.append("s", ms.Plain("T", {}))
        for use in (lambda: log.archive("s", to=location), lambda: log.retain("s", 1, archive=location)):
            with pytest.raises(ms.InvalidDepot) as raised:
                use()
            assert "secret" not in str(raised.value)
        assert log.head == 1


@pytest.mark.parametrize("options", [{}, {"to": "x"}, {"to": "x", "stream": "*"}, {"stream": "s"}])
def test_an_archiving_that_does_not_say_what_or_where_to_is_refused(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ms.open() as log:
        log.append("s", ms.Plain("T", {}))
        if options:
            with pytest.raises(ms.InvalidRetention):
                log.archive(**options)
        else:
            assert log.archive().events == 0
        assert log.head == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with ms.open() as log:
        filled(log)
        with pytest.raises(ms.DepotError):
            log.archive("clicks", to=str(tmp_path / "file"))
        assert len(seen(log, "clicks")) == 1000


# --- beside others ----------------------------------------------------------------------------------


def test_archiving_trimming_and_compacting_go_on_beside_writers_and_readers(path, old):
    with ms.open(path) as log:
        filled(log)
        stop = threading.Event()
        errors = []

        def beside(work):
            def run():
                try:
                    with ms.open(path) as mine:
                        while not stop.is_set():
                            work(mine)
                except Exception as error:
                    errors.append(error)

            return threading.Thread(target=run)

        def look(mine):
            found = [e.data["n"] for e in mine.read("clicks")]
            assert found == list(range(found[0], found[-1] + 1))
            assert mine.scan("notes").select(pl.len()).collect().item() >= 200

        threads = [
            beside(lambda mine: mine.append("notes", [ms.Plain("Note", {"n": n}) for n in range(10)])),
            beside(lambda mine: mine.compact()),
            beside(look),
            beside(lambda mine: mine.archive("notes", to=old)),
        ]
        for thread in threads:
            thread.start()
        for _ in range(3):
            log.archive("clicks", to=old, keep=500)
            log.archive("notes", to=old)
            log.archives.restore("notes")
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(seen(log, "clicks")) == 1000
        log.verify()
        assert log.archives.verify().whole
