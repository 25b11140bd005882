"""Files of every released format stay readable, and today's code still writes the present one to the bit."""

import importlib.util
import json
import shutil
import sqlite3
from decimal import Decimal
from pathlib import Path

import pytest

import millstream as ms

GOLDEN = Path(__file__).parent.parent / "golden"
HEADS = {1: "8645395d4a1f2f5d12269a04768ad7e1a8d6532c3bb8eebdb39e3d69b4a7a38b"}


def maker():
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=sorted(HEADS))
def golden(request, tmp_path):
    path = tmp_path / "golden.db"
    shutil.copyfile(GOLDEN / f"format-{request.param}.db", path)
    with ms.open(str(path)) as log:
        yield log, HEADS[request.param]


def test_a_golden_file_verifies_against_the_head_that_was_noted(golden):
    log, head = golden
    found = log.verify(head=head)
    assert (found.hash, found.position, found.runs) == (head, 23, 14)


def test_a_golden_file_reads_as_it_was_written(golden):
    log, _ = golden
    account = list(log.read("account-1"))
    assert [(e.version, e.type, e.data.get("amount")) for e in account] == [
        (1, "AccountCreated", None),
        (2, "MoneyDeposited", "1000.00"),
        (3, "MoneyDeposited", "1"),
        (4, "MoneyWithdrawn", "200"),
        (5, "MoneyWithdrawn", "5"),
        (6, "StreamClosed", None),
    ]
    assert account[0].data == {"owner": "Änne"}
    assert account[1].tags == ("big", "cash")
    assert account[1].metadata == {"correlation": "c-1", "user": "ann"}
    assert account[2].effective.isoformat() == "2023-12-31T23:59:59+00:00"
    assert account[3].time.isoformat() == "2024-01-15T10:01:00+00:00"
    assert [e.data["n"] for e in log.read("audit")] == [0, 0, 1, -1, 2, -2]
    assert log.scan("many").collect()["n"].to_list() == [0, 10, 1, 11, 2, 12]
    rows = log.scan("rows").collect()
    assert rows.head(3).drop("new").equals(maker().frame())
    assert rows["d"].to_list()[0] == Decimal("1.10")
    assert rows["new"].to_list() == [None, None, None, "x"]


def test_a_golden_file_takes_new_events_and_knows_its_append_ids(golden):
    log, _ = golden
    again = log.append("account-1", ms.Plain("AccountCreated", {"owner": "Änne"}), expect=0, id="first")
    assert again.position == 1
    assert log.append("new", ms.Plain("T", {})).position == 24
    with pytest.raises(ms.StreamClosed):
        log.append("account-1", ms.Plain("T", {}))
    log.verify()


def test_the_present_code_writes_the_present_format_to_the_bit(tmp_path):
    maker().write(tmp_path / "now.db")
    with ms.open(str(tmp_path / "now.db")) as log:
        assert log.verify().hash == HEADS[max(HEADS)]


def test_single_events_are_readable_with_any_sqlite_tool(golden):
    log, _ = golden
    connection = sqlite3.connect(log.path)
    row = connection.execute("select stream, version, type, recorded, body from events where position = 1").fetchone()
    connection.close()
    assert row[:4] == ("account-1", 1, "AccountCreated", "2024-01-15T10:00:00.000Z")
    assert json.loads(row[4]) == {"owner": "Änne"}
