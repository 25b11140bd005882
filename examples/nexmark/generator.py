"""Persons, auctions and bids in the schema of Nexmark: seeded, in columns, the same every time.

It is not the official generator. It has its schema, its shares (of 50 events one is a person, three are auctions, 46
are bids), its fixed base time and its skew (half of the bids go to the hot auction, three quarters come from the hot
bidder, and so on), but its random numbers are numpy's, and its texts are drawn from small pools.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import polars as pl

import millstream as ms

BASE = datetime(2015, 7, 15, tzinfo=UTC)
"""The time of the first event."""

EVENTS = 50
"""So many events make a round: a person, three auctions, 46 bids."""

AUCTIONS = 3
BIDS = EVENTS - AUCTIONS - 1
FIRST = 1000
"""The least id of a person and of an auction."""

_CATEGORIES, _FIRST_CATEGORY = 5, 10
_ACTIVE_PERSONS, _OPEN_AUCTIONS = 1000, 100
_LEAD = 10
"""So many persons and auctions are spoken of before they are there."""

_HOT = 100
"""Every so many persons and auctions one is hot."""

_CHANNELS = 10_000
_STATES = ("AZ", "CA", "ID", "OR", "WA", "WY")
_CITIES = ("Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cody")
_FIRST_NAMES = ("Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter")
_LAST_NAMES = ("Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris")

_Random = np.random.Generator
_Ints = np.ndarray[Any, np.dtype[np.int64]]


class Site(NamedTuple):
    """What happened on the site: three streams, each in order of time."""

    person: pl.DataFrame
    auction: pl.DataFrame
    bid: pl.DataFrame


def generate(events: int, *, seed: int = 1, rate: float = 10_000) -> Site:
    """So many events, by the hundreds of thousands a second.

    Args:
        events: How many; a multiple of 50.
        seed: The same seed gives the same events.
        rate: Events in a second of their own time.
    """
    rounds = events // EVENTS
    r = np.random.default_rng(seed)
    return Site(_persons(r, rounds, rate), _auctions(r, rounds, rate), _bids(r, rounds, rate))


def fill(log: ms.Log, site: Site, *, rounds: int = 1_000) -> None:
    """Append the events of a site to a log, to the streams ``person``, ``auction`` and ``bid``.

    Args:
        rounds: So many rounds of 50 events come before the next ones of another stream.
    """
    for start in range(0, site.person.height, rounds):
        for name, rows, each in zip(site._fields, site, (1, AUCTIONS, BIDS), strict=True):
            log.append(name, rows.slice(start * each, rounds * each), type=f"Nexmark{name.capitalize()}")


def _persons(r: _Random, rounds: int, rate: float) -> pl.DataFrame:
    person = np.arange(rounds)
    first, last = _chosen(r, rounds, _FIRST_NAMES), _chosen(r, rounds, _LAST_NAMES)
    letters = _texts(r, 200, 7)
    frame = pl.DataFrame(
        {
            "id": person + FIRST,
            "first": first,
            "last": last,
            "box": _chosen(r, rounds, letters),
            "host": _chosen(r, rounds, letters),
            "city": _chosen(r, rounds, _CITIES),
            "state": _chosen(r, rounds, _STATES),
            "dateTime": _times(person * EVENTS, rate),
            "extra": _chosen(r, rounds, _texts(r, 500, 100)),
        }
    )
    card = [pl.Series(r.integers(0, 10_000, rounds)).cast(pl.String).str.zfill(4) for _ in range(4)]
    return frame.select(
        "id",
        pl.format("{} {}", "first", "last").alias("name"),
        pl.format("{}@{}.com", "box", "host").alias("emailAddress"),
        pl.concat_str(card, separator=" ").alias("creditCard"),
        "city",
        "state",
        "dateTime",
        "extra",
    )


def _auctions(r: _Random, rounds: int, rate: float) -> pl.DataFrame:
    number = np.arange(rounds * AUCTIONS)
    count = len(number)
    person = number // AUCTIONS
    event = person * EVENTS + 1 + number % AUCTIONS
    # An auction is open for about as long as it takes until a hundred more have begun.
    ahead = longest(rate) // 2
    price = _prices(r, count)
    starts = _millis(event, rate)
    return pl.DataFrame(
        {
            "id": number + FIRST,
            "itemName": _chosen(r, count, _texts(r, 2_000, 20)),
            "description": _chosen(r, count, _texts(r, 2_000, 100)),
            "initialBid": price,
            "reserve": price + _prices(r, count),
            "dateTime": _moments(starts),
            "expires": _moments(starts + 1 + r.integers(0, max(2 * ahead, 1), count)),
            "seller": np.where(r.random(count) < 0.75, person // _HOT * _HOT, _persons_of(r, person)) + FIRST,
            "category": r.integers(0, _CATEGORIES, count) + _FIRST_CATEGORY,
            "extra": _chosen(r, count, _texts(r, 2_000, 200)),
        }
    )


def longest(rate: float) -> int:
    """The longest time for which an auction is open, in milliseconds."""
    return int(2 * (_OPEN_AUCTIONS * EVENTS // AUCTIONS) * 1000 / rate)


def _bids(r: _Random, rounds: int, rate: float) -> pl.DataFrame:
    number = np.arange(rounds * BIDS)
    count = len(number)
    person = number // BIDS
    newest = person * AUCTIONS + AUCTIONS - 1
    oldest = np.maximum(newest - _OPEN_AUCTIONS, 0)
    any_auction = oldest + (r.random(count) * (newest - oldest + 1 + _LEAD)).astype(np.int64)
    auction = np.where(r.random(count) < 0.5, newest // _HOT * _HOT, any_auction)
    bidder = np.where(r.random(count) < 0.75, person // _HOT * _HOT + 1, _persons_of(r, person))
    channels = _channel_table(r)
    channel = np.where(
        r.random(count) < 0.5, r.integers(_CHANNELS, channels.height, count), r.integers(0, _CHANNELS, count)
    )
    return pl.DataFrame(
        {
            "auction": auction + FIRST,
            "bidder": bidder + FIRST,
            "price": _prices(r, count),
            "channel": channels["channel"].gather(channel),
            "url": channels["url"].gather(channel),
            "dateTime": _times(person * EVENTS + 1 + AUCTIONS + number % BIDS, rate),
            "extra": _chosen(r, count, _texts(r, 2_000, 50)),
        }
    )


def _persons_of(r: _Random, newest: _Ints) -> _Ints:
    """Someone who is active at the time of each of some events, or soon will be."""
    active = np.minimum(newest + 1, _ACTIVE_PERSONS)
    found: _Ints = newest + 1 - active + (r.random(len(newest)) * (active + _LEAD)).astype(np.int64)
    return found


def _channel_table(r: _Random) -> pl.DataFrame:
    """Ten thousand channels, and at the end four hot ones; nine in ten of the former say who they are in their URL."""
    folders = _texts(r, 1_000, 5)
    names = [f"channel-{number}" for number in range(_CHANNELS)] + ["Google", "Facebook", "Baidu", "Apple"]
    named = r.random(_CHANNELS) < 0.9
    urls = []
    for number in range(len(names)):
        path = "/".join(folders[i] for i in r.integers(0, len(folders), 3))
        url = f"https://www.nexmark.com/{path}/item.htm?query=1"
        urls.append(f"{url}&channel_id={number * 7919}" if number < _CHANNELS and named[number] else url)
    return pl.DataFrame({"channel": names, "url": urls})


def _prices(r: _Random, count: int) -> _Ints:
    return np.round(10 ** (r.random(count) * 6) * 100).astype(np.int64)


def _texts(r: _Random, count: int, length: int) -> list[str]:
    """Texts of letters, of about a length."""
    letters = r.integers(ord("a"), ord("z") + 1, (count, length * 3 // 2), np.uint8)
    sizes = r.integers(length // 2 + 1, length * 3 // 2 + 1, count)
    return [row[:size].tobytes().decode() for row, size in zip(letters, sizes, strict=True)]


def _chosen(r: _Random, count: int, texts: list[str] | tuple[str, ...]) -> pl.Series:
    return pl.Series(texts, dtype=pl.String).gather(r.integers(0, len(texts), count))


def _millis(event: _Ints, rate: float) -> _Ints:
    found: _Ints = np.floor(event * 1000 / rate).astype(np.int64)
    return found


def _times(event: _Ints, rate: float) -> pl.Series:
    return _moments(_millis(event, rate))


def _moments(millis: _Ints) -> pl.Series:
    """So many milliseconds after the beginning."""
    return pl.Series(millis * 1000 + int(BASE.timestamp()) * 1_000_000, dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
