"""The write side's tables: normalised, changed in the commit of the events, with constraints that guard them."""

from __future__ import annotations

import millstream as ms

from .events import ArticleStocked, OrderCancelled, OrderPaid, OrderPlaced, OrderShipped


class Tables(ms.Projection):
    """Customers, orders, their lines and the stock. No order takes what is not there."""

    name = "ShopTables"
    schema = """
    create table stock (article text primary key, free integer not null check (free >= 0));
    create table customers (id integer primary key, name text not null unique);
    create table orders (
        id text primary key,
        customer integer not null references customers (id),
        status text not null check (status in ('placed', 'paid', 'shipped', 'cancelled'))
    );
    create table order_lines (
        order_id text not null references orders (id),
        article text not null references stock (article),
        count integer not null check (count > 0),
        price text not null,
        primary key (order_id, article)
    );
    """

    @ms.on
    def stocked(self, event: ArticleStocked, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute(
            "insert into stock values (?, ?) on conflict (article) do update set free = stock.free + excluded.free",
            (recorded.stream, event.count),
        )

    @ms.on
    def placed(self, event: OrderPlaced, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute(
            "insert into customers select coalesce(max(id), 0) + 1, ? from customers where true"
            " on conflict (name) do nothing",
            (event.customer,),
        )
        db.execute(
            "insert into orders select ?, id, 'placed' from customers where name = ?",
            (recorded.stream, event.customer),
        )
        for line in event.lines:
            db.execute(
                "insert into order_lines values (?, ?, ?, ?)",
                (recorded.stream, line.article, line.count, str(line.price)),
            )
            db.execute("update stock set free = free - ? where article = ?", (line.count, line.article))

    @ms.on
    def paid(self, event: OrderPaid, db: ms.Database, recorded: ms.Recorded) -> None:
        self._become("paid", db, recorded)

    @ms.on
    def shipped(self, event: OrderShipped, db: ms.Database, recorded: ms.Recorded) -> None:
        self._become("shipped", db, recorded)

    @ms.on
    def cancelled(self, event: OrderCancelled, db: ms.Database, recorded: ms.Recorded) -> None:
        self._become("cancelled", db, recorded)
        db.execute(
            "update stock set free = stock.free + (select l.count from order_lines l"
            " where l.order_id = ? and l.article = stock.article)"
            " where article in (select article from order_lines where order_id = ?)",
            (recorded.stream, recorded.stream),
        )

    def _become(self, status: str, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("update orders set status = ? where id = ?", (status, recorded.stream))
