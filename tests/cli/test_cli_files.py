"""millstream export, import, backup, verify and compact."""

from __future__ import annotations

import json
import os
import sqlite3

import polars as pl
import pytest

import millstream as ms


def content(path):
    with ms.open(str(path), readonly=True) as log:
        return [(e.stream, e.version, e.type, e.tags, e.metadata, e.effective, e.data) for e in log.read()]


def record(done):
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_an_export_is_imported_with_all_but_positions_and_times(invoke, shop):
    assert record(invoke("export", shop, "out.ndjson"))["count"] == 5
    assert record(invoke("import", "copy.db", "out.ndjson")) | {"time": ""} == {
        "count": 5,
        "first": 1,
        "position": 5,
        "time": "",
    }
    assert content("copy.db") == content(shop)


def test_an_export_to_a_pipe_feeds_an_import(run, shop, tmp_path):
    out = run("export", shop, "--stream", "account-*", "--range", "2:")
    assert [json.loads(line)["position"] for line in out.stdout.splitlines()] == [2, 3, 4]
    done = run("import", "copy.db", "-", "--stream", "all", "--tag", "copied", input=out.stdout)
    assert json.loads(done.stdout)["version"] == 3
    assert {(stream, tags[0]) for stream, _, _, tags, *_ in content(tmp_path / "copy.db")} == {("all", "copied")}


def test_a_bad_line_of_an_import_is_named_and_what_stood_before_it_stands(invoke):
    lines = '{"stream": "a", "type": "T"}\n{"stream": "b", "type": "T"}\n{"type": "T"}\n'
    done = invoke("import", "new.db", input=lines)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[:2] == [
        "2 events before it stand (positions 1 to 2)",
        "error: line 3 names no stream",
    ]
    assert len(content("new.db")) == 2


def test_parquet_goes_out_and_comes_in_typed(invoke, tmp_path):
    path = str(tmp_path / "clicks.db")
    frame = pl.DataFrame({"user": [1, 2, 3], "page": ["a", None, "c"]})
    with ms.open(path) as log:
        log.append("clicks", frame, type="Click")
    assert record(invoke("export", path, "c.parquet", "--stream", "clicks", "--range", "2:"))["count"] == 2
    assert record(invoke("import", "new.db", "c.parquet", "--stream", "clicks"))["count"] == 2
    with ms.open("new.db") as log:
        assert log.scan("clicks").collect().equals(frame[1:])


@pytest.mark.parametrize(
    "words",
    [
        ("export", "shop.db", "x.parquet"),
        ("export", "shop.db", "-", "--format", "parquet"),
        ("import", "new.db", "x.parquet"),
        ("import", "new.db", "-", "--format", "parquet", "--stream", "s"),
        ("import", "new.db", "x.ndjson", "--type", "T"),
    ],
)
def test_what_a_form_cannot_do_is_refused_and_leaves_nothing(invoke, shop, tmp_path, words):
    before = {path.name for path in tmp_path.iterdir()}
    assert invoke(*words).exit_code == 2
    assert {path.name for path in tmp_path.iterdir()} - before <= {"shop.db-shm", "shop.db-wal"}


def test_an_export_replaces_no_file_unasked_and_never_the_log(invoke, shop, tmp_path):
    target = tmp_path / "out.ndjson"
    target.write_text("precious")
    assert invoke("export", shop, "out.ndjson").exit_code == 1
    assert target.read_text() == "precious"
    assert record(invoke("export", shop, "out.ndjson", "--overwrite"))["count"] == 5
    for words in (("shop.db",), ("./shop.db", "--format", "parquet", "--stream", "audit")):
        assert invoke("export", shop, *words, "--overwrite").exit_code == 2
    assert len(content(shop)) == 5


def test_an_export_that_fails_leaves_nothing(invoke, shop, tmp_path):
    connection = sqlite3.connect(shop)
    connection.execute("update runs set body = '{\"half' where position = 5")
    connection.commit()
    connection.close()
    done = invoke("export", shop, "out.ndjson")
    assert (done.exit_code, "damaged at position 5" in done.stderr) == (1, True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out.ndjson")]


def test_a_backup_is_a_log_like_any_other(invoke, shop):
    made = record(invoke("backup", shop, "copy.db"))
    assert made == {"file": "copy.db", "position": 5, "bytes": os.path.getsize("copy.db")}
    assert content("copy.db") == content(shop)
    again = invoke("backup", shop, "copy.db")
    assert (again.exit_code, again.stderr.splitlines()[0]) == (1, "error: copy.db is there already")


def test_verify_gives_the_head_and_finds_it_again(invoke, shop):
    kept = record(invoke("verify", shop))
    assert (kept["events"], kept["position"]) == (5, 5)
    with ms.open(shop) as log:
        log.append("audit", ms.Plain("Login", {}))
    assert record(invoke("verify", shop, "--head", kept["hash"]))["events"] == 6
    other = invoke("verify", shop, "--head", "0" * 63 + "1")
    assert (other.exit_code, "not in the chain" in other.stderr) == (1, True)
    assert invoke("verify", shop, "--head", "zz").exit_code == 2


def test_verify_names_the_position_of_a_changed_event(invoke, shop):
    connection = sqlite3.connect(shop)
    connection.execute("update runs set body = replace(body, '7', '8') where position = 5")
    connection.commit()
    connection.close()
    done = invoke("verify", shop)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: the log is damaged at position 5: ")


def test_compact_merges_what_is_small_and_changes_nothing_that_is_read(invoke, tmp_path):
    path = str(tmp_path / "small.db")
    with ms.open(path) as log:
        for n in range(10):
            log.append("clicks", pl.DataFrame({"n": [n, n]}), type="Click")
    before = content(path)
    assert record(invoke("compact", path)) == {"runs": 10, "bodies": 1}
    assert content(path) == before
    assert invoke("compact", path, "nothing").exit_code == 3
    assert invoke("compact", "nothing.db").exit_code == 3
    assert not os.path.exists("nothing.db")


@pytest.mark.parametrize("name", ["out.csv", "out.ndjson.gz", "OUT.CSV"])
def test_a_file_whose_name_promises_another_format_is_not_written(invoke, shop, tmp_path, name):
    refused = invoke("export", shop, name)
    assert refused.exit_code == 2
    assert not (tmp_path / name).exists()
    with ms.open(shop) as log, pytest.raises(ms.UsageError, match="would"):
        log.export(tmp_path / name)
    # Who says so gets it.
    assert record(invoke("export", shop, name, "--format", "ndjson"))["count"] == 5


def test_a_log_that_was_copied_by_its_file_alone_is_told_to_be_backed_up(invoke, tmp_path):
    with ms.open(str(tmp_path / "open.db")) as log:
        log.append("s", ms.Plain("T", {}))
        (tmp_path / "copied.db").write_bytes((tmp_path / "open.db").read_bytes())
        told = invoke("read", "copied.db")
    assert told.stderr.startswith("error: copied.db is not a Millstream log\nhint: ")
    assert "copy with log.backup()" in told.stderr
