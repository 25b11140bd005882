"""What can go wrong with a file and a machine: a typed error, nothing half written, and a log that goes on."""

import asyncio
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

import millstream as ms
import millstream.aio
from millstream import errors
from millstream.storage.sqlite import lock, whereabouts, writer
from millstream.testing import FakeClock


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "log.db")


def filled(path, count=5):
    with ms.open(path) as log:
        log.append("s", [ms.Plain("T", {"n": n}) for n in range(count)])
        log.append("f", pl.DataFrame({"a": range(100)}), type="Row")
        for n in range(count):
            log.append("one", ms.Plain("T", {"n": n}), tags=["a"], metadata={"by": "ann"})
        return log.verify().hash


# --- opening ----------------------------------------------------------------------------------------


def test_a_text_file_is_not_a_log_and_is_left_alone(path):
    text = "hello, I am a shopping list\n" * 200
    Path(path).write_text(text)
    with pytest.raises(errors.NotALog):
        ms.open(path)
    assert Path(path).read_text() == text


def test_another_applications_database_is_not_a_log(path):
    connection = sqlite3.connect(path)
    connection.execute("create table users (id)")
    connection.close()
    before = Path(path).read_bytes()
    for readonly in (False, True):
        with pytest.raises(errors.NotALog):
            ms.open(path, readonly=readonly)
    assert Path(path).read_bytes() == before
    assert [p.name for p in Path(path).parent.iterdir()] == ["log.db"]


def test_a_folder_is_not_a_log_and_a_missing_folder_is_named(tmp_path):
    with pytest.raises(errors.NotALog):
        ms.open(str(tmp_path))
    with pytest.raises(errors.NotFound, match="nowhere"):
        ms.open(str(tmp_path / "nowhere" / "log.db"))


def test_a_log_of_a_newer_format_is_refused(path):
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(errors.NewerFormat) as raised:
        ms.open(path)
    assert (raised.value.found, raised.value.supported) == (99, 1)


def test_an_empty_file_becomes_a_log(path):
    Path(path).touch()
    with ms.open(path) as log:
        assert log.append("s", ms.Plain("T", {})).position == 1


def test_opening_read_only_never_creates_a_file(path):
    with pytest.raises(errors.NotFound):
        ms.open(path, readonly=True)
    assert not os.path.exists(path)


def test_a_log_opened_read_only_reads_and_refuses_to_write(path):
    filled(path)
    with ms.open(path, readonly=True) as log:
        assert len(list(log.read("s"))) == 5
        with pytest.raises(errors.ReadOnlyLog):
            log.append("s", ms.Plain("T", {}))
        with pytest.raises(errors.ReadOnlyLog):
            with log.transaction() as tx:
                tx.db.execute("create table t (a)")


def test_a_log_that_was_read_and_followed_is_one_whole_file_once_it_is_closed(path, tmp_path):
    with ms.open(path) as log:
        log.append("s", ms.Plain("T", {}))
        assert [e.position for e in log.follow(timeout=0.01)] == [1]
        log.append("s", [ms.Plain("T", {"n": n}) for n in range(100)])
        assert len(list(log.read())) == 101
    assert not os.path.exists(f"{path}-wal")
    copied = shutil.copy(path, tmp_path / "copied.db")
    with ms.open(copied) as log:
        assert log.verify().position == 101


def test_a_log_in_a_folder_that_takes_no_files_can_be_read(path):
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute("pragma wal_checkpoint(truncate)")
    connection.close()
    folder = Path(path).parent
    for left in folder.glob("log.db-*"):
        left.unlink()
    code = (
        "import os, pickle, sys, importlib.readers, millstream as ms\n"
        "warm = ms.open(); warm.append('up', ms.Plain('Up', {})); warm.verify()\n"
        "os.getuid() or os.setuid(65534)\n"  # root may write what nobody may
        "with ms.open(sys.argv[1], readonly=True) as log: print(log.verify().position)\n"
    )
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    folder.chmod(0o555)
    try:
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    finally:
        folder.chmod(0o755)
    assert done.stdout == "110\n", done


@pytest.mark.parametrize("place", ["mysql://x/y", "http://x", ""])
def test_a_place_that_is_no_file_is_refused(place):
    with pytest.raises(errors.UsageError):
        ms.open(place)


