"""Snapshots: made by themselves, used for the present and the past, and never the truth."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from typing import Any

import psycopg
import pytest

import millstream as ms
from sourcing.banking import Account, Deposited, Opened, account


@pytest.fixture
def log(home: str | None) -> Iterator[ms.Log]:
    with ms.open(home) as log:
        yield log


@pytest.fixture(params=[Account, account], ids=["class", "decider"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def fill(log: ms.Log, count: int, stream: str = "account-1") -> None:
    with log.transaction() as tx:
        for n in range(count):
            tx.append(stream, Deposited(amount=Decimal(n)))


def corrupt(log: ms.Log, sql: str) -> None:
    with log.transaction() as tx:
        tx.db.execute(sql.format(table=tx.db.own("millstream_snapshots")))


def test_one_is_made_every_so_many_events_and_loads_begin_there(log, kind):
    accounts = ms.Repository(log, kind, snapshot_every=10, snapshot_after=None, cache=0)
    for n in range(35):
        accounts.update("account-1", lambda a, n=n: _deposit(a, n + 1))
    assert accounts.snapshots.count("account-1") == 3
    # A snapshot that says something else shows that it was used.
    corrupt(log, "delete from {table} where version < 30")
    assert accounts.get("account-1").balance == sum(range(36))
    assert accounts.snapshots.count() == 1


def _deposit(target: Any, amount: int) -> Any:
    if isinstance(target, Account):
        return target.deposit(amount)
    return Deposited(amount=Decimal(amount))


def test_they_are_what_is_read_instead_of_the_events_before_them(log):
    accounts = ms.Repository(log, Account, snapshot_every=10, snapshot_after=None, cache=0)
    fill(log, 25)
    accounts.get("account-1")
    state = '{"owner":"from a snapshot","balance":"7","entries":[]}'
    with log.transaction() as tx:
        tx.db.execute(f"update {tx.db.own('millstream_snapshots')} set state = ?", (state.encode(),))
    assert accounts.get("account-1").owner == "from a snapshot"
    assert accounts.get("account-1", at=12).owner == "from a snapshot"
    assert accounts.get("account-1", at=9).owner == ""


def test_the_past_is_the_same_with_and_without(log, kind):
    for start in range(0, 2500, 500):
        # Runs of many events, and single ones.
        log.append("account-1", [Deposited(amount=Decimal(n)) for n in range(start, start + 400)])
        fill(log, 100)
    with_ = ms.Repository(log, kind, snapshot_every=10, snapshot_after=None, cache=0)
    without = ms.Repository(log, kind, snapshot_every=None, cache=0)
    with_.get("account-1")
    assert with_.snapshots.count() > 50
    assert without.snapshots.count() == with_.snapshots.count()
    for version in (0, 1, 9, 10, 11, 500, 999, 1000, 1001, 2499, 2500):
        one, other = with_.get("account-1", at=version), without.get("account-1", at=version)
        assert (one.balance, list(one.entries)) == (other.balance, list(other.entries))


def test_a_slow_load_leaves_one(log):
    fill(log, 15)
    accounts = ms.Repository(log, Account, snapshot_every=1_000, snapshot_after=0.0, cache=0)
    accounts.get("account-1")
    assert accounts.snapshots.count() == 1
    accounts.get("account-1")
    assert accounts.snapshots.count() == 1


def test_one_of_other_code_or_shape_is_passed_over(log):
    def account_class(factor: int, **options: Any) -> type[Any]:
        class Account(ms.Aggregate, **options):
            balance: Decimal = Decimal(0)

            @ms.on
            def deposited(self, event: Deposited) -> None:
                self.balance += event.amount * factor

        return Account

    def subclass(base: type[Any]) -> type[Any]:
        class Account(base):
            pass

        return Account

    fill(log, 20)
    kinds = [account_class(1), account_class(2), account_class(1, version=2), subclass(account_class(2))]
    prints = [ms.Repository(log, kind).snapshots.fingerprint for kind in kinds]
    assert len(set(prints)) == 4
    assert ms.Repository(log, account_class(1)).snapshots.fingerprint == prints[0]
    for kind, factor in zip(kinds, (1, 2, 1, 2), strict=True):
        accounts = ms.Repository(log, kind, snapshot_every=5, snapshot_after=None, cache=0)
        for _ in range(2):
            assert accounts.get("account-1").balance == sum(range(20)) * factor
        assert accounts.snapshots.count() == 4


def order_class(field: str = "total", *, factor: int = 1, first: int = 0) -> Any:
    def add(self: Any, amount: Decimal) -> None:
        setattr(self, field, getattr(self, field) + factor * amount)

    line: Any = make_dataclass("Line", [(field, Decimal, Decimal(first))], namespace={"add": add})

    class Order(ms.Aggregate):
        lines: dict[str, line] = {}
        goal: Decimal = Decimal(first)

        @ms.on
        def deposited(self, event: Deposited) -> None:
            self.lines.setdefault("one", line()).add(event.amount)

    return Order


def order_decider(field: str = "total", *, factor: int = 1, first: int = 0) -> Any:
    hints = order_class(field, factor=factor, first=first)._shape()[0]
    order = make_dataclass("Order", [("lines", hints["lines"]), ("goal", Decimal, Decimal(first))])
    line = hints["lines"].__args__[1]

    def evolve(order: Any, event: Deposited) -> Any:
        order.lines.setdefault("one", line()).add(event.amount)
        return order

    return ms.Decider(order({}), lambda order, command: None, evolve, name="Order")


@pytest.mark.parametrize("kind", [order_class, order_decider])
@pytest.mark.parametrize("change", [{"field": "sum"}, {"factor": 2}, {"first": 5}])
def test_what_a_state_holds_counts_as_well_with_its_shape_its_code_and_its_defaults(log, kind, change):
    fill(log, 20)
    before = ms.Repository(log, kind(), snapshot_every=5, snapshot_after=None, cache=0)
    before.get("account-1")
    assert before.snapshots.count() == 4
    after = ms.Repository(log, kind(**change), snapshot_every=5, snapshot_after=None, cache=0)
    assert after.snapshots.count() == 0
    found, field = after.get("account-1"), change.get("field", "total")
    assert getattr(found.lines["one"], field) == 190 * change.get("factor", 1) + change.get("first", 0)
    assert found.goal == change.get("first", 0)
    again = ms.Repository(log, kind(), snapshot_every=5, snapshot_after=None, cache=0)
    assert again.snapshots.count() == 4, "the same is the same"


def test_one_that_does_not_decode_is_dropped_with_a_warning(log, kind):
    accounts = ms.Repository(log, kind, snapshot_every=10, snapshot_after=None, cache=0)
    fill(log, 25)
    before = accounts.get("account-1")
    with log.transaction() as tx:
        tx.db.execute(f"update {tx.db.own('millstream_snapshots')} set state = ?", (b"{nonsense",))
    with pytest.warns(ms.SnapshotWarning, match="cannot be read"):
        assert accounts.get("account-1").balance == before.balance
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert accounts.get("account-1").balance == before.balance
    assert accounts.snapshots.count() == 2


def test_a_state_that_would_not_come_back_the_same_is_not_kept(log):
    class Odd(ms.Aggregate):
        seen: Any = None

        @ms.on
        def deposited(self, event: Deposited) -> None:
            self.seen = (1, 2)

    fill(log, 20)
    odd = ms.Repository(log, Odd, snapshot_every=5, snapshot_after=None, cache=0)
    with pytest.warns(ms.SnapshotWarning, match="cannot be kept"):
        assert odd.get("account-1").seen == (1, 2)
    assert odd.get("account-1").seen == (1, 2)
    assert odd.snapshots.count() == 0


def test_a_state_that_holds_one_object_in_two_places_is_not_torn_apart(log):
    @dataclass
    class Line:
        total: Decimal = Decimal(0)

    class Order(ms.Aggregate):
        lines: list[Line] = []
        last: Line | None = None

        @ms.on
        def deposited(self, event: Deposited) -> None:
            if self.last is None:
                self.last = Line()
                self.lines.append(self.last)
            self.last.total += event.amount

    fill(log, 20)
    whole = ms.Repository(log, Order, snapshot_every=5, snapshot_after=None)
    with pytest.warns(ms.SnapshotWarning, match="in two places"):
        assert whole.get("account-1").lines == [Line(Decimal(190))]
    with whole.edit("account-1") as order:
        order.record(Deposited(amount=Decimal(10)))
        assert order.lines == [Line(Decimal(200))]
    again = ms.Repository(log, Order, snapshot_every=5, snapshot_after=None, cache=0)
    with pytest.warns(ms.SnapshotWarning):
        assert again.get("account-1", at=19).lines == [Line(Decimal(171))]
    assert again.snapshots.count() == 0


def test_they_can_be_deleted_and_rebuilt(log, kind):
    accounts = ms.Repository(log, kind, snapshot_every=10, snapshot_after=None, cache=0)
    fill(log, 25)
    fill(log, 25, "account-2")
    accounts.get("account-1")
    assert accounts.snapshots.rebuild("account-2") == 2
    assert accounts.snapshots.count() == 4
    assert accounts.snapshots.rebuild() == 4
    assert accounts.snapshots.delete("account-2") == 2
    assert accounts.snapshots.count() == 2
    assert accounts.snapshots.delete() == 2
    assert accounts.snapshots.delete() == 0
    assert accounts.get("account-1").balance == 300
    with pytest.raises(ms.UsageError, match="keeps no snapshots"):
        ms.Repository(log, kind, snapshot_every=None).snapshots.rebuild()


def test_a_rebuild_makes_them_all_along_a_long_stream(log):
    fill(log, 4_321)
    accounts = ms.Repository(log, Account, snapshot_every=500, snapshot_after=None, cache=0)
    assert accounts.snapshots.rebuild("account-1") == 8
    assert accounts.get("account-1", at=2_600).balance == sum(range(2_600))


def test_a_log_that_is_only_read_needs_none(shared_home):
    with ms.open(shared_home) as log:
        fill(log, 50)
    with ms.open(shared_home, readonly=True) as log:
        accounts = ms.Repository(log, Account, snapshot_every=10, snapshot_after=0.0)
        assert accounts.get("account-1").balance == sum(range(50))
        assert accounts.snapshots.count() == 0


def test_what_is_loaded_inside_a_transaction_leaves_them_to_later_loads(log, kind):
    fill(log, 20)
    accounts = ms.Repository(log, kind, snapshot_every=5, snapshot_after=None, cache=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with log.transaction() as tx:
            tx.db.execute("select 1")
            assert accounts.get("account-1").balance == 190
        assert accounts.snapshots.count() == 0
        assert accounts.get("account-1").balance == 190
    assert accounts.snapshots.count() == 4


def test_they_are_made_again_when_there_is_room_again(tmp_path):
    with ms.open(tmp_path / "log.db") as log:
        fill(log, 20)
        accounts = ms.Repository(log, Account, snapshot_every=5, snapshot_after=None, cache=0)
        connection = log.store.writer.connection
        pages = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count = {pages}")
        with pytest.warns(ms.SnapshotWarning, match="no room"):
            assert accounts.get("account-1").balance == 190
        connection.execute(f"pragma max_page_count = {pages + 1000}")
        assert accounts.get("account-1").balance == 190
        assert accounts.snapshots.count() == 4


def test_other_processes_use_them(shared_home):
    with ms.open(shared_home) as one, ms.open(shared_home) as other:
        fill(one, 30)
        ms.Repository(one, Account, snapshot_every=10, snapshot_after=None).get("account-1")
        assert ms.Repository(other, Account).snapshots.count("account-1") == 3


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "10"])
def test_a_number_of_events_that_is_none_is_refused(log, wrong):
    with pytest.raises(ms.UsageError, match="snapshot_every"):
        ms.Repository(log, Account, snapshot_every=wrong)


def test_a_snapshot_made_inside_a_stream_of_another_kind_is_not_taken(log):
    class Other(ms.Aggregate):
        owner: str = ""

        @ms.on
        def opened(self, event: Opened) -> None:
            self.owner = event.owner

    log.append("order-1", Opened(owner="Ann"))
    fill(log, 30)
    ms.Repository(log, Account, snapshot_every=10, snapshot_after=None).get("account-1")
    with pytest.raises(ms.WrongAggregate, match="no Other: it begins with 'Deposited'"):
        ms.Repository(log, Other).get("account-1")
    with pytest.raises(ms.WrongAggregate):
        ms.Repository(log, Other).update("account-1", lambda other: None)


def test_a_role_that_may_only_read_uses_them_and_makes_none(postgres, postgres_server):
    with ms.open(postgres) as log:
        fill(log, 30)
        ms.Repository(log, Account, snapshot_every=10, snapshot_after=None).get("account-1")
        corrupt(log, 'update {table} set state = convert_to(\'{{"owner":"from a snapshot","entries":[]}}\', \'UTF8\')')
    with psycopg.connect(postgres, autocommit=True) as connection:
        for sql in (
            "create role snapshots_reader login",
            "grant usage on schema millstream to snapshots_reader",
            "grant select on all tables in schema millstream to snapshots_reader",
            "grant execute on all functions in schema millstream to snapshots_reader",
        ):
            connection.execute(sql)
    url = postgres.replace("postgres@", "snapshots_reader@")
    try:
        with ms.open(url) as log:
            accounts = ms.Repository(log, Account, snapshot_every=10, snapshot_after=0.0, cache=0)
            assert accounts.get("account-1").owner == "from a snapshot"
            assert accounts.get("account-1", at=25).owner == "from a snapshot"
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("revoke select on millstream.millstream_snapshots from snapshots_reader")
        with ms.open(url) as log:
            assert ms.Repository(log, Account, cache=0).get("account-1").balance == sum(range(30))
    finally:
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("drop owned by snapshots_reader")
            connection.execute("drop role snapshots_reader")
