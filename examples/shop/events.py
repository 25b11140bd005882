"""What happens in the shop."""

from __future__ import annotations

from decimal import Decimal

import msgspec

import millstream as ms


class Line(msgspec.Struct, frozen=True):
    """So many of an article, at a price each."""

    article: str
    count: int
    price: Decimal


class ArticleStocked(ms.Event):
    count: int


class OrderPlaced(ms.Event):
    customer: str
    lines: list[Line]


class OrderPaid(ms.Event):
    amount: Decimal


class OrderShipped(ms.Event):
    carrier: str


class OrderCancelled(ms.Event):
    reason: str


class PaymentOverdue(ms.Event):
    """The time for paying is over."""