def test_a_network_file_system_is_told_by_its_mount(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path}/net\\040work nfs4 rw 0 0\n")
    assert lock.network_filesystem(f"{tmp_path}/net work", str(mounts)) == "nfs4"
    assert lock.network_filesystem(f"{tmp_path}/net work/deep/er", str(mounts)) == "nfs4"
    assert lock.network_filesystem(f"{tmp_path}/local", str(mounts)) is None


# --- a closed log -----------------------------------------------------------------------------------


def test_a_closed_log_says_so(path):
    log = ms.open(path)
    log.append("s", ms.Plain("T", {}))
    log.close()
    log.close()
    for use in (lambda: log.append("s", ms.Plain("T", {})), lambda: log.head, lambda: list(log.read())):
        with pytest.raises(errors.LogClosed):
            use()
    assert os.path.exists(path)


def test_a_closed_log_of_coroutines_says_so_and_may_be_closed_again(path):
    async def closed() -> None:
        log = ms.aio.open(path)
        await log.append("s", ms.Plain("T", {}))
        await log.close()
        await log.close()
        for ask in (log.head, lambda: log.version("s"), lambda: log.append("s", ms.Plain("T", {}))):
            with pytest.raises(errors.LogClosed):
                await ask()
        with pytest.raises(errors.LogClosed):
            [e async for e in log.read()]

    asyncio.run(closed())


