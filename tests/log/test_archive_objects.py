"""Archives in an object store: a server that speaks S3, and what happens when it does not."""

import socket

import polars as pl
import pytest

import millstream as ms
from buckets import SECRETS


def filled(log):
    for n in range(10):
        log.append("clicks", pl.DataFrame({"n": range(n * 100, n * 100 + 100)}), type="Click")
        log.append("account-1", ms.Plain("Deposited", {"n": n}))


def seen(log):
    return [(e.position, e.data) for e in log.read() if e.stream[0] != "$"]


def test_what_is_archived_in_a_bucket_is_read_verified_and_restored(bucket, tmp_path):
    path = str(tmp_path / "log.db")
    with ms.open(path) as log:
        filled(log)
        before, head = seen(log), log.verify().hash
        log.retain("clicks", 200, archive=f"s3://{bucket}/some/where/")
        log.trim()
        log.archive("account-*")
        assert seen(log) == before
        assert log.archives.locations() == (f"s3://{bucket}/some/where",)
    with ms.open(path) as log:
        assert log.scan("clicks").select("n").collect()["n"].to_list() == list(range(1000))
        assert log.verify(head=head).archived == 810
        found = log.archives.verify()
        assert (found.files, found.faults) == (2, ())
        assert log.archives.restore().events == 810
        assert seen(log) == before
        assert [f.code for f in log.archives.verify().faults] == ["orphan", "orphan"]


def test_an_archive_moves_from_a_folder_to_a_bucket(bucket, tmp_path):
    import obstore
    from obstore.store import S3Store

    with ms.open() as log:
        filled(log)
        before = seen(log)
        log.archive("clicks", to=str(tmp_path / "old"))
        store = S3Store(bucket, prefix="moved", client_options={"allow_http": True})
        for file in (tmp_path / "old").rglob("*"):
            if file.is_file():
                obstore.put(store, file.relative_to(tmp_path / "old").as_posix(), file)
        log.archives.relocate(str(tmp_path / "old"), f"s3://{bucket}/moved")
        assert seen(log) == before
        assert log.archives.verify().faults == ()


def test_a_file_that_is_gone_or_changed_in_a_bucket_is_named(bucket):
    import obstore
    from obstore.store import S3Store

    with ms.open() as log:
        filled(log)
        log.archive("clicks", to=f"s3://{bucket}/broken")
        log.archive("account-*")
        store = S3Store(bucket, prefix="broken", client_options={"allow_http": True})
        names = [item["path"] for page in obstore.list(store) for item in page if item["path"].endswith(".parquet")]
        click, account = sorted(names, reverse=True)
        obstore.delete(store, click)
        obstore.put(store, account, b"something else")
        assert {f.code for f in log.archives.verify().faults} == {"depot-file-missing", "depot-file-changed"}
        with pytest.raises(ms.DepotFileMissing):
            seen(log)
        with pytest.raises(ms.DepotFileChanged):
            [e.data for e in log.read("account-1")]


def refused(log, location, match, error=ms.DepotUnavailable):
    with pytest.raises(error, match=match) as raised:
        log.archive("clicks", to=location)
    text = f"{raised.value} {raised.value!r} {vars(raised.value)}"
    assert not any(secret in text for secret in SECRETS.values())
    assert raised.value.hint
    return raised.value


def test_a_bucket_that_is_not_there_is_told(bucket):
    with ms.open() as log:
        filled(log)
        assert type(refused(log, "s3://no-such-bucket/x", "no such bucket", ms.DepotError)) is ms.DepotError
        assert len([e.data for e in log.read("clicks")]) == 1000


def test_a_store_that_nobody_serves_is_told(bucket, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with ms.open() as log:
            filled(log)
            log.archives.timeout = "2s"
            refused(log, f"s3://{bucket}/x", "connection")


def test_a_store_that_does_not_answer_is_given_up_after_the_timeout(bucket, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with ms.open() as log:
            filled(log)
            log.archives.timeout = 0.3
            refused(log, f"s3://{bucket}/x", "did not answer within 0.3 s")
            log.verify()


def test_plain_http_can_be_forbidden(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    with ms.open() as log:
        filled(log)
        refused(log, f"s3://{bucket}/x", "HTTP", ms.DepotError)


def test_a_store_that_goes_away_is_named_and_what_is_in_the_log_stays_readable(bucket, monkeypatch, tmp_path):
    path = str(tmp_path / "log.db")
    with ms.open(path) as log:
        filled(log)
        log.archive("clicks", to=f"s3://{bucket}/away", keep=100)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with ms.open(path) as log:
        log.archives.timeout = "1s"
        assert [e.data["n"] for e in log.read("account-1")] == list(range(10))
        assert len([e.data for e in log.read("clicks", since_version=901)]) == 100
        with pytest.raises(ms.DepotUnavailable):
            seen(log)
        [fault] = log.archives.verify().faults
        assert (fault.code, fault.location) == ("depot-unavailable", f"s3://{bucket}/away")
        assert log.verify(archives=False).archived == 900
