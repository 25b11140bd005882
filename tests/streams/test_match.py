from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import START, clicks, play

from millstream.streams import Flow, UnsupportedExpression, UnsupportedPattern, sliding, stream
from millstream.streams.pattern import Element, parse
from millstream.streams.pipeline import Pipeline

source = stream("clicks", time="ts", lateness="2s")

DEFINE = {
    "click": pl.col("kind") == "click",
    "purchase": pl.col("kind") == "purchase",
    "view": pl.col("kind") == "view",
    "big": pl.col("amount") > 50,
    "low": pl.col("amount") < 0,
}

Contiguity = Literal["strict", "relaxed"]


def flow_of(pattern: str, within: str, contiguity: Contiguity) -> tuple[Flow, dict[str, pl.Expr]]:
    define = {name: DEFINE[name] for name in DEFINE if name in pattern}
    flow = source.group_by("user").match(pattern, within=within, contiguity=contiguity, define=define)
    return flow, define


def plainly(
    pattern: str, define: dict[str, pl.Expr], within: timedelta, contiguity: Contiguity, rows: pl.DataFrame
) -> list[tuple[Any, datetime, datetime, int]]:
    """The matches by definition: every way to read the rows, tried in order of preference."""
    elements = parse(pattern, define)
    rows = rows.with_row_index("at").with_columns(
        condition.fill_null(False).alias(f"is_{name}") for name, condition in define.items()
    )
    fits = [f"is_{element.variable}" for element in elements]
    found = []
    for (user,), group in rows.sort("ts", "at").group_by("user", maintain_order=True):
        mine = group.to_dicts()
        if contiguity == "relaxed":
            mine = [row for row in mine if any(row[fit] for fit in fits)]

        def ends(at: int, element: int, taken: int, limit: datetime, mine: Any = mine) -> Iterator[int]:
            if element == len(elements):
                yield at
                return
            least, most = elements[element].least, elements[element].most
            fitting = at < len(mine) and mine[at]["ts"] <= limit and mine[at][fits[element]]
            if fitting and (most is None or taken < most):
                yield from ends(at + 1, element, taken + 1, limit)
            if taken >= least:
                yield from ends(at, element + 1, 0, limit)

        start = 0
        while start < len(mine):
            end = next(ends(start, 0, 0, mine[start]["ts"] + within), None)
            if end is None:
                start += 1
            else:
                found.append((user, mine[start]["ts"], mine[end - 1]["ts"], end - start))
                start = end
    return found


def check(pattern: str, seconds: int, contiguity: Contiguity, seed: int, count: int = 400) -> pl.DataFrame:
    rows = clicks(seed, count, users=5, minutes=20)
    flow, define = flow_of(pattern, f"{seconds}s", contiguity)
    result = play(flow, rows, seed)
    expected = plainly(pattern, define, timedelta(seconds=seconds), contiguity, rows)
    by_user = lambda row: (row[0] is not None, row[0] or 0, row[1], row[2])  # noqa: E731
    assert sorted(result.rows(), key=by_user) == sorted(expected, key=by_user)
    whole = play(flow, rows)
    assert result.equals(whole)
    return result


@pytest.mark.parametrize("contiguity", ["strict", "relaxed"])
@pytest.mark.parametrize(
    "pattern",
    [
        "click{3,} purchase",
        "click purchase",
        "view? click{2,4} purchase",
        "click+ big",
        "click* view purchase",
        "click+ view+",
        "click{3}",
        "click{2,}",
        "click view? click purchase?",
        "big low",
        "low+ big{2} click?",
        "purchase click* purchase",
    ],
)
@pytest.mark.parametrize("seconds", [0, 20, 120, 3600])
def test_matches_are_those_of_the_definition(pattern: str, seconds: int, contiguity: Contiguity) -> None:
    for seed in (1, 2) if contiguity == "strict" else (0, 2):
        check(pattern, seconds, contiguity, seed)