def test_many_may_open_a_new_log_at_once(tmp_path):
    for n in range(25):
        path = str(tmp_path / f"{n}.db")
        ids, faults = set(), []

        def enter(path=path, ids=ids, faults=faults):
            try:
                with ms.open(path) as log:
                    ids.add(log.id)
            except errors.MillstreamError as error:
                faults.append(error)

        threads = [threading.Thread(target=enter) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        assert len(ids) == 1


# --- a full disk ------------------------------------------------------------------------------------


def _fill(path, results):
    log = ms.open(path)
    log.append("s", ms.Plain("T", {"n": 0}))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    written = 1
    error = None
    try:
        for n in range(1, 10_000):
            log.append("s", ms.Plain("T", {"n": n, "text": "x" * 5_000}))
            written += 1
    except ms.MillstreamError as failure:
        error = failure
    head = log.head
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    results.put((written, head, error))


def test_a_file_that_cannot_grow_loses_nothing_and_goes_on_when_it_can(path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    worker = context.Process(target=_fill, args=(path, results))
    worker.start()
    written, head, error = results.get(timeout=60)
    worker.join()
    assert isinstance(error, errors.DiskFull)
    assert head == written < 10_000
    with ms.open(path) as log:
        assert log.append("s", ms.Plain("T", {"n": -1})).position == written + 1
        assert [e.position for e in log.read()] == list(range(1, written + 2))
        log.verify()


def test_a_full_database_rejects_the_append_and_keeps_the_rest(path):
    with ms.open(path) as log:
        log.append("s", ms.Plain("T", {}))
        connection = log.store.writer.connection
        pages = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count = {pages + 10}")
        with pytest.raises(errors.DiskFull):
            log.append("big", ms.Plain("T", {"x": "x" * 1_000_000}))
        with pytest.raises(errors.DiskFull):
            with log.transaction() as tx:
                tx.db.execute("create table t (a)")
                tx.append("big", ms.Plain("T", {"x": "x" * 1_000_000}))
        assert log.head == 1
        connection.execute("pragma max_page_count = 1000000")
        assert log.append("big", ms.Plain("T", {"x": "x" * 1_000_000})).position == 2
        log.verify()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_a_really_full_disk_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        log = ms.open(str(disk / "log.db"))
        written = 0
        with pytest.raises(errors.DiskFull):
            for n in range(10_000):
                log.append("s", ms.Plain("T", {"n": n, "text": "x" * 2_000}))
                written += 1
        assert log.head == written
        assert [e.data["n"] for e in log.read()] == list(range(written))
        with pytest.raises(errors.DiskFull):
            log.append("s", ms.Plain("T", {"text": "x" * 2_000}))
        for name in ("events.ndjson", "rows.parquet"):
            with pytest.raises(errors.DiskFull, match=f"{name}; nothing"):
                log.export(disk / name, "s")
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert log.append("s", ms.Plain("T", {"n": -1})).position == written + 1
        log.verify()
        log.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- locks ------------------------------------------------------------------------------------------


def _hold(path, ready, release):
    log = ms.open(path)
    with log.transaction() as tx:
        tx.db.execute("create table if not exists held (a)")
        ready.set()
        release.wait(30)


def test_a_process_that_holds_the_writer_too_long_is_named_and_waited_for_no_longer(path):
    with ms.open(path, lock_timeout=0.3) as log:
        context = multiprocessing.get_context("spawn")
        ready, release = context.Event(), context.Event()
        holder = context.Process(target=_hold, args=(path, ready, release))
        holder.start()
        assert ready.wait(30)
        for _ in range(2):
            with pytest.raises(errors.LogLocked) as raised:
                log.append("s", ms.Plain("T", {}))
            assert raised.value.seconds == 0.3
        assert log.head == 0
        release.set()
        holder.join()
        assert log.append("s", ms.Plain("T", {})).position == 1


def test_a_killed_holder_frees_the_writer(path):
    with ms.open(path, lock_timeout=20) as log:
        context = multiprocessing.get_context("spawn")
        ready, release = context.Event(), context.Event()
        holder = context.Process(target=_hold, args=(path, ready, release))
        holder.start()
        assert ready.wait(30)
        threading.Timer(0.2, lambda: os.kill(holder.pid, signal.SIGKILL)).start()
        assert log.append("s", ms.Plain("T", {})).position == 1
        holder.join()


def test_a_foreign_program_that_locks_the_database_is_told_from_a_damage(path):
    with ms.open(path, lock_timeout=0.2) as log:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin immediate")
        with pytest.raises(errors.LogLocked):
            log.append("s", ms.Plain("T", {}))
        other.execute("rollback")
        other.close()
        assert log.append("s", ms.Plain("T", {})).position == 1


def test_a_long_transaction_of_another_thread_times_the_waiting_one_out(path):
    with ms.open(path, lock_timeout=0.2) as log:
        release, held = threading.Event(), threading.Event()

        def hold():
            with log.transaction() as tx:
                tx.db.execute("create table t (a)")
                held.set()
                release.wait(10)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(10)
        with pytest.raises(errors.LogLocked):
            log.append("s", ms.Plain("T", {}))
        release.set()
        holder.join()
        assert log.append("s", ms.Plain("T", {})).position == 1


def test_a_transaction_that_could_not_have_the_database_goes_on_without_it(path):
    with ms.open(path) as holder, ms.open(path, lock_timeout=0.2) as log:
        with log.transaction() as tx:
            tx.append("s", ms.Plain("T", {}))
            with holder.transaction() as held:
                held.db.execute("create table t (a)")
                with pytest.raises(errors.LogLocked):
                    tx.db  # noqa: B018
        assert tx.receipt.position == 1


# --- damage -----------------------------------------------------------------------------------------


def tamper(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "position"),
    [
        ("update runs set body = '{\"n\":7}' where position = 107", 107),
        ("update runs set recorded = recorded + 1 where position = 107", 107),
        ('update runs set metadata = \'{"by":"bob"}\' where position = 107', 107),
        ("update runs set hash = body_hash where position = 107", 107),
        ("update tags set tag = 'b' where position = 107", 107),
        ("delete from tags where position = 107", 107),
        ("update streams set name = 'two' where name = 'one'", 106),
        ("update kinds set type = 'U' where category = 'one'", 106),
        ("delete from runs where position = 107", 107),
        ("update bodies set bytes = cast(replace(bytes, '2', '3') as blob) where id = 1", 1),
        ("delete from bodies where id = 6", 6),
    ],
)
def test_verify_names_the_first_position_that_was_changed(path, statement, position):
    filled(path)
    tamper(path, statement)
    with ms.open(path) as log:
        with pytest.raises(errors.DamagedLog) as raised:
            log.verify()
    assert raised.value.position == position


def test_a_cut_tail_shows_only_against_a_head_that_was_kept(path):
    head = filled(path)
    tamper(path, "delete from runs where position > 108")
    with ms.open(path) as log:
        log.verify()
        with pytest.raises(errors.DamagedLog, match="cut"):
            log.verify(head=head)


def test_a_damaged_body_is_named_when_it_is_read_and_the_rest_stays_readable(path):
    filled(path)
    tamper(path, "update bodies set bytes = x'00' where id = 6", "update bodies set bytes = x'7b' where id = 1")
    with ms.open(path) as log:
        with pytest.raises(errors.DamagedLog) as raised:
            list(log.scan("f").collect())
        assert raised.value.position == 6
        with pytest.raises(errors.DamagedLog):
            [e.data for e in log.read("s")]
        assert [e.data["n"] for e in log.read("one")] == list(range(5))
        assert log.append("one", ms.Plain("T", {"n": 5})).position == 111


def test_garbage_in_the_middle_of_the_file_is_a_damage_or_shows_in_verify(path):
    filled(path, 2_000)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(b"\xde\xad\xbe\xef" * 2_000)
    with pytest.raises(errors.StorageError):
        with ms.open(path) as log:
            log.verify()


# --- clocks -----------------------------------------------------------------------------------------


def test_a_wall_clock_that_runs_away_is_refused_until_it_is_confirmed(path, monkeypatch):
    with ms.open(path) as log:
        log.append("s", ms.Plain("T", {}))
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + 2 * 3_600_000_000_000)
        with pytest.raises(errors.ClockJumped):
            log.append("s", ms.Plain("T", {}))
        assert log.head == 1
        log.confirm_clock()
        assert log.append("s", ms.Plain("T", {})).position == 2


