"""Reading by query, in histories long enough that the search goes in many steps."""

from __future__ import annotations

import random

import polars as pl
import pytest

import millstream as ms

SHARES = {"half": 0.5, "tenth": 0.1, "rare": 0.003}
STREAMS = ("a-1", "a-2", "b-1", "c")


@ms.upcast("matching.Both", since=2, into=["matching.E", "matching.T"])
def _split(data):
    kinds = {"E": data["n"] % 2 == 0, "T": data["n"] % 3 == 0}
    return [ms.Plain(f"matching.{kind}", data) for kind, fits in kinds.items() if fits]


@pytest.fixture
def log(home):
    with ms.open(home) as log:
        yield log


@pytest.fixture
def long(log):
    """3,000 events and what they are: a tag on all, some on stretches, some on few."""
    rng = random.Random(5)
    known = []
    for start in range(0, 3_000, 500):
        with log.transaction() as tx:
            for n in range(start, start + 500):
                tags = {"all"} | {
                    tag for tag, share in (("half", 0.5), ("tenth", 0.1), ("rare", 0.003)) if rng.random() < share
                }
                if 1_000 <= n < 1_800:
                    tags.add("middle")
                if n < 1_500:
                    tags.add("old")
                else:
                    tags.add("new")
                stream, type = rng.choice(STREAMS), rng.choice("TUV") if n % 97 else "W"
                tx.append(stream, ms.Plain(type, {}), tags=sorted(tags))
                known.append((n + 1, stream, type, tags))
    return log, known


@pytest.mark.parametrize(
    ("types", "tags"),
    [
        ((), ("all",)),
        ((), ("all", "half", "tenth")),
        ((), ("all", "rare")),
        ((), ("old", "new")),
        ((), ("half", "middle")),
        (("W",), ("all",)),
        (("T", "W"), ("half", "tenth")),
        (("U",), ()),
        (("T", "U", "V"), ("middle",)),
        ((), ("none", "all")),
        (("none",), ("all",)),
        ((), ()),
    ],
)
def test_a_query_finds_what_a_walk_of_the_log_would(long, types, tags):
    log, known = long
    for stream in (None, "a-1", "a-*", "a*", "c"):
        for after in (0, 700, 2_900):
            wanted = [
                position
                for position, name, type, labels in known
                if position > after
                and (not types or type in types)
                and labels >= set(tags)
                and (stream is None or (name.startswith(stream[:-1]) if stream[-1] == "*" else name == stream))
            ]
            query = ms.Matching(types, tags, after)
            assert [e.position for e in log.read(stream, matching=query)] == wanted
            assert [e.position for e in log.read(stream, matching=query, backwards=True)] == wanted[::-1]
            assert [e.position for e in log.read(stream, matching=query, limit=3)] == wanted[:3]
            if stream is None:
                try:
                    log.commit([log.stage("x", [], unless=query)])
                    hit = None
                except ms.ConditionFailed as error:
                    hit = error.position
                assert hit == (wanted[0] if wanted else None)


def test_alternatives_are_merged_in_order_each_event_once(long):
    log, known = long
    query = ms.Matching(tags=("tenth",), after=500) | ms.Matching(types=("W",)) | ms.Matching(tags=("tenth", "half"))
    wanted = [
        position
        for position, _, type, tags in known
        if ("tenth" in tags and position > 500) or type == "W" or tags >= {"tenth", "half"}
    ]
    assert [e.position for e in log.read(matching=query)] == wanted
    assert [run.position for run in log.runs(matching=query)] == wanted
    assert [e.position for e in log.read(matching=query, after=1_000, until_position=2_000)] == [
        position for position in wanted if 1_000 < position < 2_000
    ]


def test_a_run_that_reaches_past_after_is_given_from_there_on(log):
    log.append("clicks", pl.DataFrame({"n": range(10)}), type="Click", tags=["web"])
    log.append("clicks", pl.DataFrame({"n": range(10)}), type="Click", tags=["app"])
    late = ms.Matching(tags=("web",), after=4)
    assert [e.position for e in log.read(matching=late)] == [5, 6, 7, 8, 9, 10]
    assert [e.data["n"] for e in log.read(matching=late | ms.Matching(tags=("app",), after=18))] == [
        4,
        5,
        6,
        7,
        8,
        9,
        8,
        9,
    ]
    assert [e.position for e in log.read(matching=late | ms.Matching(tags=("web",), after=8))] == [5, 6, 7, 8, 9, 10]
    assert [e.position for e in log.read(matching=ms.Matching(types=("Click",), after=19))] == [20]
    with pytest.raises(ms.ConditionFailed):
        log.append("x", ms.Plain("X", {}), unless=ms.Matching(tags=("web",), after=9))
    log.append("x", ms.Plain("X", {}), unless=ms.Matching(tags=("web",), after=10))


