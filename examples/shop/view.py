"""The read side: one row for each order, as the shop's pages show it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import millstream as ms

from .events import OrderCancelled, OrderPaid, OrderPlaced, OrderShipped


class OrderView(ms.Projection):
    """All that a page shows of an order, in one row."""

    name = "ShopOrderView"
    schema = """
    create table order_view (
        id text primary key, customer text not null, items text not null, total text not null,
        status text not null, note text not null
    )
    """

    @ms.on
    def placed(self, event: OrderPlaced, db: ms.Database, recorded: ms.Recorded) -> None:
        items = ", ".join(f"{line.count} × {line.article}" for line in event.lines)
        total = sum((line.count * line.price for line in event.lines), Decimal(0))
        db.execute(
            "insert into order_view values (?, ?, ?, ?, 'placed', '')",
            (recorded.stream, event.customer, items, str(total)),
        )

    @ms.on
    def paid(self, event: OrderPaid, db: ms.Database, recorded: ms.Recorded) -> None:
        self._become("paid", "", db, recorded)

    @ms.on
    def shipped(self, event: OrderShipped, db: ms.Database, recorded: ms.Recorded) -> None:
        self._become("shipped", event.carrier, db, recorded)

    @ms.on
    def cancelled(self, event: OrderCancelled, db: ms.Database, recorded: ms.Recorded) -> None:
        self._become("cancelled", event.reason, db, recorded)

    def _become(self, status: str, note: str, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("update order_view set status = ?, note = ? where id = ?", (status, note, recorded.stream))


class GetOrder(ms.Query[dict[str, Any]]):
    order: str