def test_a_wall_clock_far_behind_the_last_event_is_refused_when_the_log_is_opened_anew(path):
    clock = FakeClock(datetime.now(UTC) + timedelta(hours=2))
    with ms.open(path, clock=clock) as log:
        log.append("s", ms.Plain("T", {}))
    with ms.open(path) as log:
        with pytest.raises(errors.ClockJumped):
            log.append("s", ms.Plain("T", {}))
        log.confirm_clock()
        log.append("s", ms.Plain("T", {}))
        first, second = log.read()
        assert second.time == first.time


def test_a_clock_that_goes_back_a_little_never_takes_recorded_back(path, monkeypatch):
    with ms.open(path) as log:
        log.append("s", ms.Plain("T", {}))
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() - 1_800_000_000_000)
        log.append("s", ms.Plain("T", {}))
        first, second = log.read()
        assert second.time == first.time


def test_a_clock_without_a_time_zone_is_refused(path):
    with ms.open(path, clock=lambda: datetime(2024, 1, 1)) as log:
        with pytest.raises(errors.InvalidTime, match="clock"):
            log.append("s", ms.Plain("T", {}))
        assert log.head == 0


# --- interrupts -------------------------------------------------------------------------------------

_INTERRUPTED = """
import sys, threading, time
import millstream as ms
log = ms.open(sys.argv[1])
stop = threading.Event()
def others():
    while not stop.is_set():
        log.append("other", ms.Plain("T", {}))
threads = [threading.Thread(target=others) for _ in range(4)]
for thread in threads: thread.start()
print("ready", flush=True)
interrupts = 0
while interrupts < 5:
    try:
        while True:
            log.append("main", ms.Plain("T", {}))
    except KeyboardInterrupt:
        interrupts += 1
        print("interrupted", flush=True)
before = log.version("other")
time.sleep(0.3)
assert log.version("other") > before, "the others are stuck"
stop.set()
for thread in threads: thread.join(10)
assert not any(thread.is_alive() for thread in threads)
log.append("main", ms.Plain("T", {}))
log.verify()
print("done", flush=True)
"""


def test_an_interrupt_of_the_main_thread_leaves_the_others_at_work(path):
    command = [sys.executable, "-c", _INTERRUPTED, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            for _ in range(5):
                time.sleep(0.05)
                process.send_signal(signal.SIGINT)
                assert process.stdout.readline() == "interrupted\n"
            assert process.stdout.readline() == "done\n"
            assert process.wait(20) == 0
        finally:
            process.kill()


# --- backups ----------------------------------------------------------------------------------------


def test_a_backup_taken_beside_writers_is_whole(path, tmp_path):
    with ms.open(path) as log:
        log.append("s", [ms.Plain("T", {"n": n}) for n in range(20_000)])
        stop = threading.Event()

        def write():
            while not stop.is_set():
                log.append("live", ms.Plain("T", {}))

        writer_ = threading.Thread(target=write)
        writer_.start()
        copies = [str(tmp_path / f"copy-{n}.db") for n in range(3)]
        for copy in copies:
            log.backup(copy)
        stop.set()
        writer_.join()
        for copy in copies:
            with ms.open(copy) as restored:
                found = restored.verify()
                log.verify(head=found.hash)
                assert restored.append("s", ms.Plain("T", {})).position == found.position + 1


def test_a_backup_never_writes_over_a_file_and_leaves_nothing_behind_when_it_fails(path, tmp_path):
    filled(path)
    there = tmp_path / "there.db"
    there.write_text("mine")
    with ms.open(path) as log:
        with pytest.raises(errors.StorageError):
            log.backup(str(there))
        with pytest.raises(errors.StorageError):
            log.backup(str(tmp_path / "nowhere" / "copy.db"))
    assert there.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.endswith(".part")) == []


