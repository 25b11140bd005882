"""How the command ends: exit codes, and errors of one line and a hint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

import millstream as ms
from millstream.cli.exits import EXIT_CODES
from millstream.cli.reference import error_codes

COMMAND = [sys.executable, "-m", "millstream.cli"]

READING = [
    ("read",),
    ("tail",),
    ("streams",),
    ("verify",),
    ("sql", "select 1"),
    ("export",),
    ("backup", "copy.db"),
]


def with_log(words, path):
    return (words[0], str(path), *words[1:])


@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_a_wrong_path_is_not_found_and_nothing_is_made(invoke, tmp_path, words):
    done = invoke(*with_log(words, "nothing.db"))
    assert done.exit_code == 3
    assert done.stderr.startswith("error: there is no log nothing.db\nhint: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [*READING, ("append", "s"), ("import",), ("compact",)], ids=lambda words: words[0])
def test_a_file_that_is_no_log_is_told_and_left_as_it_is(invoke, tmp_path, words):
    text = tmp_path / "notes.txt"
    text.write_text("not a log, but long enough for a header of a hundred bytes. " * 10)
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("create table notes (text)")
    connection.commit()
    connection.close()
    for file in (text, foreign):
        before = file.read_bytes()
        done = invoke(*with_log(words, file.name), input="")
        assert (done.exit_code, done.stderr.splitlines()[0]) == (1, f"error: {file.name} is not a Millstream log")
        assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "foreign.db"}


@pytest.mark.parametrize("words", [("read",), ("append", "s"), ("compact",)], ids=lambda words: words[0])
def test_a_log_of_a_newer_format_is_told(invoke, shop, words):
    connection = sqlite3.connect(shop)
    connection.execute("pragma user_version = 99")
    connection.close()
    done = invoke(*with_log(words, shop), input="")
    assert done.exit_code == 1
    assert "has format 99; this version reads up to format" in done.stderr
    assert done.stderr.splitlines()[1] == "hint: Upgrade millstream"


@pytest.mark.skipif(sys.platform != "linux", reason="takes root's rights away with setpriv")
def test_a_read_only_folder_is_told(shop, tmp_path, environment):
    folder = tmp_path / "fixed"
    folder.mkdir()
    shutil.copy(shop, folder / "shop.db")
    (folder / "shop.db").chmod(0o444)
    folder.chmod(0o555)
    without_rights: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv")
        without_rights = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner"]
    for path in (folder / "shop.db", folder / "new.db"):
        done = subprocess.run(
            [*without_rights, *COMMAND, "append", str(path), "s", "--type", "T"],
            input=b"{}",
            capture_output=True,
            env=environment,
        )
        assert done.returncode == 1
        error, hint = done.stderr.decode().splitlines()
        assert error.startswith("error: ")
        assert "read-only" in error
        assert hint.startswith("hint: ")
    folder.chmod(0o755)
    assert [path.name for path in folder.iterdir()] == ["shop.db"]


@pytest.mark.parametrize("path", ["", ":memory:", "mysql://localhost/shop"])
def test_what_is_no_place_for_a_log_is_a_usage_error(invoke, path):
    assert invoke("append", path, "s", "--type", "T", input="{}").exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("read",),
        ("nonsense",),
        ("read", "shop.db", "--nonsense"),
        ("read", "shop.db", "--output", "xml"),
        ("read", "shop.db", "--limit", "-1"),
        ("read", "shop.db", "--range", "5x"),
        ("read", "shop.db", "a", "b"),
        ("append", "shop.db", "s", "--expect", "x"),
    ],
)
def test_a_wrong_call_is_one_line_and_a_hint(invoke, shop, words):
    done = invoke(*words)
    assert done.exit_code == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")


def test_no_command_at_all_shows_the_help_as_a_usage_error(invoke):
    done = invoke()
    assert (done.exit_code, "Commands" in done.output) == (2, True)


def test_a_traceback_is_shown_only_when_asked_for(run, shop):
    assert "Traceback" not in run("read", shop, "nothing").stderr
    for words in (("--debug", "read", shop, "nothing"), ("read", shop, "nothing", "--debug")):
        done = run(*words)
        assert done.returncode == 3
        assert "Traceback (most recent call last)" in done.stderr
        assert done.stderr.splitlines()[-2] == "error: there is no stream 'nothing'"


def test_a_fault_of_our_own_is_no_traceback_either(invoke, shop, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(ms.Log, "streams", fail)
    done = invoke("streams", shop)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ZeroDivisionError: of all things\nhint: ")


@pytest.mark.parametrize(
    "words",
    [("read",), ("read", "-o", "csv"), ("read", "-o", "json"), ("read", "-o", "table"), ("export",), ("streams",)],
    ids=" ".join,
)
def test_a_pipe_that_is_closed_early_ends_it_quietly(start, tmp_path, words):
    path = str(tmp_path / "many.db")
    with ms.open(path) as log:
        log.append("s", [ms.Plain("T", {"text": "x" * 200}) for _ in range(20_000)])
        for n in range(50):
            log.append(f"other-{n}", ms.Plain("T", {}))
    process = start(*with_log(words, path))
    process.stdout.close()
    assert process.wait(timeout=50) == 141
    assert process.stderr.read() == b""


def test_help_into_a_closed_pipe_ends_quietly(start):
    process = start("--help")
    process.stdout.close()
    assert (process.wait(timeout=50), process.stderr.read()) == (141, b"")


def test_ctrl_c_while_reading_stdin_ends_it_quietly_and_keeps_what_went_in(start, tmp_path):
    path = str(tmp_path / "new.db")
    process = start("append", path, "s", "--type", "T")
    process.stdin.write(b"{}\n")
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with ms.open(path, readonly=True) as log:
                if log.head:
                    break
        except ms.MillstreamError:
            pass  # not made yet
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == b"1 event before it stands (position 1)\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_told(start, shop):
    with open("/dev/full", "wb") as full:
        process = start("read", shop, stdout=full)
        _, err = process.communicate(timeout=50)
    assert process.returncode == 1
    assert err.startswith(b"error: No space left on device")


def test_every_error_of_the_library_has_an_exit_code_that_is_explained():
    assert set(error_codes()) <= set(EXIT_CODES)


def test_a_command_whose_streams_are_closed_does_its_work(tmp_path, shop, environment):
    def closed(command: str) -> subprocess.CompletedProcess[str]:
        line = f"'{sys.executable}' -m millstream.cli {command}"
        return subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)

    for words in (f"read '{shop}' >&-", f"export '{shop}' >&-", f"verify '{shop}' <&- >&- 2>&-"):
        done = closed(words)
        assert (done.returncode, done.stderr) == (0, ""), words
    nothing = closed(f"append '{shop}' s --type T <&-")
    assert (nothing.returncode, json.loads(nothing.stdout)["count"]) == (0, 0)
