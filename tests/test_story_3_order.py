"""The third founding story: the order, with a write side and a read side of its own."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

import millstream as ms


class OrderPlaced(ms.Event, type="StoryOrderPlaced"):
    customer: str
    lines: list[tuple[str, int, Decimal]]


class OrderShipped(ms.Event, type="StoryOrderShipped"):
    carrier: str


class Order(ms.Aggregate):
    status: str = "new"

    def place(self, customer: str, lines: list[tuple[str, int, Decimal]]) -> None:
        if self.status != "new":
            raise ms.Rejected("the order was placed before")
        if not lines:
            raise ms.Rejected("an order needs a line", field="lines")
        self.record(OrderPlaced(customer=customer, lines=lines))

    def ship(self, carrier: str) -> None:
        if self.status != "placed":
            raise ms.Rejected(f"an order that is {self.status} cannot be shipped")
        self.record(OrderShipped(carrier=carrier))

    @ms.on
    def placed(self, event: OrderPlaced) -> None:
        self.status = "placed"

    @ms.on
    def shipped(self, event: OrderShipped) -> None:
        self.status = "shipped"


class Orders(ms.Projection):
    """The write database: normalised, and with constraints."""

    schema = """
    create table customers (id integer primary key, name text not null unique);
    create table orders (id text primary key, customer integer not null references customers);
    create table order_lines (
        order_id text not null references orders, product text not null,
        quantity integer not null check (quantity > 0), price text not null,
        primary key (order_id, product)
    );
    """

    @ms.on
    def placed(self, event: OrderPlaced, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute(
            "insert into customers select count(*) + 1, ? from customers where true on conflict (name) do nothing",
            (event.customer,),
        )
        db.execute("insert into orders select ?, id from customers where name = ?", (recorded.stream, event.customer))
        db.executemany(
            "insert into order_lines values (?, ?, ?, ?)",
            [(recorded.stream, product, quantity, str(price)) for product, quantity, price in event.lines],
        )


class OrderSummary(ms.Projection):
    """A read model: one row for each order, as the query wants it."""

    schema = "create table order_summary (id text primary key, customer text, total text, status text)"

    @ms.on
    def placed(self, event: OrderPlaced, db: ms.Database, recorded: ms.Recorded) -> None:
        total = sum(quantity * price for _, quantity, price in event.lines)
        db.execute(
            "insert into order_summary values (?, ?, ?, 'placed')",
            (recorded.stream, event.customer, str(total)),
        )

    @ms.on
    def shipped(self, event: OrderShipped, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("update order_summary set status = 'shipped' where id = ?", (recorded.stream,))


class CustomerTotals(ms.Projection):
    """Another read model for another view, in a file of its own."""

    schema = "create table customer_totals (customer text primary key, orders integer not null)"

    @ms.on
    def placed(self, event: OrderPlaced, db: ms.Database) -> None:
        db.execute(
            "insert into customer_totals values (?, 1) on conflict do update set orders = orders + 1",
            (event.customer,),
        )


class PlaceOrder(ms.Command):
    order: ms.Ref[Order]
    customer: str
    lines: list[tuple[str, int, Decimal]]


class ShipOrder(ms.Command):
    order: ms.Ref[Order]
    carrier: str


class GetOrder(ms.Query[dict[str, Any]]):
    order: str


class CountOrders(ms.Query[int]):
    customer: str


@pytest.fixture
def log(shared_home):
    with ms.open(shared_home) as log:
        yield log


@pytest.fixture
def app(log, tmp_path):
    app = ms.App(
        log,
        projections=[
            Orders.inline(),
            OrderSummary.into(str(tmp_path / "read.db")),
            CustomerTotals.into(str(tmp_path / "totals.db")),
        ],
    )

    @app.command
    def place_order(command: PlaceOrder, order: Order) -> None:
        order.place(command.customer, command.lines)

    @app.command
    def ship_order(command: ShipOrder, order: Order) -> None:
        order.ship(command.carrier)

    @app.query
    def get_order(query: GetOrder, db: ms.Database) -> dict[str, Any]:
        found = db.one("select * from order_summary where id = ?", (query.order,))
        if found is None:
            raise ms.NotFound(f"there is no order {query.order!r}")
        return found

    @app.query(reads=[CustomerTotals])
    def count_orders(query: CountOrders, db: ms.Database) -> int:
        found = db.one("select orders from customer_totals where customer = ?", (query.customer,))
        return found["orders"] if found else 0

    with app:
        yield app


PLACE = PlaceOrder("order-1", "Ann", [("tea", 2, Decimal("4.50")), ("cup", 1, Decimal(6))])


def test_an_accepted_command_puts_the_event_into_the_stream(log, app):
    receipt = app.execute(PLACE)
    assert [(e.position, e.type) for e in log.read("order-1")] == [(receipt.position, "StoryOrderPlaced")]
    assert next(log.read("order-1")).event == OrderPlaced(customer="Ann", lines=PLACE.lines)


def test_a_rejected_command_leaves_nothing(log, app):
    app.execute(PLACE)
    with pytest.raises(ms.Rejected, match="placed before"):
        app.execute(PLACE)
    with pytest.raises(ms.Rejected, match="needs a line"):
        app.execute(PlaceOrder("order-2", "Ann", []))
    assert log.head == 1


def test_the_write_database_is_normalised_and_changed_in_the_same_commit(log, app):
    app.execute(PLACE)
    with log.connect() as db:
        assert db.query(
            "select o.id, c.name, l.product, l.quantity, l.price from orders o"
            " join customers c on c.id = o.customer join order_lines l on l.order_id = o.id order by product"
        ) == [
            {"id": "order-1", "name": "Ann", "product": "cup", "quantity": 1, "price": "6"},
            {"id": "order-1", "name": "Ann", "product": "tea", "quantity": 2, "price": "4.50"},
        ]


def test_a_constraint_of_the_write_database_rejects_the_command_and_leaves_no_event(log, app):
    with pytest.raises(ms.ConstraintViolated, match=r"(?i)check"):
        app.execute(PlaceOrder("order-1", "Ann", [("tea", 0, Decimal(4))]))
    assert log.head == 0
    with log.connect() as db:
        assert db.query("select * from customers") == []


def test_the_query_is_answered_from_the_denormalised_read_model(app):
    app.execute(PLACE)
    receipt = app.execute(ShipOrder("order-1", "DHL"))
    assert app.query(GetOrder("order-1"), after=receipt) == {
        "id": "order-1",
        "customer": "Ann",
        "total": "15.00",
        "status": "shipped",
    }


def test_several_read_models_serve_several_views(app):
    app.execute(PLACE)
    receipt = app.execute(PlaceOrder("order-2", "Ann", [("pot", 1, Decimal(20))]))
    assert app.query(CountOrders("Ann"), after=receipt) == 2
    assert app.query(GetOrder("order-2"), after=receipt)["total"] == "20"


def test_reads_need_no_writer(log, app, tmp_path):
    """They scale on their own: another process, or this one after the workers have ended, reads the files."""
    receipt = app.execute(PLACE)
    assert app.query(GetOrder("order-1"), after=receipt)["customer"] == "Ann"
    app.stop()
    assert app.query(GetOrder("order-1"), after=receipt)["customer"] == "Ann"
