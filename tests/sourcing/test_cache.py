"""Hot aggregates: kept in memory, and right all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal

import pytest

import millstream as ms
from sourcing.banking import Account, Deposited, Open, Withdraw, account


@pytest.fixture
def log(home: str | None) -> Iterator[ms.Log]:
    with ms.open(home) as log:
        yield log


@pytest.fixture
def accounts(log: ms.Log) -> ms.Repository[Account]:
    accounts = ms.Repository(log, Account)
    accounts.update("account-1", lambda a: a.deposit(100))
    return accounts


def test_what_another_writer_appends_is_seen(log, accounts):
    log.append("account-1", Deposited(amount=Decimal(5)))
    assert accounts.get("account-1").balance == 105
    log.append("account-1", Deposited(amount=Decimal(5)))
    with accounts.edit("account-1") as found:
        assert found.balance == 110
        found.deposit(1)
    log.append("account-1", Deposited(amount=Decimal(5)))
    accounts.update("account-1", lambda a: a.deposit(1))
    assert accounts.get("account-1").balance == 117
    assert accounts.get("account-1").version == 6


def test_a_rejection_is_decided_on_what_is_there_now(log, accounts):
    log.append("account-1", Deposited(amount=Decimal(900)))
    accounts.update("account-1", lambda a: a.withdraw(1000))
    assert accounts.get("account-1").balance == 0


def test_a_change_that_finds_nothing_to_do_is_decided_on_what_is_there_now(log, accounts):
    log.append("account-1", Deposited(amount=Decimal(900)))
    receipt = accounts.update("account-1", lambda a: a.withdraw(1) if a.balance == 1000 else None)
    assert receipt.count == 1


def test_a_rejected_change_leaves_no_trace(accounts):
    def broken(found: Account) -> None:
        found.deposit(5)
        found.entries.append(Decimal(77))
        raise ms.Rejected("no")

    with pytest.raises(ms.Rejected):
        accounts.update("account-1", broken)
    assert accounts.get("account-1").entries == [100]


def test_nothing_is_kept_nor_saved_of_what_a_handler_left_half_changed(log, accounts):
    class Fragile(ms.Aggregate):
        seen: list[Decimal] = []

        @ms.on
        def deposited(self, event: Deposited) -> None:
            self.seen.append(event.amount)
            if event.amount == 13:
                raise ms.Rejected("not 13")

    def swallow(found: Fragile, *then: int) -> None:
        for amount in (13, *then):
            with suppress(ms.Rejected):
                found.record(Deposited(amount=Decimal(amount)))

    fragile = ms.Repository(log, Fragile)
    for then in ((), (1,)):
        with pytest.raises(ms.CannotRecord, match="half changed"):
            fragile.update("account-1", lambda found, then=then: swallow(found, *then))
        with pytest.raises(ms.CannotRecord, match="half changed"), fragile.edit("account-1") as found:
            swallow(found, *then)
    assert fragile.get("account-1").seen == [100]
    assert log.version("account-1") == 1


def test_what_a_caller_holds_is_not_changed_by_the_next(accounts):
    held: list[Account] = []
    accounts.update("account-1", held.append)
    accounts.update("account-1", lambda a: (held.append(a), a.deposit(1))[1])
    accounts.update("account-1", lambda a: a.deposit(1))
    assert [each.balance for each in held] == [100, 101]
    got = accounts.get("account-1")
    got.entries.clear()
    got.balance = Decimal(-1)
    assert accounts.get("account-1").balance == 102
    assert len(accounts.get("account-1").entries) == 3


def test_an_aggregate_may_be_updated_inside_an_update_of_another(accounts):
    def change(found: Account) -> None:
        accounts.update("account-2", lambda a: a.deposit(1))
        found.deposit(1)

    accounts.update("account-1", change)
    assert accounts.get("account-1").balance == 101
    assert accounts.get("account-2").balance == 1


def test_an_update_inside_one_that_records_nothing_is_made_but_twice(log, accounts):
    for _ in range(2):
        before = log.version("account-1")
        accounts.update("account-1", lambda _: accounts.update("account-1", lambda a: a.deposit(1)))
        assert log.version("account-1") <= before + 2


def test_an_aggregate_may_be_read_inside_its_own_update(accounts):
    accounts.update("account-1", lambda a: a.deposit(int(accounts.get("account-1").balance)))
    assert accounts.get("account-1").balance == 200


def test_only_so_many_are_kept(log):
    accounts = ms.Repository(log, Account, cache=2)
    for n in range(5):
        accounts.update(f"account-{n}", lambda a: a.deposit(1))
    assert len(accounts._cache._kept) == 2
    assert not accounts._cache._turns
    assert [accounts.get(f"account-{n}").balance for n in range(5)] == [1] * 5


def test_what_was_read_in_a_transaction_that_is_undone_is_forgotten():
    log = ms.open()
    accounts = ms.Repository(log, Account)
    accounts.update("account-1", lambda a: a.deposit(100))

    class Boom(Exception):
        pass

    def handler(db: ms.Database, runs: list[ms.Run]) -> None:
        accounts.get("account-1")
        raise Boom

    log.inline("look", [Deposited], handler)
    with pytest.raises(Boom):
        log.append("account-1", Deposited(amount=Decimal(5)))
    assert accounts.get("account-1").balance == 100


@pytest.mark.parametrize("kind", [Account, account], ids=["class", "decider"])
def test_many_threads_and_two_logs_on_one_file_lose_nothing(shared_home, kind):
    with ms.open(shared_home) as one, ms.open(shared_home) as other:
        repositories = [ms.Repository(log, kind, snapshot_every=7) for log in (one, other)]

        def work(k: int) -> None:
            repository = repositories[k % 2]
            for _ in range(10):
                if kind is Account:
                    repository.update("account-1", lambda a: a.deposit(1))
                else:
                    repository.update("account-1", lambda state: Deposited(amount=Decimal(1)))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert repositories[0].get("account-1").balance == 80
        assert repositories[1].get("account-1").balance == 80
        assert one.version("account-1") == 80


def test_a_decider_s_rejection_is_decided_on_what_is_there_now(log):
    accounts = ms.Repository(log, account)
    accounts.decide("account-9", Open("Ann"))
    log.append("account-9", Deposited(amount=Decimal(900)))
    accounts.decide("account-9", Withdraw(900))
    assert accounts.get("account-9").balance == 0
