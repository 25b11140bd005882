"""Patterns in full, beside their definition: every way to read the rows, tried in order of preference."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import START, clicks, play, revived

import millstream as ms
from millstream.streams import Flow, UnsupportedExpression, UnsupportedPattern, stream
from millstream.streams.grammar import Absent, Either, Node, Repeat, Sequence, Variable, _Parser
from millstream.streams.match import Match
from millstream.streams.pipeline import Pipeline

source = stream("clicks", time="ts", lateness="2s")

CLICK, PURCHASE, VIEW = (pl.col("kind") == kind for kind in ("click", "purchase", "view"))
RISING = pl.col("amount") > ms.matched.last("rise.amount")
DEFINE = {
    "click": CLICK,
    "purchase": PURCHASE,
    "view": VIEW,
    "big": pl.col("amount") > 50,
    "low": pl.col("amount") < 0,
    "rise": (pl.col("amount") > ms.matched.last("rise.amount")) | (ms.matched.count("rise") == 0),
    "more": pl.col("amount") * 2 > ms.matched.sum("click.amount") - ms.matched.first("click.amount"),
}
Taken = list[tuple[str, dict[str, Any]]]


def fits(name: str, row: dict[str, Any], taken: Taken) -> bool:
    """The conditions once more, in plain Python."""
    amount = row["amount"]
    match name:
        case "click" | "purchase" | "view":
            return bool(row["kind"] == name)
        case "big":
            return bool(amount > 50)
        case "low":
            return bool(amount < 0)
        case "rise":
            before = [r["amount"] for n, r in taken if n == "rise"]
            return not before or bool(amount > before[-1])
    clicks = [r["amount"] for n, r in taken if n == "click"]
    return bool(clicks) and bool(amount * 2 > sum(clicks) - clicks[0])


def alone(name: str, row: dict[str, Any]) -> bool:
    return name in ("rise", "more") or fits(name, row, [])


class Reading:
    """The rows of a key, and every way to read them."""

    def __init__(self, rows: list[dict[str, Any]], within: timedelta) -> None:
        self.rows = rows
        self.within = within

    def ways(self, node: Node, at: int, taken: Taken, limit: datetime) -> Iterator[tuple[int, Taken]]:
        match node:
            case Variable():
                if at < len(self.rows) and self.rows[at]["ts"] <= limit and fits(node.name, self.rows[at], taken):
                    yield at + 1, [*taken, (node.name, self.rows[at])]
            case Absent():
                yield at, taken
            case Sequence():
                yield from self._in_order(node.parts, at, taken, limit)
            case Either():
                for choice in node.choices:
                    yield from self.ways(choice, at, taken, limit)
            case Repeat():
                yield from self._times(node, 0, at, taken, limit)

    def _in_order(self, parts: tuple[Node, ...], at: int, taken: Taken, limit: datetime) -> Iterator[tuple[int, Taken]]:
        if not parts:
            yield at, taken
            return
        for end, more in self.ways(parts[0], at, taken, limit):
            yield from self._in_order(parts[1:], end, more, limit)

    def _times(self, node: Repeat, done: int, at: int, taken: Taken, limit: datetime) -> Iterator[tuple[int, Taken]]:
        enough = done >= node.least
        if enough and not node.greedy:
            yield at, taken
        if node.most is None or done < node.most:
            for end, more in self.ways(node.part, at, taken, limit):
                yield from self._times(node, done + 1, end, more, limit)
        if enough and node.greedy:
            yield at, taken

    def matches(self, tree: Node, absent: list[str], skip: str) -> Iterator[tuple[int, Taken]]:
        start = 0
        while start < len(self.rows):
            limit = self.rows[start]["ts"] + self.within
            found = None
            for end, taken in self.ways(tree, start, [], limit):
                rest = [row for row in self.rows[end:] if row["ts"] <= limit]
                if not any(fits(name, row, taken) for name in absent for row in rest):
                    found = end, taken
                    break
            if found is None:
                start += 1
                continue
            yield start, found[1]
            start = self._next(start, found[1], skip)

    def _next(self, start: int, taken: Taken, skip: str) -> int:
        names = [name for name, _ in taken]
        words = skip.split()
        if skip == "to next row":
            return start + 1
        if skip == "past last row" or words[-1] not in names:
            return start + len(taken)
        index = names.index(words[-1]) if words[1] == "first" else len(names) - 1 - names[::-1].index(words[-1])
        return start + max(index, 1)


def used(node: Node) -> set[str]:
    match node:
        case Variable() | Absent():
            return {node.name}
        case Sequence():
            return set().union(*map(used, node.parts))
        case Either():
            return set().union(*map(used, node.choices))
    return used(node.part)


def expected(
    pattern: str, seconds: int | None, contiguity: str, skip: str, rows: pl.DataFrame
) -> list[tuple[Any, ...]]:
    tree = _Parser(pattern).parse()
    names = used(tree)
    parts, absent = list(tree.parts) if isinstance(tree, Sequence) else [tree], []
    while isinstance(last := parts[-1], Absent):
        absent.append(last.name)
        parts.pop()
    found = []
    ordered = rows.with_row_index("at").sort("ts", "at")
    for (user,), group in ordered.group_by("user", maintain_order=True):
        mine = [row for row in group.to_dicts() if contiguity == "strict" or any(alone(n, row) for n in names)]
        for _, taken in Reading(mine, timedelta(seconds=seconds or 0, days=999 * (seconds is None))).matches(
            Sequence(tuple(parts)), absent, skip
        ):
            found.append((user, taken[0][1]["ts"], taken[-1][1]["ts"], len(taken), *told(taken)))
    return found


def told(taken: Taken) -> tuple[Any, ...]:
    first = [row["amount"] for name, row in taken if name == taken[0][0]]
    return first[0], first[-1], max(first), len(first), sum(first) / len(first)


def flow_of(pattern: str, seconds: int | None, contiguity: Any, skip: str) -> Flow:
    define = {name: DEFINE[name] for name in DEFINE if name in used(_Parser(pattern).parse())}
    tree = _Parser(pattern).parse()
    begin = tree.parts[0] if isinstance(tree, Sequence) else tree
    while isinstance(begin, Repeat):
        begin = begin.part
    assert isinstance(begin, Variable), "the tests' patterns begin with one variable"
    m = ms.matched
    measures = {
        "first": m.first(f"{begin.name}.amount"),
        "last": m.last(f"{begin.name}.amount"),
        "most": m.max(f"{begin.name}.amount"),
        "count": m.count(begin.name),
        "mean": m.mean(f"{begin.name}.amount"),
    }
    within = None if seconds is None else f"{seconds}s"
    return source.group_by("user").match(
        pattern, within=within, contiguity=contiguity, define=define, measures=measures, skip=skip
    )


def check(pattern: str, seconds: int | None, contiguity: str, skip: str, seed: int, count: int = 300) -> pl.DataFrame:
    rows = clicks(seed, count, users=5, minutes=15)
    flow = flow_of(pattern, seconds, contiguity, skip)
    result = play(flow, rows, seed)
    assert result.equals(play(flow, rows))
    wanted = expected(pattern, seconds, contiguity, skip, rows)
    by_user = lambda row: (row[0] is not None, row[0] or 0, *row[1:])  # noqa: E731
    assert sorted(result.rows(), key=by_user) == sorted(wanted, key=by_user)
    return result


PATTERNS = [
    "click (purchase | view) big?",
    "click+? purchase",
    "click{2,4}? (view | purchase)",
    "click (view purchase)* low",
    "click (view | click purchase){1,3} big?",
    "click !purchase view",
    "click !purchase",
    "click+ !purchase !low",
    "rise{3,}",
    "click rise+ low",
    "click{2,} more",
    "click (more | view)+? purchase",
    "click more !big",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seconds", [0, 30, 600])
def test_matches_are_those_of_the_definition(pattern: str, seconds: int) -> None:
    found = 0
    for seed, skip in enumerate(["past last row", "to next row"]):
        for contiguity in ["relaxed"] if "!" in pattern else ["strict", "relaxed"]:
            found += check(pattern, seconds, contiguity, skip, seed).height
    assert found or seconds == 0


@pytest.mark.parametrize("skip", ["to first click", "to last click", "to last view"])
def test_the_next_match_begins_where_it_is_told_to(skip: str) -> None:
    assert check("click{2,} view+ purchase", 900, "relaxed", skip, 1).height


@pytest.mark.parametrize("skip", ["past last row", "to next row", "to last click"])
@pytest.mark.parametrize(
    "pattern", ["click purchase", "click{1,3}? (purchase | view) big?", "click !purchase view low?"]
)
def test_a_match_of_bounded_length_may_take_any_time(pattern: str, skip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.streams.sequences._SPARE", 0)
    for seed, contiguity in enumerate(["relaxed"] if "!" in pattern else ["strict", "relaxed"]):
        assert check(pattern, None, contiguity, skip, seed).height


def test_of_rows_that_may_take_any_time_only_those_are_kept_that_may_have_a_part_in_a_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("millstream.streams.sequences._SPARE", 100)
    flow = flow_of("click{2} purchase", None, "relaxed", "past last row")
    rows = clicks(7, 4_000, users=5, minutes=300).with_row_index("_position")
    rows = rows.with_columns(pl.lit(START).alias("_time"))
    whole = flow.over(rows)
    pipeline, given = Pipeline(flow), []
    state = pipeline.start()
    for start in range(0, rows.height, 40):
        state, out, _ = pipeline.step(state, rows.slice(start, 40))
        given.append(out)
        assert state.operators[0].parts.rows < 400
        if start % 400 == 0:
            state = revived(pipeline, state)
    _, out = pipeline.finish(state)
    assert pl.concat(each for each in [*given, out] if each.width).equals(whole)
    # What waits at the end is decided by the last row, and so is of a time that windows can be of.
    pairs = flow_of("click purchase?", None, "relaxed", "past last row").window(ms.tumbling("1h")).agg(n=pl.len())
    assert pairs.over(rows)["window_end"].max() < START + timedelta(hours=6)


@pytest.mark.parametrize(
    ("pattern", "never"),
    [
        ("a b", {"b": pl.lit(False)}),
        ("a b", {"a": pl.lit(None)}),
        ("a (b | c)", {"b": pl.lit(1) > 2, "c": pl.lit(False) & (pl.col("amount") > 1)}),
        ("a (b c?){2,3}", {"b": (pl.lit(False) | pl.lit(None)) & pl.lit(True)}),
        ("(a b?)", {"a": pl.lit(False) & (ms.matched.count("b") > 1)}),
    ],
)
def test_a_pattern_that_can_never_match_is_refused(pattern: str, never: dict[str, pl.Expr]) -> None:
    define = {name: never.get(name, pl.col("amount") > 0) for name in "abc" if name in pattern}
    with pytest.raises(UnsupportedPattern, match=f"'{min(never)}'.*no row ever fits it"):
        source.match(pattern, within="1m", define=define, contiguity="relaxed")


def test_a_pattern_may_have_a_part_that_no_row_fits() -> None:
    define = {"a": pl.lit(True), "b": pl.lit(False), "c": pl.col("amount") > 0}
    for pattern in ("a b? c", "a (b | c)", "a (b c)* c", "a !b c"):
        assert source.match(pattern, within="1m", define=define, contiguity="relaxed").stages


ITEMS = st.recursive(
    st.sampled_from(["click", "purchase", "view", "big", "rise", "more"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: f"({two[0]} | {two[1]})"),
        st.tuples(inner, inner).map(lambda two: f"({two[0]} {two[1]})"),
        st.tuples(inner, st.sampled_from(["?", "+", "*", "{2}", "{1,2}", "??", "+?", "*?"])).map(
            lambda two: f"({two[0]}){two[1]}"
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=60)
@given(ITEMS, st.sampled_from([5, 120]), st.sampled_from(["strict", "relaxed"]), st.integers(0, 10_000))
def test_matches_of_any_pattern_are_those_of_the_definition(
    item: str, seconds: int, contiguity: str, seed: int
) -> None:
    try:
        check(f"click {item}", seconds, contiguity, "past last row", seed, 120)
    except UnsupportedPattern as refused:
        if "repeats what may be no row" not in refused.reason:
            raise


def test_both_ways_to_find_a_plain_sequence_give_the_same() -> None:
    rows = clicks(3, 1_000)
    define = {"click": CLICK, "purchase": PURCHASE}
    fast = source.group_by("user").match("click{2,} purchase", within="5m", define=define, contiguity="relaxed")
    full = source.group_by("user").match("(click{2,} purchase)", within="5m", define=define, contiguity="relaxed")
    assert isinstance(fast.stages[-1], Match)
    assert not isinstance(full.stages[-1], Match)
    assert play(fast, rows).height > 50
    assert play(fast, rows, 3).equals(play(full, rows, 3))


def test_an_absence_is_told_by_time_alone() -> None:
    flow = source.group_by("user").match(
        "click !purchase", within="10m", define={"click": CLICK, "purchase": PURCHASE}, contiguity="relaxed"
    )

    def rows(*of: tuple[float, str, int]) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "user": [user for _, _, user in of],
                "kind": [kind for _, kind, _ in of],
                "ts": [START + timedelta(minutes=m) for m, _, _ in of],
                "amount": 0,
            }
        )

    # What passes time is a row of somebody else.
    begin = (0, "click", 1)
    assert play(flow, rows(begin, (10.03, "view", 2)), final=False).height == 0
    assert play(flow, rows(begin, (10.04, "view", 2)), final=False).rows() == [(1, START, START, 1)]
    assert play(flow, rows(begin, (10, "purchase", 1), (30, "view", 2)), final=False).height == 0
    assert play(flow, rows(begin, (10.01, "purchase", 1), (30, "view", 2)), final=False).height == 1


def test_matches_before_1970_are_decided_in_their_own_time() -> None:
    ts = [START.replace(year=1960) + timedelta(seconds=s) for s in (1, 2, 10, 11, 90)]
    rows = pl.DataFrame({"user": [2, 2, 1, 1, 1], "kind": "click", "ts": ts})
    flow = source.group_by("user").match("(click click)+", within="3s", define={"click": CLICK})
    for seed in (None, 1, 2):
        assert play(flow, rows, seed, final=False)["user"].to_list() == [2, 1]
    counts = flow.window(ms.tumbling("1m")).agg(n=pl.len())
    assert play(counts, rows)["window_start"].to_list() == [START.replace(year=1960)]


def test_a_price_that_falls_and_recovers_as_in_the_textbook() -> None:
    prices = [12, 17, 13, 15, 11, 8, 10, 12, 13, 20, 19]
    rows = pl.DataFrame(
        {"user": 1, "amount": prices, "ts": [START + timedelta(minutes=i) for i in range(len(prices))], "kind": "tick"}
    )
    m = ms.matched
    flow = source.group_by("user").match(
        "start fall+ rise+",
        within="1h",
        define={
            "start": pl.lit(True),
            "fall": pl.col("amount") < m.last("fall.amount").fill_null(m.last("start.amount")),
            "rise": pl.col("amount") > m.last("rise.amount").fill_null(m.last("fall.amount")),
        },
        measures={"top": m.first("start.amount"), "bottom": m.last("fall.amount"), "end": m.last("rise.amount")},
    )
    found = play(flow, rows).select("top", "bottom", "end", "events").rows()
    assert found == [(17, 13, 15, 3), (11, 8, 20, 6)]


def test_measures_keep_the_types_of_what_they_measure_also_when_there_are_none() -> None:
    rows = clicks(1, 200).with_columns(pl.col("amount").cast(pl.Decimal(10, 2)).alias("price"))
    m = ms.matched
    flow = source.group_by("user").match(
        "low big",
        within="5m",
        define={"low": pl.col("amount") < 0, "big": pl.col("amount") > 50},
        measures={
            "sum": m.sum("low.price"),
            "at": m.first("low.ts"),
            "both": m.last("low.price") + m.last("big.price"),
        },
    )
    types = flow.over(rows).schema
    assert types["sum"] == pl.Decimal(38, 2)
    assert types["at"] == pl.Datetime("us", "UTC")
    assert flow.over(rows.filter(pl.col("amount") > 1_000)).schema == types


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"measures": {"x": pl.col("amount")}}, UnsupportedExpression, "of no one row"),
        ({"measures": {"x": ms.matched.last("c.amount")}}, UnsupportedPattern, "'c'"),
        ({"measures": {"events": ms.matched.last("a.amount")}}, ms.UsageError, "events"),
        ({"skip": "to last c"}, ms.UsageError, "skip='to last c'"),
        ({"skip": "nowhere"}, ms.UsageError, "skip='nowhere'"),
        ({"within": None, "pattern": "a b+"}, UnsupportedPattern, "no within=: its quantifiers let"),
        ({"within": None, "pattern": "a b{2, }"}, UnsupportedPattern, "no within=: its quantifiers let"),
        ({"within": None, "pattern": "a !b", "contiguity": "relaxed"}, UnsupportedPattern, "no 'b' comes is never"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(options: dict[str, Any], error: type[Exception], message: str) -> None:
    define = {"a": pl.col("amount") > 0, "b": pl.col("amount") > ms.matched.last("a.amount")}
    with pytest.raises(error, match=message):
        source.match(**{"pattern": "a b", "within": "1m", "define": define, **options})


def test_a_measure_may_be_a_constant_and_is_of_one_match_alone() -> None:
    rows = clicks(3, 300)
    define = {"click": CLICK, "purchase": PURCHASE}
    last = ms.matched.last("click.amount")

    def flow(measure: pl.Expr) -> Flow:
        return source.match("click purchase", within="1m", define=define, measures={"of": measure})

    found = play(flow(pl.lit("ad")), rows)
    assert found.height > 5
    assert found["of"].unique().to_list() == ["ad"]
    with pytest.raises(UnsupportedExpression, match="depends on other rows"):
        flow(last.max())


def test_a_verb_that_cannot_look_back_is_refused_by_name() -> None:
    define = {"a": pl.col("amount") > 0, "b": ms.matched.last("a.kind").str.contains("x")}
    with pytest.raises(UnsupportedExpression, match="not supported beside a value of a matched row"):
        source.match("a b", within="1m", define=define)
    with pytest.raises(ms.UsageError, match="names no column"):
        ms.matched.last("a")


def test_a_pattern_that_can_be_read_in_too_many_ways_is_stopped_by_name() -> None:
    rows = pl.DataFrame({"user": 1, "kind": "x", "amount": 1, "ts": [START + timedelta(seconds=i) for i in range(60)]})
    some = ms.matched.count("a") >= 0
    flow = source.match(
        "(a | b)+ (a | b)+ (a | b)+ c", within="1h", define={"a": some, "b": some, "c": pl.col("amount") > 5}
    )
    with pytest.raises(ms.FlowError, match="too many ways"):
        play(flow, rows)
