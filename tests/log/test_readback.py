"""What is appended is read back as what it was, or it is refused."""

from __future__ import annotations

import copy
import enum
import pickle
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

import millstream as ms

ONE = UUID(int=1)


class Colour(enum.Enum):
    RED = "red"


class Inner(msgspec.Struct):
    n: int | float


@dataclass
class Place:
    town: str
    since: date | None = None


class Readback(ms.Event):
    id: UUID = ONE
    amount: Decimal = Decimal(1)
    perhaps: Decimal | None = None
    either: Decimal | float = 0.5
    colour: Colour = Colour.RED
    at: datetime = datetime(2024, 1, 1, tzinfo=UTC)
    body: bytes = b""
    rows: list[Inner] = []
    places: tuple[Place, ...] = ()
    names: dict[int, str] = {}
    many: list[Decimal] = []
    by_name: dict[str, tuple[Decimal, ...]] | None = None
    more: dict = {}
    anything: Any = None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", str(ONE)),
        ("amount", "1.50"),
        ("amount", 0.1),
        ("amount", 0.5),
        ("perhaps", 2.0),
        ("many", [Decimal(1), 0.5]),
        ("by_name", {"a": (0.5,)}),
        ("colour", "red"),
        ("at", "2024-01-01T00:00:00Z"),
        ("body", "YQ=="),
        ("more", {1: "one"}),
        ("more", {"total": Decimal("9.50")}),
        ("more", {"deep": [{"day": date(2024, 1, 1)}]}),
        ("anything", {1, 2}),
        ("anything", Inner(n=1)),
        ("anything", ONE),
    ],
)
def test_a_value_that_would_be_read_back_as_another_is_refused(field, value):
    event = Readback(**{field: value})
    with ms.open() as log:
        for given in (event, [event], [Readback(), event], [Readback(), event, ms.Plain("Other", {})]):
            with pytest.raises(ms.InvalidEvent, match=rf"would be read back as .* at `\$\.{field}"):
                log.append("s", given)
        assert log.head == 0


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("amount", 7, "Decimal('7')"),
        ("amount", Decimal("NaN"), "Decimal('NaN')"),
        ("at", datetime(2024, 1, 1), "datetime.datetime(2024, 1, 1, 0, 0)"),
        ("body", bytearray(b"abc"), "b'abc'"),
        ("rows", (Inner(n=1), Inner(n=1.5)), "[Inner(n=1), Inner(n=1.5)]"),
        ("places", (Place("Oslo"),), "(Place(town='Oslo', since=None),)"),
        ("names", {1: "one"}, "{1: 'one'}"),
        ("more", {"list": (1, 2), "deep": {"n": 1.5}}, "{'list': [1, 2], 'deep': {'n': 1.5}}"),
        ("anything", [1, "a", None, {"b": True}], "[1, 'a', None, {'b': True}]"),
    ],
)
def test_what_differs_in_form_alone_is_taken(field, value, read):
    event = Readback(**{field: value})
    with ms.open() as log:
        log.append("s", event)
        log.append("s", [event, event])
        assert [repr(getattr(e.event, field)) for e in log.read("s")] == [read] * 3


def test_a_time_is_taken_in_the_hour_that_the_clocks_show_twice():
    time = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    with ms.open() as log:
        log.append("s", Readback(at=time))
        assert next(log.read("s")).event.at.astimezone(UTC) == datetime(2024, 10, 27, 1, 30, tzinfo=UTC)


def test_the_keys_of_plain_data_are_text():
    with ms.open() as log:
        for given in (ms.Plain("P", {1: 2}), [ms.Plain("P", {}), ms.Plain("P", {1: 2})]):
            with pytest.raises(ms.InvalidEvent, match="a key that is no text"):
                log.append("s", given)
        assert log.head == 0


def test_a_time_that_has_no_date_in_utc_is_refused():
    east, west = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
    with ms.open() as log:
        for time in (datetime(1, 1, 1, tzinfo=east), datetime(9999, 12, 31, 23, tzinfo=west)):
            with pytest.raises(ms.InvalidTime, match="years 1 to 9999"):
                log.append("s", ms.Plain("T", {}), effective=time)
        for time in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
            log.append("s", ms.Plain("T", {}), effective=time)
            assert next(log.read("s", backwards=True)).effective == time


def test_an_event_that_no_database_could_hold_is_refused_before_it_gets_there(monkeypatch):
    monkeypatch.setattr("millstream.events.MAX_BODY", 1_000)
    with ms.open() as log:
        for given in (
            ms.Plain("Big", {"text": "x" * 1_000}),
            [ms.Plain("Big", {}), ms.Plain("Big", {"text": "x" * 1_000})],
        ):
            with pytest.raises(ms.InvalidEvent, match=r"'Big' has 1,011 bytes, more than 1,000"):
                log.append("s", given)
        assert log.head == 0


def test_a_log_and_what_was_read_of_it_stay_in_their_process():
    log = ms.open()
    log.append("s", Readback())
    recorded = next(log.read("s"))
    for made, said in ((log, "Hand its path over"), (recorded, "Take what is needed of it")):
        for handed in (pickle.dumps, copy.deepcopy):
            with pytest.raises(ms.UsageError, match=said):
                handed(made)
    assert pickle.loads(pickle.dumps(recorded.event)) == Readback()
    log.close()
    assert repr(log) == "<millstream.Log in memory, closed>"


def test_a_connection_is_had_in_a_with_block():
    with ms.open() as log:
        with pytest.raises(ms.UsageError, match=r"outside of a block. Write `with log.connect\(\) as db:`"):
            log.connect().query("select 1")
        with log.connect() as db:
            for value, said in ((Decimal(1), "write others as text"), (1 << 70, "64 bits"), ("\ud800", "surrogate")):
                with pytest.raises(ms.DatabaseError, match=said):
                    db.query("select ?", (value,))


def test_an_address_of_sqlite_is_no_path():
    with pytest.raises(ms.UsageError, match="Give the path of the file alone"):
        ms.open("file:shop.db?mode=memory")


@pytest.mark.parametrize("count", [1, 2])
def test_a_decimal_that_may_not_even_be_compared_is_refused(count):
    class Weighed(ms.Event, type=f"readback.Weighed{count}"):
        kilos: Decimal

    log = ms.open()
    with pytest.raises(ms.InvalidEvent, match="cannot be encoded"):
        log.append("s", [Weighed(kilos=Decimal("sNaN"))] * count)
    assert log.head == 0


UNREADABLE = """
import millstream as ms

class Unreadable(ms.Event):
    x: "NowhereToBeFound"

with ms.open() as log:
    log.append("s", Unreadable(x=1))
"""


def test_a_field_of_a_type_that_is_not_there_is_told():
    # In a process of its own: whoever asks what all events of a process are would meet the class.
    done = subprocess.run([sys.executable, "-c", UNREADABLE], capture_output=True, text=True)
    assert (
        "InvalidEvent: Unreadable declares a field of a type that is not there: name 'NowhereToBeFound'" in done.stderr
    )
