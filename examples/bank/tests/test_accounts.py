"""The rules about one account, and about two."""

from __future__ import annotations

from decimal import Decimal

import millstream as ms
from millstream.testing import given

from ..accounts import Account
from ..events import AccountOpened, FeeCharged, MoneyDeposited, MoneySent, MoneyWithdrawn

OPENED = AccountOpened(customer="customer-1")
account = given([OPENED, MoneyDeposited(amount=Decimal(100))], of=Account, stream="account-1")


def test_what_is_there_can_be_withdrawn() -> None:
    account.when(lambda it: it.withdraw(Decimal(100))).then(MoneyWithdrawn(amount=Decimal(100))).then_state(balance=0)


def test_what_is_not_there_can_neither_be_withdrawn_nor_sent() -> None:
    account.when(lambda it: it.withdraw(Decimal(101))).rejects("not enough money")
    account.when(lambda it: it.send(Decimal(101), to="account-2")).rejects("not enough money")


def test_an_amount_is_positive() -> None:
    for amount in (Decimal(0), Decimal(-1)):
        account.when(lambda it, amount=amount: it.deposit(amount)).rejects("must be positive")


def test_an_account_is_opened_once_and_before_it_is_used() -> None:
    account.when(lambda it: it.open("customer-2")).rejects("open already")
    given(of=Account, stream="account-9").when(lambda it: it.deposit(Decimal(1))).rejects("there is no account-9")


def test_a_fee_may_overdraw_and_says_when_it_was_due() -> None:
    fee = FeeCharged(amount=Decimal(120), reason="transfer abroad")
    outcome = account.when(lambda it: it.charge(Decimal(120), "transfer abroad", since="2024-01-31T12:00:00Z"))
    outcome.then(ms.Draft(fee, effective="2024-01-31T12:00:00Z")).then_state(balance=Decimal(-20))


def test_deposits_that_counted_cents_count_as_much_as_before() -> None:
    old = ms.Plain("MoneyDeposited", {"cents": 1050}, schema=1)
    outcome = given([OPENED, old], of=Account).when(lambda it: it.send(Decimal(10), to="account-2"))
    outcome.then(MoneySent(amount=Decimal(10), to="account-2")).then_state(balance=Decimal("0.50"))
