"""Documents: one for each key, folded from the events of many streams."""

from __future__ import annotations

import time
import types
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from kept import into_of

import millstream as ms


class Ordered(ms.Event, type="DocsOrdered"):
    customer: str
    cents: int


class Moved(ms.Event, type="DocsMoved"):
    city: str


class Paired(ms.Event, type="DocsPaired"):
    one: str
    other: str


class Left(ms.Event, type="DocsLeft"):
    who: str


class Customer(msgspec.Struct):
    orders: int = 0
    cents: int = 0
    city: str | None = None
    big: bool = False
    friends: list[str] = []
    last: datetime | None = None
    share: Decimal = Decimal(0)


class Customers(ms.Documents[Customer]):
    key = {Ordered: "customer", Moved: "_stream", Left: "who"}
    columns = ["cents", "city", "big", "share", "last"]
    schema = "create index customers_by_city on customers (city)"

    def keys_of(self, event: Any, recorded: ms.Recorded) -> Any:
        if isinstance(event, Paired):
            return [event.one, event.other] if event.one != event.other else None
        return super().keys_of(event, recorded)

    @ms.on
    def ordered(self, event: Ordered, customer: Customer, recorded: ms.Recorded) -> None:
        if event.cents < 0:
            raise ValueError("nobody pays that")
        customer.orders += 1
        customer.cents += event.cents
        customer.big = customer.cents > 100
        customer.share = Decimal(customer.cents) / 8
        customer.last = recorded.time

    @ms.on
    def moved(self, event: Moved, customer: Customer) -> Customer:
        return msgspec.structs.replace(customer, city=event.city)

    @ms.on
    def paired(self, event: Paired, customer: Customer, key: str) -> None:
        customer.friends.append(event.other if key == event.one else event.one)

    @ms.on
    def left(self, event: Left, customer: Customer) -> object:
        return self.gone


class GetCustomer(ms.Query[Customer | None]):
    name: str


class Rich(ms.Query[list[str]]):
    pass


@pytest.fixture(params=["file", "log", "live", "inline", "duckdb", "postgres"])
def placed(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kind = request.param
    if kind in ("live", "inline"):
        return getattr(Customers, kind)()
    return Customers.into(into_of(request, kind, tmp_path))


def app_of(log: ms.Log, placed: Any) -> ms.App:
    app = ms.App(log, projections=[placed])

    @app.query
    def get_customer(query: GetCustomer, db: ms.Database) -> Customer | None:
        return placed.projection.get(db, query.name)  # type: ignore[no-any-return]

    @app.query
    def rich(query: Rich, db: ms.Database) -> list[str]:
        return list(placed.projection.find(db, "cents > ? order by cents desc", (50,)))

    return app


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ms.Log]:
    with ms.open(str(tmp_path / "log.db"), clock=lambda: datetime(2024, 1, 15, tzinfo=UTC)) as log:
        yield log


class Stamped(msgspec.Struct):
    id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    made: datetime = msgspec.field(default_factory=datetime.now)
    inner: list[int] = []


def test_a_document_whose_defaults_are_computed_is_of_one_version_at_each_start_and_of_another_when_they_change() -> (
    None
):
    class Stamps(ms.Documents[Stamped]):
        key = "_stream"

        @ms.on
        def anything(self, event: Moved, stamp: Stamped) -> None: ...

    class Other(msgspec.Struct):
        id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex[:8])
        made: datetime = msgspec.field(default_factory=datetime.now)
        inner: list[int] = []

    first, again = Stamps._made_of(), Stamps._made_of()
    assert first == again

    class Stamps(ms.Documents[Other]):  # type: ignore[no-redef]
        key = "_stream"

        @ms.on
        def anything(self, event: Moved, stamp: Other) -> None: ...

    assert Stamps._made_of()[2] != first[2]


def test_each_key_has_the_fold_of_its_events_from_all_streams(log: ms.Log, placed: Any) -> None:
    log.append("order-1", [Ordered(customer="Ann", cents=60), Ordered(customer="Bob", cents=55)])
    log.append("order-2", Ordered(customer="Ann", cents=50))
    with app_of(log, placed) as app:
        log.append("Ann", Moved(city="Bern"))
        log.append("pairs", [Paired(one="Ann", other="Bob"), Paired(one="Ann", other="Ann")])
        log.append("bulk", [Ordered(customer=f"c-{n % 50}", cents=1) for n in range(500)])
        receipt = log.append("leave", [Left(who="c-1"), Left(who="nobody"), Left(who="c-2")])
        log.append("order-3", Ordered(customer="c-2", cents=3))
        ann = app.query(GetCustomer("Ann"), after=receipt)
        assert ann == Customer(2, 110, "Bern", True, ["Bob"], datetime(2024, 1, 15, tzinfo=UTC), Decimal("13.75"))
        assert app.query(Rich()) == ["Ann", "Bob"]
        assert app.query(GetCustomer("c-1")) is None
        assert app.query(GetCustomer("c-2"), fresh=True).cents == 3  # type: ignore[union-attr]
        if not placed.inline and not placed.live:
            assert app.compare(Customers).same
    # The past, from the same folds.
    if placed.path is None or not placed.path.startswith("postgres"):
        assert app.query(GetCustomer("Ann"), at=ms.Position(2)).cents == 60  # type: ignore[union-attr]


