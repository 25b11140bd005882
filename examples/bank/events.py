"""What happens in the bank. Events stay for good: a class changes only so that those of before can still be read."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import millstream as ms


class CustomerRegistered(ms.Event, subject="customer"):
    customer: str
    name: ms.Personal[str]
    email: ms.Personal[str]


class AccountOpened(ms.Event):
    customer: str


class MoneyDeposited(ms.Event, schema=2):
    amount: Decimal


@ms.upcast(MoneyDeposited, since=2)
def in_whole_money(data: dict[str, Any]) -> dict[str, Any]:
    """The bank's first events counted cents."""
    return {"amount": str(Decimal(data["cents"]) / 100)}


class MoneyWithdrawn(ms.Event):
    amount: Decimal


class MoneySent(ms.Event):
    amount: Decimal
    to: str


class MoneyReceived(ms.Event):
    amount: Decimal
    sender: str


class FeeCharged(ms.Event):
    amount: Decimal
    reason: str
