"""A quarter of the bank's life, for something to look at: played into a new log with a clock of its own."""

from __future__ import annotations

from decimal import Decimal

import millstream as ms
from millstream.testing import FakeClock

from .bank import Bank


def play(path: str) -> int:
    """Play it.

    Returns:
        How many events the log has then.
    """
    clock = FakeClock("2024-01-02T09:00:00Z")
    with ms.open(path, clock=clock) as log:
        if log.head:
            raise ms.Rejected(f"{path} is in use; the story begins with a new log")
        bank = Bank(log)
        bank.register("customer-1", "Ann Miller", "ann@example.org")
        bank.register("customer-2", "Ben Okafor", "ben@example.org")
        bank.open("account-1", "customer-1")
        bank.open("account-2", "customer-2")
        bank.open("account-3", "customer-1")
        # As the bank's first program wrote it: in cents.
        log.append("account-1", ms.Plain("MoneyDeposited", {"cents": 100_000}, schema=1), expect=1)
        clock.set("2024-01-20T09:00:00Z")
        bank.transfer("account-1", "account-2", Decimal("250.00"))
        bank.withdraw("account-2", Decimal("40.00"))
        clock.set("2024-02-14T09:00:00Z")
        bank.deposit("account-3", Decimal("75.50"))
        clock.set("2024-03-05T09:00:00Z")
        bank.charge("account-1", Decimal("12.00"), "fee for January", since="2024-01-31T12:00:00Z")
        return log.head
