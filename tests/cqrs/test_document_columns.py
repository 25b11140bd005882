"""What the columns of documents cannot hold: a failure of that event, the same wherever the read model is kept."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kept import into_of

import millstream as ms


class Weighed(ms.Event, type="ColumnsWeighed"):
    item: str
    field: str
    value: str


class Weight(msgspec.Struct):
    number: int = 0
    took: timedelta = timedelta(0)
    amount: Decimal = Decimal(0)
    ratio: int | float = 0
    times: int = 0


class Weights(ms.Documents[Weight]):
    key = "item"
    columns = ["number", "took", "amount", "ratio", "times"]
    on_failure = "skip"

    @ms.on
    def weighed(self, event: Weighed, weight: Weight) -> None:
        kinds: dict[str, Any] = {
            "number": int, "amount": Decimal, "ratio": int, "took": lambda days: timedelta(days=int(days))
        }  # fmt: skip
        setattr(weight, event.field, kinds[event.field](event.value))
        weight.times += 1


class ColumnsStop(Weights):
    table = "weights_stop"
    on_failure = "stop"


class Above(ms.Query[dict[str, int]]):
    bound: Any


GOOD = [
    ("number", str(2**63 - 1)), ("number", str(-(2**63))), ("took", "-100000"), ("amount", "9" * 28 + ".1"),
    ("ratio", "5"),
]  # fmt: skip
BAD = [
    ("number", str(2**63)), ("number", "-" + "9" * 4000), ("took", "999999999"), ("amount", "1" + "0" * 28),
    ("amount", "9" * 28 + ".99999999999"), ("ratio", "1" + "0" * 400),
]  # fmt: skip


@pytest.fixture(params=["file", "log", "memory", "live", "inline", "duckdb", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    kind = request.param
    if kind in ("live", "inline"):
        return kind, None
    return "into", into_of(request, kind, tmp_path)


def placed(cls: Any, where: tuple[str, Any]) -> Any:
    kind, into = where
    return cls.into(into) if kind == "into" else getattr(cls, kind)()


def test_a_value_beyond_its_column_fails_at_its_event_and_the_others_are_kept(log: ms.Log, where: Any) -> None:
    app = ms.App(log, projections=[placed(Weights, where)])

    @app.query
    def above(query: Above, db: ms.Database) -> dict[str, int]:
        return {key: each.times for key, each in Weights.find(db, "number > ? order by key", (query.bound,)).items()}

    for number, (field, value) in enumerate([*BAD, *GOOD]):
        for item in (f"i-{number}", "all"):
            refused = where[0] == "inline" and (field, value) in BAD
            with pytest.raises(ms.UsageError, match="beyond") if refused else contextlib.nullcontext():
                log.append("s", Weighed(item=item, field=field, value=value))
    with app:
        assert app.query(Above(0), fresh=True) == {"i-6": 1}
        assert app.query(Above(-1)) == {"i-10": 1, "i-6": 1, "i-8": 1, "i-9": 1}
        found = app.query(Above(-(2**63) - 1))
        assert found == {"all": 5, "i-10": 1, "i-6": 1, "i-7": 1, "i-8": 1, "i-9": 1}
        assert app.query(Above(2**200)) == {}
        assert app.query(Above(-(2**200))) == found
        if where[0] == "into":
            failures = app.failures("Weights")
            assert {each.position for each in failures} == set(range(1, 13))
            assert all("beyond" in each.error and each.error.startswith("UsageError") for each in failures)


class Kept(msgspec.Struct):
    times: int = 0
    seen: list[str] = []
    last: Any = None


class Keeping(ms.Documents[Kept]):
    key = "item"

    @ms.on
    def weighed(self, event: Weighed, kept: Kept) -> None:
        kept.times += 1
        kept.seen.append(type(kept.last).__name__)
        kept.last = (event.value, event.field)  # what is read again of it is a list


def test_a_document_is_the_same_however_many_events_come_at_once(log: ms.Log, tmp_path: Path) -> None:
    batched, single = ms.App(log, projections=[Keeping.live()]), ms.App(log, projections=[Keeping.live()])
    found = []
    for app in (batched, single):

        @app.query
        def above(query: Above, db: ms.Database) -> Any:
            return Keeping.get(db, "a")

    for number in range(3):
        log.append("s", Weighed(item="a", field="number", value=str(number)))
        found.append(single.query(Above(0)))
    assert batched.query(Above(0)) == found[-1] == Kept(3, ["NoneType", "list", "list"], ["2", "number"])


def test_so_does_it_stop_where_that_is_the_policy(log: ms.Log, where: Any) -> None:
    app = ms.App(log, projections=[placed(ColumnsStop, where)])

    @app.query
    def above(query: Above, db: ms.Database) -> dict[str, int]:
        return {key: each.times for key, each in ColumnsStop.find(db).items()}

    log.append("s", Weighed(item="a", field="ratio", value="1"))
    if where[0] == "inline":  # no policy there: it rejects the append
        with pytest.raises(ms.UsageError, match="beyond 64 bits"):
            log.append("s", Weighed(item="a", field="number", value=str(2**70)))
        assert app.query(Above(0)) == {"a": 1}
        return
    log.append("s", Weighed(item="a", field="number", value=str(2**70)))
    with app, pytest.raises(ms.ProjectionFailed, match="beyond 64 bits") as caught:
        app.query(Above(0), fresh=True)
    assert caught.value.position == 2


def test_what_sqlite_does_not_hold_is_a_typed_error(log: ms.Log) -> None:
    with log.transaction() as tx:
        tx.db.execute("create table odd (n)")
        for value in (2**63, "\ud800"):
            with pytest.raises(ms.DatabaseError, match="does not hold"):
                tx.db.execute("insert into odd values (?)", (value,))
            with pytest.raises(ms.DatabaseError, match="does not hold"):
                tx.db.executemany("insert into odd values (?)", [(1,), (value,)])
