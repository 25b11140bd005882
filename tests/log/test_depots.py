"""Depots: one contract for folders and object stores, one set of rules for their addresses."""

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import millstream as ms
from buckets import SECRETS
from millstream.log.depots import Folder, check_location, is_depot, open_depot
from millstream.log.retention import fetched
from millstream.log.retention.fetched import Fetched


@pytest.fixture(params=["folder", "s3"])
def depot(request, tmp_path):
    if request.param == "folder":
        return open_depot(str(tmp_path / "some" / "depot"))
    return open_depot(f"s3://{request.getfixturevalue('bucket')}/some/prefix/")


def names(depot, *args, **options):
    return [entry.name for entry in depot.list(*args, **options)]


# --- the contract -----------------------------------------------------------------------------------


def test_what_is_put_is_got_by_its_name(depot, tmp_path):
    (tmp_path / "file").write_bytes(b"from a file")
    depot.put("a", b"bytes")
    depot.put("deep/er/b", tmp_path / "file")
    assert (depot.get("a"), depot.get("deep/er/b")) == (b"bytes", b"from a file")
    depot.put("a", b"again")
    assert depot.get("a") == b"again"


def test_an_empty_depot_is_listed_and_nothing_is_made(depot, tmp_path):
    assert names(depot) == []
    assert names(depot, "folder") == []
    assert not (tmp_path / "some").exists()


def test_files_are_listed_in_order_in_a_folder_and_after_a_name(depot):
    for name in ("b", "x/2", "a", "x/1", "xy"):
        depot.put(name, name.encode())
    assert names(depot) == ["a", "b", "x/1", "x/2", "xy"]
    assert names(depot, after="a") == ["b", "x/1", "x/2", "xy"]
    assert names(depot, "x") == ["x/1", "x/2"]
    assert names(depot, "x", after="x/1") == ["x/2"]
    assert all(entry.size == len(entry.name) and entry.age < 60 for entry in depot.list())


def test_a_file_that_is_not_there_is_missing_by_its_name(depot):
    depot.put("b", b"")
    for ask in (depot.get, Fetched(depot).file):
        with pytest.raises(ms.DepotFileMissing) as raised:
            ask("x/a")
        assert (raised.value.file, raised.value.location) == ("x/a", depot.location)


def test_what_is_deleted_is_gone_and_may_be_deleted_again(depot):
    depot.put("x/a", b"")
    for _ in range(2):
        depot.delete("x/a")
    assert names(depot) == []


# --- files of a depot on this machine ----------------------------------------------------------------


def test_files_are_fetched_once_and_anew_when_they_were_put(depot):
    depot.put("a", b"one")
    files = Fetched(depot)
    first = files.file("a")
    assert first.read_bytes() == b"one"
    assert files.file("a") == first
    files.put("a", b"two")
    assert files.file("a").read_bytes() == b"two"
    files.delete("a")
    with pytest.raises(ms.DepotFileMissing):
        files.file("a")
    files.close()


def test_what_is_kept_of_an_object_store_is_bounded(bucket, monkeypatch):
    monkeypatch.setattr(fetched, "_KEPT_BYTES", 250)
    depot = open_depot(f"s3://{bucket}")
    files = Fetched(depot)
    for n in range(5):
        depot.put(str(n), bytes(100))
    paths = [files.file(str(n)) for n in range(5)]
    assert [path.exists() for path in paths] == [False, False, False, True, True]
    assert files.file("0").read_bytes() == bytes(100)
    files.close()
    assert not paths[-1].parent.exists()


# --- folders ----------------------------------------------------------------------------------------


