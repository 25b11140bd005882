"""The shop put together."""

from __future__ import annotations

import os
from typing import Any

import millstream as ms

from .events import Line, OrderPaid, OrderPlaced, PaymentOverdue
from .orders import Article, CancelOrder, Order, PayOrder, PlaceOrder, ShipOrder, StockArticle
from .tables import Tables
from .view import GetOrder, OrderView


class Dunning(ms.Process, starts=[OrderPlaced]):
    """Orders that are not paid within a quarter of an hour are cancelled, and their stock is free again."""

    name = "ShopDunning"

    @ms.on
    def placed(self, event: OrderPlaced) -> None:
        self.after("15m", PaymentOverdue())

    @ms.on
    def paid(self, event: OrderPaid) -> None:
        self.end()

    @ms.on
    def overdue(self, event: PaymentOverdue) -> None:
        self.send(CancelOrder(self.id, "not paid"))
        self.end()


def make(path: str = "shop.db", *, view: str | None = None, dunning: bool = True, **options: Any) -> ms.App:
    """The shop on a log, with the pages' read model in a file of its own, by default beside it."""
    log = ms.open(path, **options)
    pages = OrderView.into(view or f"{os.path.splitext(path)[0]}-view.db")
    app = ms.App(log, projections=[Tables.inline(), pages], processes=[Dunning] if dunning else [])

    @app.command
    def stock_article(command: StockArticle, article: Article) -> None:
        article.stock(command.count)

    @app.command
    def place_order(command: PlaceOrder, order: Order) -> None:
        order.place(command.customer, [Line(each.article, each.count, each.price) for each in command.lines])

    @app.command
    def pay_order(command: PayOrder, order: Order) -> None:
        order.pay(command.amount)

    @app.command
    def ship_order(command: ShipOrder, order: Order) -> None:
        order.ship(command.carrier)

    @app.command
    def cancel_order(command: CancelOrder, order: Order) -> None:
        order.cancel(command.reason)

    @app.query(reads=[OrderView])
    def get_order(query: GetOrder, db: ms.Database) -> dict[str, Any]:
        found = db.one("select * from order_view where id = ?", (query.order,))
        if found is None:
            raise ms.NotFound(f"there is no order {query.order!r}")
        return found

    return app
