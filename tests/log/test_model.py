"""Random histories against a model in plain Python: a list of events, and what each question about it must give."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from operator import or_
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import millstream as ms
from millstream.testing import FakeClock

STREAMS = ["a-1", "a-2", "a", "b-1", "b-1-x", "ä"]
TYPES = ["T", "U"]


@dataclass
class Event:
    stream: str
    version: int
    type: str
    n: int
    tags: tuple[str, ...]
    minute: int


@dataclass
class Model:
    """What a log is, without any of what makes it quick or durable."""

    events: list[Event] = field(default_factory=list)
    ids: dict[str, tuple[object, int]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)

    def version(self, stream: str) -> int:
        return sum(event.stream == stream for event in self.events)

    def append(self, parts, *, id=None, minute=0):
        """Parts: (stream, [(type, n, tags)], expect, unless). Returns the last position or an error's code."""
        content = repr([(stream, [(t, n, sorted(set(tags))) for t, n, tags in items]) for stream, items, *_ in parts])
        if id in self.ids:
            return self.ids[id][1] if self.ids[id][0] == content else "id-reused"
        new: list[Event] = []
        for stream, items, expect, unless in parts:
            version = self.version(stream) + sum(event.stream == stream for event in new)
            if stream in self.closed:
                return "stream-closed"
            if expect is not None and expect != version:
                return "version-conflict"
            if unless is not None and any(
                matches(unless, event, position) for position, event in enumerate(self.events, start=1)
            ):
                return "condition-failed"
            for type, n, tags in items:
                version += 1
                new.append(Event(stream, version, type, n, tuple(sorted(set(tags))), minute))
        self.events += new
        if id is not None:
            self.ids[id] = (content, len(self.events))
        return len(self.events)


def matches(queries, event: Event, position: int) -> bool:
    """Queries: (types, tags, after), one of which is to match."""
    return any(
        (not types or event.type in types) and set(tags) <= set(event.tags) and position > after
        for types, tags, after in queries
    )


def matching(queries) -> ms.Matching:
    return reduce(or_, [ms.Matching(tuple(types), tuple(tags), after) for types, tags, after in queries])


items = st.lists(
    st.tuples(st.sampled_from(TYPES), st.integers(0, 9), st.lists(st.sampled_from("xy"), max_size=2)), max_size=5
)
queries = st.lists(
    st.tuples(
        st.lists(st.sampled_from([*TYPES, "F"]), max_size=2),
        st.lists(st.sampled_from("xy"), max_size=2),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=3,
)
unless = st.none() | queries
part = st.tuples(st.sampled_from(STREAMS), items, st.none() | st.integers(0, 4), unless)
operation = st.one_of(
    st.tuples(st.just("append"), st.lists(part, min_size=1, max_size=3), st.none() | st.sampled_from("kl")),
    st.tuples(st.just("frame"), st.sampled_from(STREAMS), st.integers(0, 6)),
    st.tuples(st.just("close"), st.sampled_from(STREAMS)),
    st.tuples(st.just("compact"), st.none() | st.sampled_from(STREAMS)),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("tick")),
)
question = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.sampled_from([*STREAMS, "a-*", "a*", "b-1*", "*", "zz"]),
        "types": st.lists(st.sampled_from([*TYPES, "F", "none"]), max_size=2),
        "after": st.integers(0, 30),
        "since_position": st.integers(0, 30),
        "until_position": st.integers(0, 30),
        "since": st.integers(0, 8),
        "until": st.integers(0, 8),
        "backwards": st.booleans(),
        "limit": st.integers(0, 8),
        "matching": queries,
    },
)


def moment(minute: int) -> str:
    return f"2024-01-01T00:{minute:02}:00Z"


