"""Accounts: the rules about one of them, and a transfer between two."""

from __future__ import annotations

from decimal import Decimal

import millstream as ms

from .events import AccountOpened, FeeCharged, MoneyDeposited, MoneyReceived, MoneySent, MoneyWithdrawn


class Account(ms.Aggregate):
    customer: str = ""
    balance: Decimal = Decimal(0)

    def open(self, customer: str) -> None:
        if self.customer:
            raise ms.Rejected(f"{self.id} is open already")
        self.record(AccountOpened(customer=customer))

    def deposit(self, amount: Decimal) -> None:
        self._check(amount)
        self.record(MoneyDeposited(amount=amount))

    def withdraw(self, amount: Decimal) -> None:
        self._check_covered(amount)
        self.record(MoneyWithdrawn(amount=amount))

    def send(self, amount: Decimal, to: str) -> None:
        self._check_covered(amount)
        self.record(MoneySent(amount=amount, to=to))

    def receive(self, amount: Decimal, sender: str) -> None:
        self._check(amount)
        self.record(MoneyReceived(amount=amount, sender=sender))

    def charge(self, amount: Decimal, reason: str, *, since: str | None = None) -> None:
        """A fee may overdraw the account, and may have been due before today."""
        self._check(amount)
        self.record(FeeCharged(amount=amount, reason=reason), effective=since)

    def _check(self, amount: Decimal) -> None:
        if not self.customer:
            raise ms.Rejected(f"there is no {self.id}")
        if amount <= 0:
            raise ms.Rejected("an amount must be positive", field="amount")

    def _check_covered(self, amount: Decimal) -> None:
        self._check(amount)
        if amount > self.balance:
            raise ms.Rejected(f"there is not enough money on {self.id}", field="amount")

    @ms.on
    def opened(self, event: AccountOpened) -> None:
        self.customer = event.customer

    @ms.on
    def credited(self, event: MoneyDeposited | MoneyReceived) -> None:
        self.balance += event.amount

    @ms.on
    def debited(self, event: MoneyWithdrawn | MoneySent | FeeCharged) -> None:
        self.balance -= event.amount


class Transfer(ms.Command):
    source: ms.Ref[Account]
    target: ms.Ref[Account]
    amount: Decimal


def transfer(command: Transfer, source: Account, target: Account) -> None:
    """Both accounts are saved in one commit, and decided on again if one of them has changed meanwhile."""
    if source is target:
        raise ms.Rejected("money cannot be sent to the account that it comes from", field="target")
    source.send(command.amount, to=target.id)
    target.receive(command.amount, sender=source.id)
