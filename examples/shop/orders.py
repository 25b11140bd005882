"""What can be done in the shop, and the rules for it."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

import msgspec

import millstream as ms

from .events import ArticleStocked, Line, OrderCancelled, OrderPaid, OrderPlaced, OrderShipped

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000)]


class Article(ms.Aggregate):
    """An article in the warehouse. How many are free, the write tables know: orders take from many articles."""

    def stock(self, count: int) -> None:
        self.record(ArticleStocked(count=count))

    @ms.on
    def stocked(self, event: ArticleStocked) -> None: ...


class Order(ms.Aggregate):
    status: str = "new"
    total: Decimal = Decimal(0)

    def place(self, customer: str, lines: list[Line]) -> None:
        self._check("new", "placed")
        self.record(OrderPlaced(customer=customer, lines=lines))

    def pay(self, amount: Decimal) -> None:
        self._check("placed", "paid")
        if amount != self.total:
            raise ms.Rejected(f"the order costs {self.total}", field="amount")
        self.record(OrderPaid(amount=amount))

    def ship(self, carrier: str) -> None:
        self._check("paid", "shipped")
        self.record(OrderShipped(carrier=carrier))

    def cancel(self, reason: str) -> None:
        if self.status == "cancelled":
            return
        if self.status not in ("placed", "paid"):
            raise ms.Rejected(f"an order that is {self.status} cannot be cancelled")
        self.record(OrderCancelled(reason=reason))

    def _check(self, needed: str, done: str) -> None:
        if self.status != needed:
            raise ms.Rejected(f"an order that is {self.status} cannot be {done}")

    @ms.on
    def placed(self, event: OrderPlaced) -> None:
        self.status = "placed"
        self.total = sum((line.count * line.price for line in event.lines), Decimal(0))

    @ms.on
    def paid(self, event: OrderPaid) -> None:
        self.status = "paid"

    @ms.on
    def shipped(self, event: OrderShipped) -> None:
        self.status = "shipped"

    @ms.on
    def cancelled(self, event: OrderCancelled) -> None:
        self.status = "cancelled"


class StockArticle(ms.Command):
    article: ms.Ref[Article]
    count: Count


class Wanted(msgspec.Struct, frozen=True):
    """So many of an article."""

    article: str
    count: Count
    price: Decimal


class PlaceOrder(ms.Command):
    order: ms.Ref[Order]
    customer: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
    lines: Annotated[list[Wanted], msgspec.Meta(min_length=1, max_length=20)]

    def check(self) -> None:
        if len({line.article for line in self.lines}) < len(self.lines):
            raise ms.Rejected("an article stands in two lines", field="lines")


class PayOrder(ms.Command):
    order: ms.Ref[Order]
    amount: Decimal


class ShipOrder(ms.Command):
    order: ms.Ref[Order]
    carrier: str


class CancelOrder(ms.Command):
    order: ms.Ref[Order]
    reason: str