# --- input at the edges ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "declare",
    [
        lambda: type("Bad", (ms.Event,), {"__annotations__": {"_time": int}, "__module__": "x"}),
        lambda: _declared(type="\ud800"),
        lambda: _declared(type=""),
        lambda: _declared(type="x" * 300),
        lambda: _declared(type=5),
        lambda: _declared(schema=0),
        lambda: _declared(array_like=True),
    ],
)
def test_an_event_class_that_could_not_be_stored_is_refused_when_it_is_declared(declare):
    with pytest.raises(ms.InvalidEvent):
        declare()


def _declared(**options):
    class Bad(ms.Event, **options):
        a: int = 1

    return Bad


def test_an_append_that_fails_when_half_of_it_is_placed_leaves_nothing(path, monkeypatch):
    with ms.open(path) as log:
        log.append("s", ms.Plain("T", {}))
        real = writer.header_hash

        def failing(previous, body_hash, position, count, stream, *rest):
            if stream == "bad" and position == 3:
                raise RuntimeError("in the middle")
            return real(previous, body_hash, position, count, stream, *rest)

        monkeypatch.setattr(writer, "header_hash", failing)
        with pytest.raises(RuntimeError):
            log.append("bad", [ms.Plain("A", {}), ms.Plain("B", {})])
        assert log.head == 1
        assert log.append("s", ms.Plain("T", {})).position == 2
        log.verify()


def test_an_interrupted_wait_for_the_writer_leaves_it_to_others(path):
    code = (
        "import sys, time, millstream as ms\n"
        "log = ms.open(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "try: log.append('b', ms.Plain('T', {}))\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)\n"
        "time.sleep(60)\n"
    )
    with ms.open(path, lock_timeout=5) as log:
        with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as other:
            try:
                with log.transaction() as tx:
                    tx.db.execute("create table t (a)")
                    assert other.stdout.readline() == "ready\n"
                    time.sleep(0.3)
                    other.send_signal(signal.SIGINT)
                    assert other.stdout.readline() == "interrupted\n"
                for _ in range(3):
                    log.append("a", ms.Plain("T", {}))
                assert log.head == 3
            finally:
                other.kill()


def test_a_child_of_a_killed_holder_does_not_keep_the_writer(path):
    code = (
        "import os, sys, time, millstream as ms\n"
        "log = ms.open(sys.argv[1])\n"
        "with log.transaction() as tx:\n"
        "    tx.db.execute('create table t (a)')\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        time.sleep(30)\n"
        "        os._exit(0)\n"
        "    print(child, flush=True)\n"
        "    time.sleep(30)\n"
    )
    with ms.open(path, lock_timeout=5) as log:
        with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as holder:
            child = int(holder.stdout.readline())
            try:
                time.sleep(0.1)
                holder.kill()
                holder.wait()
                assert log.append("a", ms.Plain("T", {})).position == 1
            finally:
                os.kill(child, signal.SIGKILL)


def test_flipped_bits_of_a_frame_are_a_damage_and_nothing_else(path):
    with ms.open(path) as log:
        log.append("f", pl.DataFrame({"n": range(50), "s": [str(n) for n in range(50)]}), type="Row")
    connection = sqlite3.connect(path)
    [(body,)] = connection.execute("select bytes from bodies").fetchall()
    rng = random.Random(3)
    for _ in range(60):
        at = rng.randrange(len(body))
        bad = body[:at] + bytes([body[at] ^ (1 << rng.randrange(8))]) + body[at + 1 :]
        connection.execute("update bodies set bytes = ?", (bad,))
        connection.commit()
        with ms.open(path, readonly=True) as log:
            for use in (log.verify, lambda: [e.data for e in log.read()], lambda: log.scan("f").collect()):
                try:
                    use()
                except ms.DamagedLog:
                    pass
                except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
                    assert "damaged at position" in str(error)  # noqa: PT017 - told through Polars by a scan
    connection.close()


