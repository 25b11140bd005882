"""Events of several types in turn: a run each, encoded together, and read back as they went in."""

import random
from decimal import Decimal
from uuid import UUID, uuid4

import msgspec
import pytest

import millstream as ms
from millstream.log import staging


class Came(ms.Event, type="shuffled.Came"):
    n: int
    note: str | None = None


class Went(ms.Event, type="shuffled.Went"):
    price: Decimal
    id: UUID | None = None


class Said(ms.Event, type="shuffled.Said"):
    raw: msgspec.Raw


def any_event(random, n):
    return random.choice(
        [
            lambda: Came(n=n, note=random.choice([None, "", "two\nlines", "null", "naïve \u2028"])),
            lambda: Went(price=Decimal(n) / 4, id=random.choice([None, uuid4()])),
            lambda: Said(raw=msgspec.Raw(b'{"on":\n "two lines"}')),
            lambda: ms.Plain("shuffled.Plain", {"n": n}),
            lambda: ms.Plain("shuffled.Came", {"n": n}),
            lambda: ms.Draft(Came(n=n), tags=[f"t{n % 2}"]),
        ]
    )()


def one_by_one(events):
    return [staging.stage("s", [event]).runs[0] for event in events]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("together", [1, 2, 50, 4_096])
def test_runs_of_one_are_those_that_each_event_alone_would_be(seed, together, monkeypatch):
    monkeypatch.setattr(staging, "_TOGETHER", together)
    r = random.Random(seed)
    events = [any_event(r, n) for n in range(200)]
    alone = one_by_one(events)
    runs = staging.stage("s", (event for event in events)).runs
    assert b"\n".join(run.body for run in runs) == b"\n".join(run.body for run in alone)
    assert [name for run in runs for name in [(run.type, run.schema, run.tags)] * run.count] == [
        (run.type, run.schema, run.tags) for run in alone
    ]


@pytest.mark.parametrize(
    "bad",
    [Came(n=float("nan")), Came(n="one"), Went(price=0.5), Came(n=1, note=5), ms.Plain("shuffled.Plain", {1: 2}), 7],
)
def test_one_that_cannot_be_appended_takes_all_others_with_it(bad):
    events = [Came(n=1), Went(price=Decimal(1)), bad, Went(price=Decimal(2)), Came(n=2)]
    with ms.open() as log:
        with pytest.raises(ms.InvalidEvent):
            log.append("s", events)
        assert log.head == 0
        log.append("s", [events[0], events[1]])
        assert [type(e.event) for e in log.read("s")] == [Came, Went]
