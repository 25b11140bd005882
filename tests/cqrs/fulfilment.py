"""An order that is to be paid and shipped: what the tests of processes and outboxes play with."""

from __future__ import annotations

import sys
from typing import Any

import millstream as ms


class Placed(ms.Event, type="FulfilPlaced"):
    article: str = "article-1"


class Paid(ms.Event, type="FulfilPaid"):
    order: str


class Reserved(ms.Event, type="FulfilReserved"):
    order: str


class Released(ms.Event, type="FulfilReleased"):
    order: str


class Shipped(ms.Event, type="FulfilShipped"):
    pass


class Cancelled(ms.Event, type="FulfilCancelled"):
    reason: str


class Overdue(ms.Event, type="FulfilOverdue"):
    pass


class Order(ms.Aggregate, ignore="*"):
    cancelled: bool = False

    @ms.on
    def placed(self, event: Placed) -> None: ...

    @ms.on
    def shipped(self, event: Shipped) -> None: ...

    @ms.on
    def on_cancelled(self, event: Cancelled) -> None:
        self.cancelled = True


class Article(ms.Aggregate):
    reserved: int = 0

    @ms.on
    def on_reserved(self, event: Reserved) -> None:
        self.reserved += 1

    @ms.on
    def on_released(self, event: Released) -> None:
        self.reserved -= 1


class Place(ms.Command):
    order: ms.Ref[Order]
    article: str = "article-1"


class Reserve(ms.Command):
    article: ms.Ref[Article]
    order: str


class Release(ms.Command):
    article: ms.Ref[Article]
    order: str


class Ship(ms.Command):
    order: ms.Ref[Order]


class Cancel(ms.Command):
    order: ms.Ref[Order]
    reason: str


class Fulfilment(ms.Process, key="order", starts=[Placed]):
    paid: bool = False
    refused: str = ""

    @ms.on
    def placed(self, event: Placed) -> None:
        self.send(Reserve(event.article, self.id), undo=Release(event.article, self.id))
        self.after("15m", Overdue())

    @ms.on
    def on_paid(self, event: Paid, recorded: ms.Recorded) -> None:
        self.paid = True
        self.cancel(Overdue)
        self.send(Ship(self.id))
        self.post("mail", {"shipped": self.id}, key=self.id)

    @ms.on
    def overdue(self, event: Overdue) -> None:
        self.compensate()
        self.send(Cancel(self.id, "it was not paid"))
        self.end()

    @ms.on
    def rejected(self, event: ms.CommandRejected) -> None:
        self.refused = event.reason
        self.compensate()
        self.send(Cancel(self.id, event.reason))
        self.end()


def fulfilling(log: ms.Log, **options: Any) -> ms.App:
    app = ms.App(log, processes=[Fulfilment], **options)

    @app.command
    def place(command: Place, order: Order) -> None:
        order.record(Placed(article=command.article))

    @app.command
    def reserve(command: Reserve, article: Article) -> None:
        if command.article == "article-none":
            raise ms.Rejected("there is none left")
        article.record(Reserved(order=command.order))

    @app.command
    def release(command: Release, article: Article) -> None:
        article.record(Released(order=command.order))

    @app.command
    def ship(command: Ship, order: Order) -> None:
        if command.order.startswith("order-stuck"):
            raise ms.Rejected("no lorry")
        order.record(Shipped())

    @app.command
    def cancel(command: Cancel, order: Order) -> None:
        order.record(Cancelled(reason=command.reason))

    return app


if __name__ == "__main__":
    with ms.open(sys.argv[1]) as log:
        app = fulfilling(log)
        app.start()
        print("ready", flush=True)
        sys.stdin.readline()
        app.stop()