def test_an_event_that_fails_is_found_among_those_that_are_folded_together(log: ms.Log, tmp_path: Path) -> None:
    app = app_of(log, Customers.into(str(tmp_path / "read.db")))
    log.append("o", [Ordered(customer="Ann", cents=-1 if n == 37 else 1) for n in range(60)])
    with app:
        with pytest.raises(ms.ProjectionFailed) as caught:
            app.query(GetCustomer("Ann"), fresh=True)
        assert caught.value.position == 38
        assert app.query(GetCustomer("Ann")).cents == 37  # type: ignore[union-attr]
        app.skip(Customers)
        assert app.query(GetCustomer("Ann"), fresh=True).cents == 59  # type: ignore[union-attr]


def test_other_documents_are_built_beside(log: ms.Log, tmp_path: Path) -> None:
    log.append("order-1", Ordered(customer="Ann", cents=60))
    with app_of(log, Customers.into(str(tmp_path / "read.db"))) as app:
        app.query(GetCustomer("Ann"), fresh=True)

    @dataclass
    class Wider:
        cents: int = 0
        amounts: list[int] = field(default_factory=list)

    class Other(ms.Documents[Wider]):
        name = "Customers"
        table = "customers"
        key = "customer"
        columns = ("cents",)

        @ms.on
        def ordered(self, event: Ordered, document: Wider) -> None:
            document.cents += event.cents
            document.amounts.append(event.cents)

    with app_of(log, Other.into(str(tmp_path / "read.db"))) as app:
        deadline = time.monotonic() + 10
        while [each.state for each in app.read_models()[0].versions] != ["previous", "live"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert app.query(GetCustomer("Ann"), fresh=True) == Wider(60, [60])


def test_what_cannot_be_kept_as_documents_is_refused() -> None:
    class Bare(msgspec.Struct):
        name: str

    def declare(document: Any, **names: Any) -> Any:
        def ordered(self: Any, event: Ordered, document: Any) -> None: ...

        body = {"ordered": ms.on(Ordered)(ordered), **names}
        return types.new_class("Refused", (ms.Documents[document],), exec_body=lambda found: found.update(body))

    for document, names, said in [
        (Bare, {"key": "customer"}, "cannot be a document"),
        (Customer, {}, "has no key"),
        (Customer, {"key": 3}, "key is 3"),
        (Customer, {"key": "customer", "columns": "cents"}, "is a text"),
        (Customer, {"key": "customer", "columns": ["no"]}, "no field of Customer"),
    ]:
        with pytest.raises(ms.UsageError, match=said):
            declare(document, **names)
    with pytest.raises(ms.UsageError, match="what its documents are"):
        type("Refused", (ms.Documents,), {})


def test_a_key_that_an_event_does_not_have_is_an_error_and_not_a_document_less() -> None:
    class Wrong(ms.Documents[Customer]):
        key: Any = "costumer"

        @ms.on
        def ordered(self, event: Ordered, customer: Customer) -> None: ...

    class Lacking(Wrong):
        key = {Moved: "city"}

    with pytest.raises(ms.InvalidHandler, match="no field 'costumer' to be the key"):
        Wrong.live()
    with pytest.raises(ms.InvalidHandler, match="it handles no such event"):
        Lacking.live()


class Scored(ms.Event, type="DocsScored", subject="who"):
    who: str
    by: float
    name: ms.Personal[str] = ""


class Score(msgspec.Struct):
    points: int = 0
    share: float = 0.0
    name: str = ""


class Scores(ms.Documents[Score]):
    key = "who"
    columns = ["name"]

    def keys_of(self, event: Any, recorded: ms.Recorded) -> Any:
        return [event.who, event.who] if event.by < 7 else [7]

    @ms.on
    def scored(self, event: Scored, score: Score) -> Any:
        score.name = event.name
        if event.by == 5:
            return True
        score.points += event.by if event.by % 1 else int(event.by)  # type: ignore[assignment]
        score.share = float("nan") if event.by == 4 else 0.0
        return None


@pytest.mark.parametrize("bad", [0.5, 4, 5, 7])
def test_what_could_not_be_read_again_fails_at_its_event_and_each_key_counts_once(log: ms.Log, bad: float) -> None:
    app = ms.App(log, projections=[Scores.inline()])

    @app.query
    def rich(query: Rich, db: ms.Database) -> list[str]:
        return [f"{who} {score.points}" for who, score in Scores.find(db).items()]

    log.append("a", Scored(who="Ann", by=2))
    with pytest.raises(ms.MillstreamError):
        log.append("a", Scored(who="Ann", by=bad))
    log.append("a", Scored(who="Ann", by=1))
    assert app.query(Rich()) == ["Ann 3"]


def test_what_was_forgotten_is_folded_as_its_text(log: ms.Log) -> None:
    log.append("a", Scored(who="Ann", by=2, name="Ann Smith"))
    log.forget("Ann")
    app = ms.App(log, projections=[Scores.live()])

    @app.query
    def rich(query: Rich, db: ms.Database) -> list[str]:
        return [score.name for score in Scores.find(db, "name = '[erased]'").values()]

    assert app.query(Rich()) == ["[erased]"]


class Measured(ms.Event, type="DocsMeasured"):
    amount: str
    minutes: int


class Grade(Enum):
    LOW = 9
    HIGH = 10


class Measure(msgspec.Struct):
    amount: Decimal = Decimal(0)
    took: timedelta | None = None
    moment: datetime | None = None
    ref: uuid.UUID | None = None
    grade: Grade = Grade.LOW
    size: Literal[9, 10] = 9
    ratio: int | float = 0


class Measures(ms.Documents[Measure]):
    columns = ["amount", "took", "moment", "ref", "grade", "size", "ratio"]
    key = "amount"

    @ms.on
    def measured(self, event: Measured, measure: Measure) -> None:
        measure.amount = Decimal(event.amount)
        measure.took = timedelta(minutes=event.minutes)
        zone = timezone(timedelta(hours=event.minutes % 12))
        measure.moment = datetime(2024, 1, 1, tzinfo=UTC).astimezone(zone) + timedelta(minutes=event.minutes)
        measure.ref = uuid.UUID(int=event.minutes)
        if event.minutes > 300:
            measure.grade, measure.size, measure.ratio = Grade.HIGH, 10, 10
        else:
            measure.ratio = 9.5


BOUNDS: dict[str, Any] = {
    "took": timedelta(minutes=300),
    "moment": datetime(2024, 1, 1, 7, tzinfo=timezone(timedelta(hours=2))),
    "ref": uuid.UUID(int=300),
    "grade": Grade.LOW,
    "size": 9,
    "ratio": 9.75,
}


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", ["file", "duckdb", "postgres"])
def test_columns_of_decimals_durations_times_and_ids_compare_as_their_values_do(
    log: ms.Log, request: pytest.FixtureRequest, tmp_path: Path, kind: str, many: bool
) -> None:
    into = {"file": str(tmp_path / "read.db"), "duckdb": str(tmp_path / "read.duckdb")}
    place = request.getfixturevalue("postgres") if kind == "postgres" else into[kind]
    amounts = ["9.5", "10", "-2", "100.25", "0.000001", "1e3", "-0.5"] + [str(n) for n in range(200, 240 * many)]
    minutes = {amount: n * n * 7 - 300 for n, amount in enumerate(amounts)}
    app = ms.App(log, projections=[Measures.into(place)])

    @app.query
    def rich(query: Rich, db: ms.Database) -> list[str]:
        found = [list(Measures.find(db, f"true order by {each}")) for each in ("took", "moment", "ref")]
        assert found[0] == found[1] == sorted(amounts, key=minutes.__getitem__)
        assert list(Measures.find(db, "ref = ?", (str(uuid.UUID(int=300)),))) == ["9.5"]
        later = [each for each in amounts if minutes[each] > 300]
        for column, bound in BOUNDS.items():
            assert sorted(Measures.find(db, f"{column} > ?", [bound])) == sorted(later), column
        assert list(Measures.find(db, "amount > :least and amount < 11", {"least": Decimal("9.75")})) == ["10"]
        more = Measures.find(db, "amount > 9.75 order by amount")
        assert list(more) == sorted((each for each in amounts if Decimal(each) > 10 - Decimal("0.25")), key=Decimal)
        assert more["1e3"].amount == Decimal("1e3")
        return list(Measures.find(db, "true order by amount"))

    minutes = {amount: abs(each) for amount, each in minutes.items()}
    log.append("m", [Measured(amount=amount, minutes=minutes[amount]) for amount in amounts])
    with app:
        assert app.query(Rich(), fresh=True) == sorted(amounts, key=Decimal)
