"""The queries of Nexmark as flows, in the order of their numbers. What each is in SQL stands in ``sql/``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import polars as pl

import millstream as ms

PERSON = ms.stream("person", time="dateTime", lateness="4s")
AUCTION = ms.stream("auction", time="dateTime", lateness="4s")
BID = ms.stream("bid", time="dateTime", lateness="4s")
SIDE_INPUT = ms.stream("side_input")
"""The small table that q13 looks things up in."""

price = pl.col("price")
day = pl.col("dateTime").dt.strftime("%Y-%m-%d")


class Query(NamedTuple):
    """A query as a flow.

    Attributes:
        flow: What is run.
        last_of: Where the query's answer is a table that changes, the flow gives its changes: of rows that agree in
            these columns the last counts.
    """

    flow: ms.Flow
    last_of: tuple[str, ...] = ()


def queries(longest: timedelta = timedelta(minutes=1)) -> Mapping[str, Query]:
    """All queries, by name.

    Args:
        longest: The longest time for which an auction is open. Where the SQL says ``between dateTime and expires``, it
            is how long the flow waits, so that what it remembers has an end.
    """
    won = winning(longest)
    return {
        "q0": Query(BID.select("auction", "bidder", "price", "dateTime", "extra")),
        "q1": Query(BID.select("auction", "bidder", "dateTime", "extra", price=0.908 * price)),
        "q2": Query(BID.filter(pl.col("auction") % 123 == 0).select("auction", "price")),
        "q3": Query(local_items()),
        "q4": Query(average_by_category(won), ("category",)),
        "q5": Query(hot_items()),
        "q6": Query(average_of_last_sales(won)),
        "q7": Query(highest_bid()),
        "q8": Query(new_sellers()),
        "q9": Query(won),
        "q10": Query(by_minute()),
        "q11": Query(sessions()),
        "q13": Query(looked_up()),
        "q14": Query(calculated()),
        "q15": Query(per_day()),
        "q16": Query(per_channel()),
        "q17": Query(per_auction()),
        "q18": Query(BID.latest("bidder", "auction"), ("bidder", "auction")),
        "q19": Query(ten_best()),
        "q20": Query(with_auction()),
        "q21": Query(with_channel_id()),
        "q22": Query(with_folders()),
    }


def local_items() -> ms.Flow:
    """q3: who in Oregon, Idaho or California sells things of category 10?

    The SQL joins without a bound in time. An auction may name a seller who signs up a little later, or did long ago.
    """
    seller = PERSON.filter(pl.col("state").is_in(["OR", "ID", "CA"])).select("name", "city", "state", seller="id")
    item = AUCTION.filter(pl.col("category") == 10).select("id", "seller")
    found = item.join(seller, on="seller", back="1d", ahead="10m")
    return found.select("name", "city", "state", "id")


def winning(longest: timedelta) -> ms.Flow:
    """q9: the highest bid of each auction while it was open, of several the first. Also what q4 and q6 begin with."""
    offers = AUCTION.join(BID.with_columns(id="auction"), on="id", ahead=longest, prefix="bid_")
    valid = offers.filter(pl.col("bid_dateTime") <= pl.col("expires"))
    best = pl.struct("bid_auction", "bid_bidder", "bid_price", "bid_dateTime", "bid_extra").sort_by(
        "bid_price", "bid_dateTime", descending=[True, False], maintain_order=True
    )
    names = ("itemName", "description", "initialBid", "reserve", "dateTime", "expires", "seller", "category", "extra")
    per_auction = (
        valid.group_by("id")
        # Bids that count are at most so long apart, so that each auction has one session.
        .window(ms.session(longest + timedelta(milliseconds=1)))
        .agg(best=best.first(), **{name: pl.col(name).first() for name in names})
    )
    won = {name: pl.col("best").struct.field(f"bid_{name}") for name in ("auction", "bidder", "price")}
    won |= {f"bid_{name}": pl.col("best").struct.field(f"bid_{name}") for name in ("dateTime", "extra")}
    return per_auction.select("id", *names, **won)


def average_by_category(won: ms.Flow) -> ms.Flow:
    """q4: the average of the prices that were paid, by category: after each sale."""

    def counted(held: dict[str, Any], sale: dict[str, Any]) -> dict[str, Any]:
        return {"sales": held["sales"] + 1, "paid": held["paid"] + sale["price"]}

    start = {"sales": 0, "paid": 0}
    types = {"sales": pl.Int64, "paid": pl.Int64}
    totals = won.select("category", "price").group_by("category").fold(counted, start=start, schema=types)
    return totals.select("category", average=pl.col("paid") / pl.col("sales"))


def hot_items() -> ms.Flow:
    """q5: of the last ten seconds, every two: which auctions had the most bids?"""
    counts = BID.group_by("auction").window(ms.hopping("10s", every="2s")).agg(num=pl.len())
    # The results of all windows that end at a time fall into the two seconds that end there.
    most = counts.window(ms.tumbling("2s")).agg(most=pl.col("num").max()).select("window_end", "most")
    both = counts.join(most, on="window_end", back="0s").filter(pl.col("num") >= pl.col("most"))
    return both.select("auction", "num", "window_start", "window_end")


def average_of_last_sales(won: ms.Flow) -> ms.Flow:
    """q6: what each seller got on average for the last things they sold, after each sale: that one and ten before."""

    def remembered(held: dict[str, Any], sale: dict[str, Any]) -> list[int]:
        return [*held["last"], sale["price"]][-11:]

    sales = won.select("seller", "price").group_by("seller")
    last = sales.fold(remembered, start={"last": []}, schema={"last": pl.List(pl.Int64)})
    return last.select("seller", average=pl.col("last").list.mean())


def highest_bid() -> ms.Flow:
    """q7: the highest bids of each ten seconds (with the SQL, also one of that price at the very end of them)."""
    highest = BID.window(ms.tumbling("10s")).agg(price=pl.col("price").max()).select("price", "window_end")
    bids = BID.select("auction", "bidder", "price", "dateTime", "extra")
    # A result's time is the last microsecond of its window.
    near = bids.join(highest, on="price", back=timedelta(microseconds=1), ahead="10s")
    end = pl.col("window_end")
    return near.filter(pl.col("dateTime").is_between(end - timedelta(seconds=10), end)).select(
        "auction", "bidder", "price", "dateTime", "extra"
    )


def new_sellers() -> ms.Flow:
    """q8: who signed up and began an auction within the same ten seconds?"""
    sellers = AUCTION.select(id="seller")
    both = PERSON.join(sellers, on="id", window=ms.tumbling("10s"), how="semi")
    return both.select("id", "name", "window_start")


def by_minute() -> ms.Flow:
    """q10: bids with the day and minute by which ``to_files(partition_by=["dt", "hm"])`` puts them into folders."""
    when = pl.col("dateTime").dt
    columns = ("auction", "bidder", "price", "dateTime", "extra")
    return BID.select(*columns, dt=when.strftime("%Y-%m-%d"), hm=when.strftime("%H:%M"))


def sessions() -> ms.Flow:
    """q11: how many bids does a bidder make while they are active?"""
    return BID.group_by("bidder").window(ms.session("10s")).agg(bid_count=pl.len())


def looked_up() -> ms.Flow:
    """q13: each bid with what a small table says of it."""
    bids = BID.select("auction", "bidder", "price", "dateTime", key=pl.col("auction") % 10_000)
    found = bids.join_latest(SIDE_INPUT, on="key", how="inner")
    return found.select("auction", "bidder", "price", "dateTime", "value")


def calculated() -> ms.Flow:
    """q14: bids in euros, by the time of day, with the number of letters c in their extra text."""
    euros, hour = 0.908 * price, pl.col("dateTime").dt.hour()
    night = (hour <= 6) | (hour >= 20)
    when = pl.when(hour.is_between(8, 18)).then(pl.lit("dayTime")).when(night).then(pl.lit("nightTime"))
    return BID.filter((euros > 1_000_000) & (euros < 50_000_000)).select(
        "auction",
        "bidder",
        "dateTime",
        "extra",
        price=euros,
        bidTimeType=when.otherwise(pl.lit("otherTime")),
        c_counts=pl.col("extra").str.count_matches("c", literal=True).cast(pl.Int64),
    )


RANKS = {"rank1": price < 10_000, "rank2": (price >= 10_000) & (price < 1_000_000), "rank3": price >= 1_000_000}
"""Bids by their price."""


def counted(*columns: str) -> dict[str, pl.Expr]:
    """How many bids there are, and different values of some columns: in all, and of each rank."""
    found = {"total_bids": pl.len()} | {f"{rank}_bids": pl.col("price").filter(RANKS[rank]).len() for rank in RANKS}
    for column in columns:
        found[f"total_{column}s"] = pl.col(column).n_unique()
        found |= {f"{rank}_{column}s": pl.col(column).filter(RANKS[rank]).n_unique() for rank in RANKS}
    return found


def per_day() -> ms.Flow:
    """q15: of each day, how many bids, bidders and auctions there were."""
    days = BID.window(ms.tumbling("1d")).agg(**counted("bidder", "auction"))
    return days.select(pl.col("window_start").dt.strftime("%Y-%m-%d").alias("day"), *counted("bidder", "auction"))


def per_channel() -> ms.Flow:
    """q16: the same by channel, and the minute of the last bid."""
    days = BID.group_by("channel").window(ms.tumbling("1d"))
    found = days.agg(last=pl.col("dateTime").max(), **counted("bidder", "auction"))
    return found.select(
        "channel",
        pl.col("window_start").dt.strftime("%Y-%m-%d").alias("day"),
        pl.col("last").dt.strftime("%H:%M").alias("minute"),
        *counted("bidder", "auction"),
    )


def per_auction() -> ms.Flow:
    """q17: of each day and auction, how many bids there were, and what was bid."""
    prices = {"min_price": price.min(), "max_price": price.max(), "avg_price": price.mean(), "sum_price": price.sum()}
    found = BID.group_by("auction").window(ms.tumbling("1d")).agg(**counted(), **prices)
    return found.select("auction", pl.col("window_start").dt.strftime("%Y-%m-%d").alias("day"), *counted(), *prices)


def ten_best() -> ms.Flow:
    """q19: the ten highest bids of each auction, as a list, once no bid has come for a while."""
    bid = pl.struct("bidder", "price", "channel", "url", "dateTime", "extra")
    best = bid.top_k_by("price", 10).implode()
    return BID.group_by("auction").window(ms.session("10m")).agg(best=best).select("auction", "best")


def with_auction() -> ms.Flow:
    """q20: bids for things of category 10, with their auction, which may begin a little later.

    The SQL joins without a bound in time.
    """
    items = AUCTION.filter(pl.col("category") == 10).with_columns(auction="id")
    return BID.join(items, on="auction", back="1d", ahead="10m", prefix="a_")


def with_channel_id() -> ms.Flow:
    """q21: bids with the number of their channel, by its name or else from the URL."""
    named = pl.col("channel").str.to_lowercase()
    known = {"apple": "0", "google": "1", "facebook": "2", "baidu": "3"}
    number = named.replace_strict(known, default=pl.col("url").str.extract(r"(?:&|^)channel_id=([^&]*)"))
    found = BID.with_columns(channel_id=number).filter(pl.col("channel_id").is_not_null())
    return found.select("auction", "bidder", "price", "channel", "channel_id")


def with_folders() -> ms.Flow:
    """q22: bids with the folders of their URL."""
    parts = pl.col("url").str.split("/")
    folders = {f"dir{number}": parts.list.get(number + 2, null_on_oob=True) for number in (1, 2, 3)}
    return BID.select("auction", "bidder", "price", "channel", **folders)