QUANTIFIERS = ["", "+", "*", "?", "{2}", "{2,}", "{1,3}", "{0,2}", "{,2}"]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(list(DEFINE)), st.sampled_from(QUANTIFIERS)), min_size=1, max_size=4),
    st.sampled_from([5, 60, 600]),
    st.sampled_from(["strict", "relaxed"]),
    st.integers(0, 10_000),
)
def test_matches_of_any_pattern_are_those_of_the_definition(
    items: list[tuple[str, str]], seconds: int, contiguity: Contiguity, seed: int
) -> None:
    if all(quantifier in ("*", "?", "{0,2}", "{,2}") for _, quantifier in items):
        items = [*items, ("purchase", "")]
    check(" ".join(name + quantifier for name, quantifier in items), seconds, contiguity, seed, 150)


def test_matches_come_in_the_order_in_which_they_are_decided() -> None:
    result = check("click{2,} purchase", 300, "relaxed", 3, 2_000)
    assert result.height > 50
    assert result.equals(result.sort("match_end", "user", maintain_order=True))


def test_user_456_converts_and_a_purchase_after_too_long_a_time_does_not() -> None:
    def rows(*minutes: float) -> pl.DataFrame:
        kinds = ["click"] * (len(minutes) - 1) + ["purchase"]
        return pl.DataFrame(
            {"user": 456, "kind": kinds, "ts": [START + timedelta(minutes=m) for m in minutes], "amount": 0}
        )

    flow, _ = flow_of("click{3,} purchase", "10m", "relaxed")
    assert play(flow, rows(0, 1, 2, 10)).rows() == [(456, START, START + timedelta(minutes=10), 4)]
    assert play(flow, rows(0, 1, 2, 10.1)).height == 0
    assert play(flow, rows(0, 1, 2, 3, 10.1)).rows() == [
        (456, START + timedelta(minutes=1), START + timedelta(minutes=10.1), 4)
    ]


def test_a_match_is_given_as_soon_as_the_watermark_has_passed_what_decides_it() -> None:
    flow, _ = flow_of("click{3,} purchase", "10m", "relaxed")
    kinds = ["click"] * 3 + ["purchase", "view"]

    def given_by(last: float) -> int:
        seconds = [0, 1, 2, 3, last]
        rows = pl.DataFrame(
            {"user": 1, "kind": kinds, "ts": [START + timedelta(seconds=s) for s in seconds], "amount": 0}
        )
        return play(flow, rows, final=False).height

    assert given_by(5) == 0  # the watermark stands at second 3: another row of that second could come
    assert given_by(5.1) == 1


def test_rows_over_all_keys_match_without_group_by() -> None:
    rows = clicks(5, 300)
    flow = source.match(
        "low big", within="1m", define={"low": DEFINE["low"], "big": DEFINE["big"]}, contiguity="relaxed"
    )
    assert play(flow, rows).height
    assert play(flow, rows, 5).equals(play(flow, rows))


def test_text_keys_and_several_keys_match_too() -> None:
    rows = clicks(6, 1_000, texts=True)
    flow = source.group_by("user", "kind").match(
        "low big", within="5m", define={"low": DEFINE["low"], "big": DEFINE["big"]}, contiguity="relaxed"
    )
    whole = play(flow, rows)
    assert whole.columns == ["user", "kind", "match_start", "match_end", "events"]
    assert whole.height
    assert play(flow, rows, 6).equals(whole)


def test_silence_and_far_stamps_do_not_lose_what_time_alone_decides() -> None:
    rows = pl.concat([clicks(1, 100).with_columns(pl.col("ts") + timedelta(days=d)) for d in (0, 3, 9_000, 300_000)])
    flow, define = flow_of("click{2,} view?", "2m", "relaxed")
    result = play(flow, rows, 1)
    expected = plainly("click{2,} view?", define, timedelta(minutes=2), "relaxed", rows)
    assert result.height == len(expected)
    assert result.equals(play(flow, rows))


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("a !b", "'!b'"),
        ("a+?* b", "two quantifiers"),
        ("(a b", "'('"),
        ("a b)", "')'"),
        ("a (b?)+", "a quantifier"),
        ("a !b+", "'!b+'"),
        ("a !(b)", "'!'"),
        ("a | | b", "'|'"),
        ("a b & ", "'&'"),
        ("a{}", "a{}"),
        ("a{3,2}", "a{3,2}"),
        ("a{0}", "a{0}"),
        ("", "''"),
        ("a* b?", "a* b?"),
        ("a c", "'b'"),
        ("a b d", "'d'"),
        ("a{2000} b", "quantifiers"),
    ],
)
def test_a_pattern_that_is_not_supported_is_refused_by_name(pattern: str, part: str) -> None:
    define = {"a": pl.col("x") > 0, "b": pl.col("x") < 0}
    if "c" in pattern:
        define["c"] = pl.col("x") == 0
    if "b" not in pattern and "c" not in pattern:
        del define["b"]
    with pytest.raises(UnsupportedPattern) as refused:
        source.match(pattern, within="1m", define=define)
    assert part in str(refused.value)


