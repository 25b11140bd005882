"""The grammar of places and ranges."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

import millstream as ms
from millstream.log.positions import END, Place, Range, parse_place, parse_range
from millstream.testing import FakeClock
from millstream.time import to_micros

NOON = to_micros("2013-01-15T12:00:00Z")
MIDNIGHT = to_micros("2013-01-16T00:00:00Z")
HOUR = 3_600_000_000


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("120:200", Place(position=120), Place(position=200)),
        ("120:", Place(position=120), None),
        (":200", None, Place(position=200)),
        ("120", Place(position=120), None),
        (":", None, None),
        ("0:5", Place(position=0), Place(position=5)),
        ("5:5", Place(position=5), Place(position=5)),
        ("end", END, None),
        (":end", None, END),
        ("120:end", Place(position=120), END),
        ("@2013-01-15T12:00Z", Place(time=NOON), None),
        ("@2013-01-15T12:00Z:", Place(time=NOON), None),
        (":@2013-01-15T12:00Z", None, Place(time=NOON)),
        ("@2013-01-15T12:00Z:@2013-01-16T00:00Z", Place(time=NOON), Place(time=MIDNIGHT)),
        ("@2013-01-15T12:00Z:200", Place(time=NOON), Place(position=200)),
        ("@2013-01-15T13:00+01:00:200", Place(time=NOON), Place(position=200)),
        ("@2013-01-15T13:00+01:00", Place(time=NOON), None),
        ("@2013-01-15T13:20+01:20", Place(time=NOON), None),
        ("@2013-01-15T13:20+01:20:@2013-01-16T01:00+01:00", Place(time=NOON), Place(time=MIDNIGHT)),
        ("@-1h", Place(ago=HOUR), None),
        ("@-1h30m:@-1h", Place(ago=HOUR * 3 // 2), Place(ago=HOUR)),
        ("@-1h:end", Place(ago=HOUR), END),
    ],
)
def test_a_range_is_two_places_of_which_either_may_be_left_out(text, start, stop):
    assert parse_range(text) == Range(start, stop)


@pytest.mark.parametrize(
    "text", ["", "abc", "-5", "007", "1.5", "1:2:3", "End", "12 : 20", "١٢", "5:start", "end:end:end", "9" * 30]
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ms.InvalidPosition, match="is not a range of positions"):
        parse_range(text)


@pytest.mark.parametrize("text", ["200:120", "@2013-01-16T00:00Z:@2013-01-15T12:00Z", "@-1h:@-2h"])
def test_a_range_that_ends_before_it_begins_is_refused(text):
    with pytest.raises(ms.InvalidPosition, match="ends before it begins"):
        parse_range(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("@2013-01-15T12:30", "2013-01-15T12:30:00 has no time zone"),
        ("@2013-01-15", "no time zone"),
        ("@2013-01-15T12:00:@2013-01-16T00:00Z", "2013-01-15T12:00:00 has no time zone"),
        (":@2013-01-15T12:00", "no time zone"),
        ("@2013-13-01T00:00Z:", "'2013-13-01T00:00Z' is not a time"),
        ("@", "is not a time"),
        ("@-", "is not a duration"),
        ("@-1x", "'1x' is not a duration"),
        (":@-5", "'5' is not a duration"),
    ],
)
def test_what_looks_like_a_time_and_is_none_is_told_as_such(text, reason):
    with pytest.raises(ms.InvalidTime, match=reason):
        parse_range(text)


def test_a_place_alone_has_no_colon():
    assert parse_place("120") == Place(position=120)
    with pytest.raises(ms.InvalidPosition, match="is not a position"):
        parse_place("120:")


moments = st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))
places = st.one_of(
    st.integers(0, 10**15).map(lambda n: Place(position=n)),
    moments.map(lambda t: Place(time=to_micros(t))),
    st.integers(0, 10**15).map(lambda n: Place(ago=n)),
    st.just(END),
)


@given(places)
def test_a_place_is_read_as_it_is_written(place):
    assert parse_place(str(place)) == place


def _reversed(start, stop):
    if start.ago is not None:
        return start.ago < stop.ago
    return (start.position or start.time) > (stop.position or stop.time or 0)


@given(st.one_of(st.none(), places), st.one_of(st.none(), places))
def test_a_range_is_read_as_it_is_written_or_ends_before_it_begins(start, stop):
    wanted = Range(start, stop)
    try:
        again = parse_range(str(wanted))
    except ms.InvalidPosition:
        assert _reversed(start, stop)
        return
    assert again == wanted


@given(st.text(alphabet="0123456789:@-+TZendh.", max_size=40))
def test_any_text_is_a_range_or_refused(text):
    try:
        again = parse_range(text)
    except (ms.InvalidPosition, ms.InvalidTime):
        return
    assert parse_range(str(again)) == again


@pytest.fixture
def log():
    clock = FakeClock("2013-01-15T10:00:00Z")
    with ms.open(clock=clock) as log:
        for hour in range(4):  # positions 1 to 4 at 10, 11, 12 and 13 o'clock
            log.append("s", ms.Plain("Hour", {"hour": hour}))
            clock.advance(timedelta(hours=1))
        yield log  # it is 14 o'clock now


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("2:4", [2, 3]),
        ("3", [3, 4]),
        (":3", [1, 2]),
        ("@2013-01-15T12:00Z", [3, 4]),
        (":@2013-01-15T12:00Z", [1, 2]),
        ("@2013-01-15T11:00:00.000001Z:@2013-01-15T13:00Z", [3]),
        ("@-2h", [3, 4]),
        ("@-3h:@-2h", [2]),
        ("@-30m", []),
        ("@-9999999w", [1, 2, 3, 4]),
        ("@9999-12-31T23:59Z", []),
        ("end", []),
        (":end", [1, 2, 3, 4]),
        ("100:200", []),
        ("0:2", [1]),
        ("3:3", []),
    ],
)
def test_a_range_holds_what_stands_at_its_beginning_and_not_what_stands_at_its_end(log, text, positions):
    since, until = parse_range(text).resolve(log)
    assert [e.position for e in log.read(since_position=since, until_position=until)] == positions


def test_the_end_of_an_empty_log_is_where_its_first_event_will_stand():
    with ms.open() as log:
        assert END.resolve(log) == 1
        assert parse_place("@-1h").resolve(log) == 1