def test_a_put_that_fails_leaves_what_was_there_and_no_part(tmp_path):
    depot = Folder(str(tmp_path))
    depot.put("a", b"old")
    with pytest.raises(ms.DepotError):
        depot.put("a", tmp_path / "no such file")
    assert depot.get("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_went_away_is_not_begun_anew(tmp_path):
    depot = Folder(str(tmp_path / "disk"))
    depot.put("a", b"")
    os.rename(tmp_path / "disk", tmp_path / "elsewhere")
    for name in ("b", "x/b"):
        with pytest.raises(ms.DepotError):
            depot.put(name, b"")
    assert not (tmp_path / "disk").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "sealed").mkdir(mode=0o500)
    with pytest.raises(ms.DepotError, match="sealed"):
        open_depot(str(tmp_path / "sealed")).put("a", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_a_full_disk_is_told_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("millstream.log.files.partial_name", lambda path: "/dev/full")
    monkeypatch.setattr("os.remove", lambda path: None)
    with pytest.raises(ms.DiskFull):
        Folder(str(tmp_path)).put("a", b"x")


# --- object stores ----------------------------------------------------------------------------------


def told(depot, error):
    with pytest.raises(error) as raised:
        list(depot.list())
    text = f"{raised.value} {raised.value!r} {vars(raised.value)}"
    assert depot.location in text
    assert not any(secret in text for secret in SECRETS.values())
    return raised.value


def test_a_bucket_that_is_not_there_is_refused_and_not_waited_for(bucket):
    depot = open_depot("s3://missing/shop")
    assert type(told(depot, ms.DepotError)) is ms.DepotError
    with pytest.raises(ms.DepotError, match="no such bucket"):
        depot.get("a")
    with pytest.raises(ms.DepotError, match="no such bucket"):
        depot.put("a", b"")


def test_a_store_that_nobody_serves_may_answer_later(bucket, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert "connection" in told(open_depot("s3://bucket/shop"), ms.DepotUnavailable).reason


def test_a_store_that_does_not_answer_is_given_up_in_time(bucket, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "0.3 s" in told(open_depot("s3://bucket/shop", timeout=0.3), ms.DepotUnavailable).reason


@pytest.fixture
def answering(bucket, monkeypatch):
    """A store that answers everything with one status."""

    class Handler(BaseHTTPRequestHandler):
        status = 0

        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(self.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_DELETE = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "later"), [(301, False), (400, False), (403, False), (429, True), (500, True), (503, True)]
)
def test_what_a_store_answers_tells_whether_to_try_again(answering, status, later):
    answering.status = status
    depot = open_depot("s3://bucket/shop", timeout=2)
    for ask in (lambda: list(depot.list()), lambda: depot.get("a"), lambda: depot.put("a", b"")):
        with pytest.raises(ms.DepotError) as raised:
            ask()
        assert isinstance(raised.value, ms.DepotUnavailable) == later


@pytest.mark.parametrize(("allowed", "spoken"), [(None, True), ("true", True), ("false", False)])
def test_plain_http_is_spoken_to_an_endpoint_that_is_given_so_unless_it_is_forbidden(
    bucket, monkeypatch, allowed, spoken
):
    if allowed is not None:
        monkeypatch.setenv("AWS_ALLOW_HTTP", allowed)
    depot = open_depot(f"s3://{bucket}")
    if spoken:
        assert names(depot) == []
    else:
        assert "HTTP" in told(depot, ms.DepotError).reason


# --- addresses --------------------------------------------------------------------------------------


def test_what_is_a_depot_and_what_a_log(tmp_path):
    assert is_depot("s3://bucket/x")
    assert is_depot("new/")
    assert is_depot("file:///somewhere")
    assert is_depot(str(tmp_path))
    assert not is_depot("shop.db")
    assert not is_depot("postgresql://host/shop")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("s3://bucket/some/where/", "s3://bucket/some/where"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        ("file:///some/where/", "/some/where"),
        ("/some/../where/", "/where"),
    ],
)
def test_an_address_is_kept_in_one_form(given, kept):
    assert check_location(given) == kept


@pytest.mark.parametrize(
    "given",
    [
        "",
        "s3://",
        "http://host/x",
        "memory://x",
        "file://host/x",
        "postgres://x",
        "s3://key:secret@bucket/x",
        "s3://secret@bucket/x",
        "abfs://container:secret@account/x",
        "s3://bucket/x?secret=1",
        "s3://bucket/x#secret",
        7,
        "a\nb",
    ],
)
def test_an_address_that_is_none_or_holds_credentials_is_refused_and_no_secret_is_repeated(given):
    with pytest.raises(ms.InvalidDepot) as raised:
        open_depot(given)
    assert "secret" not in str(raised.value)
    assert raised.value.hint