def test_a_pattern_without_within_is_refused() -> None:
    with pytest.raises(UnsupportedPattern, match="grow without end"):
        source.match("a+", define={"a": pl.col("x") > 0})


def test_a_condition_on_other_rows_is_refused() -> None:
    define = {"a": pl.col("x") > pl.col("x").shift(1), "b": pl.col("x") > 0}
    with pytest.raises(UnsupportedExpression, match="depends on other rows"):
        source.match("a b", within="1m", define=define)


def test_quantifiers_are_read() -> None:
    assert parse(" a{3,}b ", ["a", "b"]) == (Element("a", 3, None), Element("b", 1, 1))
    assert parse("a{,2} b", ["a", "b"])[0] == Element("a", 0, 2)


@pytest.mark.parametrize("contiguity", ["strict", "relaxed"])
def test_without_a_key_all_rows_are_of_one_sequence(contiguity: str) -> None:
    define = {"a": pl.col("x") > 0, "b": pl.col("x") < 0}
    rows = pl.DataFrame({"x": [1, -1, 2, -2], "ts": [START + timedelta(seconds=n) for n in range(4)]})
    flow = stream("s", time="ts").match("a b", within="1m", define=define, contiguity=contiguity)  # type: ignore[arg-type]
    assert flow.over(rows)["events"].to_list() == [2, 2]


@pytest.mark.parametrize(
    "keys",
    [
        pl.Series([1, 2, None, 2**64 - 1], dtype=pl.UInt64),
        pl.Series([1, 2, None, -7], dtype=pl.Int16),
        pl.Series([b"", b"\xff\0", None, b"\xff"], dtype=pl.Binary),
        pl.Series([timedelta(0), timedelta(1), None, timedelta(-1)], dtype=pl.Duration("ms")),
    ],
)
def test_keys_keep_their_type_whatever_they_are(keys: pl.Series) -> None:
    ts = [START + timedelta(seconds=each) for each in range(40)]
    user = keys[[each // 2 * len(keys) // 20 for each in range(40)]]
    rows = pl.DataFrame({"user": user, "kind": ["click", "purchase"] * 20, "ts": ts})
    define = {"a": pl.col("kind") == "click", "b": pl.col("kind") == "purchase"}
    flow = source.group_by("user").match("a b", within="1m", define=define)
    whole = play(flow, rows)
    assert whole["user"].dtype == keys.dtype
    assert whole["user"].to_list() == user[::2].to_list()
    assert play(flow, rows, 3).equals(whole)
    sums = play(source.group_by("user").window(sliding("1m")).agg(n=pl.len()), rows)
    assert sums["n"].to_list() == [*range(1, 11)] * 4


def test_text_that_looks_like_a_key_of_another_type_before_is_no_such_key() -> None:
    clicked = stream("clicks", time="ts").filter(pl.col("kind") == "click")
    pipeline = Pipeline(clicked.group_by("key").match("a{2}", within="10s", define={"a": pl.lit(True)}))
    state, found = pipeline.start(), []
    span = timedelta(microseconds=7)
    for seconds, kind, key in (([0, 5], "click", span), ([100], "view", span), ([101, 102], "click", "7")):
        times = [START + timedelta(seconds=second) for second in seconds]
        rows = pl.DataFrame({"key": key, "ts": times, "kind": kind, "_position": seconds})
        state, result, _ = pipeline.step(state, rows)
        found += result["key"].to_list() if result.height else []
    found += pipeline.finish(state)[1]["key"].to_list()
    assert found == [span, "7"]
