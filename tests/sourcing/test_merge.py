"""Events that do not conflict go through beside another writer's."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

import millstream as ms
from sourcing.banking import Account, Deposited, Opened, Withdrawn, account

COMMUTING = {Deposited: [Deposited, Withdrawn], "Withdrawn": ["Opened"]}


@pytest.fixture
def log(home: str | None) -> Iterator[ms.Log]:
    with ms.open(home) as log:
        log.append("account-1", [Opened(owner="Ann"), Deposited(amount=Decimal(100))])
        yield log


def test_edit_lets_commuting_events_through(log):
    accounts = ms.Repository(log, Account, non_conflicting=COMMUTING)
    with accounts.edit("account-1") as found:
        log.append("account-1", [Withdrawn(amount=Decimal(30)), Deposited(amount=Decimal(1))])
        found.deposit(5)
    assert [e.type for e in log.read("account-1")] == ["Opened", "Deposited", "Withdrawn", "Deposited", "Deposited"]
    assert (found.version, found.balance) == (5, 76)
    assert accounts.get("account-1").balance == 76


def test_edit_refuses_the_others(log):
    accounts = ms.Repository(log, Account, non_conflicting=COMMUTING)
    with pytest.raises(ms.VersionConflict):
        with accounts.edit("account-1") as found:
            log.append("account-1", Withdrawn(amount=Decimal(100)))
            found.withdraw(50)
    assert accounts.get("account-1").balance == 0


def test_update_appends_without_deciding_again(log):
    accounts = ms.Repository(log, Account, non_conflicting=COMMUTING)
    tries: list[int] = []

    def change(found: Account) -> None:
        if not tries:
            log.append("account-1", Withdrawn(amount=Decimal(30)))
        tries.append(found.version)
        found.deposit(5)

    receipt = accounts.update("account-1", change)
    assert (tries, receipt.version) == ([2], 4)
    assert accounts.get("account-1").balance == 75


def test_a_function_of_two_events_decides_as_well(log):
    def small(mine: Any, theirs: Any) -> bool:
        return bool(mine.amount + theirs.amount < 10)

    accounts = ms.Repository(log, account, non_conflicting=small)
    with accounts.edit("account-1") as loaded:
        log.append("account-1", Deposited(amount=Decimal(1)))
        loaded.record(Deposited(amount=Decimal(2)))
    assert loaded.state.balance == 103
    with pytest.raises(ms.VersionConflict):
        with accounts.edit("account-1") as loaded:
            log.append("account-1", Deposited(amount=Decimal(8)))
            loaded.record(Deposited(amount=Decimal(2)))


def test_create_never_merges(log):
    accounts = ms.Repository(log, Account, non_conflicting={Deposited: [Opened, Deposited]})
    with pytest.raises(ms.VersionConflict):
        accounts.create("account-1", lambda a: a.deposit(1))


@pytest.mark.parametrize("wrong", [5, {Deposited: Deposited}, {Deposited: "Deposited"}, {5: [Deposited]}])
def test_what_is_neither_a_mapping_nor_a_function_is_refused(log, wrong):
    with pytest.raises(ms.MillstreamError):
        ms.Repository(log, Account, non_conflicting=wrong)
