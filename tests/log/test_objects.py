"""JSON objects as columns: no value is lost, whatever the fields of other events hold."""

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import millstream as ms


class Size(Enum):
    SMALL = "s"


class Part(msgspec.Struct):
    name: str
    count: int | None = None


class Ordered(ms.Event):
    total: Decimal
    at: datetime
    size: Size
    parts: list[Part] = []


def scanned(*rows):
    log = ms.open()
    log.append("s", [ms.Plain("T", row) for row in rows])
    return log.scan("s").collect()


@pytest.mark.parametrize(
    ("values", "dtype", "stored"),
    [
        ([1, 2.5], pl.Float64, [1.0, 2.5]),
        ([1, "x"], pl.String, ["1", "x"]),
        ([True, 3], pl.String, ["true", "3"]),
        ([1, {"b": 1}], pl.String, ["1", '{"b":1}']),
        ([[1], [2.5]], pl.List(pl.Float64), [[1.0], [2.5]]),
        ([[1], ["x"]], pl.List(pl.String), [["1"], ["x"]]),
        ([[1], 2], pl.String, ["[1]", "2"]),
        ([{"a": 1}, {"a": "x", "b": None}], pl.Struct, [{"a": "1", "b": None}, {"a": "x", "b": None}]),
        ([2**63, 1], pl.UInt64, [2**63, 1]),
        ([2**63, -1], pl.String, [str(2**63), "-1"]),
        ([{}, {}], pl.String, ["{}", "{}"]),
        ([None, None], pl.Null, [None, None]),
    ],
)
def test_a_field_gets_the_type_that_holds_all_its_values(values, dtype, stored):
    frame = scanned(*({"v": value} for value in values))
    assert frame.schema["v"] == dtype
    assert frame["v"].to_list() == stored


def test_types_of_far_apart_events_meet():
    log = ms.open()
    log.append("s", [ms.Plain("T", {"a": n, "d": {"x": n}}) for n in range(70_000)])
    log.append("s", ms.Plain("T", {"a": "text", "d": {"y": "z"}}))
    frame = log.scan("s").collect()
    assert frame["a"].to_list()[-2:] == ["69999", "text"]
    assert frame["d"].to_list()[-2:] == [{"x": 69999, "y": None}, {"x": None, "y": "z"}]


def test_a_class_gives_its_fields_their_types():
    log = ms.open()
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    log.append("s", Ordered(total=Decimal("1.10"), at=moment, size=Size.SMALL, parts=[Part("bolt", 3)]))
    log.append("s", Ordered(total=Decimal("2"), at=moment, size=Size.SMALL))
    frame = log.scan("s").collect()
    assert frame.rows() == [
        (Decimal("1.10"), moment, "s", [{"name": "bolt", "count": 3}]),
        (Decimal("2.00"), moment, "s", []),
    ]
    assert frame.schema["at"] == pl.Datetime("us", "UTC")


leaf = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
)
value = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=300)
@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), value, max_size=3), min_size=1, max_size=6))
def test_any_objects_can_be_scanned(rows):
    frame = scanned(*rows)
    assert frame.height == len(rows)
    for name in frame.columns:
        assert [v is None for v in frame[name].to_list()] == [row.get(name) is None for row in rows]


def test_a_frame_read_event_by_event_is_its_rows():
    log = ms.open()
    log.append("f", pl.DataFrame({"n": range(5_000)}), type="Row")
    assert [e.data["n"] for e in log.read("f", since_version=1_000, until_version=3_100)] == list(range(999, 3_099))
    assert [e.data["n"] for e in log.read("f", backwards=True, limit=3)] == [4_999, 4_998, 4_997]


class Counted(ms.Event, type="CountedByKey"):
    by_shelf: dict[int, str] = {}
    by_day: dict[date, Decimal] = {}


def test_the_keys_of_a_dict_are_text_in_columns():
    log = ms.open()
    log.append("s", [Counted(by_shelf={7: "a"}, by_day={date(2024, 1, 1): Decimal("1.5")}), Counted(by_shelf={8: "b"})])
    found = log.scan("s").collect()
    assert found["by_shelf"].to_list() == [{"7": "a", "8": None}, {"7": None, "8": "b"}]
    assert found["by_day"].to_list() == [{"2024-01-01": Decimal("1.5")}, {"2024-01-01": None}]


def test_events_without_fields_are_rows_too():
    log = ms.open()
    log.append("s", [ms.Plain("Ticked", {})] * 3)
    assert log.scan("s").collect().height == 3
    assert log.scan("s").select(pl.len()).collect().item() == 3
    assert log.sql("select count(*) from s").item() == 3


def test_a_field_without_a_name_keeps_its_values():
    row = {"": 1, "held": {"": 2}, "listed": [{"": 3}]}
    log = ms.open()
    log.append("s", ms.Plain("Unnamed", row))
    log.append("s", [ms.Plain("Unnamed", row)] * 2)
    assert log.scan("s").collect().to_dicts() == [row] * 3


def test_what_lies_deep_is_text():
    deep = {"end": 1}
    for _ in range(500):
        deep = {"next": deep}
    frame = scanned(deep, {"next": {"next": 5}})
    assert frame["next"].to_list()[1] == {"next": "5"}
    value = scanned(deep)["next"][0]
    levels = 0
    while isinstance(value, dict):
        value, levels = value["next"], levels + 1
    assert levels == 32
    assert value.startswith('{"next":{"next":')


class Timed(ms.Event, type="TimedEvent"):
    clock: time
    span: timedelta
    raw: msgspec.Raw = msgspec.Raw(b"1")


def test_no_value_of_a_class_is_lost_in_a_column():
    zone = timezone(timedelta(hours=5))
    log = ms.open()
    log.append("s", Timed(clock=time(1, tzinfo=zone), span=timedelta.max, raw=msgspec.Raw(b'{"a": [1]}')))
    found = log.scan("s").collect().row(0, named=True)
    assert found == {"clock": "01:00:00+05:00", "span": "P999999999DT86399.999999S", "raw": {"a": [1]}}
    log.append("plain", Timed(clock=time(1), span=timedelta(days=1)))
    assert log.scan("plain").collect().row(0) == (time(1), timedelta(days=1), 1)