def expected(model: Model, ask: dict) -> list[tuple[int, str, int, str, int]]:
    stream = ask.get("stream")
    found = []
    for position, event in enumerate(model.events, start=1):
        if stream is not None and not (
            event.stream.startswith(stream[:-1]) if stream.endswith("*") else event.stream == stream
        ):
            continue
        if "types" in ask and event.type not in ask["types"]:
            continue
        if position <= ask.get("after", 0) or position < ask.get("since_position", 0):
            continue
        if position >= ask.get("until_position", 1 << 40):
            continue
        if "matching" in ask and not matches(ask["matching"], event, position):
            continue
        if event.minute < ask.get("since", 0) or event.minute >= ask.get("until", 1 << 40):
            continue
        found.append((position, event.stream, event.version, event.type, event.n))
    if ask.get("backwards"):
        found.reverse()
    return found[: ask.get("limit")]


def run(log: ms.Log, clock: FakeClock, model: Model, action: tuple, reopen) -> ms.Log:
    minute = (clock().minute) if clock() else 0
    match action:
        case ("append", parts, id):
            wanted = model.append(parts, id=id, minute=minute)
            try:
                with log.transaction(id=id) as tx:
                    for stream, events, expect, guard in parts:
                        drafts = [ms.Draft(ms.Plain(t, {"n": n}), tags=tags) for t, n, tags in events]
                        tx.append(stream, drafts, expect=expect, unless=matching(guard) if guard else None)
                got = tx.receipt.position
            except ms.MillstreamError as error:
                got = error.code
            assert got == wanted
        case ("frame", stream, rows):
            wanted = model.append([(stream, [("F", n, ()) for n in range(rows)], None, None)], minute=minute)
            try:
                got = log.append(stream, pl.DataFrame({"n": range(rows)}), type="F").position
            except ms.MillstreamError as error:
                got = error.code
            assert got == wanted
        case ("close", stream):
            if model.version(stream) and stream not in model.closed:
                model.append([(stream, [("StreamClosed", -1, ())], None, None)], minute=minute)
                model.closed.add(stream)
                log.close_stream(stream)
        case ("compact", stream):
            if stream is None or list(log.streams(stream)):  # an empty append makes one, too
                log.compact(stream)
            else:
                with pytest.raises(ms.StreamNotFound):
                    log.compact(stream)
        case ("reopen",):
            return reopen(log)
        case ("tick",):
            clock.advance("1m")
    return log


def check(log: ms.Log, model: Model, questions: list[dict]) -> None:
    assert log.head == len(model.events)
    for name in STREAMS:
        assert log.version(name) == model.version(name)
    for ask in questions:
        options = {**ask}
        for bound in ("since", "until"):
            if bound in options:
                options[bound] = moment(options[bound])
        if "matching" in options:
            options["matching"] = matching(options["matching"])
        got = [(e.position, e.stream, e.version, e.type, e.data.get("n", -1)) for e in log.read(**options)]
        assert got == expected(model, ask), ask
    assert [e.tags for e in log.read()] == [event.tags for event in model.events]
    log.verify()


def answers_alike(place, actions, questions):
    """Do the same to a log and to the model, and ask both the same."""
    clock = FakeClock("2024-01-01T00:00:00Z")
    model = Model()

    def reopen(log: ms.Log) -> ms.Log:
        if place is None:
            return log
        log.close()
        return ms.open(place, clock=clock)

    log = ms.open(place, clock=clock)
    try:
        for action in actions:
            log = run(log, clock, model, action, reopen)
        check(log, model, questions)
    finally:
        log.close()


a_history = {
    "actions": st.lists(operation, max_size=12),
    "questions": st.lists(question, min_size=1, max_size=6),
}


@pytest.mark.parametrize("kind", ["memory", "file"])
@settings(max_examples=120)
@given(**a_history)
def test_a_log_answers_as_a_plain_list_of_events_would(kind, actions, questions):
    with tempfile.TemporaryDirectory() as folder:
        answers_alike(str(Path(folder) / "log.db") if kind == "file" else None, actions, questions)


_schemas = count(1)


@settings(max_examples=40)
@given(**a_history)
def test_a_log_in_postgresql_does_too(postgres_server, actions, questions):
    answers_alike(postgres_server.url(schema=f"model_{next(_schemas)}"), actions, questions)