@pytest.mark.parametrize("category", ["a-1*", "a-1-*", "a-10*"])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_query_may_be_within_the_streams_whose_names_begin_so(log, category, backwards):
    known = []
    for n in range(300):
        stream, type, tags = f"a-{n % 13}{'-x' * (n % 2)}", "TU"[n % 2], [f"t{n % 3}"]
        log.append(stream, ms.Plain(type, {}), tags=tags)
        if stream.startswith(category[:-1]):
            known.append((n + 1, type, tags[0]))
    for query, fits in (
        (ms.Matching(), lambda type, tag: True),
        (ms.Matching(types=["T"]), lambda type, tag: type == "T"),
        (ms.Matching(tags=["t1"]), lambda type, tag: tag == "t1"),
        (ms.Matching(types=["T"], tags=["t1"]), lambda type, tag: (type, tag) == ("T", "t1")),
    ):
        found = [e.position for e in log.read(category, matching=query, backwards=backwards)]
        wanted = [position for position, *about in known if fits(*about)]
        assert found == (wanted[::-1] if backwards else wanted)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_query_from_beyond_the_end_of_a_read_finds_nothing(log, backwards):
    log.append("a", [ms.Plain("A", {}) for _ in range(10)], tags=["x"])
    for query in (ms.Matching(after=7), ms.Matching(tags=["x"], after=7), ms.Matching(types=["A"], after=7)):
        assert list(log.read(matching=query, until_position=5, backwards=backwards)) == []
        both = query | ms.Matching(tags=["x"], after=2)
        found = [e.position for e in log.read(matching=both, until_position=5, backwards=backwards)]
        assert sorted(found) == [3, 4]


def test_what_events_were_made_into_counts_for_where_each_alternative_begins(log):
    log.append("a", [ms.Plain("matching.Both", {"n": n}, schema=1) for n in range(1, 7)], tags=["x"])

    def found(query, **options):
        return [(e.position, e.type[-1]) for e in log.read(matching=query, **options)]

    even, third = ms.Matching(types=["matching.E"]), ms.Matching(types=["matching.T"])
    assert found(even | third.since(4)) == [(2, "E"), (4, "E"), (6, "E"), (6, "T")]
    assert found(even.since(4) | third) == [(3, "T"), (6, "E"), (6, "T")]
    assert found(even.since(4) | third, backwards=True) == [(6, "T"), (6, "E"), (3, "T")]
    assert found(ms.Matching(tags=["x"], after=5) | third) == [(3, "T"), (6, "E"), (6, "T")]


def test_a_follower_by_query_sees_history_then_what_comes(log):
    log.append("a", [ms.Draft(ms.Plain("A", {}), tags=["x"]), ms.Draft(ms.Plain("A", {}), tags=["y"])])
    follower = log.follow(matching=ms.Matching(tags=["x"]), timeout=10)
    assert next(follower).position == 1
    log.append("b", ms.Plain("B", {}), tags=["y"])
    log.append("b", ms.Plain("B", {}), tags=["x", "y"])
    assert next(follower).position == 4
    assert [run.position for runs in log.follow_runs(matching=ms.Matching(tags=["y"]), timeout=0) for run in runs] == [
        2,
        3,
        4,
    ]


def test_an_empty_query_finds_everything_and_types_and_query_both_hold(log):
    log.append("a", [ms.Plain("A", {}), ms.Plain("B", {})], tags=["x"])
    assert len(list(log.read(matching=ms.Matching()))) == 2
    assert [e.type for e in log.read(types="A", matching=ms.Matching(tags=["x"]))] == ["A"]
    assert list(log.read(types="A", matching=ms.Matching(types=["B"]))) == []
    assert list(log.read("none", matching=ms.Matching(tags=["x"]))) == []
    assert [e.type for e in log.read(matching=ms.Matching(tags=["x", "x"]))] == ["A", "B"]


@pytest.mark.parametrize("bad", ["x", ("x",), {"tags": ["x"]}, 7])
def test_what_is_no_query_is_refused(log, bad):
    with pytest.raises(ms.UsageError, match="is no query"):
        log.read(matching=bad)


@pytest.mark.parametrize(
    "parts",
    [{"tags": ["\0"]}, {"tags": ["a \ud800"]}, {"types": ["\0"]}, {"types": ["\udfff"]}, {"also": ["x"]}, {"also": 5}],
)
def test_a_query_for_what_no_event_can_have_is_refused_when_it_is_made(parts):
    with pytest.raises(ms.UsageError):
        ms.Matching(**parts)


def test_a_query_may_begin_beyond_all_positions(log):
    log.append("a", ms.Plain("A", {}), tags=["x"])
    beyond = ms.Matching(after=1 << 70)
    assert list(log.read(matching=beyond)) == list(log.read(matching=beyond, backwards=True)) == []
    assert log.append("a", ms.Plain("A", {}), unless=beyond).position == 2


def test_what_gives_its_items_only_once_is_taken_whole(log):
    log.append("a", ms.Plain("A", {}), tags=["x"])
    assert list(log.read(matching=ms.Matching(tags=(tag for tag in ["y"])))) == []
    with pytest.raises(ms.UsageError):
        ms.Matching(tags=(f"t{n}" for n in range(33)))


def test_a_query_is_joined_with_queries_only():
    with pytest.raises(TypeError):
        ms.Matching() | "x"


def test_queries_may_be_joined_in_any_order_and_number():
    first, second, third = (ms.Matching(tags=[tag]) for tag in "xyz")
    assert (first | second) | third == first | (second | third)
    many = first
    for _ in range(1_500):
        many = second | many
    assert many.any_of == (*[second] * 1_500, first)
