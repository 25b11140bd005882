"""The bank: everything that can be asked of it, on one log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import polars as pl

import millstream as ms

from .accounts import Account, Transfer, transfer
from .balances import BalancePerCustomer, Balances, balance_per_customer
from .customers import Register, names, register


class Bank:
    """A bank whose books are in a log."""

    def __init__(self, log: ms.Log) -> None:
        self.log = log
        self.accounts = ms.Repository(log, Account)
        self.app = ms.App(log, projections=[Balances.inline()])
        self.app.command(transfer)
        self.app.query(balance_per_customer)

    # --- what changes something -------------------------------------------------------------------------

    def register(self, customer: str, name: str, email: str) -> None:
        register(self.log, Register(customer, name, email))

    def open(self, account: str, customer: str) -> None:
        if not self.log.version(customer):
            raise ms.NotFound(f"there is no customer {customer!r}")
        self.accounts.update(account, lambda found: found.open(customer))

    def deposit(self, account: str, amount: Decimal) -> Decimal:
        """The new balance, as with all that moves money."""
        self.accounts.update(account, lambda found: found.deposit(amount))
        return self.balance(account)

    def withdraw(self, account: str, amount: Decimal) -> Decimal:
        self.accounts.update(account, lambda found: found.withdraw(amount))
        return self.balance(account)

    def charge(self, account: str, amount: Decimal, reason: str, *, since: str | None = None) -> Decimal:
        self.accounts.update(account, lambda found: found.charge(amount, reason, since=since))
        return self.balance(account)

    def transfer(self, source: str, target: str, amount: Decimal, *, id: str | None = None) -> Decimal:
        """With an id, the same transfer takes effect once, however often it is asked for."""
        self.app.execute(Transfer(source, target, amount), id=id)
        return self.balance(source)

    def forget(self, customer: str) -> ms.Forgotten:
        """Their name and address are gone, everywhere; the accounts stay, and the books still balance."""
        return self.log.forget(customer)

    # --- what only looks --------------------------------------------------------------------------------

    def balance(self, account: str) -> Decimal:
        return self.accounts.get(account).balance

    def statement(self, account: str) -> Iterator[dict[str, Any]]:
        """Each event of an account: when it was recorded, when it was true, what it changed."""
        before = Decimal(0)
        for step in self.accounts.history(account):
            recorded, after = step.recorded, step.state.balance
            yield {
                "recorded": recorded.time.date(),
                "effective": (recorded.effective or recorded.time).date(),
                "what": recorded.type,
                "amount": after - before,
                "balance": after,
            }
            before = after

    def sheet(self, at: datetime | None = None, *, known: datetime | None = None) -> pl.DataFrame:
        """All accounts as the books had them at a time; with ``known``, what was true then, as far as it was known."""
        if known is not None and at is None:
            at = self.log.now()
        return self.accounts.as_of(at, known=known, streams="account-*")

    def customers(self) -> list[dict[str, Any]]:
        """All customers with an account, and what they have in all."""
        known = names(self.log)
        rows = self.app.query(BalancePerCustomer())
        return [{"customer": row["customer"], "name": known[row["customer"]], **row} for row in rows]
