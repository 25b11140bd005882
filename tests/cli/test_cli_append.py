"""millstream append."""

from __future__ import annotations

import json
import time

import polars as pl
import pytest

import millstream as ms


def events(path, stream=None):
    with ms.open(path, readonly=True) as log:
        return [(e.stream, e.type, e.data) for e in log.read(stream)]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "new.db")


def test_lines_go_in_and_the_receipt_comes_back(run, path):
    lines = '{"type": "Login", "data": {"user": 7}}\n\n{"type": "Logout", "data": {"user": 7}}'
    done = run("append", path, "audit", input=lines)
    receipt = json.loads(done.stdout)
    assert done.returncode == 0
    assert (receipt["count"], receipt["first"], receipt["position"], receipt["version"]) == (2, 1, 2, 2)
    assert events(path) == [("audit", "Login", {"user": 7}), ("audit", "Logout", {"user": 7})]


def test_with_a_type_each_line_is_the_data(invoke, path):
    invoke("append", path, "audit", "--type", "Login", input='{"type": "x", "data": 1}\n')
    assert events(path) == [("audit", "Login", {"type": "x", "data": 1})]


def test_text_of_any_language_goes_in_as_it_is(run, path):
    done = run("append", path, "größe-漢字", "--type", "Ünïcode", input='\ufeff{"a": "é漢字🎉\\u0000"}\r\n')
    assert done.returncode == 0
    assert events(path) == [("größe-漢字", "Ünïcode", {"a": "é漢字🎉\0"})]


def test_tags_metadata_and_times_of_a_line_are_kept(invoke, path):
    line = {"type": "T", "data": {}, "tags": ["a"], "metadata": {"by": "me"}, "effective": "2024-01-15T12:00:00Z"}
    invoke("append", path, "s", "--tag", "b", "--tag", "a", input=json.dumps(line))
    with ms.open(path) as log:
        (event,) = log.read()
        assert (event.tags, event.metadata, event.effective.isoformat()) == (
            ("a", "b"),
            {"by": "me"},
            "2024-01-15T12:00:00+00:00",
        )


def test_nothing_in_is_nothing_appended(invoke, path):
    done = invoke("append", path, "s", input="")
    assert (done.exit_code, json.loads(done.stdout)["count"]) == (0, 0)
    assert events(path) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "malformed"),
        ('{"type": "A"', "truncated"),
        ("[1]", "Expected `object`"),
        ('{"data": {}}', "missing required field `type`"),
        ('{"type": "A", "user": 7}', "unknown field `user`"),
        ('{"type": ""}', "is not a type name"),
        ('{"type": "A", "effective": "noon"}', "is not a time"),
        ('{"type": "A", "tags": ["\\n"]}', "is not a tag"),
    ],
)
def test_a_bad_line_is_named_and_what_stood_before_it_stands(run, path, line, reason):
    done = run("append", path, "s", input='{"type": "A"}\n\n{"type": "B"}\n' + line + '\n{"type": "C"}\n')
    assert done.returncode == 2
    assert done.stdout == ""
    told, error, hint = done.stderr.splitlines()
    assert told == "2 events before it stand (positions 1 to 2)"
    assert error.startswith("error: line 4 is not an event: ")
    assert reason in error
    assert hint.startswith("hint: ")
    assert [type for _, type, _ in events(path)] == ["A", "B"]


def test_a_bad_line_far_down_is_named_by_its_number_in_the_whole(run, path):
    done = run("append", path, "s", "--type", "T", input='{"n": 1}\n' * 25_000 + "bad\n")
    assert "error: line 25001 " in done.stderr
    assert "25000 events before it stand" in done.stderr
    with ms.open(path, readonly=True) as log:
        assert log.head == 25_000


def test_bytes_that_are_no_text_are_a_bad_line(run, path):
    done = run("append", path, "s", "--type", "T", input=b'{"a": "\xff\xfe"}\n')
    assert done.returncode == 2
    assert "line 1 is not an event" in done.stderr


def test_a_line_that_is_nested_too_deep_is_a_bad_line(run, path):
    done = run("append", path, "s", input='{"type": "T", "data": {"a": ' + "[" * 3_000 + "]" * 3_000 + "}}")
    assert done.returncode == 2
    assert "line 1 is not an event: maximum recursion depth" in done.stderr