def test_a_backup_leaves_what_is_not_its_own_alone(path, tmp_path):
    filled(path)
    (tmp_path / "copy.db.part").write_text("mine")
    with ms.open(path) as log:
        log.backup(str(tmp_path / "copy.db"))
    assert (tmp_path / "copy.db.part").read_text() == "mine"
    assert not list(tmp_path.glob("*.part-*"))


@pytest.mark.parametrize("place", [5, True, b"x", "a\0b", "\ud800"])
def test_what_is_no_path_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UsageError):
        ms.open(place)
    assert list(tmp_path.iterdir()) == []


def test_the_last_characters_of_unicode_are_within_their_prefix():
    log = ms.open()
    for name in ("a\U0010ffffb", "x-1\U0010ffff2", "x-1", "x-2"):
        log.append(name, ms.Plain("T", {}))
    assert [s.name for s in log.streams("a*")] == ["a\U0010ffffb"]
    assert [e.stream for e in log.read("x-1*")] == ["x-1\U0010ffff2", "x-1"]


# --- where the file is -------------------------------------------------------------------------------


def test_a_process_may_go_elsewhere_with_a_log_that_it_opened_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with ms.open("log.db") as log:
        log.append("s", ms.Plain("T", {"n": 1}))
        monkeypatch.chdir("sub")
        log.append("s", ms.Plain("T", {"n": 2}))
        assert [e.data["n"] for e in log.read()] == [1, 2]
        log.backup("copy.db")
    assert os.listdir(".") == ["copy.db"]


def test_a_forked_child_that_goes_elsewhere_appends_to_the_same_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ms.open("log.db") as log:
        log.append("s", ms.Plain("T", {"n": 1}))

        def child() -> None:
            os.chdir("/")
            log.append("s", ms.Plain("T", {"n": 2}))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0
        assert log.head == 2


@pytest.mark.parametrize("gone", ["moved", "removed", "replaced"])
def test_an_append_to_a_file_that_is_no_longer_there_is_refused(path, gone, monkeypatch):
    monkeypatch.setattr(whereabouts, "_LOOK", 0.0)
    log = ms.open(path)
    log.append("s", ms.Plain("T", {"n": 1}))
    other = None
    if gone == "removed":
        os.unlink(path)
    else:
        os.rename(path, path + ".old")
    if gone == "replaced":
        with sqlite3.connect(path) as other:
            other.execute("pragma user_version = 1")
        other.close()
    with pytest.raises(errors.StorageError, match="no longer the file that was opened"):
        log.append("s", ms.Plain("T", {"n": 2}))
    with pytest.raises(errors.StorageError, match="no longer the file"), log.transaction() as tx:
        tx.db.execute("create table t (x)")
    if gone == "moved":
        os.rename(path + ".old", path)
        assert log.append("s", ms.Plain("T", {"n": 2})).position == 2
    log.close()


@pytest.mark.parametrize("name", ["\udcff.db", "a?b#c%20.db", "new\nline.db"])
def test_a_file_may_have_any_name(tmp_path, name):
    path = str(tmp_path / name)
    filled(path)
    with ms.open(path, readonly=True) as log:
        assert log.head == 110
    with ms.open("/" + path) as log:  # two slashes are one
        assert log.append("s", ms.Plain("T", {})).position == 111


def test_a_file_of_one_byte_is_not_a_log_and_is_left_alone(path):
    Path(path).write_text("x")
    with pytest.raises(errors.NotALog):
        ms.open(path)
    assert Path(path).read_text() == "x"


def test_a_relative_path_in_a_folder_that_is_gone_is_refused(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    (tmp_path / "sub").rmdir()
    with pytest.raises(errors.NotFound, match="the folder that this process works in is gone"):
        ms.open("log.db")


@pytest.mark.parametrize("setting", ["user_version = 7", "application_id = 1", "synchronous = off", "query_only(1)"])
def test_no_pragma_of_a_transaction_sets_what_the_log_stands_on(path, setting):
    for place in (path, None):
        with ms.open(place) as log:
            with pytest.raises(errors.UsageError, match="PRAGMAs that set things"), log.transaction() as tx:
                tx.db.execute(f"pragma {setting}")
            with log.transaction() as tx:
                assert tx.db.query("pragma user_version") == [{"user_version": 1}]
                tx.db.execute("create table mine (id integer)")
                assert [row["name"] for row in tx.db.query("pragma table_info(mine)")] == ["id"]
