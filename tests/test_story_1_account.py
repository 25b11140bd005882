"""The first founding story: the account, as a ledger of its events."""

from __future__ import annotations

from decimal import Decimal

import pytest

import millstream as ms
from millstream.testing import FakeClock


class AccountCreated(ms.Event):
    owner: str


class MoneyDeposited(ms.Event):
    amount: Decimal


class MoneyWithdrawn(ms.Event):
    amount: Decimal


class BankAccount(ms.Aggregate):
    owner: str = ""
    balance: Decimal = Decimal(0)

    def create(self, owner: str) -> None:
        if self.version:
            raise ms.Rejected("the account exists already")
        self.record(AccountCreated(owner=owner))

    def deposit(self, amount: Decimal) -> None:
        if amount <= 0:
            raise ms.Rejected("deposit must be positive")
        self.record(MoneyDeposited(amount=amount))

    def withdraw(self, amount: Decimal) -> None:
        if amount > self.balance:
            raise ms.Rejected("not enough money")
        self.record(MoneyWithdrawn(amount=amount))

    @ms.on
    def created(self, event: AccountCreated) -> None:
        self.owner = event.owner

    @ms.on
    def deposited(self, event: MoneyDeposited) -> None:
        self.balance += event.amount

    @ms.on(MoneyWithdrawn)
    def withdrawn(self, event: MoneyWithdrawn) -> None:
        self.balance -= event.amount


NOON = "2024-01-15T12:00:00Z"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock("2024-01-15T09:00:00Z")


@pytest.fixture
def log(home, clock):
    with ms.open(home, clock=clock) as log:
        yield log


@pytest.fixture
def accounts(log, clock) -> ms.Repository[BankAccount]:
    """Created, 1000 deposited and 200 withdrawn in the morning; 500 deposited in the afternoon."""
    accounts = ms.Repository(log, BankAccount)
    accounts.update("account-1", lambda account: account.create("Ann"))
    clock.advance("1h")
    accounts.update("account-1", lambda account: account.deposit(Decimal(1000)))
    clock.advance("1h")
    accounts.update("account-1", lambda account: account.withdraw(Decimal(200)))
    clock.advance("3h")
    accounts.update("account-1", lambda account: account.deposit(Decimal(500)))
    return accounts


def test_the_balance_is_what_the_events_add_up_to(accounts):
    assert accounts.get("account-1").balance == 1300


def test_the_stream_holds_the_events_in_order_with_type_amount_and_time(log, accounts):
    assert [(e.type, e.data.get("amount"), e.time.isoformat()) for e in log.read("account-1")] == [
        ("AccountCreated", None, "2024-01-15T09:00:00+00:00"),
        ("MoneyDeposited", "1000", "2024-01-15T10:00:00+00:00"),
        ("MoneyWithdrawn", "200", "2024-01-15T11:00:00+00:00"),
        ("MoneyDeposited", "500", "2024-01-15T14:00:00+00:00"),
    ]
    assert [e.event for e in log.read("account-1", types=[MoneyDeposited])] == [
        MoneyDeposited(amount=Decimal(1000)),
        MoneyDeposited(amount=Decimal(500)),
    ]


def test_rebuilding_gives_the_same_account(log, accounts):
    one, other = accounts.get("account-1"), ms.Repository(log, BankAccount).get("account-1")
    assert vars(one) == vars(other) == {"owner": "Ann", "balance": Decimal(1300)}
    assert one.version == other.version == 4


def test_reading_until_noon_gives_what_was_recorded_by_then(log, accounts):
    assert [e.type for e in log.read_until(NOON)] == ["AccountCreated", "MoneyDeposited", "MoneyWithdrawn"]


def test_the_account_rebuilt_from_that_is_the_account_at_noon(log, accounts):
    rebuilt = BankAccount("account-1")
    for recorded in log.read_until(NOON):
        rebuilt.record(recorded.event)
    assert rebuilt.balance == 800
    assert vars(accounts.get("account-1", at=NOON)) == vars(rebuilt)


def test_a_reopened_log_gives_the_same_account(shared_home):
    with ms.open(shared_home) as log:
        ms.Repository(log, BankAccount).update("account-1", lambda account: account.deposit(Decimal(1300)))
    with ms.open(shared_home) as log:
        assert ms.Repository(log, BankAccount).get("account-1").balance == 1300
