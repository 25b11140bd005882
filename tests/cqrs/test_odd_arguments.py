"""Arguments that nobody should give: each is told by a typed error, and leaves nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import millstream as ms


class Added(ms.Event, type="OddAdded"):
    n: int


class Heap(ms.Aggregate):
    @ms.on
    def added(self, event: Added) -> None: ...


class Heaps(ms.Projection):
    schema = "create table heaps (n integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database) -> None:
        db.execute("insert into heaps values (?)", (event.n,))


class Add(ms.Command):
    heap: ms.Ref[Heap]
    n: int


class Count(ms.Query[int]):
    pass


@pytest.fixture
def app() -> Iterator[Any]:
    with ms.open() as log:
        app = ms.App(log, projections=[Heaps.live()])

        @app.command
        def add(command: Add, heap: Heap) -> None:
            heap.record(Added(n=command.n))

        @app.query
        def count(query: Count, db: ms.Database) -> int:
            return int(db.query("select count(*) as n from heaps")[0]["n"])

        yield app
        app.stop()


ODD: dict[str, Callable[[Any], object]] = {
    "no list": lambda app: app.execute_all(None),
    "one command for a list": lambda app: app.execute_together(Add("a", 1)),
    "ids in a set": lambda app: app.execute_all([Add("a", 1)], ids={"k"}),
    "a correlation that is no text": lambda app: app.execute(Add("a", 1), correlation=3),
    "a correlation that cannot be stored": lambda app: app.execute(Add("a", 1), correlation="\ud800"),
    "a causation that is no text": lambda app: app.execute(Add("a", 1), causation=object()),
    "metadata in a list": lambda app: app.execute(Add("a", 1), metadata=[1]),
    "a time limit in words": lambda app: app.query(Count(), fresh=True, timeout="a while"),
    "no time limit": lambda app: app.query(Count(), fresh=True, timeout=None),
    "a time limit that is no number": lambda app: app.query(Count(), fresh=True, timeout=math.nan),
    "half a surrogate pair in JSON": lambda app: app.parse("Add", '{"heap":"\ud800","n":1}'),
    "a command of a number": lambda app: app.parse("Add", 3),
    "a stop in words": lambda app: app.stop(timeout="soon"),
    "a place of a number": lambda app: Heaps.into(3),  # type: ignore[arg-type]
    "a place of bytes": lambda app: Heaps.into(b"read.db"),  # type: ignore[arg-type]
    "a place with a zero": lambda app: Heaps.into("read\0.db"),
    "a place without a name": lambda app: Heaps.into(""),
    "no log": lambda app: ms.App(None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_it_is_a_typed_error_and_leaves_nothing(app: Any, odd: Callable[[Any], object]) -> None:
    with pytest.raises((ms.UsageError, ms.Rejected)) as caught:
        odd(app)
    assert caught.value.hint or isinstance(caught.value, ms.Rejected)
    assert app.log.head == 0
    assert app.query(Count()) == 0
