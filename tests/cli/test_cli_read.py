"""millstream read, streams and sql: what is there, in all forms."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import polars as pl
import pytest

import millstream as ms


def ndjson(done):
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def positions(done):
    return [row["position"] for row in ndjson(done)]


def test_a_pipe_gets_ndjson(run, shop):
    first, *rest = [json.loads(line) for line in run("read", shop).stdout.splitlines()]
    assert first["data"] == {"owner": "Änn 漢字"}
    assert list(first) == ["position", "stream", "version", "type", "time", "data"]
    assert (rest[1]["tags"], rest[1]["metadata"], rest[2]["effective"]) == (
        ["new"],
        {"by": "web"},
        "2024-01-15T12:00:00Z",
    )
    assert [row["position"] for row in rest] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), [1, 2, 3, 4, 5]),
        (("account-1",), [1, 2, 4]),
        (("account-*",), [1, 2, 3, 4]),
        (("nothing-*",), []),
        (("--range", "2:4"), [2, 3]),
        (("--range", "4"), [4, 5]),
        (("--range", "end"), []),
        (("--range", "@-1h"), [1, 2, 3, 4, 5]),
        (("--range", ":@-1h"), []),
        (("account-1", "--versions", "2:3"), [2]),
        (("account-1", "--versions", "2:", "--range", ":4"), [2]),
        (("--type", "Login", "--type", "MoneyDeposited"), [2, 5]),
        (("--backwards", "--limit", "2"), [5, 4]),
        (("--limit", "0"), []),
    ],
)
def test_what_is_read_can_be_chosen(invoke, shop, words, expected):
    assert positions(invoke("read", shop, *words)) == expected


def test_versions_need_a_stream_and_are_numbers(invoke, shop):
    assert invoke("read", shop, "--versions", "1:").exit_code == 2
    assert invoke("read", shop, "account-1", "--versions", "@-1h").exit_code == 2


def test_a_stream_that_is_not_there_is_not_found(invoke, shop):
    done = invoke("read", shop, "account-3")
    assert done.exit_code == 3
    assert done.stderr == "error: there is no stream 'account-3'\nhint: List the streams with: millstream streams LOG\n"
    assert invoke("streams", shop, "account-3").exit_code == 3
    assert invoke("tail", shop, "account-3").exit_code == 3
    assert invoke("sql", shop, "select * from nothing").exit_code == 3


def test_json_is_one_array(invoke, shop):
    assert [row["position"] for row in json.loads(invoke("read", shop, "-o", "json").stdout)] == [1, 2, 3, 4, 5]
    assert json.loads(invoke("read", shop, "nothing-*", "-o", "json").stdout) == []


def test_csv_has_a_header_and_json_in_its_cells(invoke, shop):
    rows = list(csv.DictReader(io.StringIO(invoke("read", shop, "--output", "csv").stdout)))
    assert [row["position"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert json.loads(rows[0]["data"]) == {"owner": "Änn 漢字"}
    assert (rows[0]["tags"], rows[2]["tags"], rows[2]["metadata"]) == ("", '["new"]', '{"by":"web"}')
    assert invoke("read", shop, "nothing-*", "-o", "csv").stdout.count("\n") == 1


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_table_keeps_within_the_width(invoke, shop, columns):
    from rich.cells import cell_len

    done = invoke("read", shop, "account-1", "-o", "table", columns=columns)
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].split()[0] == "position" or columns < 80
    assert max(map(cell_len, lines)) <= columns


def test_a_table_limits_itself_and_says_so(invoke, tmp_path):
    path = str(tmp_path / "many.db")
    with ms.open(path) as log:
        log.append("s", [ms.Plain("T", {"n": n}) for n in range(60)])
    done = invoke("read", path, "-o", "table")
    assert len(done.stdout.splitlines()) == 51
    assert done.stderr == "The first 50; there are more. See more with --limit or --output ndjson.\n"
    more = invoke("read", path, "-o", "table", "--limit", "55")
    assert (len(more.stdout.splitlines()), more.stderr) == (56, "")
    exact = invoke("read", path, "-o", "table", "--range", ":51")
    assert (len(exact.stdout.splitlines()), exact.stderr) == (51, "")


def test_a_table_shows_nothing_that_steers_the_terminal(invoke, tmp_path):
    path = str(tmp_path / "evil.db")
    with ms.open(path) as log:
        log.append("s", ms.Plain("T", {"a": "\x1b[31m\x9b31m\u202e[red]", "\x07": 1}))
    for words in (("read", path), ("tail", path, "--follow", "--timeout", "10ms")):
        shown = invoke(*words, "-o", "table", columns=200).stdout
        assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(shown)
        assert "[red]" in shown


@pytest.mark.parametrize(
    ("command", "place", "option"), [("read", "1:2", "--range"), ("read", "@-1h", "--range"), ("tail", "2", "--from")]
)
def test_a_place_that_stands_where_the_stream_does_is_told_its_option(invoke, shop, command, place, option):
    done = invoke(command, shop, place)
    assert done.exit_code == 3
    assert f"hint: For a place in the log, write {option} {place}\n" in done.stderr


def test_the_streams_are_listed_by_name(invoke, shop):
    rows = ndjson(invoke("streams", shop))
    assert [(r["stream"], r["events"], r["first"], r["last"]) for r in rows] == [
        ("account-1", 3, 1, 4),
        ("account-2", 1, 3, 3),
        ("audit", 1, 5, 5),
    ]
    assert [r["stream"] for r in ndjson(invoke("streams", shop, "account-*", "--limit", "1"))] == ["account-1"]
    assert "account-1" in invoke("streams", shop, "-o", "table").stdout


def test_a_frame_reads_as_rows_forwards_and_backwards(invoke, tmp_path):
    path = str(tmp_path / "frames.db")
    with ms.open(path) as log:
        log.append("clicks", pl.DataFrame({"n": range(10_000)}), type="Click")
    there = ndjson(invoke("read", path, "--range", "4000:9000"))
    back = ndjson(invoke("read", path, "--range", "4000:9000", "--backwards"))
    assert [row["data"]["n"] for row in there] == list(range(3999, 8999))
    assert there == back[::-1]


def test_sql_says_which_answer_python_does_not_have(invoke, shop):
    done = invoke("sql", shop, "select 'infinity'::timestamp as t")
    assert (done.exit_code, done.stderr.splitlines()[0][:58]) == (
        2,
        "error: the answer holds a value that Python does not have:",
    )


def test_sql_answers_in_every_form(invoke, tmp_path):
    pytest.importorskip("duckdb")
    path = str(tmp_path / "sql.db")
    with ms.open(path) as log:
        log.append("clicks", pl.DataFrame({"page": ["a", "b", "a"], "n": [1, None, 3]}), type="Click")
    query = "select page, count(n) as clicks, [1] as list from clicks group by 1 order by 1"
    assert ndjson(invoke("sql", path, query)) == [
        {"page": "a", "clicks": 2, "list": [1]},
        {"page": "b", "clicks": 0, "list": [1]},
    ]
    assert invoke("sql", path, query, "-o", "csv").stdout == "page,clicks,list\na,2,[1]\nb,0,[1]\n"
    assert invoke("sql", path, query, "-o", "table").stdout.split()[:3] == ["page", "clicks", "list"]
    assert len(ndjson(invoke("sql", path, "-", input=query))) == 2
    wrong = invoke("sql", path, "select\nnothing frm x")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: ")
    assert len(wrong.stderr.splitlines()) == 2


@pytest.mark.parametrize("form", ["ndjson", "csv", "json"])
def test_memory_stays_flat_while_the_output_grows(start, tmp_path, form):
    path = str(tmp_path / "large.db")
    with ms.open(path) as log:
        for _ in range(5):
            log.append("clicks", pl.DataFrame({"n": range(60_000)}).with_columns(text=pl.lit("x" * 500)), type="Click")
    process = start("read", path, "-o", form, stderr=None)
    size, peak = 0, 0
    while piece := process.stdout.read(1 << 20):
        size += len(piece)
        peak = max(peak, most_memory(process.pid))
    assert process.wait(20) == 0
    assert size > 150_000_000
    assert 0 < peak < 400_000_000


def most_memory(pid: int) -> int:
    """The most bytes that a process has held since it began (what `getrusage` says counts its parent's too)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # it has just ended


def test_sql_sees_the_types_of_classes_that_are_imported(run, tmp_path):
    (tmp_path / "clitills.py").write_text(
        "from decimal import Decimal\nimport millstream as ms\n\n"
        "class Paid(ms.Event, type='CliSqlPaid'):\n    amount: Decimal\n"
    )
    with ms.open(str(tmp_path / "tills.db")) as log:
        log.append("till", [ms.Plain("CliSqlPaid", {"amount": "1.50"}), ms.Plain("CliSqlPaid", {"amount": "2"})])
    asked = ("sql", "tills.db", "select sum(amount) as total from till")
    plain = run(*asked)
    assert plain.returncode == 2
    assert "Candidate" not in plain.stderr
    assert "amount::decimal(18, 2)" in plain.stderr
    assert json.loads(run(*asked, "--import", "clitills").stdout) == {"total": "3.50"}
    missing = run(*asked, "--import", "nowhere")
    assert (missing.returncode, missing.stderr.splitlines()[0]) == (2, "error: there is no module nowhere")


@pytest.mark.parametrize("output", ["ndjson", "table", "json", "csv"])
def test_a_limit_may_be_larger_than_anything(invoke, shop, output):
    done = invoke("read", shop, "--limit", "99999999999999999999", "-o", output)
    assert (done.exit_code, done.stdout) == (0, invoke("read", shop, "--limit", "1000", "-o", output).stdout)