def test_an_expected_version_makes_the_whole_input_one_append(run, path):
    assert run("append", path, "s", "--type", "T", "--expect", "0", input="{}\n{}\n").returncode == 0
    late = run("append", path, "s", "--type", "T", "--expect", "0", input="{}\n")
    assert late.returncode == 4
    assert late.stderr.startswith("error: stream 's' is at version 2, not at 0 as expected\nhint: ")
    bad = run("append", path, "s", "--type", "T", "--expect", "2", input="{}\nbad\n")
    assert bad.returncode == 2
    assert len(events(path)) == 2


def test_a_repeat_of_an_id_has_no_effect_and_the_same_receipt(invoke, path):
    first = invoke("append", path, "s", "--type", "T", "--id", "one", input='{"n": 1}')
    again = invoke("append", path, "s", "--type", "T", "--id", "one", input='{"n": 1}')
    other = invoke("append", path, "s", "--type", "T", "--id", "one", input='{"n": 2}')
    assert first.stdout == again.stdout
    assert other.exit_code == 4
    assert len(events(path)) == 1


def test_a_closed_stream_takes_no_more(invoke, path):
    with ms.open(path) as log:
        log.append("s", ms.Plain("T", {}))
        log.close_stream("s")
    done = invoke("append", path, "s", "--type", "T", input="{}")
    assert (done.exit_code, done.stderr.splitlines()[0]) == (4, "error: stream 's' is closed")


@pytest.mark.parametrize("stream", ["", "a*", "a\nb", "x" * 513])
def test_a_stream_name_that_is_none_is_refused_before_a_log_is_made(invoke, path, tmp_path, stream):
    assert invoke("append", path, stream, "--type", "T", input="{}").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_what_comes_slowly_through_a_pipe_is_not_kept_waiting(start, path):
    process = start("append", path, "s", "--type", "T")
    process.stdin.write(b'{"n": 1}\n')
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with ms.open(path, readonly=True) as log:
                if log.head == 1:
                    break
        except ms.MillstreamError:
            pass  # not made yet
        time.sleep(0.02)
    assert events(path) == [("s", "T", {"n": 1})]
    process.stdin.write(b'{"n": 2}')
    out, _ = process.communicate()
    assert json.loads(out)["count"] == 2


def test_a_parquet_file_goes_in_as_columns(invoke, path, tmp_path):
    file = str(tmp_path / "clicks.parquet")
    pl.DataFrame({"user": [1, 2, 3], "page": ["a", "b", None]}).write_parquet(file)
    done = invoke("append", path, "clicks", file, "--type", "Click", "--id", "jan", "--tag", "web")
    assert json.loads(done.stdout)["count"] == 3
    assert invoke("append", path, "clicks", file, "--type", "Click", "--id", "jan", "--tag", "web").exit_code == 0
    with ms.open(path) as log:
        (found,) = log.runs("clicks")
        assert (found.is_frame, found.tags, found.count) == (True, ("web",), 3)


def test_a_parquet_file_needs_a_type_and_must_be_one(invoke, path, tmp_path):
    file = tmp_path / "clicks.parquet"
    pl.DataFrame({"user": [1]}).write_parquet(file)
    untyped = invoke("append", path, "clicks", str(file))
    assert (untyped.exit_code, "--type" in untyped.stderr) == (2, True)
    file.write_bytes(b"nothing of the kind")
    assert invoke("append", path, "clicks", str(file), "--type", "T").exit_code == 2
    assert invoke("append", path, "clicks", str(tmp_path / "no.parquet"), "--type", "T").exit_code == 3


def test_a_file_that_is_not_there_is_not_found(invoke, path, tmp_path):
    assert invoke("append", path, "s", "no.ndjson").exit_code == 3
    assert invoke("append", path, "s", str(tmp_path)).exit_code == 2


def test_a_clock_far_behind_the_log_is_refused_until_it_is_confirmed(invoke, path):
    from millstream.testing import FakeClock

    with ms.open(path, clock=FakeClock("2999-01-01T00:00:00Z")) as log:
        log.append("s", ms.Plain("T", {}))
    refused = invoke("append", path, "s", "--type", "T", input="{}")
    assert (refused.exit_code, "--confirm-clock" in refused.stderr) == (1, True)
    assert invoke("append", path, "s", "--type", "T", "--confirm-clock", input="{}").exit_code == 0
